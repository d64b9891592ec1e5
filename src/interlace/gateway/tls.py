"""TLS of a running server: new connections get what the files hold now, those that are open keep what they have.

The listening socket has one context for its whole life. In each handshake it hands over to the newest one, which is
made of the files, whole and checked, before anybody meets it. A pair that is broken, or half-way through being
replaced, changes nothing: the one before stays, and the log says why.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from interlace.config import TlsSettings
from interlace.errors import ConfigError
from interlace.gateway.certificates import read_identity

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # from one look at the files to the next
SOON = timedelta(days=14)  # so long before its end, a certificate is warned of, once a day
_DAY = timedelta(days=1)

_Seen = tuple[tuple[int, int, int], ...]


class Tls:
    """The server's identity, read again whenever its files change. Raises `ConfigError` when made of bad ones."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._seen = self._look()
        self._complained: _Seen | None = None
        self._warned = datetime.min.replace(tzinfo=UTC)
        self.identity = read_identity(settings)
        self.context = read_identity(settings).context  # the socket's own, so that the newest can be let go
        self.context.sni_callback = self._hand_over

    @classmethod
    def of(cls, settings: TlsSettings) -> Tls | None:
        """None where connections are not encrypted."""
        return None if settings.certificate is None else cls(settings)

    def expires(self) -> float:
        """When what is shown now ends, in seconds since 1970."""
        return self.identity.until.timestamp()

    def read(self) -> Callable[[], None]:
        """Read the files; what is returned makes them the server's identity. Raises `ConfigError`."""
        seen = self._look()
        identity = read_identity(self._settings)

        def use() -> None:
            self._seen, self._complained = seen, None
            if identity.until != self.identity.until:
                _log.info("the certificate was renewed", extra={"fields": {"until": identity.until.isoformat()}})
            self.identity = identity

        return use

    async def watch(self) -> None:
        """Follow the files, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(self._follow)
            except Exception:  # noqa: BLE001 - an error of ours must not end the watch
                _log.exception("the certificate could not be looked at")
            self._warn(datetime.now(UTC))

    def _hand_over(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self.identity.context

    def _look(self) -> _Seen:
        """What changes when the files do; a file that is not there is a change as well."""
        found: list[tuple[int, int, int]] = []
        for path in (self._settings.certificate, self._settings.key):
            assert path is not None
            try:
                now = path.stat()
                found.append((now.st_ino, now.st_mtime_ns, now.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def _follow(self) -> None:
        now = self._look()
        if now in (self._seen, self._complained):
            return
        try:
            self.read()()
        except ConfigError as error:
            self._complained = now
            _log.error("the certificate was not reloaded", extra={"fields": {"error": error.message}})

    def _warn(self, now: datetime) -> None:
        left = self.identity.until - now
        if left < SOON and now - self._warned >= _DAY:
            self._warned = now
            _log.warning("the certificate expires soon", extra={"fields": {"until": self.identity.until.isoformat()}})
