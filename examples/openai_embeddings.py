"""The `openai` SDK: which of two texts is closer to a third?

pip install openai
INTERLACE_API_KEY=... INTERLACE_EMBEDDING_MODEL=... python examples/openai_embeddings.py
"""

import os

from openai import OpenAI

URL = os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ["INTERLACE_API_KEY"])
texts = ["A man is playing a guitar.", "Somebody plays an instrument.", "The stock market fell sharply today."]

made = client.embeddings.create(model=os.environ["INTERLACE_EMBEDDING_MODEL"], input=texts)
first, *others = (row.embedding for row in made.data)
for text, other in zip(texts[1:], others, strict=True):
    print(f"{sum(a * b for a, b in zip(first, other, strict=True)):.2f}  {text}")
