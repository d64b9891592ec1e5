"""JSON lines: each line to an object, or to a problem that says what was probably meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from interlace.tuning.lines import Say, text_lines

MOST_DEPTH = 40  # of brackets: examples are flat, and Python's parser has no bound that it keeps

_ONE_LINE = "Put each example on a line of its own"


class _Repeated(ValueError):
    """An object has a key twice."""


def json_rows(file: BinaryIO, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and object of each good line. A file that is no JSON lines at all gets one problem, not one a line."""
    first = True
    for number, text in text_lines(file, say):
        if first and (other := _other_kind(text)):
            say(number, "", *other)
            return
        first = False
        row = _parsed(text, number, say)
        if row is not None:
            yield number, row


def _other_kind(text: str) -> tuple[str, str] | None:
    """Where the first line shows that the file is another kind of JSON, or has old line ends: problem and mend."""
    bare = text.strip()
    if bare == "{":
        return "this is JSON over several lines, not JSON lines", f"{_ONE_LINE}: jq -c . OLD > NEW"
    if bare in ("[", "[{") or (bare.startswith("[") and bare.endswith(("]", ","))):
        return "this is a JSON array, not JSON lines", f"{_ONE_LINE}: jq -c '.[]' OLD > NEW"
    if "}\r{" in text:
        return "lines end with a lone carriage return", "Give them newlines: tr '\\r' '\\n' < OLD > NEW"
    return None


def _parsed(text: str, number: int, say: Say) -> dict[str, Any] | None:
    if _too_deep(text):
        say(number, "", f"JSON is nested deeper than {MOST_DEPTH} levels", 'Give "messages" as a flat list')
        return None
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _Repeated as error:
        say(number, str(error), "the key is repeated in one object", "Keep one of them")
        return None
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        say(number, "", f"this is no JSON{column}", _mend(text))
        return None
    if not isinstance(row, dict):
        say(number, "", "this is JSON, but no object", 'Write {"messages": [...]} on each line')
        return None
    return row


def _mend(text: str) -> str:
    bare = text.strip()
    if "}{" in bare.replace(" ", ""):
        return "Several objects stand on one line: put each on a line of its own"
    if bare.endswith("},"):
        return "Remove the comma at the end: lines are not joined by commas"
    if bare.startswith(("{'", "{ '")):
        return "This is Python's notation: write the file with json.dumps"
    if "“" in bare[:20] or "”" in bare[:20]:
        return 'The quotes are typographic ones: JSON needs "'
    if "NaN" in bare or "Infinity" in bare:
        return "JSON has no NaN: leave the field out"
    if bare.startswith("{") and not bare.endswith("}"):
        return "The line ends in the middle of an object: line breaks in a text are written \\n"
    return "Write one JSON object on each line"


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MOST_DEPTH:
        return False
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            escaped, quoted = letter == "\\" and not escaped, letter != '"' or escaped
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                return True
        elif letter in "]}":
            depth -= 1
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Repeated(repr(key)[1:-1][:60])
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
