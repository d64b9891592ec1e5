"""Access tokens of Google Cloud, through google-auth: service accounts, and whatever else application default
credentials are.

The one module that knows google-auth. A token is fetched on a thread, ahead of its end (see `refreshing`).
"""

from __future__ import annotations

import importlib.util
import logging
from datetime import UTC
from typing import Any

from interlace.engines.remote.refreshing import Refreshing
from interlace.errors import ConfigError, EngineFailed, EngineUnavailable

_log = logging.getLogger(__name__)

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


class Tokens:
    """Tokens for one model. Raises `ConfigError` where google-auth is not installed."""

    def __init__(self) -> None:
        if not all(_installed(name) for name in ("google.auth", "requests")):
            raise ConfigError(
                "Engine vertex needs the packages google-auth and requests. Install them: "
                "pip install 'interlace[vertex]'"
            )
        self._credentials: Any = None
        self._tokens: Refreshing[str] = Refreshing(self._fetch)
        self._payer = ""  # the project that is billed, where credentials name another one

    async def headers(self) -> dict[str, str]:
        """The headers that a request needs now."""
        headers = {"Authorization": f"Bearer {await self._tokens.get()}"}
        return headers | {"x-goog-user-project": self._payer} if self._payer else headers

    def forget(self) -> None:
        """Google does not take this token: look for credentials again."""
        self._credentials = None
        self._tokens.forget()

    def hide(self, text: str) -> str:
        """The text without the token."""
        held = self._tokens.held
        return text.replace(held, "***") if held else text

    def _fetch(self) -> tuple[str, float | None]:
        """A new token, and when it ends. Runs on a thread."""
        import google.auth
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=SCOPES)
            self._credentials.refresh(Request())
        except TransportError as error:
            _tell(error)
            raise EngineUnavailable(
                "The server that vouches for this gateway does not answer.", retry_after_seconds=5
            ) from None
        except (GoogleAuthError, OSError, ValueError, KeyError) as error:
            _tell(error)
            self._credentials = None
            raise EngineFailed(
                "This gateway has no Google Cloud credentials for the server behind this model. Tell whoever runs the "
                "gateway."
            ) from None
        self._payer = getattr(self._credentials, "quota_project_id", None) or ""
        end = self._credentials.expiry  # without a zone, and UTC
        return self._credentials.token, None if end is None else end.replace(tzinfo=UTC).timestamp()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _tell(error: Exception) -> None:
    _log.warning("a Google Cloud token cannot be had", extra={"fields": {"error": type(error).__name__}})
