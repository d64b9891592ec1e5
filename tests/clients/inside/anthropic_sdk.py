"""The official `anthropic` SDK at our `/v1/messages`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import anthropic
import pytest
from conftest import BAD_KEY, FRANCE

HELLO = [{"role": "user", "content": FRANCE}]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    },
}  # fmt: skip


@pytest.fixture
def client(server) -> Iterator[anthropic.Anthropic]:
    """As its users make it: the key goes into `x-api-key`."""
    with anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0) as made:
        yield made


def asked(server, **more) -> dict:
    """What every call says."""
    greedy = {"temperature": 0}  # the SDK has no argument for it any more
    return {"model": server.model, "messages": HELLO, "max_tokens": 12, "extra_body": greedy, **more}


def prompt(usage) -> int:
    """All tokens of the prompt: `input_tokens` leaves out those that were found in the cache."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_message_counts_what_is_billed(client, server, agrees) -> None:
    """Text, stop reason, and usage as billed."""
    message = client.messages.create(**asked(server))
    assert (message.type, message.role, message.model) == ("message", "assistant", server.model)
    assert [block.type for block in message.content] == ["text"]
    assert "Paris" in message.content[0].text
    assert message.stop_reason in {"end_turn", "max_tokens"}
    agrees(message._request_id, prompt(message.usage), message.usage.output_tokens)


def test_a_stream_in_anthropics_order(client, server, agrees) -> None:
    """The SDK's accumulator makes the same message of the events, which come in the documented order."""
    whole = client.messages.create(**asked(server))
    with client.messages.stream(**asked(server)) as stream:
        kinds = [event.type for event in stream]
        final, request_id = stream.get_final_message(), stream.request_id
    wire = [kind for kind in kinds if kind not in {"text", "ping", "input_json"}]
    assert wire[:2] == ["message_start", "content_block_start"]
    assert wire[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(wire[2:-3]) == {"content_block_delta"}
    assert (final.content[0].text, final.stop_reason) == (whole.content[0].text, whole.stop_reason)
    assert (prompt(final.usage), final.usage.output_tokens) == (prompt(whole.usage), whole.usage.output_tokens)
    agrees(request_id, prompt(final.usage), final.usage.output_tokens)


def test_a_bearer_token_is_a_key_too(server) -> None:
    """`auth_token` goes into `Authorization`."""
    with anthropic.Anthropic(base_url=server.url, auth_token=server.key, api_key=None, max_retries=0) as client:
        assert client.messages.create(**asked(server)).content


def test_a_stop_sequence_is_named(client, server) -> None:
    """Which of several ended the answer is told; it is not part of the text; streamed alike."""
    body = asked(server, max_tokens=32, stop_sequences=["Berlin", " Paris"])
    message = client.messages.create(**body)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " Paris")
    assert "Paris" not in message.content[0].text
    with client.messages.stream(**body) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", " Paris")


def test_a_prefill_is_continued(client, server) -> None:
    """What the assistant already said is gone on with, not answered."""
    messages = [*HELLO, {"role": "assistant", "content": "The capital of France is"}]
    text = client.messages.create(**asked(server, messages=messages)).content[0].text
    assert text.lstrip().startswith("Paris")


def test_counting_is_what_is_billed(client, server) -> None:
    """`count_tokens` of a conversation with system and tools is what is read of it, from the cache or not."""
    body = {"model": server.model, "system": [{"type": "text", "text": "Be brief."}], "messages": HELLO}
    for more in ({}, {"tools": [WEATHER]}):
        counted = client.messages.count_tokens(**body, **more).input_tokens
        assert counted == prompt(client.messages.create(**body, **more, max_tokens=1).usage)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_its_result_and_an_answer(client, server, stream) -> None:
    """A forced tool is used with an object as input; the result goes back as a block."""
    body = asked(server, tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"}, max_tokens=64)
    if stream:
        with client.messages.stream(**body) as running:
            message = running.get_final_message()
    else:
        message = client.messages.create(**body)
    assert message.stop_reason == "tool_use"
    (use,) = (block for block in message.content if block.type == "tool_use")
    assert use.name == "weather"
    assert isinstance(use.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    messages = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(**asked(server, messages=messages, tools=[WEATHER], tool_choice={"type": "none"}))
    assert again.content[0].text


def test_the_asynchronous_client(server) -> None:
    """Whole and streamed, at once."""

    async def work() -> set[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=server.key, max_retries=0) as client:

            async def whole() -> str:
                return (await client.messages.create(**asked(server))).content[0].text

            async def streamed() -> str:
                async with client.messages.stream(**asked(server)) as stream:
                    return "".join([text async for text in stream.text_stream])

            return set(await asyncio.gather(*(ask() for _ in range(3) for ask in (whole, streamed))))

    assert len(asyncio.run(work())) == 1


def test_models(client, server) -> None:
    """The list in Anthropic's shape, and one of it."""
    listed = list(client.models.list())
    assert server.model in {model.id for model in listed}
    assert all((model.type, bool(model.display_name)) == ("model", True) for model in listed)
    assert client.models.retrieve(server.model).created_at


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("key", "more", "error", "kind"),
    [
        ("INTERLACE_API_KEY", {"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
        ("INTERLACE_API_KEY", {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ("INTERLACE_API_KEY", {"messages": [{"role": "user", "content": "word " * 9000}]}, anthropic.BadRequestError,
         "invalid_request_error"),
        ("INTERLACE_POOR_KEY", {}, anthropic.APIStatusError, None),
        (None, {}, anthropic.AuthenticationError, "authentication_error"),
    ],
    ids=["no such model", "bad value", "too long", "no budget", "bad key"],
)  # fmt: skip
def test_errors_are_the_sdks_own(server, key, more, error, kind, stream) -> None:
    """The class for each status, in Anthropic's body, with the request's id in body and header alike."""
    used = BAD_KEY if key is None else os.environ[key]
    with anthropic.Anthropic(base_url=server.url, api_key=used, max_retries=0) as client:
        with pytest.raises(error) as caught:
            client.messages.create(**asked(server, **more), stream=stream)
        body = caught.value.body
        assert body["type"] == "error"
        assert kind is None or body["error"]["type"] == kind
        assert body["error"]["message"]
        assert body["request_id"] == caught.value.request_id
        assert caught.value.request_id
