"""The `openai` SDK and the Responses API: ask, go on, stream, get JSON.

pip install openai
INTERLACE_API_KEY=... python examples/openai_responses.py
"""

import os

from openai import OpenAI
from pydantic import BaseModel

MODEL = os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct")
URL = os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ["INTERLACE_API_KEY"])

first = client.responses.create(
    model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=32
)
print(first.output_text)

# The server keeps what was said, until it is deleted.
second = client.responses.create(
    model=MODEL, input="And of Italy?", previous_response_id=first.id, temperature=0, max_output_tokens=32
)
print(second.output_text)
for response in (first, second):
    client.responses.delete(response.id)

with client.responses.stream(
    model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=32, store=False
) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
print()


class City(BaseModel):
    """A city."""

    name: str
    country: str


request = "Describe the city of Paris as JSON: name, country."
parsed = client.responses.parse(model=MODEL, input=request, text_format=City, temperature=0, store=False)
print(parsed.output_parsed)
