"""Every text in a request: what guards must read and what a prompt's length is counted from, listed in one place."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Part,
    ThinkingPart,
)


def texts_of(request: GenerateRequest) -> list[str]:
    """Every text that a model would read, or that shapes what it writes. Pictures, sounds and sealed thoughts hold no
    text that could be read here; of those that a provider fetches, the address is one."""
    texts = [] if request.prompt is None else [request.prompt]
    for message in request.messages or ():
        if type(message.content) is str and not (message.name or message.tool_call_id or message.tool_calls):
            texts.append(message.content)  # as most are
        else:
            texts += texts_of_message(message)
    for tool in request.tools:
        texts += (f"{tool.name}: {tool.description}", msgspec.json.encode(tool.parameters).decode())
        if tool.native:
            texts.append(msgspec.json.encode(tool.native).decode())
    if request.output is not None:
        texts += (request.output.rule, request.output.name, request.output.description)
    texts += request.sampling.stop
    texts += names_of(request)
    if request.options.metadata:
        texts.append(msgspec.json.encode(request.options.metadata).decode())
    if request.native:
        texts.append(msgspec.json.encode(request.native).decode())
    return texts


def names_of(request: GenerateRequest) -> list[str]:
    """What a caller calls itself and its work: a provider reads it, though no model may."""
    options = request.options
    return [name for name in (options.user, options.safety_identifier, options.cache_key) if name]


def inner_texts_of(request: GenerateRequest) -> list[str]:
    """The texts of a request as they are read once more: what JSON says in escapes, and texts that stand side by side
    as one. All of it is in `texts_of`, too, in pieces."""
    inner: list[str] = []
    for message in request.messages or ():
        if type(message.content) is str and not message.tool_calls and message.kind in ("", "custom"):
            continue  # nothing stands beside it, or in its escapes
        texts = [part.text for part in message.parts if not isinstance(part, ImagePart | AudioPart)]
        if len(texts) > 1:
            inner += ("".join(texts), "\n".join(texts))
        if message.kind not in ("", "custom"):
            inner += strings_in_json(message.text)
        for call in message.tool_calls:
            inner += strings_in_json(call.arguments)
    for tool in request.tools:
        inner += strings_in(tool.parameters)
        inner += strings_in(tool.native)
    if request.output is not None:
        inner += strings_in_json(request.output.rule)
    if request.options.metadata:
        inner += strings_in(request.options.metadata)
    if request.native:
        inner += strings_in(request.native)
    return inner


def strings_in(value: Any) -> Iterator[str]:
    """Every string of a decoded JSON value, names among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield str(name)
            yield from strings_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings_in(each)


def strings_in_json(text: str) -> Iterator[str]:
    """The same of JSON text that has escapes; nothing where it has none, or is not JSON."""
    if "\\" in text:
        try:
            yield from strings_in(msgspec.json.decode(text))
        except ValueError:
            return


def texts_of_message(message: Message) -> Iterator[str]:
    """The texts of one turn, its calls' names and arguments among them."""
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content:
            yield from texts_of_part(part)
    if message.name:
        yield message.name
    if message.tool_call_id:
        yield message.tool_call_id
    for call in message.tool_calls:
        yield call.id
        yield call.name
        yield call.arguments


def texts_of_part(part: Part) -> Iterator[str]:
    """The texts of one part."""
    match part:
        case ThinkingPart():
            yield part.text
            yield from part.summary
        case ImagePart():
            yield part.url
        case FilePart():
            yield part.url
            yield part.name
            yield part.text
            yield text_in(part)
        case AudioPart():
            return
        case _:
            yield part.text


def text_in(file: FilePart) -> str:
    """The text of a file that is plain text, in base64; empty for others."""
    if not file.data or not (file.media_type.startswith("text/") or file.media_type == "application/json"):
        return ""
    return base64.b64decode(file.data).decode("utf-8", "replace")
