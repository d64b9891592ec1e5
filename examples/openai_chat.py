"""The `openai` SDK: ask, stream, call a tool, get JSON, embed.

pip install openai
INTERLACE_API_KEY=... python examples/openai_chat.py
"""

import os

from openai import OpenAI
from pydantic import BaseModel

MODEL = os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct")
URL = os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ["INTERLACE_API_KEY"])
question = [{"role": "user", "content": "What is the capital of France?"}]

answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=32)
print(answer.choices[0].message.content)

for chunk in client.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=32, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()


class City(BaseModel):
    """A city."""

    name: str
    country: str


request = [{"role": "user", "content": "Describe the city of Paris as JSON: name, country."}]
parsed = client.chat.completions.parse(model=MODEL, messages=request, response_format=City, temperature=0)
print(parsed.choices[0].message.parsed)
