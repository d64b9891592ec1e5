"""What models may say, in Anthropic's shape and in chat's: thoughts, calls, refusals, caches; whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings, Settings
from interlace.engines.types import Delta, Thought, ToolCallDelta, Usage
from tests.support.anthropic_shapes import MESSAGE, assembled, checked, events_of
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.replaying_engine import ReplayingEngine

SEALED = ToolCallDelta(0, "call_1", "weather", '{"city": "Paris"}', signature="se/al+1é")
STOP = Delta(finish_reason="stop")
CALLS = Delta(finish_reason="tool_calls")


def call(index: int, arguments: str, *, first: bool = False) -> Delta:
    """A piece of call number `index`."""
    if first:
        return Delta(tokens=1, tool_calls=(ToolCallDelta(index, f"call_{index}", f"tool_{index}", arguments),))
    return Delta(tokens=1, tool_calls=(ToolCallDelta(index, arguments=arguments),))


SAID: dict[str, tuple[Delta, ...]] = {
    "thinks": (
        Delta(thought=Thought("Let me "), tokens=1),
        Delta(thought=Thought("think.", signature="sig1"), tokens=1),
        Delta(thought=Thought(redacted="secret")),
        Delta(thought=Thought("More."), text="Paris", tokens=2),
        Delta(text=".", tokens=1),
        STOP,
    ),
    "thinks and calls": (
        Delta(thought=Thought("Hm.", signature="s"), text="I look.", tool_calls=(SEALED,), tokens=5),
        CALLS,
    ),
    "calls twice": (call(0, "", first=True), call(0, '{"a":'), call(0, "1}"), call(1, '{"b": 2}', first=True), CALLS),
    "calls at once": (
        call(0, "", first=True),
        call(1, '{"b"', first=True),
        call(0, '{"a": "x"'),
        call(1, ": 2}"),
        call(0, "}"),
        CALLS,
    ),
    "calls without arguments": (call(0, "", first=True), call(1, "", first=True), CALLS),
    "is cut off in a call": (call(0, '{"a": 1, "b', first=True), Delta(finish_reason="length")),
    "refuses": (Delta(text="I will ", refused=True, tokens=1), Delta(text="not.", refused=True, tokens=1), STOP),
    "thinks under a name": (
        Delta(thought=Thought("Hm.", id="rs_1")),
        Delta(thought=Thought(signature="sig", id="rs_1")),
        Delta(thought=Thought(redacted="red", id="rs_2"), text="Yes."),
        STOP,
    ),
    "is filtered": (Delta(text="Well, ", tokens=1), Delta(finish_reason="content_filter")),
    "says nothing": (STOP,),
}
USAGE = Usage(100, 20, cached_tokens=30, cache_write_tokens=25, reasoning_tokens=7, service_tier="priority")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """An engine for each thing that is said."""
    engines = {name: ReplayingEngine(deltas=deltas, usage=USAGE) for name, deltas in SAID.items()}
    models = tuple(ModelSettings(name=name, checkpoint=name) for name in engines)
    with running_gateway(Settings(home=Path("/nonexistent"), models=models, drain_seconds=5), engines) as running:
        yield running


def message(gateway: Gateway, model: str, *, stream: bool) -> dict[str, Any]:
    """What a model says, as Anthropic's message."""
    body = {"model": model, "max_tokens": 99, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    answer = httpx.post(f"{gateway.url}/v1/messages", json=body, headers=gateway.headers, trust_env=False)
    told = assembled(events_of(answer.text)) if stream else answer.json()
    checked(MESSAGE, json.dumps(told))
    return told


CONTENT: dict[str, list[dict[str, Any]]] = {
    "thinks": [
        {"type": "thinking", "thinking": "Let me think.", "signature": "sig1"},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "thinking", "thinking": "More.", "signature": ""},
        {"type": "text", "text": "Paris."},
    ],
    "thinks and calls": [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_1__sealed__c2UvYWwrMcOp", "name": "weather", "input": {"city": "Paris"}},
    ],
    "calls twice": [
        {"type": "tool_use", "id": "call_0", "name": "tool_0", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_1", "name": "tool_1", "input": {"b": 2}},
    ],
    "calls at once": [
        {"type": "tool_use", "id": "call_0", "name": "tool_0", "input": {"a": "x"}},
        {"type": "tool_use", "id": "call_1", "name": "tool_1", "input": {"b": 2}},
    ],
    "calls without arguments": [
        {"type": "tool_use", "id": "call_0", "name": "tool_0", "input": {}},
        {"type": "tool_use", "id": "call_1", "name": "tool_1", "input": {}},
    ],
    "refuses": [{"type": "text", "text": "I will not."}],
    "is filtered": [{"type": "text", "text": "Well, "}],
    "says nothing": [],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", CONTENT)
def test_each_block_is_whole_and_in_its_place(gateway: Gateway, model: str, stream: bool) -> None:
    """Thoughts keep their seals, calls their inputs as objects, and a stream tells the same as a whole answer."""
    assert message(gateway, model, stream=stream)["content"] == CONTENT[model]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("thinks", "end_turn"),
        ("calls twice", "tool_use"),
        ("is cut off in a call", "max_tokens"),
        ("refuses", "refusal"),
        ("is filtered", "refusal"),
    ],
)
def test_why_it_ended(gateway: Gateway, model: str, reason: str, stream: bool) -> None:
    """Anthropic's word for each end, and details where it was refused."""
    if stream and model == "is cut off in a call":
        body = {"model": model, "max_tokens": 99, "messages": [{"role": "user", "content": "x"}], "stream": True}
        answer = httpx.post(f"{gateway.url}/v1/messages", json=body, headers=gateway.headers, trust_env=False)
        assert '"partial_json":"{\\"a\\": 1, \\"b"' in answer.text, "what there is of the arguments is told"
        assert '"stop_reason":"max_tokens"' in answer.text
        return
    told = message(gateway, model, stream=stream)
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, None)
    assert ("stop_details" in told) == (reason == "refusal")


