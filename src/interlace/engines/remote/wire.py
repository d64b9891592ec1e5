"""What a provider's module gives the remote engine: one format, both ways.

`RemoteEngine` does what all providers share (connections, clocks, limits on what is read, errors, counting). A module
for a provider says how a request is written, how its answer is read, and what becomes of each field on the way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields
from interlace.engines.remote.failures import Complaint
from interlace.engines.types import Embeddings, EmbedRequest, Event, GenerateRequest

EVENT_STREAM, JSON = "text/event-stream", "application/json"


class Outgoing(msgspec.Struct, frozen=True):
    """One HTTP request: the URL, whole and sent as it stands; headers beside those every request has (a Content-Type
    here goes before JSON's); the body."""

    url: str
    body: bytes
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    accept: str = JSON
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer to a request beside the engine's own, such as one for a token."""

    status: int
    body: bytes
    headers: Mapping[str, str]


Fetch = Callable[[Outgoing], Awaitable[Fetched]]
"""Sends one small request over the engine's own connections; raises `EngineUnavailable` or `EngineFailed`."""


class ErrorInside(Exception):
    """The provider reports an error inside an answer; `body` is the JSON that says so, for `Wire.complaint`."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


class Frames(Protocol):
    """Cuts a streamed body into payloads: `EventReader` for server-sent events, another for AWS's event streams."""

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The payloads that ended in these bytes; raises `EngineFailed` for an endless one."""
        ...

    def end(self) -> Sequence[bytes]:
        """The bytes have ended: what is left."""
        ...


class Answer(Protocol):
    """Reads one answer, payload by payload."""

    progress: int  # counts payloads that brought something
    done: bool  # the end has been told

    @property
    def complete(self) -> bool:
        """Whether every choice has its end, so that nothing but the usage can be missing."""
        ...

    def take(self, payload: bytes) -> list[Event]:
        """The events of one payload of a stream, or of a whole answer. Raises `EngineFailed` for what cannot be read
        and `ErrorInside` for an error told inside the answer."""
        ...

    def end(self, *, told: bool) -> list[Event]:
        """The last events; `told`: the provider said that this is the end, or the answer came whole."""
        ...


class Wire(Protocol):
    """One provider's format, for one configured model. Raises `InvalidRequest`, naming the field, for what cannot be
    said in it."""

    fields: Fields

    def check(self, request: GenerateRequest) -> None:
        """Raises what `generate` would; asks nobody."""
        ...

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """The request in the provider's words, signed. Async, because a token may have to be fetched first.
        `ask_usage` is False once the provider has refused to be asked for the usage of a stream."""
        ...

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """As `generate`, for embeddings."""
        ...

    async def count(self, request: GenerateRequest) -> Outgoing | None:
        """A request to the provider's own counter of prompt tokens; None where it has none."""
        ...

    def read_count(self, body: bytes) -> int:
        """What the counter answered."""
        ...

    def frames(self, content_type: str) -> Frames | None:
        """What cuts an answer of this type into payloads; None for one that comes whole. Raises `EngineFailed` for a
        type that is no answer."""
        ...

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> Answer:
        """A reader of one answer; `prompt_tokens` is our estimate."""
        ...

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """The embeddings in an answer; raises `EngineFailed` or `ErrorInside`."""
        ...

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """What a refusal says: `value` is its body as JSON, or None; `headers` are by their lower-case names, none for
        an error inside an answer. A Retry-After header is read by the engine, other hints (`Complaint.again`) here."""
        ...

    def hide(self, text: str) -> str:
        """The text with every key and token of this provider blotted out."""
        ...


Make = Callable[[ModelSettings, Mapping[str, str], Fetch], Wire]
"""What each module in `providers` calls `make`: settings of a model and the environment → its wire. Raises
`ConfigError` for a key that is not there; asks nobody."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What is meant where a model's settings leave it out, for people to see: the address, the variable of the key (as
    `${NAME}`), or in words whose credentials are used."""

    base_url: str = ""
    api_key: str = ""
    credentials: str = ""
