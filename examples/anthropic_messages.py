"""The `anthropic` SDK: ask, stream, use a tool, count.

pip install anthropic
INTERLACE_API_KEY=... python examples/anthropic_messages.py
"""

import os

from anthropic import Anthropic

MODEL = os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct")
client = Anthropic(
    base_url=os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080"), api_key=os.environ["INTERLACE_API_KEY"]
)
greedy = {"temperature": 0}  # the SDK has no argument for it any more
question = [{"role": "user", "content": "What is the capital of France?"}]

message = client.messages.create(model=MODEL, messages=question, max_tokens=32, extra_body=greedy)
print(message.content[0].text)

with client.messages.stream(model=MODEL, messages=question, max_tokens=32, extra_body=greedy) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()

schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]}
weather = {"name": "weather", "description": "The weather of a city.", "input_schema": schema}
asked = [{"role": "user", "content": "What is the weather in Paris?"}]
message = client.messages.create(
    model=MODEL,
    messages=asked,
    tools=[weather],
    tool_choice={"type": "tool", "name": "weather"},
    max_tokens=64,
    extra_body=greedy,
)
print([block.input for block in message.content if block.type == "tool_use"])

print(client.messages.count_tokens(model=MODEL, messages=question).input_tokens, "tokens")
