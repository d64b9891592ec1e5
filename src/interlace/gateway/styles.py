"""How each dialect tells what is beside an answer: errors, what is left of the caller's rates, the request's id."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

import msgspec

from interlace.errors import ContextLengthExceeded, InsufficientQuota, InterlaceError, Overloaded, ProviderLimited
from interlace.gateway.wire import ErrorBody, error_body
from interlace.ledger import Left

Header = tuple[bytes, bytes]


class Style(Protocol):
    """One dialect's way."""

    @property
    def error(self) -> type[msgspec.Struct]:
        """What `body` encodes."""
        ...

    @property
    def rate_prefix(self) -> bytes:
        """What the names of the rates' headers begin with."""
        ...

    def status(self, error: InterlaceError) -> int:
        """The HTTP status."""
        ...

    def body(self, error: InterlaceError, label: bytes) -> bytes:
        """The JSON body; `label` is what the caller knows the request by."""
        ...

    def event(self, error: InterlaceError, label: bytes) -> bytes:
        """What ends a stream that failed."""
        ...

    def rates(self, left: Mapping[str, Left]) -> list[Header]:
        """Headers that tell what is left."""
        ...

    def identity(self, label: bytes) -> list[Header]:
        """Headers beside `x-request-id` that tell the request's id."""
        ...


@dataclass(frozen=True)
class OpenAIStyle:
    """OpenAI's."""

    error: type[msgspec.Struct] = ErrorBody
    rate_prefix: bytes = b"x-ratelimit-"

    def status(self, error: InterlaceError) -> int:
        """As the error says."""
        return error.status

    def body(self, error: InterlaceError, label: bytes) -> bytes:  # noqa: ARG002 - it goes into a header only
        """`{"error": {...}}`."""
        return error_body(error)

    def event(self, error: InterlaceError, label: bytes) -> bytes:
        """An event like any other."""
        return b"data: " + self.body(error, label) + b"\n\n"

    def rates(self, left: Mapping[str, Left]) -> list[Header]:
        """`x-ratelimit-*`; resets are durations such as 1m30s."""
        headers: list[Header] = []
        for name, one in left.items():
            limit, remaining, reset = _rate_names(name)
            headers += (
                (limit, b"%d" % one.limit),
                (remaining, b"%d" % one.remaining),
                (reset, _span(one)),
            )
        return headers

    def identity(self, label: bytes) -> list[Header]:  # noqa: ARG002 - nothing more
        """None."""
        return []


ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
]

_BY_STATUS: Mapping[int, ErrorType] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


# What clients look for: after the one they shorten the conversation, after the other they ask for less.
_TOO_LONG = re.compile("prompt is too long|input length and `max_tokens` exceed context limit")


class AnthropicErrorDetail(msgspec.Struct, frozen=True):
    """Anthropic's description of one error."""

    type: ErrorType
    message: str


class AnthropicError(msgspec.Struct, frozen=True):
    """What every error looks like at Anthropic's endpoints."""

    error: AnthropicErrorDetail
    request_id: str
    type: Literal["error"] = "error"


@dataclass(frozen=True)
class AnthropicStyle:
    """Anthropic's."""

    error: type[msgspec.Struct] = AnthropicError
    rate_prefix: bytes = b"anthropic-ratelimit-"

    def status(self, error: InterlaceError) -> int:
        """An empty purse is 402 here, and a full queue 529."""
        if isinstance(error, InsufficientQuota):
            return 402
        full = isinstance(error, Overloaded) and not isinstance(error, ProviderLimited)
        return 529 if full else error.status

    def body(self, error: InterlaceError, label: bytes) -> bytes:
        """`{"type": "error", "error": {...}, "request_id": ...}`."""
        status = self.status(error)
        kind = _BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        message = error.message
        if isinstance(error, ContextLengthExceeded) and not _TOO_LONG.search(message):
            message = f"prompt is too long: {message}"
        return msgspec.json.encode(AnthropicError(AnthropicErrorDetail(kind, message), label.decode()))

    def event(self, error: InterlaceError, label: bytes) -> bytes:
        """An event of its own name."""
        return b"event: error\ndata: " + self.body(error, label) + b"\n\n"

    def rates(self, left: Mapping[str, Left]) -> list[Header]:
        """`anthropic-ratelimit-*`; resets are moments, as in RFC 3339."""
        headers: list[Header] = []
        for name, one in left.items():
            reset = datetime.now(UTC) + timedelta(seconds=_whole_seconds(one))
            moment = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
            for what, value in (("limit", one.limit), ("remaining", one.remaining), ("reset", moment)):
                headers.append((f"anthropic-ratelimit-{name}-{what}".encode(), str(value).encode()))
        return headers

    def identity(self, label: bytes) -> list[Header]:
        """`request-id`."""
        return [(b"request-id", label)]


OPENAI, ANTHROPIC = OpenAIStyle(), AnthropicStyle()


def _whole_seconds(left: Left) -> int:
    return int(-(-left.reset_seconds // 1))  # upwards


@functools.lru_cache(maxsize=64)
def _rate_names(name: str) -> tuple[bytes, bytes, bytes]:
    return tuple(f"x-ratelimit-{what}-{name}".encode() for what in ("limit", "remaining", "reset"))  # type: ignore[return-value]


def _span(left: Left) -> bytes:
    whole = _whole_seconds(left)
    return b"%dm%ds" % divmod(whole, 60) if whole >= 60 else b"%ds" % whole
