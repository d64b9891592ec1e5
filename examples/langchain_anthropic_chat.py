"""LangChain with `langchain-anthropic`: the same models by Anthropic's API.

pip install langchain-anthropic
INTERLACE_API_KEY=... python examples/langchain_anthropic_chat.py
"""

import os

from langchain_anthropic import ChatAnthropic

model = ChatAnthropic(
    model=os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct"),
    base_url=os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080"),
    api_key=os.environ["INTERLACE_API_KEY"],
    temperature=0,
    max_tokens=32,
)
question = "What is the capital of France?"

print(model.invoke(question).text)

for chunk in model.stream(question):
    print(chunk.text, end="", flush=True)
print()
