"""pydantic-ai: an agent that answers in words, in a stream, and with an object.

pip install 'pydantic-ai-slim[openai]'
INTERLACE_API_KEY=... python examples/pydantic_ai_agent.py
"""

import asyncio
import os

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(
    base_url=os.environ.get("INTERLACE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["INTERLACE_API_KEY"],
)
model = OpenAIChatModel(os.environ.get("INTERLACE_MODEL", "smollm2-135m-instruct"), provider=provider)
settings = {"temperature": 0.0, "max_tokens": 100}
question = "What is the capital of France?"


class City(BaseModel):
    """A city."""

    name: str
    country: str


async def main() -> None:
    """Three questions."""
    agent = Agent(model, model_settings=settings)
    print((await agent.run(question)).output)

    async with agent.run_stream(question) as answer:
        async for piece in answer.stream_text(delta=True):
            print(piece, end="", flush=True)
    print()

    describer = Agent(model, model_settings=settings, output_type=City)
    print((await describer.run("Describe the city of Paris.")).output)


asyncio.run(main())
