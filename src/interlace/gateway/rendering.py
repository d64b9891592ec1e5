"""What an endpoint needs from a dialect: a parsed ask, and someone who turns neutral events into bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from starlette.types import Scope

from interlace.gateway.calls import Ask, Done, Happening

_encoder = msgspec.json.Encoder()

SSE_DONE = b"data: [DONE]\n\n"


class Rendering(Protocol):
    """The answer to one request, in one dialect. Exactly one of the two ways is used."""

    stream: bool

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """Streaming: the bytes to send for a batch, possibly none."""
        ...

    def last_chunks(self, done: Done) -> bytes:
        """Streaming: what ends the answer."""
        ...

    def take(self, batch: Sequence[Happening]) -> None:
        """Not streaming: keep a batch."""
        ...

    def whole(self, done: Done) -> bytes:
        """Not streaming: the answer."""
        ...


class Dialect(Protocol):
    """Reads a body and knows how to render what comes of it; raises `InvalidRequest`."""

    def __call__(self, body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, Rendering]:
        """`max_sequences` bounds prompts times `n`."""
        ...


Heed = Callable[[Ask, Scope], Ask]
"""Adds to an ask what its dialect says in headers; raises `InvalidRequest`."""


def unheeded(ask: Ask, scope: Scope) -> Ask:  # noqa: ARG001 - a `Heed`
    """Of a dialect that says all in its body."""
    return ask


def write_event(into: bytearray, value: Any) -> None:
    """Append one server-sent event."""
    into += b"data: "
    _encoder.encode_into(value, into, -1)
    into += b"\n\n"


def write_named_event(into: bytearray, name: str, fields: Mapping[str, Any]) -> None:
    """Append one server-sent event with a name, which stands in its data as `type` too."""
    into += f"event: {name}\ndata: ".encode()
    _encoder.encode_into({"type": name, **fields}, into, -1)
    into += b"\n\n"
