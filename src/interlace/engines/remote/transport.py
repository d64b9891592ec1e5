"""Connections to one provider: pooled, never redirected, never through a proxy nobody configured.

What goes wrong in HTTP becomes our error here, in one table, without the other error as its cause: that may carry the
request, and with it our key.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from interlace import __version__
from interlace.config import ModelSettings
from interlace.engines.remote.connecting import connect
from interlace.engines.remote.http1 import Broken, Connection, Malformed, Stale
from interlace.engines.remote.wire import JSON, Outgoing
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError

KEEP_SECONDS = 30.0  # an idle connection is closed by us before most servers close theirs
STALE_SECONDS = 0.5  # a kept connection that the server had closed meanwhile fails at once
END_SECONDS = 0.25  # an answer's last bytes come with its last event; else the connection is not worth the wait


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a URL leads. `target` is sent as it stands: a signed address must arrive as it was signed."""

    host: str
    port: int
    tls: bool
    authority: str
    target: str


@dataclass(slots=True)
class _Pool:
    """The connections to one host: those that rest, the last used one last, and how many there are in all."""

    idle: list[Connection] = field(default_factory=list)
    open: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)  # for one of them to be free


class Provider:
    """A pool of connections to one provider. Make it inside the event loop."""

    def __init__(self, settings: ModelSettings) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._pools: dict[tuple[str, int, bool], _Pool] = {}
        self._busy: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def send(self, outgoing: Outgoing, until: float) -> Reply:
        """Send it and return once the answer's headers are there; `until` is a time of the loop's clock.

        A kept connection may turn out to have been closed by the server meanwhile: nothing comes back, and that at
        once. Then, and only then, one more try is made, on a new one. Raises `TimeoutError` after `until`, else
        `EngineUnavailable` or `EngineFailed`.
        """
        if self.closed:
            raise _closing()
        place = _place(outgoing.url)
        request = _written(outgoing, place)
        pool = self._pools.get((place.host, place.port, place.tls))
        if pool is None:
            pool = self._pools[place.host, place.port, place.tls] = _Pool()
        began = self._loop.time()
        if (connection := self._rested(pool)) is not None:
            try:
                return await self._ask(connection, pool, request, until)
            except Stale:
                if self._loop.time() - began > STALE_SECONDS:
                    raise self._translated(Broken()) from None
        connection = await self._connect(place, pool, until)
        try:
            return await self._ask(connection, pool, request, until)
        except Stale:
            raise self._translated(Broken()) from None

    async def _ask(self, connection: Connection, pool: _Pool, request: bytes, until: float) -> Reply:
        """Ask there; whatever becomes of it, `Stale` leaves this method as it is."""
        self._busy.add(connection)
        connection.ask(request)
        try:
            while not connection.begun and connection.problem is None:
                await connection.wait(until)
        except BaseException:
            self.let_go(connection, pool)
            raise
        if (problem := connection.problem) is not None and not connection.begun:
            self.let_go(connection, pool)
            raise problem if type(problem) is Stale else self._translated(problem)
        return Reply(self, connection, pool)

    # --- the pool ------------------------------------------------------------------------------------------------

    def _rested(self, pool: _Pool) -> Connection | None:
        """The connection that was used last, unless it has rested for too long."""
        oldest = self._loop.time() - KEEP_SECONDS
        while pool.idle:
            connection = pool.idle.pop()
            if connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, place: _Place, pool: _Pool, until: float) -> Connection:
        """A new connection, once there may be one more."""
        problem: Exception
        try:
            async with asyncio.timeout_at(until):
                while pool.open >= self._settings.connections:
                    if (rested := self._rested(pool)) is not None:
                        return rested
                    await self._turn(pool)
                pool.open += 1
                try:
                    return await self._connected(place, pool)
                except BaseException:
                    self._gone(pool)
                    raise
        except TimeoutError:
            raise (_closing() if self.closed else TimeoutError) from None
        except _Unheard:
            problem = EngineUnavailable(
                "The server behind this model does not accept connections.", retry_after_seconds=5
            )
        except ssl.SSLError:
            problem = EngineUnavailable("The server behind this model could not prove who it is (TLS).")
        except (OSError, ValueError):
            problem = EngineUnavailable("The server behind this model cannot be reached.", retry_after_seconds=5)
        raise problem

    async def _connected(self, place: _Place, pool: _Pool) -> Connection:
        made = Connection(self._loop, lambda connection: self._ended(connection, pool))
        context = _trusted() if place.tls else None
        timed_out = False
        try:
            async with asyncio.timeout(self._settings.connect_seconds) as patience:
                await connect(self._loop, lambda: made, place.host, place.port, context)
        except TimeoutError:
            timed_out = patience.expired()
            made.abort()
            if not timed_out:
                raise
        except BaseException:
            made.abort()
            raise
        if timed_out:
            raise _Unheard
        if self.closed:
            made.abort()
            raise _closing()
        return made

    async def _turn(self, pool: _Pool) -> None:
        turn = self._loop.create_future()
        pool.waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn in pool.waiting:
                pool.waiting.remove(turn)
            elif not turn.cancelled():
                self._next(pool)  # it was ours already
            raise

    @staticmethod
    def _next(pool: _Pool) -> None:
        """One who waits may look again."""
        while pool.waiting:
            turn = pool.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _gone(self, pool: _Pool) -> None:
        pool.open -= 1
        self._next(pool)

    def _ended(self, connection: Connection, pool: _Pool) -> None:
        """A connection has been lost that had been there."""
        if connection in pool.idle:
            pool.idle.remove(connection)
        self._busy.discard(connection)
        self._gone(pool)

    def let_go(self, connection: Connection, pool: _Pool) -> None:
        """Keep a connection whose answer is done; cut off any other."""
        self._busy.discard(connection)
        if self.closed or not connection.reusable:
            connection.abort()
            return
        connection.rest()
        pool.idle.append(connection)
        if pool.waiting:
            self._next(pool)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for long."""
        self._sweeping = None
        oldest = self._loop.time() - KEEP_SECONDS + 1
        for pool in self._pools.values():
            for connection in [one for one in pool.idle if one.idle_since < oldest]:
                connection.abort()
        if any(pool.idle for pool in self._pools.values()):
            self._sweeping = self._loop.call_later(KEEP_SECONDS / 2, self._sweep)

    async def close(self) -> None:
        """Close every connection; who reads from one hears of it at once. Safe to call twice."""
        self.closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for pool in self._pools.values():
            for connection in [*pool.idle]:
                connection.abort()
            for turn in pool.waiting:
                turn.cancel()
        for connection in [*self._busy]:
            connection.abort()
        await asyncio.sleep(0)  # transports close on the loop's next turn

    def _translated(self, problem: Exception) -> InterlaceError:
        """Our error for one of HTTP's."""
        if self.closed:
            return _closing()
        if isinstance(problem, Malformed):
            return EngineFailed("The server behind this model does not speak HTTP as it should. Try again.")
        return EngineFailed("The server behind this model ended the connection. Try again.")


