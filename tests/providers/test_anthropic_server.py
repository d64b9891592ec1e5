"""Anthropic's own SDK against the server on loopback: what it says is what Anthropic says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.providers.servers.anthropic import GREETING, KEY, REDACTED, SEALED, Anthropic, running_anthropic

ASK: dict[str, Any] = {"max_tokens": 100, "messages": [{"role": "user", "content": "hello out there"}]}
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("weather", "now")]


@pytest.fixture(scope="module")
def server() -> Iterator[Anthropic]:
    """The server."""
    with running_anthropic() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Anthropic) -> Iterator[anthropic.Anthropic]:
    """The SDK, without its retries."""
    with anthropic.Anthropic(api_key=KEY, base_url=server.url, max_retries=0) as made:
        yield made


def test_the_sdk_is_answered(client: anthropic.Anthropic) -> None:
    """Path, headers and answer are as the SDK makes and reads them."""
    answer = client.messages.create(model="text", **ASK)
    assert [block.text for block in answer.content if block.type == "text"] == [GREETING]
    assert answer.stop_reason == "end_turn"
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (11, 7, 20)


def test_the_sdk_puts_the_stream_together(client: anthropic.Anthropic) -> None:
    """Blocks of every kind come out of the SDK's own accumulation as they do when asked for whole."""
    for model in ("thinks", "calls"):
        with client.messages.stream(model=model, tools=TOOLS, **ASK) as stream:
            streamed = stream.get_final_message()
        whole = client.messages.create(model=model, tools=TOOLS, **ASK)
        assert streamed.to_dict() == whole.to_dict()
    assert [block.type for block in whole.content] == ["text", "tool_use", "tool_use"]


def test_the_sdk_counts(client: anthropic.Anthropic) -> None:
    """The counter answers."""
    count = client.messages.count_tokens(model="text", messages=ASK["messages"], system="be good", tools=TOOLS)
    assert count.input_tokens > 5


def test_the_sdk_knows_the_errors(client: anthropic.Anthropic) -> None:
    """Statuses and bodies become the SDK's own exceptions, also inside a stream."""
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-other").messages.create(model="text", **ASK)
    with pytest.raises(anthropic.RateLimitError) as limited:
        client.messages.create(model="refuses:rate_limit_error", **ASK)
    assert limited.value.response.headers["retry-after"] == "13"
    with (
        client.messages.create(model="breaks:error", stream=True, **ASK) as stream,
        pytest.raises(anthropic.APIStatusError, match="Overloaded"),
    ):
        list(stream)


BAD: dict[str, dict[str, Any]] = {
    "an unknown field": {"extra_body": {"n": 2}},
    "a hot temperature": {"extra_body": {"temperature": 1.5}},
    "an empty text": {"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]},
    "a result of nothing": {
        "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "b"}]}]
    },
    "a thought without its seal": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "b", "signature": "c"}]},
        ]
    },
    "too many marks": {
        "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}} for _ in range(5)]
    },
    "a budget beyond the bound": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
}


@pytest.mark.parametrize("case", BAD)
def test_the_server_is_strict(client: anthropic.Anthropic, case: str) -> None:
    """What Anthropic refuses is refused here, so that our requests prove something."""
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="text", **(ASK | BAD[case]))


def test_the_server_takes_everything_that_is_published(client: anthropic.Anthropic) -> None:
    """Every kind of block and field that the reference has and we send."""
    mark = {"type": "ephemeral", "ttl": "1h"}
    picture = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    client.messages.create(
        model="text",
        max_tokens=5000,
        system=[{"type": "text", "text": "be good", "cache_control": mark}],
        messages=[
            {"role": "user", "content": [
                {"type": "image", "source": picture},
                {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}, "title": "a"},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "b"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": SEALED},
                {"type": "redacted_thinking", "data": REDACTED},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [
                    {"type": "text", "text": "no"}, {"type": "image", "source": picture}]},
            ]},
            {"role": "system", "content": "be brief"},
        ],
        tools=[{**TOOLS[0], "strict": True, "cache_control": mark}, TOOLS[1]],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000, "display": "summarized"},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        stop_sequences=["a"],
    )  # fmt: skip
