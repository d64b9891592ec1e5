"""Every error a caller or an operator can meet, in one tree.

Each error knows its HTTP status and its machine-readable code, so that the gateway turns any of them into
OpenAI's error shape without a table of its own, and so that they survive the trip from an engine host.

    InterlaceError
    ├── InvalidRequest          400  the caller sent something wrong; `param` names the field
    │   └── ContextLengthExceeded
    ├── Unauthenticated         401
    ├── Forbidden               403
    ├── NotFound                404
    ├── PayloadTooLarge         413
    ├── Conflict                409  it is there already
    ├── Overloaded              429  the queue is full; `retry_after_seconds` says when to come back
    ├── RateLimited             429  the plan's requests or concurrency are used up for now
    │   └── TokensLimited       429  the plan's tokens are
    ├── InsufficientQuota       429  a budget cannot hold what the request may cost
    ├── ContentFiltered         400  a guard refused the request
    ├── EngineFailed            502  the engine died or broke its contract under this request
    ├── EngineUnavailable       503  the engine is loading, restarting or closed
    ├── GuardUnavailable        503  a classifier that guards the input cannot judge now
    ├── GuardFailed             502  a classifier that guards the input failed under this request
    ├── LedgerUnavailable       503  usage cannot be recorded now
    ├── CheckpointError         (command line) a checkpoint cannot be pulled, verified or loaded
    └── ConfigError             (command line) interlace.yaml is wrong; the message names line and mend
"""

from __future__ import annotations

from typing import Any, ClassVar

MESSAGE_CHARACTERS = 4000  # of one message about a checkpoint; each source of a pull may add its own


class InterlaceError(Exception):
    """Base of all errors that are meant to be read by a person.

    `message` says what is wrong and what to do next. `param` names the offending request field, where there is one.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    upstream: bool = False
    """Whether a provider said so of a request that had reached it."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(InterlaceError):
    """The caller sent something wrong (HTTP 400)."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus wanted tokens do not fit the model's context (HTTP 400)."""

    # Messages end with the code as well: LangChain reads it there, from the text the SDK shows.

    default_code = "context_length_exceeded"


class ContentFiltered(InvalidRequest):
    """A guard refused the request (HTTP 400, OpenAI's `content_filter`)."""

    default_code = "content_filter"


class Unauthenticated(InterlaceError):
    """No key, or a wrong one (HTTP 401)."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class Forbidden(InterlaceError):
    """The key is good but may not do this (HTTP 403)."""

    status = 403
    type = "invalid_request_error"
    default_code = "permission_denied"


class NotFound(InterlaceError):
    """No such model or page (HTTP 404)."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class PayloadTooLarge(InterlaceError):
    """The request body is larger than the configured bound (HTTP 413)."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class Overloaded(InterlaceError):
    """Too much is queued already (HTTP 429 with Retry-After)."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class ProviderLimited(Overloaded):
    """The server behind a model is at its rate limit for this gateway (HTTP 429 with Retry-After)."""


class RateLimited(InterlaceError):
    """A limit of the key's plan is used up for now (HTTP 429 with Retry-After, OpenAI's `rate_limit_exceeded`)."""

    status = 429
    type = "requests"
    default_code = "rate_limit_exceeded"


class TokensLimited(RateLimited):
    """The plan's tokens per minute are used up for now (HTTP 429)."""

    type = "tokens"


class InsufficientQuota(InterlaceError):
    """A budget cannot hold what the request may cost (HTTP 429, OpenAI's `insufficient_quota`)."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class LedgerUnavailable(InterlaceError):
    """The ledger cannot record usage now, so nothing new is taken on (HTTP 503 with Retry-After)."""

    status = 503
    default_code = "ledger_unavailable"


class Conflict(InterlaceError):
    """It is there already, or it is not in a state for this (HTTP 409)."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class EngineFailed(InterlaceError):
    """The engine died, or broke its contract, under this request (HTTP 502)."""

    status = 502
    default_code = "engine_failed"


class EngineUnavailable(InterlaceError):
    """The engine is loading, restarting or closed (HTTP 503)."""

    status = 503
    default_code = "engine_unavailable"


class GuardUnavailable(InterlaceError):
    """A classifier that guards the input cannot judge now, so nothing passes (HTTP 503 with Retry-After)."""

    # None of `EngineUnavailable`: the model that was asked for has no part in it.

    status = 503
    default_code = "guard_unavailable"


class GuardFailed(InterlaceError):
    """A classifier that guards the input failed under this request, so it does not pass (HTTP 502)."""

    # None of `EngineFailed`, for the same reason; and not the caller's mistake, who may send it again.

    status = 502
    default_code = "guard_failed"


class CheckpointError(InterlaceError):
    """A checkpoint cannot be pulled, verified or loaded; nothing was changed on disk.

    Messages quote files that anyone may have written, so each is made safe for a terminal and kept short.
    """

    default_code = "checkpoint_error"

    def __init__(self, message: str, **rest: Any) -> None:
        super().__init__(_harmless(message), **rest)


class ConfigError(InterlaceError):
    """The configuration is wrong; the message names the file, the line and the mend."""

    default_code = "config_error"


def _harmless(text: str) -> str:
    """Text with its control characters shown, not obeyed (line ends stay), and cut where nobody reads on."""
    cut = text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 4] + " ..."
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cut)


def _tree(root: type[InterlaceError]) -> dict[str, type[InterlaceError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_named(name: str) -> type[InterlaceError]:
    """The error class of that name, for errors that crossed a process border; `InterlaceError` when unknown."""
    return _tree(InterlaceError).get(name, InterlaceError)
