"""The HTTP side of one request: who it is, its body, whether its caller is still there, and sending bytes back."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from interlace.errors import InterlaceError, InvalidRequest, PayloadTooLarge
from interlace.gateway.connection import LINE, Line
from interlace.gateway.meter import Meter
from interlace.gateway.styles import OPENAI, Header, Style
from interlace.gateway.wire import UnsupportedMediaType
from interlace.ledger import Left

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

MOST_TAGS = 8

_TAG = re.compile(r"[A-Za-z0-9._:/=@+-]{1,64}")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class ClientGone(Exception):
    """The caller hung up: there is nobody to answer."""


class ReaderStuck(ClientGone):
    """The caller is there but has read nothing for too long."""


@dataclass(slots=True)
class Exchange:
    """What the outer handlers know of one request; the endpoint fills in what it learns.

    `id` is ours and unique; `label` is what the caller sees in `x-request-id`: its own, if it sent a decent one.
    """

    id: str
    label: bytes
    meter: Meter = field(default_factory=Meter)
    endpoint: str = "other"
    model: str = ""
    status: int = 0
    outcome: str = ""
    style: Style = OPENAI  # how errors and the like are told
    routed: tuple[Header, ...] = ()
    unused: tuple[Header, ...] = ()
    marks: tuple[Header, ...] = ()  # what pages of other origins are told
    _left: Mapping[str, Left] | None = None

    @property
    def headers(self) -> list[Header]:
        """Of the answer, whatever it will be."""
        rates = self.style.rates(self._left) if self._left else ()
        return [*self.style.identity(self.label), *rates, *self.routed, *self.unused, *self.marks]

    def tell_limits(self, left: Mapping[str, Left]) -> None:
        """What is left of the caller's rates, for the answer's headers; the last word holds."""
        self._left = left

    def tell_unused(self, names: Iterable[str]) -> None:
        """What the engine has no use for, for the answer's headers; the last word holds."""
        listed = ",".join(sorted(names))
        self.unused = ((b"x-interlace-unused", listed.encode()),) if listed else ()

    def tell_route(self, model: str, why: str) -> None:
        """Which model of a route answers, and why that one."""
        self.routed = ((b"x-interlace-model", model.encode()), (b"x-interlace-route", why.encode()))

    @classmethod
    def of(cls, scope: Scope, style: Style) -> Exchange:
        """The exchange of a request that just arrived."""
        made = f"{time.time_ns() // 1_000_000:012x}{_twelve_digits()}"  # in the order of time, as in UUIDv7
        given = header(scope, b"x-request-id")
        label = given if given is not None and _REQUEST_ID.fullmatch(given) else f"req_{made}".encode()
        return cls(made, label, style=style)


_digits: list[str] = []
os.register_at_fork(after_in_child=_digits.clear)


def _twelve_digits() -> str:
    """Random ones of base 16, asked for many at a time: each question gives up the interpreter's lock."""
    if not _digits:
        many = os.urandom(6 * 256).hex()
        _digits.extend([many[at : at + 12] for at in range(0, len(many), 12)])
    return _digits.pop()


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    try:
        first: dict[bytes, bytes] = scope["interlace.headers"]
    except KeyError:
        first = scope["interlace.headers"] = dict(reversed(scope["headers"]))
    return first.get(name)


def credential_of(scope: Scope) -> str | None:
    """The value of the `Authorization` header. A key in `x-api-key`, Anthropic's way, is as good as one there, unless
    there is one there."""
    value, key = header(scope, b"authorization"), header(scope, b"x-api-key")
    if key is not None and (value is None or value[:7].lower() != b"bearer "):
        value = b"Bearer " + key
    return None if value is None else value.decode("latin-1")


def query_of(scope: Scope) -> dict[str, str]:
    """The parameters of the query, each given once."""
    try:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidRequest("The query has more parameters than anything here takes.") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("A parameter of the query is given twice. Give it once, with commas where it is a list.")
    return found


def conversation_of(scope: Scope) -> str | None:
    """What the caller calls its conversation, in `x-interlace-conversation`; a digest is made of it, nothing else."""
    value = header(scope, b"x-interlace-conversation")
    return value.decode("latin-1")[:1000] if value else None


