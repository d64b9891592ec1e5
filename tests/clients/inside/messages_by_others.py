"""pydantic-ai and litellm, when they take us for Anthropic: `/v1/messages` behind their own interfaces."""

from __future__ import annotations

import asyncio
import os

import litellm
import pydantic
import pytest
from conftest import BAD_KEY, FRANCE
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

litellm.suppress_debug_info = True
POOR = os.environ["INTERLACE_POOR_KEY"]


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


def agent(server, name: str = "", key: str = "", **more) -> Agent:
    """An agent over the Anthropic model class."""
    provider = AnthropicProvider(base_url=server.url, api_key=key or server.key)
    settings = {"max_tokens": 64, "temperature": 0.0}
    return Agent(AnthropicModel(name or server.model, provider=provider), model_settings=settings, **more)


def asked(server, **more) -> dict:
    """What every call of litellm says."""
    return {
        "model": f"anthropic/{server.model}", "api_base": server.url, "api_key": server.key, "max_retries": 0,
        "messages": [{"role": "user", "content": FRANCE}], "max_tokens": 12, "temperature": 0, **more,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_counts_what_is_billed(server, agrees, stream) -> None:
    """The text, and usage equal to the bill, by the id of the answer."""

    async def streamed():
        async with agent(server, instructions="Be brief.").run_stream(FRANCE) as running:
            return "".join([text async for text in running.stream_text(delta=True)]), running

    if stream:
        text, done = asyncio.run(streamed())
    else:
        done = agent(server, instructions="Be brief.").run_sync(FRANCE)
        text = done.output
    assert "Paris" in text
    agrees(done.response.provider_response_id, done.usage.input_tokens, done.usage.output_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_an_agents_output_of_a_class(server, stream) -> None:
    """By a tool it must use; pydantic-ai sends a format only to the models of Anthropic it knows."""
    describer = agent(server, output_type=ToolOutput(City), retries=0)
    question = "Describe the city of Paris: name and country."

    async def streamed() -> City:
        async with describer.run_stream(question) as running:
            return await running.get_output()

    assert isinstance(asyncio.run(streamed()) if stream else describer.run_sync(question).output, City)


@pytest.mark.parametrize(
    ("name", "key", "question", "status"),
    [("nobody", "", FRANCE, {404}), ("", BAD_KEY, FRANCE, {401}), ("", POOR, FRANCE, {400, 402, 429}),
     ("", "", "word " * 9000, {400})],
    ids=["no such model", "bad key", "no budget", "too long"],
)  # fmt: skip
def test_an_agents_errors(server, name, key, question, status) -> None:
    """`ModelHTTPError` with the status and Anthropic's body."""
    with pytest.raises(ModelHTTPError) as caught:
        agent(server, name, key).run_sync(question)
    assert caught.value.status_code in status
    assert caught.value.body["error"]["message"]


def test_litellm_counts_what_is_billed(server, agrees) -> None:
    """Whole and streamed answers say the same and count what the bill counts."""
    whole = litellm.completion(**asked(server))
    assert "Paris" in whole.choices[0].message.content
    request_id = whole._hidden_params["additional_headers"]["llm_provider-request-id"]
    agrees(request_id, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    chunks = list(litellm.completion(**asked(server, stream=True, stream_options={"include_usage": True})))
    built = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason
    assert (built.usage.prompt_tokens, built.usage.completion_tokens) == (
        whole.usage.prompt_tokens, whole.usage.completion_tokens,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"model": "anthropic/nobody"}, litellm.NotFoundError),
        ({"api_key": BAD_KEY}, litellm.AuthenticationError),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, litellm.ContextWindowExceededError),
    ],
    ids=["no such model", "bad key", "too long"],
)
def test_litellms_errors(server, more, error) -> None:
    """Status and message are those from which litellm finds the class its users catch."""
    with pytest.raises(error):
        litellm.completion(**asked(server, **more))
