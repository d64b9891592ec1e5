"""Pages of other origins, in browsers: those that the configuration names may call `/v1/`, and nothing else here.

Keys travel in headers that a page sets itself, never in cookies, so credentials in the sense of browsers are not
allowed to anybody. Whoever is not named gets no header, and the browser keeps the answer from the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.types import Scope, Send

from interlace.gateway.http import header
from interlace.gateway.styles import Header

PATHS = "/v1/"
METHODS = b"GET, POST, DELETE"
EXPOSED = (
    b"request-id, x-request-id, retry-after, x-interlace-model, x-interlace-route, x-interlace-unused, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, "
    b"anthropic-ratelimit-requests-reset, anthropic-ratelimit-tokens-limit, anthropic-ratelimit-tokens-remaining, "
    b"anthropic-ratelimit-tokens-reset"
)
MAX_AGE = b"600"  # seconds that a browser may remember a preflight: also how long a removed origin is still asked

_HEADERS = re.compile(rb"[A-Za-z0-9-]{1,64}(?:, ?[A-Za-z0-9-]{1,64}){0,63}")
_VARY: Header = (b"vary", b"origin")


@dataclass(frozen=True)
class Cors:
    """What pages of the named origins are told."""

    origins: frozenset[bytes]

    @classmethod
    def of(cls, origins: tuple[str, ...]) -> Cors | None:
        """None where no origin is named: then nothing is said at all."""
        return cls(frozenset(origin.encode() for origin in origins)) if origins else None

    def marks(self, scope: Scope) -> tuple[Header, ...]:
        """Headers of the answer to this request."""
        if not scope["path"].startswith(PATHS):
            return ()
        allowed = self._allowed(scope)
        return (*allowed, (b"access-control-expose-headers", EXPOSED), _VARY) if allowed else (_VARY,)

    def is_preflight(self, scope: Scope) -> bool:
        """Whether a browser asks before the call itself."""
        return (
            scope["method"] == "OPTIONS"
            and scope["path"].startswith(PATHS)
            and bool(header(scope, b"origin"))
            and header(scope, b"access-control-request-method") is not None
        )

    async def answer(self, scope: Scope, send: Send) -> None:
        """Answer such a question."""
        await _preflight(scope, send, self._allowed(scope))

    def _allowed(self, scope: Scope) -> list[Header]:
        origin = header(scope, b"origin")
        return [(b"access-control-allow-origin", origin)] if origin is not None and origin in self.origins else []


async def _preflight(scope: Scope, send: Send, allowed: list[Header]) -> None:
    """What a browser asks before the call itself. Which headers it may send is as it asks: none of them means anything
    but what it means in the call."""
    headers = list(allowed)
    if allowed:
        headers += [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", MAX_AGE)]
        wanted = header(scope, b"access-control-request-headers")
        if wanted is not None and _HEADERS.fullmatch(wanted):
            headers.append((b"access-control-allow-headers", wanted))
    headers.append((b"vary", b"origin, access-control-request-headers"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