class Reply:
    """An answer whose headers have come. Close it whatever happens: an answer not read to its end is cut off."""

    __slots__ = ("_connection", "_headers", "_pool", "_provider", "content_type", "status")

    def __init__(self, provider: Provider, connection: Connection, pool: _Pool) -> None:
        self._provider = provider
        self._connection: Connection | None = connection
        self._pool = pool
        self.status = connection.status
        self._headers = connection.headers
        self.content_type = _kind_of(self._headers.get(b"content-type", b""))

    @property
    def headers(self) -> Mapping[str, str]:
        """By their lower-case names."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers.items()}

    async def read(self, until: float) -> bytes:
        """The bytes that have come, at least one; none at the end. Errors as those of `Provider.send`."""
        connection = self._connection
        while connection is not None:
            if data := connection.take():
                return data
            if connection.done:
                return b""
            if connection.problem is not None:
                raise self._provider._translated(connection.problem)
            await connection.wait(until)
        return b""

    async def whole(self, until: float, most_bytes: int) -> bytes:
        """All of it; raises `EngineFailed` beyond `most_bytes`."""
        data = await self.read(until)
        if self._connection is None or self._connection.done:
            data += await self.read(until)
            if len(data) <= most_bytes:
                return data
        pieces, size = [data], len(data)
        while data and size <= most_bytes:
            data = await self.read(until)
            size += len(data)
            pieces.append(data)
        if size > most_bytes:
            raise EngineFailed("The server behind this model sent an endless answer. Try again.")
        return b"".join(pieces)

    async def finish(self) -> None:
        """Read what is left of a finished answer, so that its connection can be used again; give up soon."""
        connection = self._connection
        if connection is None or connection.done:
            return
        until = asyncio.get_running_loop().time() + END_SECONDS
        try:
            while await self.read(until):
                pass
        except (TimeoutError, InterlaceError):
            self.close()

    def close(self) -> None:
        """Give its connection back, or cut it off where it has not ended. Never waits; safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._provider.let_go(connection, self._pool)


@functools.lru_cache(maxsize=64)
def _kind_of(content_type: bytes) -> str:
    """Without its parameters. A server has few."""
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


class _Unheard(Exception):
    """The server did not accept a connection in time."""


def _closing() -> EngineUnavailable:
    return EngineUnavailable("The gateway is shutting down.")


@functools.lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Whom the machine trusts; made once, as reading the certificates takes a while."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.lru_cache(maxsize=1024)
def _place(url: str) -> _Place:
    """Raises `EngineUnavailable` for what is no address."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or not _plain(url):
        raise EngineUnavailable("The server behind this model cannot be reached: its address is none.")
    tls = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authority = host if port is None or port == (443 if tls else 80) else f"{host}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Place(parts.hostname, port or (443 if tls else 80), tls, authority, target)


def _plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url


_FIRST = f"User-Agent: interlace/{__version__}\r\nAccept-Encoding: identity\r\n"


def _written(outgoing: Outgoing, place: _Place) -> bytes:
    """A request as it is sent. Raises `EngineFailed` for a header that would be two."""
    kind, more = JSON, ""
    for name, value in outgoing.headers.items():
        if "\n" in value or "\r" in value or "\0" in value:
            raise EngineFailed("A header for the server behind this model has a line break. Tell whoever runs this.")
        if name.lower() == "content-type":
            kind = value
        else:
            more += f"{name}: {value}\r\n"
    head = (
        f"{outgoing.method} {place.target} HTTP/1.1\r\nHost: {place.authority}\r\n{_FIRST}Accept: {outgoing.accept}\r\n"
        f"Content-Type: {kind}\r\n{more}Content-Length: {len(outgoing.body)}\r\n\r\n"
    )
    return head.encode("latin-1") + outgoing.body
