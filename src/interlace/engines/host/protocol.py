"""The wire between the gateway process and an engine host.

A stream socket carries frames in both directions:

    ┌──────────────────────────┬───────────────────────────────┐
    │ length: 4 bytes, little- │ body: `length` bytes, one     │
    │ endian, of the body      │ msgpack value, one message    │
    └──────────────────────────┴───────────────────────────────┘

A body is at most `MAX_FRAME_BYTES`; a longer one is a `FrameError`, never an allocation. A message is an array
whose first item is its tag, then the fields in order:

    gateway → host   ["setup", core, settings, home, listen]  once, first; `listen`: where other processes may attach
                     ["attach", prefix]                     of such a process, first: its ids all begin with it
                     ["submit", id, kind, request, count]   `request` is decoded apart, so that a bad one costs
                                                            only itself; with `count` it is not run, its prompt is
                                                            only counted and told as "usage", at once
                     ["cancel", id]
                     ["adapter", name, folder]              from now on the adapter of that name lies there; with ""
                                                            there is none. Requests keep the one they began with
    host → gateway   ["progress", text]                     while loading
                     ["load_failed", failure, hopeless]     then the host exits
                     ["ready", capabilities, health]        once
                     ["step", [[id, outcome], ...], health or nil]

An outcome is a tagged map: "started", "delta", "usage" and "embeddings" as `engines.types` has them, or "failure",
an `InterlaceError` taken apart (class name, message, param, code, retry_after_seconds). "usage", "embeddings" and
"failure" are the last of their request. Ids are made by the gateway's end and never used twice on one connection.
There is no goodbye: whichever side goes, the other reads the end of the stream.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from interlace.config import ModelSettings
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Health,
    Outcome,
    Started,
    Usage,
)
from interlace.errors import InterlaceError, InvalidRequest, PayloadTooLarge, error_named

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 64 << 20  # embeddings of 2,048 texts and logprobs of a whole prompt fit; a length gone wild does not

Kind = Literal["generate", "embed"]


class FrameError(Exception):
    """The other side sent something that is not a frame of this protocol; the connection is of no more use."""


# --- messages --------------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, tag="failure"):
    """An `InterlaceError`, taken apart to cross a process border."""

    name: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: InterlaceError) -> Failure:
        """The parts of `error`."""
        return cls(type(error).__name__, error.message, error.param, error.code, error.retry_after_seconds)

    def error(self) -> InterlaceError:
        """A fresh error of the same class and parts (`InterlaceError` where the class is not known here)."""
        return error_named(self.name)(
            self.message, param=self.param, code=self.code, retry_after_seconds=self.retry_after_seconds
        )


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages: tagged arrays, because field names would outweigh most deltas."""


class Setup(Message, frozen=True, tag="setup"):
    """What to load: `core` is the factory, "package.module:function", from our code or settings."""

    core: str
    settings: ModelSettings
    home: str
    listen: str = ""


class Attach(Message, frozen=True, tag="attach"):
    """Another gateway process, at the socket the host listens on. Its ids begin with `prefix`, which ends in `|`."""

    prefix: str


class Submit(Message, frozen=True, tag="submit"):
    """A request; `body` is decoded by `decode_request`."""

    id: str
    kind: Kind
    body: msgspec.Raw
    count: bool = False


class Cancel(Message, frozen=True, tag="cancel"):
    """Forget a request. One that is not known (any more) is ignored."""

    id: str


class Adapter(Message, frozen=True, tag="adapter"):
    """From now on the model's adapter `name` is the one in `folder`; "": there is none of that name."""

    name: str
    folder: str = ""


class Progress(Message, frozen=True, tag="progress"):
    """How far loading has come, in words."""

    text: str


class LoadFailed(Message, frozen=True, tag="load_failed"):
    """Loading failed. `hopeless`: the same files and settings will fail again (a bad checkpoint, too little memory)."""

    failure: Failure
    hopeless: bool


class Ready(Message, frozen=True, tag="ready"):
    """Loaded; requests may come."""

    capabilities: Capabilities
    health: Health


WireOutcome = Started | Delta | Usage | Embeddings | Failure


class Step(Message, frozen=True, tag="step"):
    """All that one step brought, and now and then the counters."""

    outcomes: list[tuple[str, WireOutcome]]
    health: Health | None = None


ToHost = Setup | Attach | Submit | Cancel | Adapter
FromHost = Progress | LoadFailed | Ready | Step

