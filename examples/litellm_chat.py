"""litellm as a client: `openai/` before the model's name, and our address.

pip install litellm
INTERLACE_API_KEY=... python examples/litellm_chat.py
"""

import os

import litellm

call = {
    "model": "openai/" + os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct"),
    "api_base": os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080") + "/v1",
    "api_key": os.environ["INTERLACE_API_KEY"],
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 32,
}

print(litellm.completion(**call).choices[0].message.content)

for chunk in litellm.completion(**call, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
