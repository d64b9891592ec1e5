"""What a stream of the Responses API must be: events as the official SDK declares them, in the order they may come.

created → queued? → in_progress → items → completed | incomplete | error?, failed
item: output_item.added → parts → output_item.done
part: added → deltas → text done → part done
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_TEXTS = {  # a delta → what ends it, and the field that has the whole
    "response.output_text": ("response.output_text.done", "text"),
    "response.refusal": ("response.refusal.done", "refusal"),
    "response.reasoning_text": ("response.reasoning_text.done", "text"),
    "response.reasoning_summary_text": ("response.reasoning_summary_text.done", "text"),
    "response.function_call_arguments": ("response.function_call_arguments.done", "arguments"),
}
ENDS = {"response.completed", "response.incomplete", "response.failed"}


def strictly(model: type[BaseModel] | TypeAdapter[Any], value: Any) -> Any:
    """The value as the SDK's model: what it requires is there, and nothing that it does not know."""
    read = model.validate_python(value) if isinstance(model, TypeAdapter) else model.model_validate(value)
    _no_extra(read, "")
    return read


def strict_response(value: Any) -> Any:
    """A response, held to the SDK's model."""
    return strictly(Response, value)


def strict_items(value: Any) -> Any:
    """A page of items, held to the SDK's model."""
    return strictly(ResponseItemList, value)


def _no_extra(value: Any, where: str) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{where} has fields the SDK does not know: {value.model_extra}"
        for name in type(value).model_fields:
            _no_extra(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _no_extra(one, f"{where}[{number}]")


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a body of server-sent events; the name of each stands in its data too."""
    events = []
    for block in stream.split("\n\n"):
        if not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def _declared(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what OpenAI's document requires and this version of its SDK does not declare."""
    if event["type"] != "response.function_call_arguments.done":
        return event
    assert event["name"]
    return {name: value for name, value in event.items() if name != "name"}


@dataclass
class _Part:
    kind: str
    texts: list[str] = field(default_factory=list)
    ended: str | None = None


@dataclass
class _Item:
    id: str
    kind: str
    parts: dict[tuple[str, int], _Part] = field(default_factory=dict)
    open: tuple[str, int] | None = None
    done: dict[str, Any] | None = None


def check_stream(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Raise `AssertionError` unless the events make a whole stream; the response that ends it."""
    events = list(events)
    for number, event in enumerate(events):
        strictly(_EVENT, _declared(event))
        assert event["sequence_number"] == number
    kinds = [event["type"] for event in events]
    head = 3 if "response.queued" in kinds else 2
    expected = ["response.created", "response.in_progress"]
    assert kinds[:head] == (expected if head == 2 else [expected[0], "response.queued", expected[1]])
    assert kinds[-1] in ENDS
    assert [kind for kind in kinds if kind in ENDS] == kinds[-1:]
    tail = 2 if "error" in kinds else 1
    if tail == 2:
        assert kinds[-2:] == ["error", "response.failed"]
    items = _items(events[head:-tail])
    response: dict[str, Any] = events[-1]["response"]
    if kinds[-1] != "response.failed" and response["status"] != "cancelled":
        assert all(item.done is not None for item in items)
        assert [item.done for item in items] == response["output"]
        assert {event["response"]["id"] for event in events if "response" in event} == {response["id"]}
    return response


def _items(events: list[dict[str, Any]]) -> list[_Item]:
    items: list[_Item] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(_Item(event["item"]["id"], event["item"]["type"]))
            continue
        item = items[event["output_index"]]
        assert item.done is None, f"{kind} after its item was done"
        if kind == "response.output_item.done":
            assert item.open is None
            item.done = event["item"]
            assert (item.done["id"], item.done["type"]) == (item.id, item.kind)
            _check_item(item)
        else:
            assert event["item_id"] == item.id
            _take(item, event)
    return items


def _take(item: _Item, event: dict[str, Any]) -> None:
    kind = event["type"]
    family = "summary" if "summary" in kind else "content"
    at = (family, event.get(f"{family}_index", 0))
    if kind.endswith("part.added"):
        assert item.open is None
        assert at not in item.parts
        assert at[1] == sum(other == family for other, _ in item.parts)
        item.parts[at], item.open = _Part(event["part"]["type"]), at
    elif kind.endswith("part.done"):
        assert item.open == at
        part = item.parts[at]
        assert part.kind == event["part"]["type"]
        assert part.ended == event["part"].get("text", event["part"].get("refusal"))
        item.open = None
    elif kind.endswith(".delta"):
        if item.kind != "function_call":
            assert item.open == at
        item.parts.setdefault(at, _Part("arguments")).texts.append(event["delta"])
    else:
        base = kind.removesuffix(".done")
        assert kind == _TEXTS[base][0]
        part = item.parts.setdefault(at, _Part("arguments"))
        assert part.ended is None
        part.ended = event[_TEXTS[base][1]]
        assert part.ended == "".join(part.texts)


def _check_item(item: _Item) -> None:
    """What stands in the finished item is what was streamed of it."""
    done = item.done
    assert done is not None
    ended = {at: part.ended for at, part in item.parts.items()}
    if item.kind == "function_call":
        assert ended == {("content", 0): done["arguments"]}
        return
    content = [part.get("text", part.get("refusal")) for part in done.get("content") or ()]
    assert [text for (family, _), text in ended.items() if family == "content"] == content
    summaries = [part["text"] for part in done.get("summary") or ()]
    assert [text for (family, _), text in ended.items() if family == "summary"] == summaries
