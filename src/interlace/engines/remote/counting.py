"""How many tokens a prompt has, without the tokenizer that will read it: a bound, and a likely figure.

**The bound.** The tokenizers of today's models (byte-level BPE, and sentencepiece with byte fallback) cut a text into
pieces of at least one byte each, so a text never has more tokens than UTF-8 bytes. What a chat template writes around
the texts is not ours to see: `MESSAGE_TOKENS` for each message, `TOOLS_TOKENS` once where there are tools, and
`REQUEST_TOKENS` for each request, are more than the templates we know of write. JSON is counted with every character
beyond ASCII escaped, the longest way a template may write it. A picture, sound or file costs what its provider says it
does: `IMAGE_TOKENS` is above the dearest picture of the providers we know, a sound or file is taken to have no more
tokens than bytes, and a file that the provider fetches to fill `FETCHED_FILE_TOKENS`.

**The likely figure** is a quarter of the bytes, about what English takes. It stands in where a provider does not say
what it counted, and a usage made of it is marked `estimated`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from interlace.engines.texts import texts_of_part
from interlace.engines.types import AudioPart, EmbedRequest, FilePart, GenerateRequest, ImagePart, Message

REQUEST_TOKENS = 256
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 768
IMAGE_TOKENS = 50_000
LIKELY_IMAGE_TOKENS = 1_000
FETCHED_FILE_TOKENS = 200_000
LIKELY_FILE_TOKENS = 2_000
INPUT_TOKENS = 8  # of a text to embed: its begin and end marks
BYTES_PER_TOKEN = 4
_LONG_TOKEN_BYTES = 16  # a chunk of more bytes is more than one token


def most_prompt_tokens(request: GenerateRequest | EmbedRequest) -> int:
    """An upper bound of the prompt's tokens, exact where the prompt came as token ids."""
    if isinstance(request, EmbedRequest):
        if request.ids:
            return sum(map(len, request.ids)) + INPUT_TOKENS * len(request.ids)
        return sum(_bytes(text) + INPUT_TOKENS for text in request.texts)
    return _tokens(request)[0]


def likely_prompt_tokens(request: GenerateRequest | EmbedRequest) -> int:
    """About how many tokens the prompt has: a quarter of its bytes, rounded up, and four for each message."""
    if isinstance(request, EmbedRequest):
        return sum(map(len, request.ids)) if request.ids else sum(map(_likely, request.texts))
    return _tokens(request)[1]


def likely_chunk_tokens(text: str) -> int:
    """About how many tokens one chunk of an answer holds: one, as nearly every server streams, unless it is longer
    than a token can be."""
    if len(text) <= 4:
        return 1 if text else 0
    size = _bytes(text)
    return 1 if size <= _LONG_TOKEN_BYTES else _likely_of_bytes(size)


def _tokens(request: GenerateRequest) -> tuple[int, int]:
    """The most tokens, and about how many. Asked several times for each request, and so kept with it."""
    kept: tuple[int, int] | None = request.__dict__.get("prompt_tokens")
    if kept is None:
        kept = request.__dict__["prompt_tokens"] = _counted(request)
    return kept


def _counted(request: GenerateRequest) -> tuple[int, int]:
    if request.prompt_ids is not None:
        return len(request.prompt_ids), len(request.prompt_ids)
    size, messages = _bytes_of_texts(request), request.messages or ()
    most = REQUEST_TOKENS + size + MESSAGE_TOKENS * sum([1 + len(message.tool_calls) for message in messages])
    likely = _likely_of_bytes(size) + 4 * len(messages)
    for media_most, media_likely in _media(request):
        most += media_most
        likely += media_likely
    return most + (TOOLS_TOKENS if request.tools else 0), likely


def _media(request: GenerateRequest) -> Iterator[tuple[int, int]]:
    """Of each picture, sound and file: the most tokens it can have, and about how many."""
    for message in request.messages or ():
        if isinstance(message.content, str):
            continue
        for part in message.content:
            match part:
                case ImagePart():
                    yield IMAGE_TOKENS, LIKELY_IMAGE_TOKENS
                case AudioPart():
                    yield len(part.data), len(part.data) // 4096
                case FilePart() if part.url:
                    yield FETCHED_FILE_TOKENS, LIKELY_FILE_TOKENS
                case FilePart() if part.data:
                    yield len(part.data) + IMAGE_TOKENS, min(LIKELY_FILE_TOKENS, len(part.data))


def _bytes_of_texts(request: GenerateRequest) -> int:
    """Of every text that a server may write into the prompt."""
    size = 0 if request.prompt is None else _bytes(request.prompt)
    for message in request.messages or ():
        content = message.content
        if type(content) is str and message.name is None and message.tool_call_id is None and not message.tool_calls:
            size += len(content) if content.isascii() else _bytes(content)
        else:
            size += sum(map(_bytes, _message_texts(message)))
    if request.tools or request.output is not None:
        size += sum(map(_bytes, _rules(request)))
    return size


def _rules(request: GenerateRequest) -> Iterator[str]:
    for tool in request.tools:
        yield tool.name
        yield tool.description
        yield json.dumps(dict(tool.parameters))
    if request.output is not None and request.output.rule:
        yield json.dumps(request.output.rule)


def _message_texts(message: Message) -> Iterator[str]:
    for part in message.parts:
        yield from texts_of_part(part)
    yield message.name or ""
    yield message.tool_call_id or ""
    for call in message.tool_calls:
        yield call.id
        yield call.name
        yield json.dumps(call.arguments)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _likely(text: str) -> int:
    return _likely_of_bytes(_bytes(text))


def _likely_of_bytes(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)
