"""The official `anthropic` SDK against our endpoint, streaming and not, errors included.

Nothing here knows what the model will say: `endpoint` may be the scripted server or one with a real checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.gateway.conftest import Endpoint
from tests.support.anthropic_shapes import COUNT, ERROR, MESSAGE, MODEL, assembled, checked, events_of

HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[anthropic.Anthropic]:
    """The SDK as a user sets it up, without retries, so that every answer is seen."""
    with anthropic.Anthropic(base_url=endpoint.base_url[:-3], api_key=endpoint.key, max_retries=0) as made:
        yield made


@pytest.fixture
def ask(client: anthropic.Anthropic, endpoint: Endpoint) -> Any:
    """`ask(**more)`: a short greedy message."""

    def send(**more: Any) -> Any:
        asked: dict[str, Any] = {"model": endpoint.model, "messages": HELLO, "max_tokens": 8}
        if "temperature" not in (body := more.pop("extra_body", {})):
            body = body | {"temperature": 0}
        return client.messages.create(**{**asked, **more}, extra_body=body)

    return send


@pytest.fixture
def raw(endpoint: Endpoint) -> Any:
    """`raw(**more)`: the same as bare HTTP, to see every byte."""

    def send(path: str = "/messages", **more: Any) -> httpx.Response:
        asked: dict[str, Any] = {"model": endpoint.model, "messages": HELLO}
        if path == "/messages":
            asked |= {"max_tokens": 8, "temperature": 0}
        headers = {"x-api-key": endpoint.key, "anthropic-version": "2023-06-01"}
        return httpx.post(endpoint.base_url + path, json=asked | more, headers=headers, trust_env=False, timeout=60)

    return send


def _prompt(usage: Any) -> int:
    """All tokens of the prompt: `input_tokens` leaves out those that were found in a cache."""
    return int(usage.input_tokens) + int(usage.cache_read_input_tokens)


# --- messages ----------------------------------------------------------------------------------------------------


def test_message(ask: Any, endpoint: Endpoint) -> None:
    """A whole answer has its id, model, role, text, stop reason and usage."""
    answer = ask()
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", endpoint.model)
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].text
    assert answer.stop_reason in {"end_turn", "max_tokens"}
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= 8
    assert answer._request_id


def test_answers_have_the_published_shape(raw: Any) -> None:
    """Whole and streamed, no field is missing and none is there that the SDK's models do not know."""
    whole = raw()
    assert whole.headers["request-id"] == whole.headers["x-request-id"]
    message = checked(MESSAGE, whole.content)
    streamed = raw(stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = events_of(streamed.text)
    told = checked(MESSAGE, json.dumps(assembled(events)))
    assert (told.content, told.stop_reason, told.usage) == (message.content, message.stop_reason, message.usage)


def test_the_order_of_events(raw: Any) -> None:
    """message_start, the block's start, a ping, deltas, the block's end, message_delta, message_stop: nothing else."""
    kinds = [event["type"] for event in events_of(raw(stream=True).text)]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_the_stream_helper_says_the_same(client: anthropic.Anthropic, ask: Any, endpoint: Endpoint) -> None:
    """The SDK's own assembly of a stream is the whole answer, usage and all."""
    whole = ask()
    with client.messages.stream(
        model=endpoint.model, messages=HELLO, max_tokens=8, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert (final.stop_reason, _prompt(final.usage)) == (whole.stop_reason, _prompt(whole.usage))
    assert final.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_reported(ask: Any, raw: Any, stream: bool) -> None:
    """Which one ended the answer, and it is no part of the answer."""
    text = ask().content[0].text
    stop = text[3:6]
    answer = raw(stop_sequences=["never said", stop], stream=stream)
    message = assembled(events_of(answer.text)) if stream else answer.json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
    said = "".join(block["text"] for block in message["content"])
    assert said == text[: text.index(stop)]


def test_max_tokens(ask: Any) -> None:
    """The bound holds and is given as the reason; no stop sequence is claimed."""
    answer = ask(max_tokens=1)
    assert (answer.stop_reason, answer.stop_sequence, answer.usage.output_tokens) == ("max_tokens", None, 1)


def test_json_output(ask: Any) -> None:
    """`output_config.format` makes JSON, unless it was cut off."""
    answer = ask(output_config={"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}, max_tokens=64)
    assert answer.stop_reason == "max_tokens" or "city" in json.loads(answer.content[0].text)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call(raw: Any, choice: Any, stream: bool) -> None:
    """A call has an id, the tool's name and its input as an object, never as text."""
    answer = raw(tools=[WEATHER], tool_choice=choice, max_tokens=128, stream=stream)
    message = assembled(events_of(answer.text)) if stream else answer.json()
    checked(MESSAGE, json.dumps(message))
    assert message["stop_reason"] == "tool_use"
    call = message["content"][-1]
    assert (call["type"], call["name"]) == ("tool_use", "weather")
    assert call["id"]
    assert isinstance(call["input"]["city"], str)


def test_a_whole_tool_conversation(ask: Any) -> None:
    """System blocks, a call, its result in blocks and more text after it are all understood."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I shall look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = ask(messages=messages, system=system, tools=[WEATHER], tool_choice={"type": "none"})
    assert answer.content[0].text


def test_wishes_without_use_here_are_told(raw: Any) -> None:
    """What a local model has no use for is accepted, and the header names it in Anthropic's words."""
    answer = raw(
        metadata={"user_id": "someone"},
        service_tier="auto",
        thinking={"type": "adaptive"},
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        speed="fast",
        context_management={"edits": []},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-interlace-unused"].split(",") == [
        "context_management",
        "metadata.user_id",
        "service_tier",
        "speed",
        "system[].cache_control",
        "thinking.type",
    ]


# --- counting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "Be very brief."},
        {"messages": [*HELLO, {"role": "assistant", "content": "The capital of"}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Sure?"}]},
        {"tools": [WEATHER]},
    ],
    ids=["plain", "system", "prefill", "turns", "tools"],
)
def test_a_count_is_what_is_billed(raw: Any, more: dict[str, Any]) -> None:
    """Counted and then sent, the numbers agree; a local model's count is no estimate."""
    counted = raw("/messages/count_tokens", **more)
    assert "x-interlace-estimated" not in counted.headers
    used = raw(**more).json()["usage"]
    assert checked(COUNT, counted.content).input_tokens == used["input_tokens"] + used["cache_read_input_tokens"]


# --- models ------------------------------------------------------------------------------------------------------


def test_models_in_both_dialects(client: anthropic.Anthropic, endpoint: Endpoint) -> None:
    """With `anthropic-version` the list is Anthropic's, without it OpenAI's; the names are the same."""
    pages = client.models.list(limit=1)
    assert len(pages.data) == 1
    names = [model.id for model in pages]  # through all pages
    plain = httpx.get(f"{endpoint.base_url}/models", headers={"x-api-key": endpoint.key}, trust_env=False).json()
    assert names == [model["id"] for model in plain["data"]]
    assert plain["object"] == "list"
    backwards = client.models.list(before_id=names[-1], limit=1)
    assert [model.id for model in backwards] == names[-2::-1]


def test_one_model(endpoint: Endpoint) -> None:
    """A model has the published shape."""
    headers = {"authorization": f"Bearer {endpoint.key}", "anthropic-version": "2023-06-01"}
    answer = httpx.get(f"{endpoint.base_url}/models/{endpoint.model}", headers=headers, trust_env=False)
    model = checked(MODEL, answer.content)
    assert (model.id, model.type, model.lifecycle) == (endpoint.model, "model", "active")


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "1001"}, {"after_id": "x"}, {"before_id": "x"}])
def test_bad_pages(client: anthropic.Anthropic, query: dict[str, str]) -> None:
    """A wrong page is a 400 in Anthropic's shape, naming the parameter."""
    with pytest.raises(anthropic.BadRequestError, match=next(iter(query))):
        client.models.list(extra_query=query)


# --- keys and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/messages", "/chat/completions"])
@pytest.mark.parametrize("way", ["x-api-key", "authorization"])
def test_both_headers_are_keys_in_both_dialects(endpoint: Endpoint, path: str, way: str) -> None:
    """A key is good in either header at every endpoint."""
    body = {"model": endpoint.model, "messages": HELLO, "max_tokens": 2}
    key = endpoint.key if way == "x-api-key" else f"Bearer {endpoint.key}"
    answer = httpx.post(endpoint.base_url + path, json=body, headers={way: key}, trust_env=False, timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/messages", "/messages/count_tokens"])
def test_errors_before_the_body_are_in_shape(endpoint: Endpoint, path: str) -> None:
    """No key, a wrong one, a wrong method, a body that is no JSON by its header: all in Anthropic's shape."""
    url, good = endpoint.base_url + path, {"x-api-key": endpoint.key}
    answers = [
        (httpx.post(url, json={}, trust_env=False), 401, "authentication_error"),
        (httpx.post(url, json={}, headers={"x-api-key": "wrong"}, trust_env=False), 401, "authentication_error"),
        (httpx.get(url, headers=good, trust_env=False), 405, "invalid_request_error"),
        (httpx.post(url, content="x", headers=good | {"content-type": "text/plain"}, trust_env=False), 415,
         "invalid_request_error"),
        (httpx.post(f"{url}/nowhere", json={}, headers=good, trust_env=False), 404, "not_found_error"),
    ]  # fmt: skip
    for answer, status, kind in answers:
        error = checked(ERROR, answer.content)
        assert (answer.status_code, error.error.type) == (status, kind)
        assert error.request_id == answer.headers["request-id"]


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(ask: Any, stream: bool) -> None:
    """404 before any stream begins."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(model="no-such-model", stream=stream)
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id


def test_a_model_that_makes_no_text(ask: Any, endpoint: Endpoint) -> None:
    """Asking an embedder to talk is a 400."""
    with pytest.raises(anthropic.BadRequestError, match="embeddings"):
        ask(model=endpoint.embedding_model)


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}


def _user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"temperature": 1.1}}, "temperature"),
        ({"extra_body": {"top_p": -1}}, "top_p"),
        ({"extra_body": {"mcp_servers": [{"type": "url", "url": "https://x.org", "name": "x"}]}}, "mcp_servers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": [" "]}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "user's message"),
        ({"messages": [{"role": "user", "content": ""}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, r"messages\[0\].role"),
        (_user({"type": "text", "text": ""}), "empty"),
        (_user({"type": "tool_use", "id": "x", "name": "x", "input": {}}), r"messages\[0\].content\[0\].type"),
        (_user(IMAGE), "text only"),
        (_user({**IMAGE, "source": {"type": "url", "url": "http://127.0.0.1/x"}}), "public web"),
        (_user({**IMAGE, "source": {"type": "base64", "media_type": "image/png", "data": "%"}}), "base64"),
        (_user({**IMAGE, "source": {"type": "file", "file_id": "../x"}}), "uploaded file"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "It is "}]}, "white space"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "x", "name": "x", "input": {}}]}]}, "tool_result"),
        ({"tools": [WEATHER, WEATHER]}, "name of its own"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]}, "web_search_20250305"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "no tool named"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "budget_tokens"),
        ({"container": "c_1"}, "container"),
        ({"inference_geo": "us"}, "inference_geo"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_requests_name_the_field(ask: Any, more: dict[str, Any], named: str) -> None:
    """400 in Anthropic's shape, with words that say which field, and what to do."""
    with pytest.raises(anthropic.BadRequestError, match=named) as caught:
        ask(**more)
    assert caught.value.type == "invalid_request_error"


async def test_the_async_client_streams_too(endpoint: Endpoint) -> None:
    """Many streams at once through the asynchronous SDK, with a bearer token."""
    import asyncio

    made = anthropic.AsyncAnthropic(base_url=endpoint.base_url[:-3], auth_token=endpoint.key, max_retries=0)
    async with made as client:

        async def one() -> list[str]:
            stream = await client.messages.create(model=endpoint.model, messages=HELLO, stream=True, max_tokens=8)
            return [event.type async for event in stream]

        assert all(kinds[-1] == "message_stop" for kinds in await asyncio.gather(*(one() for _ in range(8))))
