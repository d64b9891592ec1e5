"""Answers held to the `anthropic` SDK's own models, with nothing missing and nothing more than they know."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import (
    ErrorResponse,
    Message,
    MessageTokensCount,
    ModelInfo,
    RawMessageStreamEvent,
)
from pydantic import BaseModel, TypeAdapter

MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
COUNT: TypeAdapter[MessageTokensCount] = TypeAdapter(MessageTokensCount)
MODEL: TypeAdapter[ModelInfo] = TypeAdapter(ModelInfo)
ERROR: TypeAdapter[ErrorResponse] = TypeAdapter(ErrorResponse)
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def checked(shape: TypeAdapter[Any], text: str | bytes) -> Any:
    """What the JSON says, once it is known to have that shape and no field beyond it."""
    value = shape.validate_json(text)
    _no_more(value)
    return value


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each with its name as its type, in the shape the SDK knows (but for pings and errors)."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] == "error":
            checked(ERROR, data.removeprefix("data: "))
        elif event["type"] != "ping":
            checked(EVENT, data.removeprefix("data: "))
        events.append(event)
    return events


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream tells; fails where its events are out of order."""
    first, *middle, last = [event for event in events if event["type"] != "ping"]
    assert (first["type"], last) == ("message_start", {"type": "message_stop"})
    message: dict[str, Any] = first["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    *middle, end = middle
    assert end["type"] == "message_delta"
    open_block, pieces = None, ""
    for event in middle:
        place = len(message["content"])
        match event["type"]:
            case "content_block_start":
                assert (open_block, event["index"]) == (None, place)
                open_block, pieces = event["content_block"], ""
            case "content_block_delta":
                assert (open_block is not None, event["index"]) == (True, place)
                pieces += _grow(open_block, event["delta"])
            case "content_block_stop":
                assert (open_block is not None, event["index"]) == (True, place)
                if open_block["type"] == "tool_use":
                    open_block["input"] = json.loads(pieces or "{}")
                message["content"].append(open_block)
                open_block = None
    assert open_block is None
    message |= end["delta"]
    message["usage"] |= end["usage"]
    return message


def _grow(block: Any, delta: dict[str, Any]) -> str:
    """Apply a delta; pieces of a call's input are given back."""
    kinds = {"text_delta": "text", "input_json_delta": "tool_use"}
    assert block["type"] == kinds.get(delta["type"], "thinking")
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] = delta["signature"]
        case _:
            return str(delta["partial_json"])
    return ""


def _no_more(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__} has no {list(value.model_extra or ())}"
        for name in value.model_fields_set:
            _no_more(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            _no_more(one)