def tags_of(scope: Scope) -> tuple[str, ...]:
    """The tags in `x-interlace-tags`, each once; raises `InvalidRequest` for too many or odd ones. A header that is
    sent twice means both, as HTTP has it."""
    if header(scope, b"x-interlace-tags") is None:
        return ()
    values = [value for name, value in scope["headers"] if name == b"x-interlace-tags"]
    tags = tuple(dict.fromkeys(tag.strip() for tag in b",".join(values).decode("latin-1").split(",") if tag.strip()))
    if len(tags) > MOST_TAGS or not all(_TAG.fullmatch(tag) for tag in tags):
        raise InvalidRequest(
            f"The header x-interlace-tags takes at most {MOST_TAGS} tags, separated by commas, each of at most 64 "
            "letters, digits and . _ : / = @ + -",
            param="x-interlace-tags",
            code="invalid_tags",
        )
    return tags


async def read_json_body(scope: Scope, receive: Receive, most_bytes: int, most_seconds: float) -> bytes:
    """The whole body; refuses what is no JSON by its own account, too large, or too slow."""
    content_type = header(scope, b"content-type")
    if content_type is not None and content_type.split(b";")[0].strip().lower() != JSON:
        raise UnsupportedMediaType("The body must be JSON: send it with 'Content-Type: application/json'.")
    if header(scope, b"content-encoding") not in (None, b"", b"identity"):
        raise UnsupportedMediaType("The body must not be compressed: leave out 'Content-Encoding'.")
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    line: Line | None = scope.get(LINE)
    if line is not None and (body := line.body_now()) is not None:
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        return body
    try:
        async with asyncio.timeout(most_seconds):
            return await _read(receive, most_bytes)
    except TimeoutError:
        raise InvalidRequest(f"The body did not arrive within {most_seconds:g} seconds.", code="body_timeout") from None


async def _read(receive: Receive, most_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(most_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than this server takes: at most {most_bytes} bytes.")


class ClientWatch:
    """From `start` on, the task inside `async with` is cancelled once the caller hangs up; `ClientGone` comes out.

    Works like `asyncio.timeout`: the cancellation is ours alone and does not leak to anybody who cancels us.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._line: Line | None = scope.get(LINE)
        self._receive = receive
        self._worker: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False

    def start(self) -> None:
        """The body has been read, so whatever arrives next means the end."""
        if self._line is not None:
            self._line.when_gone(self._leave)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self.gone = True
        assert self._worker is not None
        self._worker.cancel()

    async def __aenter__(self) -> Self:
        self._worker = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.when_gone(None)
        elif self._watcher is not None:
            self._watcher.cancel()
        assert self._worker is not None
        if self.gone and kind is asyncio.CancelledError and self._worker.uncancel() == 0:
            raise ClientGone from error


async def start_response(
    send: Send, status: int, content_type: bytes, *more: tuple[bytes, bytes], length: int | None = None
) -> None:
    """Send status and headers."""
    headers = [(b"content-type", content_type), *more]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def answer_whole(scope: Scope, send: Send, body: bytes) -> None:
    """Send a whole answer of JSON, in one write where there is a connection to write to."""
    line: Line | None = scope.get(LINE)
    if line is None:
        await send_whole(send, 200, JSON, body)
        return
    exchange: Exchange = scope["interlace.exchange"]
    exchange.status = 200
    await line.send_whole(200, [(b"content-type", JSON), *exchange.headers, (b"x-request-id", exchange.label)], body)


def blocked(scope: Scope) -> bool:
    """Whether sending more would wait for the caller to read; True where nobody knows."""
    line: Line | None = scope.get(LINE)
    return line is None or line.blocked


async def send_whole(send: Send, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> None:
    """Send a whole response."""
    await start_response(send, status, content_type, *more, length=len(body))
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, exchange: Exchange, error: InterlaceError, *more: Header) -> None:
    """Send an error in the style of its endpoint, with the headers that its status wants."""
    headers = list(more)
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    style = exchange.style
    await send_whole(send, style.status(error), JSON, style.body(error, exchange.label), *headers)
