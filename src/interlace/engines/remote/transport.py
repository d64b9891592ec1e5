"""Connections to one provider: pooled, never redirected, never through a proxy nobody configured.

The one module that knows the HTTP client. Its errors become ours here, in one table, without the foreign error as their
cause: a client's error may carry the request, and with it our key.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import aiohttp
from yarl import URL

from interlace import __version__
from interlace.config import ModelSettings
from interlace.engines.remote.wire import JSON, Outgoing
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError

T = TypeVar("T")

KEEP_SECONDS = 30.0  # an idle connection is closed by us before most servers close theirs
STALE_SECONDS = 0.5  # a kept connection that the server had closed meanwhile fails at once
LOOK_SECONDS = 1.0  # how often one who waits for bytes makes sure that the connection is still there
END_SECONDS = 0.25  # an answer's last bytes come with its last event; else the connection is not worth the wait
_LARGE_BYTES = 1 << 20  # larger bodies are written in pieces


class Provider:
    """A pool of connections to one provider. Make it inside the event loop."""

    def __init__(self, settings: ModelSettings) -> None:
        self.closed = False
        headers = {"User-Agent": f"interlace/{__version__}", "Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.connections, keepalive_timeout=KEEP_SECONDS, resolver=aiohttp.ThreadedResolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
            trust_env=False,
            auto_decompress=False,
        )

    async def send(self, outgoing: Outgoing, until: float) -> Reply:
        """Send it and return once the answer's headers are there; `until` is a time of the loop's clock.

        A kept connection may turn out to have been closed by the server meanwhile: nothing comes back, and that at
        once. Then, and only then, one more try is made. Raises `TimeoutError` after `until`, else `EngineUnavailable`
        or `EngineFailed`.
        """
        began = asyncio.get_running_loop().time()
        try:
            return await self._send(outgoing, until)
        except _Stale:
            if asyncio.get_running_loop().time() - began > STALE_SECONDS:
                raise _broken() from None
        try:
            return await self._send(outgoing, until)
        except _Stale:
            raise _broken() from None

    async def _send(self, outgoing: Outgoing, until: float) -> Reply:
        headers = {"Content-Type": JSON, "Accept": outgoing.accept, **outgoing.headers}
        data = outgoing.body if len(outgoing.body) < _LARGE_BYTES else io.BytesIO(outgoing.body)
        try:
            asked = self._session.request(
                outgoing.method,
                URL(outgoing.url, encoded=True),  # a signed address must arrive as it was signed
                data=data,
                headers=headers,
                allow_redirects=False,
            )
            return Reply(self, await self.within(until, asked))
        except aiohttp.ClientConnectorError as error:
            problem: Exception = _translated(error)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            problem = _Stale()
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise TimeoutError from None
            problem = _translated(error)
        raise problem

    async def within(self, until: float, waiting: Awaitable[T]) -> T:
        """What is awaited; `TimeoutError` after `until`, `EngineUnavailable` once the provider is closed."""
        try:
            async with asyncio.timeout_at(until):
                return await waiting
        except TimeoutError:
            if self.closed:
                raise _closing() from None
            raise

    async def close(self) -> None:
        """Close every connection; who reads from one hears of it within `LOOK_SECONDS`. Safe to call twice."""
        self.closed = True
        await self._session.close()


class Reply:
    """An answer whose headers have come. Close it whatever happens: an answer not read to its end is cut off."""

    def __init__(self, provider: Provider, response: aiohttp.ClientResponse) -> None:
        self._provider = provider
        self._response = response
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def read(self, until: float) -> bytes:
        """The bytes that have come, at least one; none at the end. Errors as those of `Provider.send`."""
        try:
            return await self._read(until)
        except TimeoutError:
            raise TimeoutError from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            problem = _translated(error)
        raise problem

    async def _read(self, until: float) -> bytes:
        """Looks up now and then: bytes that are no HTTP make the client close a connection without telling the one
        who reads from it."""
        content, lost = self._response.content, False
        while True:
            if data := content.read_nowait():
                return data
            if content.at_eof():
                return b""
            if lost:
                raise _closing() if self._provider.closed else _broken()
            look = min(until, asyncio.get_running_loop().time() + LOOK_SECONDS)
            try:
                return await self._provider.within(look, content.readany())
            except TimeoutError:
                if look == until:
                    raise
            connection = self._response.connection
            lost = connection is None or connection.protocol is None or not connection.protocol.is_connected()

    async def whole(self, until: float, most_bytes: int) -> bytes:
        """All of it; raises `EngineFailed` beyond `most_bytes`."""
        pieces: list[bytes] = []
        size = 0
        while data := await self.read(until):
            size += len(data)
            if size > most_bytes:
                raise EngineFailed("The server behind this model sent an endless answer. Try again.")
            pieces.append(data)
        return b"".join(pieces)

    async def finish(self) -> None:
        """Read what is left of a finished answer, so that its connection can be used again; give up soon."""
        until = asyncio.get_running_loop().time() + END_SECONDS
        try:
            while await self.read(until):
                pass
        except (TimeoutError, InterlaceError):
            self.close()

    def close(self) -> None:
        """Cut it off where it has not ended. Never waits."""
        self._response.close()


class _Stale(Exception):
    """The connection ended before anything of an answer came."""


def _closing() -> EngineUnavailable:
    return EngineUnavailable("The gateway is shutting down.")


def _broken() -> EngineFailed:
    return EngineFailed("The server behind this model ended the connection. Try again.")


def _translated(error: Exception) -> InterlaceError:
    """Our error for one of the client's: the most specific match first."""
    if isinstance(error, aiohttp.ClientSSLError):
        return EngineUnavailable("The server behind this model could not prove who it is (TLS).")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return EngineUnavailable("The server behind this model does not accept connections.", retry_after_seconds=5)
    if isinstance(error, aiohttp.ClientConnectorError):
        return EngineUnavailable("The server behind this model cannot be reached.", retry_after_seconds=5)
    if isinstance(error, aiohttp.ClientResponseError):
        return EngineFailed("The server behind this model does not speak HTTP as it should. Try again.")
    if isinstance(error, RuntimeError):  # the session was closed meanwhile
        return _closing()
    return _broken()
