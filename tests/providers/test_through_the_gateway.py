"""Clients of three dialects, through a whole gateway, to OpenAI (both APIs) and Anthropic: what goes in comes out, what
fails fails cleanly, and all of it is billed truly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings, Settings
from interlace.gateway.serve import build_engine
from interlace.ledger import Outcome, Tokens
from tests.providers.servers.anthropic import KEY as ANTHROPIC_KEY
from tests.providers.servers.anthropic import REDACTED, SEALED, Anthropic, running_anthropic
from tests.providers.servers.openai import KEY as OPENAI_KEY
from tests.providers.servers.openai import OpenAI, running_openai
from tests.providers.servers.openai_responses import SEALED as OPENAI_SEALED
from tests.support.anthropic_shapes import assembled, events_of
from tests.support.gateway_thread import Gateway, running_gateway

FAULTS = ("error", "cut", "quiet", "garbage", "endless", "html", "wrapped")
UPSTREAMS = ("chat", "responses", "anthropic")
ENV = {"OPENAI": OPENAI_KEY, "ANTHROPIC": ANTHROPIC_KEY}
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture(scope="module")
def openai_server() -> Iterator[OpenAI]:
    """OpenAI."""
    with running_openai() as running:
        yield running


@pytest.fixture(scope="module")
def anthropic_server() -> Iterator[Anthropic]:
    """Anthropic."""
    with running_anthropic() as running:
        yield running


def _names(upstream: str) -> Iterator[tuple[str, str]]:
    """Public names of a provider's scripts."""
    for script in ("text", "thinks", "calls"):
        yield f"{upstream}.{script}", script
    nothing = {
        "chat": '{"completion_tokens": 0, "total_tokens": 30}',
        "anthropic": '{"input_tokens": 9, "output_tokens": 0}',
    }
    if upstream in nothing:
        yield f"{upstream}.nothing", f"counts:{nothing[upstream]}"
    for fault in FAULTS:
        wraps = {"html": "wraps:html", "wrapped": "wraps:"} if upstream == "anthropic" else {}
        yield f"{upstream}.{fault}", wraps.get(fault, f"breaks:{fault}")


@pytest.fixture(scope="module")
def gateway(openai_server: OpenAI, anthropic_server: Anthropic) -> Iterator[Gateway]:
    """A gateway with every script of every provider as a model."""
    kinds: dict[str, dict[str, Any]] = {
        "chat": {"engine": "openai", "base_url": f"{openai_server.url}/v1", "api_key": "${OPENAI}"},
        "anthropic": {"engine": "anthropic", "base_url": anthropic_server.url, "api_key": "${ANTHROPIC}"},
    }
    kinds["responses"] = {**kinds["chat"], "api": "responses"}
    models = tuple(
        ModelSettings(name=name, model=script, **kinds[upstream])
        for upstream in UPSTREAMS
        for name, script in _names(upstream)
    )
    engines = {model.name: build_engine(model, Path("/nonexistent"), ENV) for model in models}
    with running_gateway(Settings(home=Path("/nonexistent"), models=models, drain_seconds=5), engines) as made:
        yield made
        for engine in engines.values():
            asyncio.run_coroutine_threadsafe(engine.close(), made.loop).result(10)


def _post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}{path}", json=body, headers=gateway.headers, timeout=20, trust_env=False)


def _asked(gateway: Gateway, dialect: str, model: str, *, stream: bool = False) -> httpx.Response:
    """One short question in a dialect."""
    said = [{"role": "user", "content": "hello out there"}]
    match dialect:
        case "chat":
            return _post(gateway, "/v1/chat/completions", model=model, messages=said, stream=stream)
        case "messages":
            return _post(gateway, "/v1/messages", model=model, messages=said, stream=stream, max_tokens=50)
        case _:
            return _post(gateway, "/v1/responses", model=model, input=said, stream=stream, store=False)


dialects = pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
upstreams = pytest.mark.parametrize("upstream", UPSTREAMS)


@dialects
@upstreams
@pytest.mark.parametrize("stream", [True, False])
def test_the_bill_is_the_providers(gateway: Gateway, dialect: str, upstream: str, stream: bool) -> None:
    """Every kind of token reaches the ledger, from whichever provider, for whichever client."""
    before = len(gateway.events)
    answer = _asked(gateway, dialect, f"{upstream}.thinks", stream=stream)
    assert answer.status_code == 200, answer.text
    event = gateway.events[before]
    expected = {
        "chat": Tokens(prompt=30, cached=20, cache_write=3, completion=7, reasoning=2),
        "responses": Tokens(prompt=30, cached=20, cache_write=3, completion=12, reasoning=5),
        "anthropic": Tokens(prompt=34, cached=20, cache_write=3, completion=7, reasoning=2),
    }
    assert (event.tokens, event.outcome, event.estimated) == (expected[upstream], Outcome.FINISHED, False)


