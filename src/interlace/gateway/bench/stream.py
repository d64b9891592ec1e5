"""One connection to a server: a streamed chat at a time, read as cheaply as Python can, for its CPU is the server's."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from interlace.gateway.bench.figures import Sample

CONNECT_SECONDS = 10.0
_LONGEST_LINE = 1 << 24
_LONGEST_REASON = 300


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # thoughts are tokens too
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    id: Any = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(frozen=True, slots=True)
class Target:
    """Where chats are sent. `trust` None: without TLS."""

    url: str
    key: str | None
    trust: ssl.SSLContext | None

    def request(self, body: dict[str, Any]) -> bytes:
        """One request, as it stands on the wire."""
        parts, content = urlsplit(self.url), msgspec.json.encode(body)
        head = [
            f"POST {parts.path}/v1/chat/completions HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "User-Agent: interlace-bench",
            f"Content-Length: {len(content)}",
            *([f"Authorization: Bearer {self.key}"] if self.key else []),
        ]
        return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + content


class Connection(asyncio.Protocol):
    """Stays open between chats where the server lets it; made by `connected`."""

    def __init__(self) -> None:
        self._transport: Any = None  # of asyncio or of uvloop
        self._parser = httptools.HttpResponseParser(self)
        self._sample = Sample(0.0)
        self._done: asyncio.Future[None] | None = None
        self._rest = b""
        self._finished = False  # the stream said [DONE]
        self._refusal = bytearray()
        self.open = True

    async def ask(self, request: bytes, sample: Sample) -> None:
        """Send, and fill in the sample until the answer ends; what goes wrong is its error. Cancelling leaves the
        connection to be closed."""
        self._sample, self._rest, self._finished, self._refusal = sample, b"", False, bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        sample.asked = time.perf_counter()
        self._transport.write(request)
        await self._done

    def close(self) -> None:
        """Close now; whatever the server still does for us, it may stop."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be written to."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Some bytes of the answer."""
        if self._done is None or self._done.done():
            return self.close()  # nobody asked
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("the server does not speak HTTP")
            self.close()
        return None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """By either side."""
        self.open = False
        self._end("the connection was cut")

    # --- httptools' ----------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """The id tells later what an answer cost that never came to its first event."""
        if name.lower() == b"x-request-id":
            self._sample.id = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """Events of the stream; or a reason, of another status."""
        if self._parser.get_status_code() != 200:
            self._refusal += data[: _LONGEST_LINE - len(self._refusal)]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        now = time.perf_counter()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)
        if len(self._rest) > _LONGEST_LINE:
            self._end("an event of the stream has no end")
            self.close()

    def on_message_complete(self) -> None:
        """The answer's end."""
        if (status := self._parser.get_status_code()) != 200:
            self._sample.refused = True
            self._end(f"{status}: {_reason(bytes(self._refusal))}")
        else:
            self._end(None if self._finished else "the stream ended without [DONE]")
        if not self._parser.should_keep_alive():
            self.close()

    def _event(self, value: bytes, now: float) -> None:
        if value == b"[DONE]":
            self._finished = True
            return
        sample = self._sample
        try:
            event = _decode(value)
        except msgspec.MsgspecError:
            sample.error = sample.error or f"a broken event: {_short(value[:80].decode(errors='replace'))}"
            return
        if event.error is not None:
            sample.error = sample.error or _said(event.error)
        if isinstance(event.id, str):
            sample.id = event.id
        if event.usage is not None:
            sample.prompt_tokens = event.usage.prompt_tokens
            sample.completion_tokens = event.usage.completion_tokens
        for choice in event.choices or ():
            delta = choice.delta
            if delta is not None and (
                delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls
            ):
                sample.piece(now)

    def _end(self, error: str | None) -> None:
        if self._done is not None and not self._done.done():
            self._sample.error = self._sample.error or error
            self._done.set_result(None)


async def connected(target: Target) -> Connection:
    """A new connection; raises `OSError` and `TimeoutError`."""
    parts = urlsplit(target.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    async with asyncio.timeout(CONNECT_SECONDS):
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, parts.hostname or "", port, ssl=target.trust
        )
    return connection


def _reason(body: bytes) -> str:
    try:
        return _said(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return _short(body[:_LONGEST_REASON].decode(errors="replace")) or "no reason given"


def _said(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return _short(str(message or error))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 3]}..."
