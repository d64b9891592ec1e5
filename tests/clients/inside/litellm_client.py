"""litellm as a client: `openai/MODEL` at our address."""

from __future__ import annotations

import asyncio
import json
import os

import litellm
import pydantic
import pytest
from conftest import BAD_KEY, FRANCE

litellm.suppress_debug_info = True

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


def asked(server, **more) -> dict:
    """What every call says."""
    return {
        "model": f"openai/{server.model}", "api_base": server.v1, "api_key": server.key, "max_retries": 0,
        "messages": [{"role": "user", "content": FRANCE}], "max_tokens": 12, "temperature": 0, **more,
    }  # fmt: skip


def test_chat_counts_what_is_billed(server, agrees) -> None:
    """Whole and streamed answers say the same and count what the bill counts."""
    whole = litellm.completion(**asked(server))
    text = whole.choices[0].message.content
    assert "Paris" in text
    agrees(whole.id, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    chunks = list(litellm.completion(**asked(server, stream=True, stream_options={"include_usage": True})))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    built = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason
    agrees(built.id, built.usage.prompt_tokens, built.usage.completion_tokens)


def test_asynchronously(server) -> None:
    """`acompletion`, whole and streamed."""

    async def work() -> tuple[str, str]:
        whole = await litellm.acompletion(**asked(server))
        stream = await litellm.acompletion(**asked(server, stream=True))
        return whole.choices[0].message.content, "".join([c.choices[0].delta.content or "" async for c in stream])

    whole, streamed = asyncio.run(work())
    assert whole == streamed


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(server, stream) -> None:
    """The call's arguments are JSON once, not JSON in JSON; the result goes back and is answered."""
    more = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 64, "stream": stream}
    answer = litellm.completion(**asked(server, **more))
    answer = litellm.stream_chunk_builder(list(answer)) if stream else answer
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert isinstance(json.loads(call.function.arguments), dict)
    messages = [
        {"role": "user", "content": FRANCE}, choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]  # fmt: skip
    again = litellm.completion(**asked(server, messages=messages, tools=[WEATHER], tool_choice="none"))
    assert again.choices[0].message.content


def test_structured_output(server) -> None:
    """A pydantic class as `response_format` gives JSON of that class."""
    messages = [{"role": "user", "content": "Describe Paris as JSON: name, country."}]
    answer = litellm.completion(**asked(server, messages=messages, response_format=City, max_tokens=64))
    assert City.model_validate_json(answer.choices[0].message.content).name


def test_text_completion(server, agrees) -> None:
    """The older endpoint, whole and streamed."""
    plain = {name: value for name, value in asked(server).items() if name != "messages"}
    plain |= {"model": f"text-completion-openai/{server.model}", "prompt": "The capital of France is"}
    whole = litellm.text_completion(**plain)
    assert "Paris" in whole.choices[0].text
    agrees(whole.id, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    pieces = litellm.text_completion(**plain, stream=True)
    assert "".join(piece.choices[0].text or "" for piece in pieces) == whole.choices[0].text


def test_embeddings(server) -> None:
    """Two texts, two vectors, tokens counted."""
    made = litellm.embedding(
        model=f"openai/{server.embedder}", api_base=server.v1, api_key=server.key, input=["a cat", "a dog"],
        encoding_format="float",
    )  # fmt: skip
    assert len(made.data) == 2
    assert made.usage.prompt_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"model": "openai/nobody"}, litellm.NotFoundError),
        ({"api_key": BAD_KEY}, litellm.AuthenticationError),
        ({"api_key": os.environ["INTERLACE_POOR_KEY"]}, litellm.RateLimitError),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, litellm.ContextWindowExceededError),
        ({"temperature": 9}, litellm.BadRequestError),
    ],
    ids=["no such model", "bad key", "no budget", "too long", "bad value"],
)
def test_errors_are_litellms_own(server, more, error, stream) -> None:
    """Status and message are those from which litellm finds the class its users catch."""
    with pytest.raises(error) as caught:
        litellm.completion(**asked(server, stream=stream, **more))
    assert type(caught.value) is error
