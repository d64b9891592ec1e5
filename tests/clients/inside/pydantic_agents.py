"""pydantic-ai: agents over our chat endpoint."""

from __future__ import annotations

import asyncio
import os

import pydantic
import pytest
from conftest import BAD_KEY, FRANCE
from pydantic_ai import Agent, Embedder, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

BRIEF = {"max_tokens": 12, "temperature": 0.0}
LONGER = {"max_tokens": 100, "temperature": 0.0}


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


class Forced(AbstractCapability):
    """Settings that change from step to step, as pydantic-ai wants them for a `tool_choice` that forces."""

    def __init__(self, settings) -> None:
        self.settings = settings

    def get_model_settings(self):
        """The function that makes them."""
        return self.settings


def model(server, name: str = "", key: str = "") -> OpenAIChatModel:
    """The model as its users make it."""
    provider = OpenAIProvider(base_url=server.v1, api_key=key or server.key)
    return OpenAIChatModel(name or server.model, provider=provider)


def test_a_run_counts_what_is_billed(server, agrees) -> None:
    """`run_sync`: the text, and usage equal to the bill."""
    done = Agent(model(server), model_settings=BRIEF, instructions="Be brief.").run_sync(FRANCE)
    assert "Paris" in done.output
    agrees(done.response.provider_response_id, done.usage.input_tokens, done.usage.output_tokens)


def test_a_streamed_run_counts_what_is_billed(server, agrees) -> None:
    """`run_stream`: growing text, then the same counts."""

    async def work() -> tuple[list[str], object]:
        async with Agent(model(server), model_settings=BRIEF).run_stream(FRANCE) as running:
            texts = [text async for text in running.stream_text(delta=True)]
            return texts, running

    texts, running = asyncio.run(work())
    assert "Paris" in "".join(texts)
    usage = running.usage
    agrees(running.response.provider_response_id, usage.input_tokens, usage.output_tokens)


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput])
@pytest.mark.parametrize("stream", [False, True])
def test_an_output_of_a_class(server, way, stream) -> None:
    """By a tool or by a schema, whole or streamed, the instance comes back at the first try."""
    agent = Agent(model(server), output_type=way(City), model_settings=LONGER, retries=0)
    question = "Describe the city of Paris: name and country."

    async def streamed() -> object:
        async with agent.run_stream(question) as running:
            return await running.get_output()

    made = asyncio.run(streamed()) if stream else agent.run_sync(question).output
    assert isinstance(made, City)
    assert made.name


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_run_and_its_result_taken(server, stream) -> None:
    """The agent's loop: the model must call the tool first, the agent runs it, and the model answers in words."""
    cities = []

    def first_the_tool(context: RunContext) -> dict:
        return {**LONGER, "tool_choice": ["look_up"] if context.run_step <= 1 else "none"}

    agent = Agent(model(server), capabilities=[Forced(first_the_tool)], retries=0)

    @agent.tool_plain
    def look_up(city: str) -> str:
        """Look a city up."""
        cities.append(city)
        return "Paris is in France."

    async def streamed() -> str:
        async with agent.run_stream("Use look_up for Paris, then describe it.") as running:
            return await running.get_output()

    question = "Use look_up for Paris, then describe it."
    assert asyncio.run(streamed()) if stream else agent.run_sync(question).output
    assert cities


def test_embeddings(server) -> None:
    """Its embedder gets a vector for each text."""
    provider = OpenAIProvider(base_url=server.v1, api_key=server.key)
    made = asyncio.run(Embedder(OpenAIEmbeddingModel(server.embedder, provider=provider)).embed_documents(["a", "b"]))
    assert len(made.embeddings) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "key", "question", "status"),
    [
        ("nobody", "", FRANCE, 404),
        ("", BAD_KEY, FRANCE, 401),
        ("", os.environ["INTERLACE_POOR_KEY"], FRANCE, 429),
        ("", "", "word " * 9000, 400),
    ],
    ids=["no such model", "bad key", "no budget", "too long"],
)
def test_errors_are_http_errors_of_the_model(server, name, key, question, status, stream) -> None:
    """`ModelHTTPError` with the status and our body, which names message, type and code."""
    agent = Agent(model(server, name, key), model_settings=BRIEF)

    async def streamed() -> None:
        async with agent.run_stream(question):
            pass

    with pytest.raises(ModelHTTPError) as caught:
        asyncio.run(streamed()) if stream else agent.run_sync(question)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body["code"], str)
    assert caught.value.body["message"]
