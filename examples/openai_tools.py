"""The `openai` SDK: a tool is called, and its result goes back.

pip install openai
INTERLACE_API_KEY=... python examples/openai_tools.py
"""

import json
import os

from openai import OpenAI

MODEL = os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct")
URL = os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ["INTERLACE_API_KEY"])

parameters = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
weather = {"name": "weather", "description": "The weather of a city.", "parameters": parameters}
tools = [{"type": "function", "function": weather}]

messages = [{"role": "user", "content": "What is the weather in Paris?"}]
first = client.chat.completions.create(
    model=MODEL, messages=messages, tools=tools, tool_choice="required", temperature=0
)
messages.append(first.choices[0].message)
for call in first.choices[0].message.tool_calls:
    city = json.loads(call.function.arguments)["city"]
    print(f"The model asks for the weather in {city}.")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": f"It is sunny in {city}, 21 degrees."})
last = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=64)
print(last.choices[0].message.content)
