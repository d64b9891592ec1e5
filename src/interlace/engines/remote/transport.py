"""Connections to one provider: pooled, never redirected, never through a proxy nobody configured.

The one module that knows the HTTP client. Its errors become ours here, in one table, without the foreign error as their
cause: a client's error may carry the request, and with it our key.
"""

from __future__ import annotations

import asyncio
import io

import aiohttp
from aiohttp.client_exceptions import ClientConnectionResetError

from interlace import __version__
from interlace.config import ModelSettings
from interlace.engines.remote.secret import Secret
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError

KEEP_SECONDS = 30.0  # an idle connection is closed by us before most servers close theirs
STALE_SECONDS = 0.5  # a kept connection that the server had closed meanwhile fails at once
END_SECONDS = 0.25  # an answer's last bytes come with its last event; else the connection is not worth the wait
_LARGE_BYTES = 1 << 20  # larger bodies are written in pieces


class Provider:
    """A pool of connections to the server at `base_url`. Make it inside the event loop."""

    def __init__(self, settings: ModelSettings, key: Secret | None) -> None:
        self._base = settings.base_url
        headers = {"User-Agent": f"interlace/{__version__}", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.reveal()}"
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

    async def post(self, path: str, body: bytes, accept: str, until: float) -> Reply:
        """Send JSON and return once the answer's headers are there; `until` is a time of the loop's clock.

        A kept connection may turn out to have been closed by the server: then nothing was read, the failure comes at
        once, and one more try is made. Raises `TimeoutError` after `until`, else `EngineUnavailable` or `EngineFailed`.
        """
        began = asyncio.get_running_loop().time()
        try:
            return await self._post(path, body, accept, until)
        except _Stale:
            if asyncio.get_running_loop().time() - began > STALE_SECONDS:
                raise _broken() from None
        try:
            return await self._post(path, body, accept, until)
        except _Stale:
            raise _broken() from None

    async def _post(self, path: str, body: bytes, accept: str, until: float) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": accept}
        data = body if len(body) < _LARGE_BYTES else io.BytesIO(body)
        try:
            async with asyncio.timeout_at(until):
                return Reply(
                    await self._session.post(self._base + path, data=data, headers=headers, allow_redirects=False)
                )
        except (aiohttp.ServerDisconnectedError, ClientConnectionResetError):
            problem: Exception = _Stale()
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise TimeoutError from None
            problem = _translated(error)
        raise problem

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        await self._session.close()


class Reply:
    """An answer whose headers have come. Close it whatever happens: an answer not read to its end is cut off."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.retry_after = response.headers.get("Retry-After")

    async def read(self, until: float) -> bytes:
        """The bytes that have come, at least one; none at the end. Errors as those of `Provider.post`."""
        content = self._response.content
        try:
            if data := content.read_nowait():
                return data
            async with asyncio.timeout_at(until):
                return await content.readany()
        except TimeoutError:
            raise TimeoutError from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            problem = _translated(error)
        raise problem

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
        return EngineUnavailable("The gateway is shutting down.")
    return _broken()