def test_arguments_that_are_cut_off_are_not_lost(gateway: Gateway) -> None:
    """Whole, they cannot be an object; they come under the name that Anthropic gives such."""
    (block,) = message(gateway, "is cut off in a call", stream=False)["content"]
    assert block["input"] == {"INVALID_JSON": '{"a": 1, "b'}


@pytest.mark.parametrize("stream", [False, True])
def test_usage_by_kind_is_the_bill(gateway: Gateway, stream: bool) -> None:
    """`input_tokens` leaves out what was read from a cache or written to one; all together are the ledger's prompt."""
    told = message(gateway, "thinks", stream=stream)
    usage, event = told["usage"], gateway.events[-1]
    assert usage["input_tokens"] == 45
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (30, 25)
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (20, {"thinking_tokens": 7})
    assert usage.get("service_tier") == (None if stream else "priority")
    assert event.tokens.prompt == 45 + 30 + 25
    assert (event.tokens.cached, event.tokens.cache_write) == (30, 25)
    assert (event.tokens.completion, event.tokens.reasoning) == (20, 7)


# --- the same in chat --------------------------------------------------------------------------------------------


def chat_message(gateway: Gateway, model: str, *, stream: bool) -> dict[str, Any]:
    """What a model says, as chat's message; a stream's deltas put together."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.headers, trust_env=False)
    if not stream:
        said: dict[str, Any] = answer.json()["choices"][0]["message"]
        return said
    said = {"content": "", "refusal": "", "reasoning_content": "", "thinking_blocks": [], "tool_calls": []}
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for name, value in json.loads(line[6:])["choices"][0]["delta"].items():
                if name in said:
                    said[name] += value
    return {name: value or None for name, value in said.items()}


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tells_thoughts(gateway: Gateway, stream: bool) -> None:
    """The text as `reasoning_content`, and what is sealed whole in `thinking_blocks`, so that it can go back."""
    said = chat_message(gateway, "thinks", stream=stream)
    assert said["content"] == "Paris."
    assert said["reasoning_content"] == "Let me think.More."
    blocks = [
        {"type": "thinking", "thinking": "Let me think.", "signature": "sig1"},
        {"type": "redacted_thinking", "data": "secret"},
    ]
    if stream:  # numbered, as clients that put lists together from pieces need it
        blocks = [{**block, "index": i} for i, block in enumerate(blocks)]
    assert said["thinking_blocks"] == blocks


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tells_refusals_and_seals(gateway: Gateway, stream: bool) -> None:
    """A refusal is no content, and a call's seal stands where Gemini's clients look for it."""
    said = chat_message(gateway, "refuses", stream=stream)
    assert (said["refusal"], said["content"]) == ("I will not.", None)
    (made,) = chat_message(gateway, "thinks and calls", stream=stream)["tool_calls"]
    assert made["extra_content"] == {"google": {"thought_signature": "se/al+1é"}}
    assert json.loads(made["function"]["arguments"]) == {"city": "Paris"}


def test_chat_tells_the_usage_by_kind(gateway: Gateway) -> None:
    """Reasoning and cache tokens, and the tier that served."""
    body = {"model": "thinks", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.headers, trust_env=False)
    usage = answer.json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 7}
    assert usage["prompt_tokens_details"] == {"cached_tokens": 30, "cache_write_tokens": 25}
    assert answer.json()["service_tier"] == "priority"


def test_what_was_said_goes_back_as_it_was(gateway: Gateway) -> None:
    """A client that echoes an answer gives the engine its own thoughts and seals again."""
    told = message(gateway, "thinks and calls", stream=False)
    engine: Any = gateway.engines["thinks and calls"]
    result = {"type": "tool_result", "tool_use_id": told["content"][-1]["id"], "content": "sunny"}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": [result]},
    ]
    body = {"model": "thinks and calls", "max_tokens": 9, "messages": turns}
    assert httpx.post(f"{gateway.url}/v1/messages", json=body, headers=gateway.headers, trust_env=False).is_success
    _, assistant, returned = engine.seen[-1].messages
    assert [(part.text, getattr(part, "signature", "")) for part in assistant.parts] == [("Hm.", "s"), ("I look.", "")]
    (made,) = assistant.tool_calls
    assert (made.id, made.signature, returned.tool_call_id) == ("call_1", "se/al+1é", "call_1")


def test_the_names_of_thoughts_go_back(gateway: Gateway) -> None:
    """A provider that knows its thoughts by name gets the names again, from clients of either dialect."""
    model, question = "thinks under a name", {"role": "user", "content": "x"}
    engine: Any = gateway.engines[model]
    content = message(gateway, model, stream=True)["content"]
    said = chat_message(gateway, model, stream=True)
    for path, turn in (
        ("/v1/messages", {"role": "assistant", "content": content}),
        (
            "/v1/chat/completions",
            {"role": "assistant", **{name: said[name] for name in ("content", "thinking_blocks")}},
        ),
    ):
        body = {"model": model, "max_tokens": 9, "messages": [question, turn, question]}
        answer = httpx.post(gateway.url + path, json=body, headers=gateway.headers, trust_env=False)
        assert answer.is_success, answer.text
        first, second, _ = engine.seen[-1].messages[1].parts
        assert (first.text, first.signature, first.id) == ("Hm.", "sig", "rs_1")
        assert (second.redacted, second.id) == ("red", "rs_2")