@dialects
@upstreams
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_provider_is_a_clean_error_and_a_true_bill(
    gateway: Gateway, dialect: str, upstream: str, stream: bool, fault: str
) -> None:
    """Nonsense, endless lines, another type, a cut stream, a success around an error: the client hears of it in its
    dialect, what was shown is billed as our estimate, and the gateway serves on."""
    before = len(gateway.events)
    answer = _asked(gateway, dialect, f"{upstream}.{fault}", stream=stream)
    shown = fault not in {"html", "wrapped"}
    if stream and shown:
        assert answer.status_code == 200
        last = [line for line in answer.text.split("\n") if line.startswith("data: {")][-1]
        told = json.loads(last[6:])
        assert told.get("error") or told["response"]["error"], last
    else:
        assert answer.status_code in {429, 502, 503, 529}, answer.text
        assert answer.json()["error"]["message"]
        assert answer.json().get("type") == ("error" if dialect == "messages" else None)
    assert OPENAI_KEY not in answer.text
    assert ANTHROPIC_KEY not in answer.text
    events = gateway.events[before:]
    assert len(events) == 1 or answer.status_code in {429, 529}  # what a rate limit keeps out uses nothing
    assert [event.tokens.completion for event in events] == [1 if shown else 0] * len(events)
    assert all(event.outcome is not Outcome.FINISHED and (event.estimated or not shown) for event in events)


@dialects
@pytest.mark.parametrize("upstream", ["chat", "anthropic"])
def test_a_bill_that_cannot_be_stands_and_is_marked(gateway: Gateway, dialect: str, upstream: str) -> None:
    """A text came, and the provider says that it took no tokens: charged as it says, and marked for reconciliation."""
    before = len(gateway.events)
    assert _asked(gateway, dialect, f"{upstream}.nothing").status_code == 200
    (event,) = gateway.events[before:]
    assert (event.tokens.completion, event.disputed, event.estimated) == (0, True, False)


