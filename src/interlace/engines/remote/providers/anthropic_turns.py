"""A conversation in the words of Anthropic's Messages API: instructions apart, results inside turns of the user."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from interlace.engines.types import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)
from interlace.errors import InvalidRequest

Block = dict[str, Any]
_INSTRUCTIONS = ("system", "developer")
_TIMES = {"5m": "5m", "1h": "1h", "30m": "1h", "12h": "1h", "24h": "1h"}  # the shortest that lasts as long, or longest


def turns_of(messages: Sequence[Message]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The instructions before the conversation, and its turns; turns of one role after another become one. Raises
    `InvalidRequest` for what cannot be said."""
    begin = next((i for i, one in enumerate(messages) if one.role not in _INSTRUCTIONS), len(messages))
    system = [block for message in messages[:begin] for block in _blocks(message)]
    turns: list[dict[str, Any]] = []
    for message in messages[begin:]:
        role = _role(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += _blocks(message)
        else:
            turns.append({"role": role, "content": _blocks(message)})
    return system, [turn for turn in turns if turn["content"]]


def mark_of(cache: str) -> dict[str, str]:
    """A cache mark."""
    mark = {"type": "ephemeral"}
    return mark | {"ttl": _TIMES[cache]} if cache in _TIMES else mark


def _role(message: Message) -> str:
    if message.role in _INSTRUCTIONS:
        return "system"
    return "assistant" if message.role == "assistant" else "user"


def _blocks(message: Message) -> list[Block]:
    """What a turn says, as blocks, the last of them with the turn's own mark. No empty texts: they are refused."""
    if message.role == "tool":
        return [_result(message)]
    blocks = list(_content(message.sequence))
    if message.name is not None:
        first = next((block for block in blocks if block["type"] == "text"), None)
        if first is not None:
            first["text"] = f"{message.name}: {first['text']}"
        elif blocks:
            thoughts = sum("thinking" in block["type"] for block in blocks)
            blocks.insert(thoughts, {"type": "text", "text": f"{message.name}:"})
    if message.cache and blocks and "thinking" not in blocks[-1]["type"]:
        blocks[-1].setdefault("cache_control", mark_of(message.cache))
    return blocks


def _result(message: Message) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id or ""}
    if isinstance(message.content, str):
        block["content"] = message.content
    else:
        block["content"] = list(_content(message.content))
    if message.is_error:
        block["is_error"] = True
    if message.cache:
        block["cache_control"] = mark_of(message.cache)
    return block


def _call(call: ToolCall) -> Block:
    raw = call.arguments.strip() or "{}"
    try:
        given = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest(
            "The arguments of a tool call in the conversation are not a JSON object.",
            param="messages",
            code="invalid_value",
        )
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": msgspec.Raw(raw.encode())}  # every digit


def _content(parts: Sequence[Part | ToolCall]) -> Iterator[Block]:
    for part in parts:
        block = _call(part) if isinstance(part, ToolCall) else _block(part)
        if block is None:
            continue
        if cache := getattr(part, "cache", ""):
            block["cache_control"] = mark_of(cache)
        yield block


def _block(part: Part) -> Block | None:
    match part:
        case TextPart() | RefusalPart():
            return {"type": "text", "text": part.text} if part.text else None
        case ThinkingPart(redacted=redacted) if redacted:
            return {"type": "redacted_thinking", "data": redacted}
        case ThinkingPart(signature=signature) if signature:
            return {"type": "thinking", "thinking": part.text, "signature": signature}
        case ThinkingPart():
            return None  # without its seal the provider would refuse it
        case ImagePart():
            return {"type": "image", "source": _source(part)}
        case FilePart():
            block = {"type": "document", "source": _document(part)}
            return block | {"title": part.name} if part.name else block
        case AudioPart():
            raise InvalidRequest("This model reads no sound.", param="messages", code="unsupported_parameter")


def _source(part: ImagePart | FilePart) -> Block:
    if part.url:
        return {"type": "url", "url": part.url}
    return {"type": "base64", "media_type": part.media_type, "data": part.data}


def _document(part: FilePart) -> Block:
    """A PDF, or text: other files are for the caller to turn into one of them."""
    if part.text:
        return {"type": "text", "media_type": "text/plain", "data": part.text}
    if part.url or part.media_type == "application/pdf":
        return _source(part)
    try:
        if not part.media_type.startswith("text/"):
            raise ValueError
        text = base64.b64decode(part.data, validate=True).decode()
    except (ValueError, binascii.Error):
        raise InvalidRequest(
            "This model reads PDF files and plain text only. Send one of them.",
            param="messages",
            code="unsupported_parameter",
        ) from None
    return {"type": "text", "media_type": "text/plain", "data": text}
