"""The official `openai` SDK, in the ways our conformance suite does not use it: accumulating streams, asyncio, the
tool loop, every error class."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import openai
import pydantic
import pytest
from conftest import BAD_KEY, FRANCE

HELLO = [{"role": "user", "content": FRANCE}]


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str
    unit: str = pydantic.Field(pattern="^(celsius|fahrenheit)$")


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    """As its users make it."""
    with openai.OpenAI(base_url=server.v1, api_key=server.key, max_retries=0) as made:
        yield made


def test_chat_counts_what_is_billed(client, server, agrees) -> None:
    """The usage of a whole answer and of a streamed one is that of the bill, under the id of the answer."""
    asked = {"model": server.model, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert "Paris" in whole.choices[0].message.content
    agrees(whole.id, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    told = (final.usage.prompt_tokens, final.usage.completion_tokens)  # what the cache had of it differs
    assert told == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    agrees(final.id, final.usage.prompt_tokens, final.usage.completion_tokens)


def test_the_request_id_finds_the_bill(client, server) -> None:
    """`_request_id`, which the SDK reads from a header, names the request in `/v1/usage/{id}` too."""
    whole = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=1)
    assert server.bill(whole._request_id) == server.bill(whole.id)


def test_a_stream_that_is_parsed(client, server) -> None:
    """The SDK's own accumulator takes our chunks and makes the pydantic object of them."""
    asked = {"model": server.model, "messages": [{"role": "user", "content": "Weather in Paris, celsius, as JSON."}]}
    with client.chat.completions.stream(**asked, response_format=Weather, temperature=0, max_tokens=64) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed.unit in {"celsius", "fahrenheit"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_parsed_arguments(client, server, stream) -> None:
    """`pydantic_function_tool`, strict: arguments are one JSON text, streamed or not, and parse into the class."""
    asked = {
        "model": server.model, "messages": [{"role": "user", "content": "Weather in Paris, celsius?"}],
        "tools": [openai.pydantic_function_tool(Weather)], "tool_choice": "required", "temperature": 0,
        "max_tokens": 64, "parallel_tool_calls": False,
    }  # fmt: skip
    if stream:
        with client.chat.completions.stream(**asked) as running:
            choice = running.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.parse(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert isinstance(json.loads(call.function.arguments), dict)
    assert isinstance(call.function.parsed_arguments, Weather)


def test_the_asynchronous_client(server) -> None:
    """Eight chats at once, half of them streamed, all answered."""

    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=server.key, max_retries=0) as client:
            asked = {"model": server.model, "messages": HELLO, "max_tokens": 8, "temperature": 0}

            async def whole() -> str:
                return (await client.chat.completions.create(**asked)).choices[0].message.content

            async def streamed() -> str:
                chunks = await client.chat.completions.create(**asked, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*(ask() for _ in range(4) for ask in (whole, streamed)))

    assert len(set(asyncio.run(work()))) == 1


def test_embeddings_count_what_is_billed(client, server) -> None:
    """Vectors of one length, and tokens as billed, by the id in the header."""
    raw = client.embeddings.with_raw_response.create(model=server.embedder, input=["a cat", "a dog"])
    made = raw.parse()
    assert len({len(row.embedding) for row in made.data}) == 1
    assert made.usage.prompt_tokens == server.bill(raw.headers["x-request-id"])["embedding"]


def test_models_are_listed_and_found(client, server) -> None:
    """Both ways to look a model up agree."""
    assert {model.id for model in client.models.list()} == {server.model, server.embedder}
    assert client.models.retrieve(server.model).id == server.model


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("key", "asked", "error", "code"),
    [
        ("INTERLACE_API_KEY", {"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ("INTERLACE_API_KEY", {"max_tokens": -1}, openai.BadRequestError, None),
        ("INTERLACE_API_KEY", {"messages": [{"role": "user", "content": "word " * 9000}]}, openai.BadRequestError,
         "context_length_exceeded"),
        ("INTERLACE_POOR_KEY", {}, openai.RateLimitError, "insufficient_quota"),
        (None, {}, openai.AuthenticationError, "invalid_api_key"),
    ],
    ids=["no such model", "bad value", "too long", "no budget", "bad key"],
)  # fmt: skip
def test_errors_are_the_sdks_own(server, key, asked, error, code, stream) -> None:
    """Each refusal is the class the SDK has for it, with a code that is text, before any stream begins."""
    used = BAD_KEY if key is None else os.environ[key]
    with openai.OpenAI(base_url=server.v1, api_key=used, max_retries=0) as client:
        body = {"model": server.model, "messages": HELLO, "max_tokens": 4, **asked}
        with pytest.raises(error) as caught:
            client.chat.completions.create(**body, stream=stream)
        assert caught.value.request_id
        assert caught.value.type
        assert isinstance(caught.value.code, str | None)
        assert code is None or caught.value.code == code


def test_a_refusal_leaves_the_model_open_to_others(client, server) -> None:
    """After refusals of every kind, the next caller is answered."""
    for body in ({"max_tokens": -1}, {"model": "nobody"}, {"messages": []}):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**{"model": server.model, "messages": HELLO, **body})
    assert client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=1).choices
