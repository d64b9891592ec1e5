"""OpenAI's Responses API on loopback: what `servers/openai.py` answers on `/responses`, in the published order of
events. Every event and every whole response is held against OpenAI's published schemas in `test_openai_server.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.providers.servers.http import Told
from tests.providers.servers.sayings import SAYINGS

SEALED = "gAAAAABo0jQ7sealed"
USAGE = {
    "input_tokens": 30,
    "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 3},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 42,
}

Item = dict[str, Any]


def _response(body: dict[str, Any], output: list[Item], status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
        "object": "response",
        "created_at": 1741476542,
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "metadata": {},
        **more,
    }


def said(body: dict[str, Any], output: list[Item], status: str = "completed", **more: Any) -> Told:
    """A response, streamed if that was asked for."""
    done = _response(body, output, status, usage=USAGE, **more)
    if not body.get("stream"):
        return Told(200, json.dumps(done).encode(), {"Content-Type": "application/json"})
    events = [
        {"type": kind, "response": _response(body, [], "in_progress")}
        for kind in ("response.created", "response.in_progress")
    ]
    for at, item in enumerate(output):
        events += _item_events(at, item)
    events.append({"type": f"response.{status}", "response": done})
    return _stream(events)


def _stream(events: list[dict[str, Any]], *, cut: bool = False) -> Told:
    lines = []
    for number, event in enumerate(events):
        told = {**event, "sequence_number": number}
        lines.append(f"event: {event['type']}\ndata: {json.dumps(told)}\n\n".encode())
    return Told(200, lines, {"Content-Type": "text/event-stream; charset=utf-8"}, cut=cut)


def _item_events(at: int, item: Item) -> Iterator[dict[str, Any]]:
    begun = {**item, "status": "in_progress"}
    match item["type"]:
        case "message":
            begun["content"] = []
        case "reasoning":
            begun["summary"] = []
            begun.pop("content", None)
        case "function_call":
            begun["arguments"] = ""
    yield {"type": "response.output_item.added", "output_index": at, "item": begun}
    where = {"output_index": at, "item_id": item["id"]}
    match item["type"]:
        case "message":
            for i, part in enumerate(item["content"]):
                yield from _part_events(part, {**where, "content_index": i})
        case "reasoning":
            for i, part in enumerate(item["summary"]):
                yield from _summary_events(part, {**where, "summary_index": i})
        case "function_call":
            for piece in _cut(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **where, "delta": piece}
            yield {
                "type": "response.function_call_arguments.done", **where,
                "name": item["name"], "arguments": item["arguments"],
            }  # fmt: skip
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


def _part_events(part: Item, where: Item) -> Iterator[dict[str, Any]]:
    kind = "output_text" if part["type"] == "output_text" else "refusal"
    field = "text" if kind == "output_text" else "refusal"
    more: Item = {"logprobs": []} if field == "text" else {}
    yield {"type": "response.content_part.added", **where, "part": {**part, field: ""}}
    for piece in _cut(part[field]):
        yield {"type": f"response.{kind}.delta", **where, "delta": piece, **more}
    yield {"type": f"response.{kind}.done", **where, field: part[field], **more}
    yield {"type": "response.content_part.done", **where, "part": part}


def _summary_events(part: Item, where: Item) -> Iterator[dict[str, Any]]:
    yield {"type": "response.reasoning_summary_part.added", **where, "part": {**part, "text": ""}}
    for piece in _cut(part["text"]):
        yield {"type": "response.reasoning_summary_text.delta", **where, "delta": piece}
    yield {"type": "response.reasoning_summary_text.done", **where, "text": part["text"]}
    yield {"type": "response.reasoning_summary_part.done", **where, "part": part}


def _cut(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


def _message(*parts: Item) -> Item:
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": list(parts)}


def _text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _thought(*summary: str) -> Item:
    parts = [{"type": "summary_text", "text": text} for text in summary]
    return {"id": "rs_1", "type": "reasoning", "summary": parts, "encrypted_content": SEALED}


def _call(name: str, arguments: str) -> Item:
    return {
        "id": f"fc_{name}", "type": "function_call", "status": "completed", "call_id": f"call_{name}", "name": name,
        "arguments": arguments,
    }  # fmt: skip


# --- scripts -----------------------------------------------------------------------------------------------------


def thinks(body: dict[str, Any], argument: str) -> Told:
    """A thought in two short versions, sealed, and an answer."""
    del argument
    return said(body, [_thought("Let me see.", "It is four."), _message(_text("Four."))])


def calls(body: dict[str, Any], argument: str) -> Told:
    """A thought, and two calls, one without arguments."""
    del argument
    return said(body, [_thought(), _call("weather", '{"city": "Paris"}'), _call("now", "{}")])


def refusal(body: dict[str, Any], argument: str) -> Told:
    """A refusal."""
    del argument
    return said(body, [_message({"type": "refusal", "refusal": "I can't help with that."})])


def ends(body: dict[str, Any], argument: str) -> Told:
    """A word, and an end for that reason."""
    return said(body, [_message(_text("one"))], "incomplete", incomplete_details={"reason": argument})


def breaks(body: dict[str, Any], argument: str) -> Told:
    """A word, and then: `error`, `failed`, an end without one (`cut`, `quiet`), nonsense (`garbage`,
    `endless`); or a page (`html`), or an error with a success code around it (`wrapped`)."""
    fault = {"code": "rate_limit_exceeded", "message": "Rate limit reached"}
    if argument == "wrapped":
        told = _response(body, [], "failed", error=fault)
        return Told(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
    begin = [
        {"type": "response.created", "response": _response(body, [], "in_progress")},
        *list(_item_events(0, _message(_text("one"))))[:3],
    ]
    if argument == "error":
        begin.append({"type": "error", **fault, "param": None})
    if argument == "failed":
        begin.append({"type": "response.failed", "response": _response(body, [], "failed", error=fault)})
    made = _stream(begin, cut=argument == "cut")
    tails = {"garbage": [b"data: {nonsense\n\n"], "endless": [b"data: ", *[b"x" * (1 << 20)] * 5]}
    if argument == "html":
        return Told(200, b"<html>", {"Content-Type": "text/html"})
    return Told(200, [*made.body, *tails[argument]], made.headers) if argument in tails else made


def says(body: dict[str, Any], argument: str) -> Told:
    """What it is told to."""
    one = SAYINGS[argument]
    if one.fault:
        fault = {"code": "invalid_prompt", "message": one.fault}
        if not one.late:
            error = {**fault, "type": "invalid_request_error", "param": None}
            return Told(400, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})
        failed = {"type": "response.failed", "response": _response(body, [], "failed", error=fault)}
        begun = [{"type": "response.created", "response": _response(body, [], "in_progress")}]
        return _stream([*begun, *_item_events(0, _message(_text(one.text))), failed])
    items = [_thought(one.thought)] if one.thought else []
    parts = [_text(one.text)] if one.text else []
    parts += [{"type": "refusal", "refusal": one.refusal}] if one.refusal else []
    items += [_message(*parts)] if parts else []
    return said(body, [*items, *({**_call(call.name, call.arguments), "call_id": call.id} for call in one.calls)])


SCRIPTS: dict[str, Callable[[dict[str, Any], str], Told]] = {
    "says": says,
    "thinks": thinks,
    "calls": calls,
    "refusal": refusal,
    "ends": ends,
    "breaks": breaks,
}
