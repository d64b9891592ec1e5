"""One value of a setting, from its text: what it is, or what is wrong with it and how to mend that."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import regex

from interlace.errors import ConfigError
from interlace.money import Micros, Nanos, parse_moment, parse_usd

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 1 << 30, "t": 10**12, "tb": 10**12, "tib": 1 << 40}
KINDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    Nanos: "an amount of dollars",
    Micros: "a date or time",
}


class Wrong(Exception):
    """A value that cannot be what the setting wants: the problem and its mend."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem, self.mend = problem, mend


def parse(text: str, hint: Any, field: dataclasses.Field[Any]) -> Any:
    """The value of one setting from its text; raises `Wrong`."""
    value: Any
    if hint is bool:
        value = _boolean(text)
    elif hint is int:
        value = _size(text) if field.name.endswith("_bytes") else _number(text, int)
    elif hint is float:
        value = _number(text, float)
    elif hint is Path:
        value = _path(text)
    elif hint is Nanos:
        value = _said(parse_usd, text)
    elif hint is Micros:
        value = _said(parse_moment, text)
    elif field.name == "time_zone":
        value = _zone(text)
    elif field.name in {"checkpoint", "folder"} and text.startswith("~"):
        value = str(_path(text))
    elif field.name == "hours":
        value = _hours(text)
    elif field.name in {"deny", "refusals"}:
        value = _pattern(text)
    elif field.name == "origins":
        value = _origin(text)
    elif field.name == "trusted":
        value = _network(text)
    elif field.name in {"base_url", "token_url"}:
        value = _base_url(text)
    else:
        value = _nonempty(text)
    _within(value, field)
    return value


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise Wrong(f"is not true or false but {shown(repr(text))}", "Write true or false")


def _number(text: str, kind: type[int | float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise Wrong(f"is not {KINDS[kind]} but {shown(repr(text))}", f"Write {KINDS[kind]}") from None
    if not math.isfinite(value):
        raise Wrong(f"is not a finite number but {shown(repr(text))}", "Write a finite number")
    return value


def _size(text: str) -> int:
    found = re.fullmatch(r"\s*(\d{1,18})(?:\.(\d{1,6}))?\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found[3].lower()) if found else None
    if found is None or unit is None:
        raise Wrong(f"is not a size but {shown(repr(text))}", "Write bytes or a size such as 512MiB or 2GiB")
    fraction = found[2] or ""
    scale: int = 10 ** len(fraction)
    return int(found[1] + fraction) * unit // scale


def parse_size(text: str, option: str) -> int:
    """Bytes, from a size such as 512MiB on the command line; raises `ConfigError`."""
    try:
        return _size(text)
    except Wrong as wrong:
        raise ConfigError(f"{option}: {wrong.problem}. {wrong.mend}.") from None


def _said(parse: Callable[[str], int], text: str) -> int:
    """What `parse` makes of the text; its `ValueError` says "problem; mend"."""
    try:
        return parse(text)
    except ValueError as error:
        problem, _, mend = str(error).partition("; ")
        raise Wrong(f"{problem}: {shown(repr(text))}", mend[:1].upper() + mend[1:]) from None


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Wrong(f"is no time zone: {shown(repr(text))}", "Write a name such as UTC or Africa/Nairobi") from None
    return text


def _hours(text: str) -> str:
    """A span of the day, both ends as HH:MM; the second may be 24:00."""
    found = re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)", text.strip())
    if found is None or text.strip()[:5] == text.strip()[6:]:
        raise Wrong(f"is no span of a day: {shown(repr(text))}", "Write two times such as 08:00-18:00")
    return text.strip()


def _nonempty(text: str) -> str:
    if not text.strip():
        raise Wrong("is empty", "Write a value or remove the line")
    if "\0" in text:
        raise Wrong("holds a NUL character", "Remove it")
    return text


def _path(text: str) -> Path:
    try:
        return Path(_nonempty(text)).expanduser()
    except RuntimeError:
        raise Wrong(f"names the home folder of nobody known: {shown(repr(text))}", "Write the whole path") from None


def _base_url(text: str) -> str:
    """An http(s) URL without user, query and fragment, and without its last slash."""
    mend = "Write where the API begins, such as https://api.openai.com/v1"
    try:
        url = urlsplit(text)
        strange = url.scheme not in {"http", "https"} or not url.hostname or url.port == 0
    except ValueError:
        strange = True
    if strange or not text.isascii() or any(not c.isprintable() or c in ' \\"<>^`{|}' for c in text):
        raise Wrong("is not a URL that begins with http:// or https://", mend)
    if "@" in url.netloc:
        raise Wrong("holds a user name or password", "Remove it, and write `api_key: ${NAME}`")
    if "?" in text or "#" in text:
        raise Wrong("holds a query or a fragment", mend)
    return text.rstrip("/")


def _origin(text: str) -> str:
    """Scheme, host and port, letter for letter as browsers send them."""
    mend = "Write it as browsers do, without a path or a slash at the end: https://app.example.com"
    try:
        url = urlsplit(text)
        exact = f"{url.scheme}://{url.netloc}"
        standard = {"http": 80, "https": 443}.get(url.scheme)
        wrong = standard is None or not url.hostname or "@" in url.netloc or url.port == standard or "*" in text
    except ValueError:
        raise Wrong(f"is no origin: {shown(repr(text))}", mend) from None
    if wrong or text != exact or text != text.lower() or not text.isascii() or " " in text:
        raise Wrong(f"is no origin: {shown(repr(text))}", mend)
    return text


def _network(text: str) -> str:
    try:
        return str(ip_network(text.strip()))
    except ValueError as error:
        mend = "Write an address such as 127.0.0.1, or a network such as 10.0.0.0/8"
        raise Wrong(f"is no address or network: {shown(str(error))}", mend) from None


def _pattern(text: str) -> str:
    try:
        pattern = regex.compile(text)
    except (regex.error, OverflowError, RecursionError) as error:
        raise Wrong(
            f"is not a regular expression: {error}", "Mind brackets and backslashes; quote it with '...'"
        ) from None
    if pattern.search(""):
        raise Wrong("matches empty text, so it would refuse everything", "Make it need at least one character")
    return text


def _within(value: Any, field: dataclasses.Field[Any]) -> None:
    minimum, maximum, choices = (field.metadata[name] for name in ("minimum", "maximum", "choices"))
    if choices and value not in choices:
        raise Wrong(f"is {shown(repr(value))}", f"Use one of {', '.join(choices)}.{close_to(str(value), choices)}")
    if minimum is not None and value < minimum:
        raise Wrong(f"is {value}, which is too little", f"Use {minimum} or more")
    if maximum is not None and value > maximum:
        raise Wrong(f"is {value}, which is too much", f"Use {maximum} or less")


def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a dataclass' fields; of one that may be left out, the type it has when given."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        some = [each for each in get_args(hint) if each is not NoneType]
        found[name] = some[0] if NoneType in get_args(hint) else hint
    return found


def shown(text: str) -> str:
    """A piece of the file for a message: one line of bounded length."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:120])
    return plain if len(text) <= 120 else plain + " ..."


def close_to(word: str, words: Any) -> str:
    """A question that names what is close to `word` among `words`; nothing where nothing is."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""
