"""OpenAI's shapes that every endpoint shares: reading a body into a struct, and saying what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from interlace.errors import InterlaceError, InvalidRequest

T = TypeVar("T")

ADMIN = "/admin/v1"
"""What the paths of the admin API begin with."""

LARGE_BYTES = 128 << 10
"""A body beyond that is read beside the event loop, by one at a time: reading ten megabytes takes seconds, in which
nobody else would be answered."""

_large = ThreadPoolExecutor(1, "large-body")


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything callers send: a field we don't know is refused, not ignored."""


class UnsupportedMediaType(InterlaceError):
    """The body is not JSON (HTTP 415)."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class MethodNotAllowed(InterlaceError):
    """The page exists, the method does not (HTTP 405)."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's description of one error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """What every error looks like."""

    error: ErrorDetail


def error_body(error: InterlaceError) -> bytes:
    """The JSON body that tells `error`."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, error.type, error.param, error.code)))


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read a body; raises `InvalidRequest` in OpenAI's words. A key that stands twice in an object is refused: one of
    its values would be lost."""
    try:
        value = decoder.decode(body)
        if not _plainly_unique(body):
            json.loads(body, object_pairs_hook=_unique)
        return value
    except msgspec.ValidationError as error:
        raise _described(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The JSON body of your request is nested too deeply.", code="invalid_json") from None
    except ValueError as error:  # malformed JSON, or text that is not UTF-8
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {_short(error)}. "
            "It must be UTF-8 JSON; check quotes, commas and brackets.",
            code="invalid_json",
        ) from None


async def read_beside(body: bytes, read: Callable[[], T]) -> T:
    """What `read` makes of a body. It raises what it raises, and must not need the event loop."""
    if len(body) <= LARGE_BYTES:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_large, read)


_UNPLAIN = (b" :", b"\n:", b"\t:", b"\r:", b"\\u0022", b"\\u003a", b"\\u003A")


def _plainly_unique(body: bytes) -> bool:
    """Whether it is plain at a glance that no object of a valid body has a key twice: written again from what is
    decoded, where of a key that stands twice one is lost, it has as many quotes before a colon. Every key ends with
    one, and what texts have of them is the same both times, or less where a text is lost with its key. More it could
    only be where quotes or colons stand in other words."""
    for one in _UNPLAIN:  # a generator would cost as much as the search
        if one in body:
            return False
    return body.count(b'":') == msgspec.json.encode(msgspec.json.decode(body)).count(b'":')


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidRequest(
            f"The key {twice[:100]!r} stands twice in one object of your request. Give it once.", code="duplicate_key"
        )


def convert(value: Any, type: type[T], *, strict: bool = True) -> T:
    """Read plain values into a struct; raises `InvalidRequest` in OpenAI's words. Not `strict`: numbers and truth may
    come as text, as in a query."""
    try:
        return msgspec.convert(value, type, strict=strict)
    except msgspec.ValidationError as error:
        raise _described(str(error)) from None


def encode(value: Any) -> bytes:
    """JSON bytes of a response."""
    return msgspec.json.encode(value)


# --- msgspec's words → OpenAI's ----------------------------------------------------------------------------------

_AT = " - at "  # before the place; a field's name, which callers choose, may hold any number of them
_PLACE = re.compile(r".*?`\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_TYPE = re.compile(r"Expected `(.*)`, got `(.*)`$")
_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def _described(text: str) -> InvalidRequest:
    before, _, after = text.rpartition(_AT)
    place = _PLACE.match(after)
    path = place[1].replace("[...]", "") if place else ""  # msgspec does not say which key of a mapping
    what = before if place else text
    if unknown := _UNKNOWN.match(what):
        param = _join(path, unknown[1][:100])
        return InvalidRequest(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if missing := _MISSING.match(what):
        param = _join(path, missing[1])
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    param_or_none = path or None
    name = f" for '{path}'" if path else ""
    if wrong := _TYPE.match(what):
        expected = " or ".join(_WORDS.get(kind, kind) for kind in wrong[1].split(" | "))
        got = _WORDS.get(wrong[2], wrong[2])
        message = f"Invalid type{name}: expected {expected}, but got {got} instead."
        return InvalidRequest(message, param=param_or_none, code="invalid_type")
    return InvalidRequest(f"Invalid value{name}: {_short(what)}.", param=param_or_none, code="invalid_value")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(what: object) -> str:
    return str(what).replace("`", "")[:300]
