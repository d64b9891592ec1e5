"""A conversation in the words of OpenAI's chat endpoint."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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

BREAKPOINT_TIMES = ("30m", "12h")  # how long a cache may be asked to live


@dataclass(frozen=True, slots=True)
class Manners:
    """What a server understands of a conversation beyond what all do: `developer` turns, `cache_marks`, `signatures` of
    tool calls, and `thoughts` of the assistant."""

    developer: bool = True
    cache_marks: bool = False
    signatures: bool = False
    thoughts: bool = False


def messages_of(messages: Sequence[Message], manners: Manners) -> list[dict[str, Any]]:
    """The turns in order. What a tool returned beside text follows its results in a turn of the user, because a
    result can only be text."""
    turns: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for message in messages:
        if shown and message.role != "tool":
            turns.append({"role": "user", "content": shown})
            shown = []
        turns.append(_message(message, manners))
        if message.role == "tool":
            media = [part for part in message.parts if _is_media(part)]
            shown += _content_parts(media, message.cache if manners.cache_marks else "", manners)
    if shown:
        turns.append({"role": "user", "content": shown})
    return turns


def _message(message: Message, manners: Manners) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not manners.developer else message.role
    body: dict[str, Any] = {"role": role, "content": _content(message, manners)}
    if message.name is not None:
        body["name"] = message.name
    if message.role == "assistant":
        _add_what_only_assistants_say(body, message, manners)
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _content(message: Message, manners: Manners) -> str | list[dict[str, Any]]:
    """A text where that says it all, else parts."""
    mark = message.cache if manners.cache_marks else ""
    if isinstance(message.content, str) and not (mark and message.content):
        return message.content
    parts = [part for part in message.parts if not isinstance(part, ThinkingPart | RefusalPart)]
    if message.role == "tool" and any(map(_is_media, parts)):
        parts = [part for part in parts if not _is_media(part)]
        mark = ""  # stands where the result ends: after what follows in another turn
    made = _content_parts(parts, mark, manners)
    if len(made) == 1 and made[0].keys() == {"type", "text"}:
        text: str = made[0]["text"]
        return text  # the way that every server knows
    return made or ""


def _add_what_only_assistants_say(body: dict[str, Any], message: Message, manners: Manners) -> None:
    refusals = [part.text for part in message.parts if isinstance(part, RefusalPart)]
    if refusals:
        body["refusal"] = "\n".join(refusals)
    if message.tool_calls:
        body["tool_calls"] = [_call(call, manners) for call in message.tool_calls]
    if (refusals or message.tool_calls) and not body["content"]:
        body["content"] = None
    thought = "\n".join(part.text for part in message.parts if isinstance(part, ThinkingPart) and part.text)
    if thought and manners.thoughts:
        body["reasoning_content"] = body["reasoning"] = thought  # by its older and its newer name


def _call(call: ToolCall, manners: Manners) -> dict[str, Any]:
    if call.kind:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    body: dict[str, Any] = {"id": call.id, "type": "function", "function": function}
    if call.signature and manners.signatures:
        body["extra_content"] = {"google": {"thought_signature": call.signature}}
    return body


def _content_parts(parts: Sequence[Part], mark: str, manners: Manners) -> list[dict[str, Any]]:
    """Parts, the last of them marked with the mark of the whole turn."""
    made: list[dict[str, Any]] = []
    for part, body in _bodies(parts):
        own = getattr(part, "cache", "")
        if manners.cache_marks and own:
            body["prompt_cache_breakpoint"] = breakpoint_of(own)
        made.append(body)
    if mark and made:
        made[-1].setdefault("prompt_cache_breakpoint", breakpoint_of(mark))
    return made


def breakpoint_of(mark: str) -> dict[str, str]:
    """A cache mark; times that only other providers know are left to the server."""
    made = {"mode": "explicit"}
    return made | {"ttl": mark} if mark in BREAKPOINT_TIMES else made


def _bodies(parts: Sequence[Part]) -> Iterator[tuple[Part, dict[str, Any]]]:
    for part in parts:
        match part:
            case TextPart():
                yield part, {"type": "text", "text": part.text}
            case ImagePart():
                image = {"url": url_of(part)}
                if part.detail:
                    image["detail"] = part.detail
                yield part, {"type": "image_url", "image_url": image}
            case FilePart():
                yield part, _file(part)
            case AudioPart():
                yield part, {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
            case _:
                continue


def _file(part: FilePart) -> dict[str, Any]:
    if part.text:
        return {"type": "text", "text": file_as_text(part)}
    return {"type": "file", "file": {"filename": name_of(part), "file_data": url_of(part)}}


def name_of(part: FilePart) -> str:
    """Its name; one without gets one that says what it is, because the server wants one."""
    return part.name or f"document{mimetypes.guess_extension(part.media_type) or ''}"


def file_as_text(part: FilePart) -> str:
    """A text file under its name."""
    return f"{part.name}:\n{part.text}" if part.name else part.text


def url_of(part: ImagePart | FilePart) -> str:
    """Where it lies, or what it holds, as a URL."""
    return part.url or f"data:{part.media_type};base64,{part.data}"


def _is_media(part: Part) -> bool:
    return isinstance(part, ImagePart | AudioPart) or (isinstance(part, FilePart) and not part.text)
