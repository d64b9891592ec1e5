"""One connection of a caller: uvicorn's, with an exchange of our own inside.

What differs from uvicorn's: an answer that is all there leaves as one write, whoever works on a request hears at once
that its caller has gone instead of keeping a task that waits for it, and a quiet connection has one timer for its life
instead of one for each request. HTTP/1.0 gets no chunks.
"""

from __future__ import annotations

import asyncio
import functools
import select
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

Header = tuple[bytes, bytes]

LINE = "interlace.line"
"""Where a scope has the `Line` of its request; requests that come from elsewhere than a connection have none."""

LINGER_SECONDS = 1.0  # how long an idle connection may still bring a request while we drain
AGAIN_SECONDS = 0.02

_NO_BODY = (204, 304)
_BAD = bytes({*range(0x20), 0x7F} - {0x09})  # what no value of a header may hold


class Connections(ServerState):
    """What is open. `draining`: nothing new is accepted."""

    draining = False


class Connection(HttpToolsProtocol):
    """Reads requests and starts the application for each, one after the other.

    While we drain, the next answer says `connection: close` and ends it. One that is idle is not closed at once: a
    request may be on its way already, and would be lost with it.
    """

    cycle: Any  # the `Line` of the request that came last, where uvicorn has its own
    _running: Line | None = None  # the one that is being answered
    _quiet_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        if self._draining:  # accepted in the last moment
            self.shutdown()

    def shutdown(self) -> None:
        """We drain."""
        if self._is_idle():
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    @property
    def _draining(self) -> bool:
        return isinstance(self.server_state, Connections) and self.server_state.draining

    def _is_idle(self) -> bool:
        line: Line | None = self.cycle
        return line is None or line.response_complete

    def _close_if_idle(self) -> None:
        if self.transport.is_closing() or not self._is_idle():
            return
        if _has_come(self.transport):
            self.loop.call_later(AGAIN_SECONDS, self._close_if_idle)
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        """The scope of a request, as ASGI has it, and its `Line`."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        scope: Any = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
            "interlace.abort": self.transport.abort,
        }
        self.scope = scope

    def on_headers_complete(self) -> None:
        """Begin to answer. A request that came before the one under way was answered waits for its turn."""
        version = self.parser.get_http_version()
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        scope["path"], scope["raw_path"], scope["query_string"] = _parted(self.url)
        before = self.cycle
        keep = version != "1.0" and self.parser.should_keep_alive() and not self._draining
        self.cycle = scope[LINE] = line = Line(self, scope, keep_alive=keep, expects_100=self.expect_100_continue)
        if before is None or before.response_complete:
            self._begin(line)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((line, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        line: Line = self.cycle
        if not line.response_complete:
            line.body += body
            if len(line.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            line.tell()

    def on_message_complete(self) -> None:
        """The whole request is there."""
        line: Line = self.cycle
        if not line.response_complete:
            line.more_body = False
            line.tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone, or was sent away."""
        self.cycle = None
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        if self._running is not None:
            self._running.lose()
        while self.pipeline:
            self.pipeline.pop()[0].lose()  # type: ignore[attr-defined] # a `Line`

    def _begin(self, line: Line) -> None:
        self._running = line
        task = self.loop.create_task(line.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- when nothing is asked -----------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """The next request's turn, if it is there already."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._begin(self.pipeline.pop()[0])  # type: ignore[arg-type] # a `Line`
            return
        self._quiet_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._quiet_since = None

    def _look_again(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been quiet for too long."""
        self.timeout_keep_alive_task = None
        if self._quiet_since is None:
            return  # `on_response_complete` sets the timer again
        left = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_again(left)
        elif not self.transport.is_closing():
            self.transport.close()


@functools.lru_cache(maxsize=64)
def _parted(target: bytes) -> tuple[str, bytes, bytes]:
    """The path of a request's target, the same as it stands, and the query. Most callers ask for the same few."""
    url = httptools.parse_url(target)
    path = url.path.decode("ascii")
    return (urllib.parse.unquote(path) if "%" in path else path), url.path, url.query or b""


def _has_come(transport: asyncio.Transport) -> bool:
    """Whether the kernel has something of the other side that nobody has read."""
    link = transport.get_extra_info("socket")
    if link is None or link.fileno() < 0:
        return False
    watched = select.poll()
    watched.register(link.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in watched.poll(0))


_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Line:
    """One request and its answer: ASGI's `receive` and `send`, and what goes beyond them."""

    __slots__ = (
        "_chunked", "_connection", "_expects_100", "_flow", "_gone", "_left", "_received", "_scope",
        "_transport", "_waiter", "body", "disconnected", "keep_alive", "more_body", "response_complete",
        "response_started",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: Scope, *, keep_alive: bool, expects_100: bool) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._flow = connection.flow
        self._scope = scope
        self.keep_alive = keep_alive
        self._expects_100 = expects_100
        self._chunked = False
        self._left: int | None = None  # bytes of a body whose length was told
        self._waiter: asyncio.Future[None] | None = None
        self._gone: Callable[[], None] | None = None
        self._received = False  # all of the body
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    # --- beyond ASGI ---------------------------------------------------------------------------------------------

    def body_now(self) -> bytes | None:
        """The whole body where it is all there already, and nothing of it was received yet; else None."""
        if self.more_body or self.disconnected:
            return None
        body, self.body, self._received = bytes(self.body), bytearray(), True
        return body

    def when_gone(self, tell: Callable[[], None] | None) -> None:
        """Have one told, once, when the caller goes before the answer is complete; None: nobody any more."""
        self._gone = tell
        if tell is not None and self.disconnected:
            self._gone = None
            tell()

    @property
    def blocked(self) -> bool:
        """Whether the caller has much left to read, so that `send` would wait."""
        return self._flow.write_paused and not self.disconnected

    async def send_whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Send a whole answer."""
        if self.blocked:
            await self._flow.drain()
        if self.disconnected:
            return
        self.response_started = True
        told = body if self._scope["method"] != "HEAD" else b""
        self._transport.write(self._head(status, headers, b"content-length: %d\r\n" % len(body)) + told)
        self._complete()

    # --- ASGI ----------------------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp) -> None:
        """The application, which tells its own errors; one that gets here leaves a connection that says nothing."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            self._connection.logger.exception("the application failed")
        finally:
            self._gone = None
            self._scope.pop(LINE, None)  # they hold each other: nobody should have to collect them
            if not self.response_complete and not self.disconnected:
                self._transport.close()

    async def receive(self) -> Message:
        """See ASGI."""
        if self._expects_100 and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_100 = False
        while self._received or (self.more_body and not self.body):
            if self.disconnected or self.response_complete:
                return {"type": "http.disconnect"}
            self._flow.resume_reading()
            await self._told()
        if self.disconnected:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        self._received = not self.more_body
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if self.blocked:
            await self._flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message["headers"])
        else:
            self._continue(message.get("body", b""), more=message.get("more_body", False))

    def tell(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self) -> None:
        """The connection is gone."""
        self.disconnected = True
        self.tell()
        if self._gone is not None and not self.response_complete:
            tell, self._gone = self._gone, None
            tell()

    async def _told(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- writing -------------------------------------------------------------------------------------------------

    def _head(self, status: int, headers: Sequence[Header], framing: bytes) -> bytes:
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        values = b"".join([value for _, value in headers])
        if values.translate(None, _BAD) != values:  # quicker than to search for one
            raise RuntimeError("a header of an answer has a line break in it")
        dates = b"".join([b"%b: %b\r\n" % header for header in self._connection.server_state.default_headers])
        close = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%b%b%b%b%b\r\n" % (STATUS_LINE[status], dates, lines, framing, close)

    def _start(self, status: int, headers: Sequence[Header]) -> None:
        if self.response_started:
            raise RuntimeError("an answer began twice")
        self.response_started = True
        headers, framing = list(headers), b""
        length = next((value for name, value in headers if name == b"content-length"), None)
        if any(name == b"connection" and b"close" in value for name, value in headers):
            self.keep_alive = False
            headers = [header for header in headers if header[0] != b"connection"]
        if self._scope["method"] == "HEAD" or status in _NO_BODY:
            self._left = None
        elif length is not None:
            self._left = int(length)
        elif self._scope["http_version"] == "1.0":
            self.keep_alive = False  # the answer ends where the connection does
        else:
            self._chunked, framing = True, b"transfer-encoding: chunked\r\n"
        self._transport.write(self._head(status, headers, framing))

    def _continue(self, body: bytes, *, more: bool) -> None:
        if not self.response_started or self.response_complete:
            raise RuntimeError("a piece of an answer came before it began, or after its end")
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._transport.write(data if more else data + b"0\r\n\r\n")
        elif self._scope["method"] != "HEAD":
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("an answer is not as long as it said")
            self._transport.write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._gone = None
        self.tell()
        if not self.keep_alive:
            self._transport.close()
        self._connection.on_response_complete()
