"""inspect-ai: a task of one question.

pip install inspect-ai openai
INTERLACE_API_KEY=... python examples/inspect_ai_task.py
"""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

# `openai-api/interlace/...` reads INTERLACE_API_KEY and INTERLACE_BASE_URL.
os.environ.setdefault("INTERLACE_BASE_URL", os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080") + "/v1")
model = "openai-api/interlace/" + os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct")

capitals = Task(
    dataset=[Sample(input="What is the capital of France?", target="Paris")], solver=generate(), scorer=includes()
)
(log,) = eval(capitals, model=model, temperature=0, max_tokens=32, display="plain")
print(log.samples[0].output.completion)
print("accuracy", log.results.scores[0].metrics["accuracy"].value)
