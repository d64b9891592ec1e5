"""Every answer that OpenAI's document shows as an example is read as what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai import OpenAIWire
from interlace.engines.types import Delta, Event, GenerateRequest, Message, Sampling, Usage
from tests.support.asking import calls_of, finishes, text_of

EXAMPLES = json.loads((Path(__file__).parent / "fixtures" / "openai-examples.json").read_text())
IDS = [f"{example['endpoint']} {example['title']}" for example in EXAMPLES]


def read(example: dict[str, Any]) -> list[Event]:
    """The events of an answer, cut into payloads as it is written: whole, as lines, or as an event stream."""
    api = "responses" if example["endpoint"] == "/responses" else "chat"
    wire = OpenAIWire(ModelSettings(name="a", engine="openai", base_url="http://x", model="m", api=api), None)
    asked = GenerateRequest("r", messages=(Message("user", "hi"),), sampling=Sampling(logprobs=2))
    answer = wire.answer(asked, 5)
    text = example["response"].encode()
    if example["title"] != "Streaming":
        payloads = [text]
    elif text.startswith(b"event:"):
        frames = wire.frames("text/event-stream")
        assert frames is not None
        payloads = [*frames.feed(text), *frames.end()]
    else:
        payloads = [line for line in text.split(b"\n") if line.startswith(b"{")]
    events = [event for payload in payloads for event in answer.take(payload)]
    return events + answer.end(told=True)


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_a_published_example_is_read(example: dict[str, Any]) -> None:
    """Text, calls, reason to end and usage are those that stand in it."""
    events = read(example)
    body = example["response"]
    if body.startswith("{") and "\n\n" not in body:
        whole = json.loads(body)
        _compare(events, whole)
    else:
        assert text_of(events)
    assert finishes(events)
    assert isinstance(events[-1], Usage)


def _compare(events: list[Event], whole: dict[str, Any]) -> None:
    if "output" in whole:
        messages = [item for item in whole["output"] if item["type"] == "message"]
        said = "".join(part["text"] for item in messages for part in item["content"])
        called = [(i["call_id"], i["name"], i["arguments"]) for i in whole["output"] if i["type"] == "function_call"]
        counted = (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"])
    else:
        choice = whole["choices"][0]
        message = choice.get("message") or {"content": choice["text"]}
        said = message.get("content") or ""
        calls = message.get("tool_calls") or ()
        called = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        usage = whole.get("usage") or {}
        counted = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        if choice.get("logprobs") and "content" in choice["logprobs"]:
            tokens = [token for event in events if isinstance(event, Delta) for token in event.logprobs]
            assert [t.logprob for t in tokens] == [t["logprob"] for t in choice["logprobs"]["content"]]
    assert text_of(events) == said
    assert calls_of(events) == called
    usage_event = events[-1]
    assert isinstance(usage_event, Usage)
    if counted[0] is not None:
        assert (usage_event.prompt_tokens, usage_event.completion_tokens) == counted
        assert not usage_event.estimated
