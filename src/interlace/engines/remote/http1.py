"""One HTTP/1.1 connection to a provider: one exchange after another, read by llhttp (`httptools`), which uvicorn also
reads callers with.

It does what asking a provider needs and no more: no redirects, cookies, proxies, compression, pipelining or upgrades.
What is hostile is bounded here: headers, and whatever else comes that is no body, by `MOST_HEAD_BYTES`; bytes that
nobody has read yet by `HIGH_BYTES`, beyond which the server has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

MOST_HEAD_BYTES = 64 << 10  # of status and headers, and of chunk marks and trailers from one piece of body to the next
HIGH_BYTES = 256 << 10  # of an answer that wait to be read, before the server has to wait

_BODILESS = (204, 304)


class Broken(Exception):
    """The connection ended in the middle of an answer."""


class Stale(Broken):
    """The connection ended before anything of an answer came."""


class Malformed(Exception):
    """What came is no HTTP/1.1."""


class Connection(asyncio.Protocol):
    """Write a request with `ask`, wait for `begun`, take what came with `take`, until `done`.

    While `idle` nothing may come: a server that speaks unasked, or that ends the connection, is left. `lost` is called
    once, when the connection has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0  # when to give up waiting; the timer may be set for earlier
        self.idle = True
        self.idle_since = 0.0
        self.used = False  # it has answered before
        self._begin()

    def _begin(self) -> None:
        """Nothing is known of the next answer."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.begun = False  # its headers are there
        self.done = False  # all of it is
        self.problem: Exception | None = None
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._heard = False
        self._paused = False

    # --- what the pool and its users do --------------------------------------------------------------------------

    def ask(self, request: bytes) -> None:
        """Send a request, whole; the answer to the one before must be done."""
        self._begin()
        self.idle = False
        if self._transport is None or self._transport.is_closing():
            self.problem = Stale()
            return
        self._transport.write(request)

    async def wait(self, until: float) -> None:
        """Return once more of the answer is there, or there will be no more. Raises `TimeoutError` after `until`, a
        time of the loop's clock."""
        if self.problem is not None:
            return
        self._until = until
        if self._timer is None:
            self._timer = self._loop.call_at(until, self._look)
        elif until < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(until, self._look)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """What of the body has come and was not taken yet."""
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the answer is all there, and so is what was asked at the server."""
        transport = self._transport
        return (
            self.done
            and self.problem is None
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def rest(self) -> None:
        """Nothing is asked for now."""
        self.idle = self.used = True
        self.idle_since = self._loop.time()
        self._pieces = []
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """End it at once; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def _look(self) -> None:
        """The timer: who waits may have been granted more time since it was set."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
        else:
            self._waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, problem: Exception) -> None:
        if not self.done and self.problem is None:
            self.problem = problem
        self._wake()
        self.abort()

    # --- what asyncio does ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.idle or self.problem is not None:
            self.abort()  # nobody asked
            return
        self._heard = True
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Broken() if self.begun else Malformed())
            return
        if self._head_bytes > MOST_HEAD_BYTES and not self.done:
            self._fail(Malformed())
        elif self.begun:
            self._wake()
            if self._waiting_bytes > HIGH_BYTES and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. An answer that says no length ends with its connection."""
        self._transport = None
        if not self.idle and not self.done and self.problem is None:
            if exc is None and self.begun and not self._framed:
                self.done = True
            else:
                self.problem = Broken() if self._heard else Stale()
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lost(self)

    @property
    def _framed(self) -> bool:
        """Whether the answer itself says where it ends."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers or self.status in _BODILESS

    # --- what llhttp does ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Another answer than the one that was asked for ends the connection, once that one is read."""
        if self.done:
            raise Malformed

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of two headers of one name the last counts. Trailers count for nothing."""
        if not self.begun:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """What says 100 and a little more goes before the answer."""
        status = self._parser.get_status_code()
        if status == 101:
            raise Malformed  # another protocol, which nobody asked for
        if 100 <= status < 200:
            self.headers = {}
            return
        self.status = status
        self.begun = True
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._head_bytes = 0
        self._waiting_bytes += len(body)
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """All of it is there, and whether anything may follow."""
        if self.begun:
            self.done = True
            if not self._parser.should_keep_alive() and self._transport is not None:
                self._transport.close()