_encoder = msgspec.msgpack.Encoder()
_to_host: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)
_generate_request = msgspec.msgpack.Decoder(GenerateRequest)
_embed_request = msgspec.msgpack.Decoder(EmbedRequest)


# What msgspec raises for a value msgpack cannot carry: an integer over 64 bits, a lone surrogate, endless nesting,
# a foreign type. All of them can be written in JSON, or in Python by a caller of the library.
_UNCARRIABLE = (OverflowError, UnicodeEncodeError, RecursionError, TypeError, msgspec.ValidationError)


def wire_outcome(outcome: Outcome) -> WireOutcome:
    """The outcome as it crosses: errors taken apart, everything else as it is."""
    return Failure.of(outcome) if isinstance(outcome, InterlaceError) else outcome


# --- frames ----------------------------------------------------------------------------------------------------


def encode_frame(message: ToHost | FromHost, limit: int = MAX_FRAME_BYTES) -> bytearray:
    """The message as one frame; raises `FrameError` when it cannot be carried or its body is longer than `limit`."""
    return frame_of(_encoder, message, limit)


def frame_of(encoder: msgspec.msgpack.Encoder, message: object, limit: int = MAX_FRAME_BYTES) -> bytearray:
    """The same for any message that `encoder` knows how to write."""
    frame = bytearray(LENGTH_BYTES)
    try:
        encoder.encode_into(message, frame, LENGTH_BYTES)
    except _UNCARRIABLE as error:
        raise FrameError(f"a message that cannot be carried ({type(error).__name__})") from error
    length = len(frame) - LENGTH_BYTES
    if length > limit:
        raise FrameError(f"a frame of {length:,} bytes is over the limit of {limit:,}")
    frame[:LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "little")
    return frame


def decode_to_host(body: bytearray) -> ToHost:
    """A message for the host; raises `FrameError`."""
    try:
        return _to_host.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"not a message for an engine host: {error}") from error


def decode_from_host(body: bytearray) -> FromHost:
    """A message of the host; raises `FrameError`."""
    try:
        return _from_host.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"not a message of an engine host: {error}") from error


class FrameReader:
    """Cuts a byte stream, arriving in pieces of any size, into frame bodies."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[bytearray]:
        """The bodies that `piece` completes, in order; raises `FrameError` for a length over the limit."""
        buffer = self._buffer
        buffer += piece
        bodies: list[bytearray] = []
        start = 0
        while len(buffer) - start >= LENGTH_BYTES:
            body = start + LENGTH_BYTES
            length = int.from_bytes(buffer[start:body], "little")
            if length > self._limit:
                raise FrameError(f"a frame of {length:,} bytes is over the limit of {self._limit:,}")
            if len(buffer) - body < length:
                break
            start = body + length
            bodies.append(buffer[body:start])
        del buffer[:start]
        return bodies


# --- requests --------------------------------------------------------------------------------------------------


def encode_request(id: str, request: GenerateRequest | EmbedRequest, *, count: bool = False) -> bytearray:
    """The `submit` frame for `request`, which goes by `id` on the wire.

    Raises `InvalidRequest`, naming the field, for a value that cannot be carried and `PayloadTooLarge` past the bound.
    """
    kind: Kind = "generate" if isinstance(request, GenerateRequest) else "embed"
    try:
        body = _encoder.encode(msgspec.structs.replace(request, id=id))
    except _UNCARRIABLE as error:
        raise _uncarriable(request, error) from error
    try:
        return encode_frame(Submit(id, kind, msgspec.Raw(body), count))
    except FrameError as error:
        raise PayloadTooLarge(f"the request is too large for an engine: {error}; send less at once") from error


def _uncarriable(request: GenerateRequest | EmbedRequest, error: Exception) -> InvalidRequest:
    fields = msgspec.structs.asdict(request)
    fields |= msgspec.structs.asdict(fields.pop("sampling", msgspec.Struct()))
    culprit = next((name for name, value in fields.items() if not _carriable(value)), None)
    return InvalidRequest(
        f"{culprit or 'the request'} holds a value that cannot be used ({error}); send whole characters, integers of "
        "at most 64 bits and less than a thousand levels",
        param=culprit,
    )


def _carriable(value: object) -> bool:
    try:
        _encoder.encode(value)
    except _UNCARRIABLE:
        return False
    return True


def decode_request(message: Submit) -> GenerateRequest | EmbedRequest:
    """The request inside; raises `InvalidRequest` where it is not one (a field of the wrong type)."""
    try:
        return (_generate_request if message.kind == "generate" else _embed_request).decode(message.body)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the request cannot be read: {error}") from error
