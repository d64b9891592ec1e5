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


def texts_of(request: GenerateRequest) -> Iterator[str]:
    """Every text that a model would read, or that shapes what it writes. Pictures, sounds and sealed thoughts hold no
    text that could be read here; of those that a provider fetches, the address is one."""
    if request.prompt is not None:
        yield request.prompt
    for message in request.messages or ():
        yield from texts_of_message(message)
    for tool in request.tools:
        yield f"{tool.name}: {tool.description}"
        yield msgspec.json.encode(tool.parameters).decode()
        if tool.native:
            yield msgspec.json.encode(tool.native).decode()
    if request.output is not None:
        yield request.output.rule
        yield request.output.name
        yield request.output.description
    yield from request.sampling.stop
    yield from names_of(request)
    if request.options.metadata:
        yield msgspec.json.encode(request.options.metadata).decode()
    if request.native:
        yield msgspec.json.encode(request.native).decode()


def names_of(request: GenerateRequest) -> Iterator[str]:
    """What a caller calls itself and its work: a provider reads it, though no model may."""
    options = request.options
    yield from filter(None, (options.user, options.safety_identifier, options.cache_key))


def inner_texts_of(request: GenerateRequest) -> Iterator[str]:
    """The texts of a request as they are read once more: what JSON says in escapes, and texts that stand side by side
    as one. All of it is in `texts_of`, too, in pieces."""
    for message in request.messages or ():
        if isinstance(message.content, str) and not message.tool_calls and message.kind in ("", "custom"):
            continue  # nothing stands beside it, or in its escapes
        texts = [part.text for part in message.parts if not isinstance(part, ImagePart | AudioPart)]
        if len(texts) > 1:
            yield "".join(texts)
            yield "\n".join(texts)
        if message.kind not in ("", "custom"):
            yield from strings_in_json(message.text)
        for call in message.tool_calls:
            yield from strings_in_json(call.arguments)
    for tool in request.tools:
        yield from strings_in(tool.parameters)
        yield from strings_in(tool.native)
    if request.output is not None:
        yield from strings_in_json(request.output.rule)
    yield from strings_in(request.options.metadata)
    yield from strings_in(request.native)


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
