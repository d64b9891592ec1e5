"""Every text in a request: what guards must read and what a prompt's length is counted from, listed in one place."""

from __future__ import annotations

from collections.abc import Iterator

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
        yield request.output.description
    if request.options.metadata:
        yield msgspec.json.encode(request.options.metadata).decode()
    if request.native:
        yield msgspec.json.encode(request.native).decode()


def texts_of_message(message: Message) -> Iterator[str]:
    """The texts of one turn, its calls' names and arguments among them."""
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content:
            yield from texts_of_part(part)
    yield message.name or ""
    for call in message.tool_calls:
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
        case AudioPart():
            return
        case _:
            yield part.text