def test_sealed_thoughts_go_back_in_openais_dialect_too(gateway: Gateway, anthropic_server: Anthropic) -> None:
    """A client of chat completions that sends back what it got gives Anthropic its seals back."""
    asked = {"role": "user", "content": "two and two?"}
    ask: dict[str, Any] = {"model": "anthropic.thinks", "reasoning_effort": "high"}
    told = _post(gateway, "/v1/chat/completions", messages=[asked], **ask).json()["choices"][0]["message"]
    assert told["reasoning_content"] == "Let me see."
    assert anthropic_server.last["thinking"] == {"type": "adaptive"}
    turns = [asked, told, {"role": "user", "content": "and three?"}]
    answer = _post(gateway, "/v1/chat/completions", messages=turns, **ask)
    assert answer.status_code == 200, answer.text
    kinds = [block["type"] for block in anthropic_server.last["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "text"]


@upstreams
def test_a_round_of_tools_in_openais_dialect(gateway: Gateway, upstream: str) -> None:
    """Two calls come out; sent back with their results, each strict server takes them."""
    tools = [{"type": "function", "function": {"name": name, "parameters": TOOL}} for name in ("weather", "now")]
    asked = {"role": "user", "content": "what is it like?"}
    ask: dict[str, Any] = {"model": f"{upstream}.calls", "tools": tools}
    told = _post(gateway, "/v1/chat/completions", messages=[asked], **ask).json()["choices"][0]
    assert told["finish_reason"] == "tool_calls"
    calls = told["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Paris"}, {}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in calls]
    after = _post(gateway, "/v1/chat/completions", messages=[asked, told["message"], *results], **ask)
    assert after.status_code == 200, after.text


@upstreams
def test_a_round_of_tools_in_anthropics_dialect(gateway: Gateway, upstream: str) -> None:
    """The same for a client of Anthropic's, with a picture in a result."""
    tools = [{"name": name, "input_schema": TOOL} for name in ("weather", "now")]
    asked = {"role": "user", "content": "what is it like?"}
    ask: dict[str, Any] = {"model": f"{upstream}.calls", "tools": tools, "max_tokens": 99}
    told = _post(gateway, "/v1/messages", messages=[asked], **ask).json()
    assert told["stop_reason"] == "tool_use"
    calls = [block for block in told["content"] if block["type"] == "tool_use"]
    assert [call["input"] for call in calls] == [{"city": "Paris"}, {}]
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    source = {"type": "base64", "media_type": "image/png", "data": png}
    seen = [{"type": "text", "text": "sun"}, {"type": "image", "source": source}]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": seen} for call in calls]
    turns = [asked, {"role": "assistant", "content": told["content"]}, {"role": "user", "content": results}]
    after = _post(gateway, "/v1/messages", messages=turns, **ask)
    assert after.status_code == 200, after.text


def test_sealed_thoughts_of_anthropic_go_back_as_they_came(gateway: Gateway, anthropic_server: Anthropic) -> None:
    """In Anthropic's own dialect, through the gateway: the provider knows its seals again."""
    asked = {"role": "user", "content": "two and two?"}
    ask: dict[str, Any] = {"model": "anthropic.thinks", "max_tokens": 4000}
    ask["thinking"] = {"type": "enabled", "budget_tokens": 2000}
    told = _post(gateway, "/v1/messages", messages=[asked], **ask).json()
    assert told["content"][0] == {"type": "thinking", "thinking": "Let me see.", "signature": SEALED}
    assert told["content"][1] == {"type": "redacted_thinking", "data": REDACTED}
    usage = told["usage"]
    kinds = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    assert [usage[kind] for kind in kinds] == [11, 20, 3, 7]
    turns = [asked, {"role": "assistant", "content": told["content"]}, {"role": "user", "content": "and three?"}]
    assert _post(gateway, "/v1/messages", messages=turns, **ask).status_code == 200
    assert anthropic_server.last["messages"][1]["content"] == told["content"]


def test_sealed_thoughts_of_openai_go_back_as_they_came(gateway: Gateway, openai_server: OpenAI) -> None:
    """In the Responses dialect, statelessly: the item that came out goes in."""
    ask: dict[str, Any] = {"model": "responses.thinks", "store": False, "include": ["reasoning.encrypted_content"]}
    asked = {"role": "user", "content": "two and two?"}
    told = _post(gateway, "/v1/responses", input=[asked], **ask).json()
    assert told["output"][0]["encrypted_content"] == OPENAI_SEALED
    turns = [asked, *told["output"], {"role": "user", "content": "and three?"}]
    answer = _post(gateway, "/v1/responses", input=turns, **ask)
    assert answer.status_code == 200, answer.text
    thought = next(item for item in openai_server.last["input"] if item.get("type") == "reasoning")
    assert (thought["id"], thought["encrypted_content"]) == ("rs_1", OPENAI_SEALED)
    assert [part["text"] for part in thought["summary"]] == ["Let me see.", "It is four."]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_summaries_of_openai_go_back_as_summaries(
    gateway: Gateway, openai_server: OpenAI, dialect: str, stream: bool
) -> None:
    """They are parted where they are shown as one thought, and OpenAI, which takes no thought's own text, gets them
    back as what they are."""
    model, asked = "responses.thinks", {"role": "user", "content": "x"}
    more: dict[str, Any] = {"max_tokens": 50, "stream": stream}
    shown = "Let me see.\n\nIt is four."
    if dialect == "messages":
        told = _post(gateway, "/v1/messages", model=model, messages=[asked], **more)
        content = assembled(events_of(told.text))["content"] if stream else told.json()["content"]
        assert content[0]["thinking"] == shown
        said = {"role": "assistant", "content": content}
        _post(gateway, "/v1/messages", model=model, messages=[asked, said, asked], max_tokens=50)
    else:
        told = _post(gateway, "/v1/chat/completions", model=model, messages=[asked], **more)
        pieces = (
            [json.loads(line[6:])["choices"][0]["delta"] for line in told.text.split("\n\n") if "delta" in line]
            if stream
            else [told.json()["choices"][0]["message"]]
        )
        assert "".join(piece.get("reasoning_content", "") for piece in pieces) == shown
        (block,) = [block for piece in pieces for block in piece.get("thinking_blocks", ())]
        said = {"role": "assistant", "content": "Four.", "thinking_blocks": [block]}
        _post(gateway, "/v1/chat/completions", model=model, messages=[asked, said, asked])
    (thought,) = [item for item in openai_server.last["input"] if item.get("type") == "reasoning"]
    assert thought == {
        "type": "reasoning", "id": "rs_1", "encrypted_content": OPENAI_SEALED,
        "summary": [{"type": "summary_text", "text": shown}],
    }  # fmt: skip


def test_prompts_are_counted_by_their_provider(gateway: Gateway, anthropic_server: Anthropic) -> None:
    """Anthropic's counter answers for Anthropic's models; elsewhere the count says that it is an estimate."""
    asked = [{"role": "user", "content": "hello out there"}]
    told = _post(gateway, "/v1/messages/count_tokens", model="anthropic.text", messages=asked)
    assert anthropic_server.seen[-1][0] == "/v1/messages/count_tokens"
    assert "x-interlace-estimated" not in told.headers
    other = _post(gateway, "/v1/messages/count_tokens", model="chat.text", messages=asked)
    assert other.headers["x-interlace-estimated"] == "input_tokens"


def test_what_is_refused_is_named_and_what_has_no_use_is_told(gateway: Gateway) -> None:
    """As the caller wrote it, in either direction."""
    said = [{"role": "user", "content": "a"}]
    answer = _post(gateway, "/v1/chat/completions", model="anthropic.text", messages=said, n=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    answer = _post(gateway, "/v1/chat/completions", model="anthropic.text", messages=said, verbosity="low", seed=3)
    assert set(answer.headers["x-interlace-unused"].split(",")) == {"verbosity", "seed"}
    answer = _post(gateway, "/v1/messages", model="responses.thinks", messages=said, max_tokens=9, stop_sequences=["a"])
    assert answer.status_code == 400
    assert "stop_sequences" in answer.json()["error"]["message"]
