"""What a provider says went wrong, as our errors: what the caller may know, and no more.

A caller learns what is wrong with the request. What is wrong between this server and the provider (a key, an account,
an address) is the operator's: the caller hears that it failed, the log hears status, type and code. Messages of a
provider may quote prompts and keys, so they never reach a log, and reach a caller only about the caller's own request,
cut short, with control characters made visible and our key blotted out.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from interlace.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InterlaceError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    ProviderLimited,
)

MESSAGE_CHARACTERS = 500
MOST_RETRY_SECONDS = 3600.0
_AGAIN_SECONDS = 5.0  # when a provider is down and does not say for how long

_PARAM = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT = re.compile(
    r"context[ _](length|window|size|limit)|(maximum|max|model)('s)? context"
    r"|prompt is too long|too many (input )?tokens",
    re.IGNORECASE,
)

# What stands in `type` or `code` of an error that came without a status of its own, and the status it means.
_WORDS = (
    ("insufficient_quota", 402),
    ("context_length", 400),
    ("content_filter", 400),
    ("rate_limit", 429),
    ("too_many_requests", 429),
    ("invalid_api_key", 401),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
    ("invalid_request", 400),
    ("badrequest", 400),
    ("overloaded", 503),
    ("unavailable", 503),
)


@dataclass(frozen=True, slots=True)
class Complaint:
    """A provider's error object, of whatever shape, read with care: each text is "" where there is none. `again`: in
    how many seconds to try again, where that is told elsewhere than in Retry-After."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""
    status: int = 0
    again: float | None = None


def read_complaint(value: Any) -> Complaint:
    """The complaint in a decoded body, or in the value of its `error`: an object, or only a text."""
    if isinstance(value, list) and len(value) == 1:  # Google's compatible endpoint
        value = value[0]
    if isinstance(value, dict) and value.get("error"):
        value = value["error"]
    if isinstance(value, str):
        return Complaint(message=value)
    if not isinstance(value, dict):
        return Complaint()
    texts = {name: value[name] for name in ("message", "type", "param", "code") if isinstance(value.get(name), str)}
    if "message" not in texts and (detail := _detail(value)):
        texts["message"] = detail
    numbers = [value.get(name) for name in ("status", "code", "status_code")]
    status = next((n for n in numbers if isinstance(n, int) and 400 <= n < 600), 0)
    return Complaint(**texts, status=status)


def _detail(value: dict[str, Any]) -> str:
    """FastAPI's own shape: a text, or a list that says where and what; at Mistral inside `message`."""
    inner = value.get("message")
    detail = inner.get("detail") if isinstance(inner, dict) else value.get("detail")
    if isinstance(detail, str):
        return detail
    faults = [one for one in detail if isinstance(one, dict)] if isinstance(detail, list) else []
    said = []
    for fault in faults[:5]:
        where, what = fault.get("loc"), fault.get("msg")
        place = ".".join(str(step) for step in where[:10]) if isinstance(where, list) else ""
        said.append(f"{place}: {what}" if place else f"{what}")
    return "; ".join(said)


def decoded(body: bytes) -> Any:
    """A body as JSON, or None where it is none."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def error_of(
    status: int, complaint: Complaint, retry_after: str | None, hide: Callable[[str], str], input_param: str
) -> InterlaceError:
    """Our error for a provider's, marked as such: `status` is HTTP's, or 200 for an error that came inside an answer.

    `hide` blots out our key; `input_param` names the field that holds the prompt.
    """
    error = _error_of(status, complaint, retry_after, hide, input_param)
    error.upstream = True
    return error


def _error_of(
    status: int, complaint: Complaint, retry_after: str | None, hide: Callable[[str], str], input_param: str
) -> InterlaceError:
    if status == 200:
        status = complaint.status or _status_in_words(complaint)
    again = _within(_seconds(retry_after) if complaint.again is None else complaint.again)
    if complaint.code == "insufficient_quota":
        status = 402
    if status in (400, 404, 413, 415, 422):
        return _callers_fault(status, complaint, hide, input_param)
    if status == 429:
        return ProviderLimited(
            "The server behind this model is at its rate limit. Try again later.",
            retry_after_seconds=1.0 if again is None else again,
        )
    if status in (401, 402, 403):
        return EngineFailed(
            "The server behind this model does not accept this gateway's account. Tell whoever runs the gateway."
        )
    if status in (408, 409, 425, 503, 529):
        return EngineUnavailable(
            "The server behind this model is not available. Try again later.",
            retry_after_seconds=_AGAIN_SECONDS if again is None else again,
        )
    if 300 <= status < 400:
        return EngineFailed(
            "The server behind this model answered with a redirect, which is not followed. Tell whoever runs the "
            "gateway: `base_url` must be where the API itself is."
        )
    return EngineFailed(f"The server behind this model failed (HTTP {status}). Try again.")


def _callers_fault(status: int, complaint: Complaint, hide: Callable[[str], str], input_param: str) -> InterlaceError:
    message = harmless(hide(complaint.message)) or f"The server behind this model refused the request (HTTP {status})."
    param = complaint.param if _PARAM.fullmatch(complaint.param) else None
    code = complaint.code if _CODE.fullmatch(complaint.code) else None
    if hide(f"{param} {code}") != f"{param} {code}":
        param = code = None
    if code == "context_length_exceeded" or _CONTEXT.search(complaint.message):
        return ContextLengthExceeded(message, param=param or input_param)
    if code == "content_filter":
        return ContentFiltered(message, param=param or input_param)
    if status == 404:
        return NotFound(f"The server behind this model does not have it: {message}", param="model", code=code)
    if status == 413:
        return PayloadTooLarge(message)
    return InvalidRequest(message, param=param, code=code)


def safe_words(complaint: Complaint) -> dict[str, str]:
    """Type and code for the log, where they are words and not texts."""
    words = {"type": complaint.type, "code": complaint.code}
    return {name: word for name, word in words.items() if _CODE.fullmatch(word)}


def harmless(text: str) -> str:
    """One line of bounded length in which control characters are shown, not obeyed."""
    text = text.strip()
    cut = text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 4] + " ..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _status_in_words(complaint: Complaint) -> int:
    words = f"{complaint.code} {complaint.type}".lower()
    return next((status for word, status in _WORDS if word in words), 500)


def _seconds(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date, within reason; None where it says nothing."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds


def _within(seconds: float | None) -> float | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MOST_RETRY_SECONDS)
