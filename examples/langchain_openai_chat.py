"""LangChain with `langchain-openai`: ask, stream, fill in a form.

pip install langchain-openai
INTERLACE_API_KEY=... python examples/langchain_openai_chat.py
"""

import os

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

model = ChatOpenAI(
    model=os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct"),
    base_url=os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["INTERLACE_API_KEY"],
    temperature=0,
    max_tokens=64,
)
question = "What is the capital of France?"

print(model.invoke(question).content)

for chunk in model.stream(question):
    print(chunk.content, end="", flush=True)
print()


class City(BaseModel):
    """A city."""

    name: str
    country: str


print(model.with_structured_output(City).invoke("Describe the city of Paris as JSON: name, country."))
