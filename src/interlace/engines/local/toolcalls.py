"""Tool calls out of the text a model writes.

Two forms are understood: SmolLM2's `<tool_call>[{"name": …, "arguments": {…}}, …]</tool_call>` ("list") and Hermes'
`<tool_call>{"name": …, "arguments": {…}}</tool_call>` ("object"). Either is read whatever form the model was asked for.
A call is handed on whole, once its tag closes: half a call that turns out malformed could not be taken back.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal, NoReturn

from interlace.engines.local.stops import StopFinder
from interlace.engines.types import Tool, ToolCallDelta

ToolFormat = Literal["list", "object"]
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
_LETTERS = string.ascii_letters + string.digits
_BEGUN = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*(?:,(?:\s*"arguments"\s*:\s*(?:(\{.*))?|\s*"?[a-z]*"?\s*)?)?\Z', re.DOTALL
)
"""How a call begins that was cut off after its name."""
_SPACE = re.compile(r"[ \t\n\r]*")


def call_id(randomness: random.Random) -> str:
    """A fresh id in OpenAI's form."""
    return "call_" + "".join(randomness.choices(_LETTERS, k=24))


class ToolCallParser:
    """Reads one choice's text. What is no call of a known tool comes out as text, to the letter; only blanks around
    calls are dropped."""

    def __init__(self, tools: Collection[Tool], randomness: random.Random) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._randomness = randomness
        self._outside = StopFinder((OPEN_TAG,))
        self._inside = StopFinder((CLOSE_TAG,))
        self._block: list[str] | None = None  # the pieces of a call so far; None outside of one
        self._blanks = ""  # held back: dropped if a call follows
        self.calls = 0

    def push(self, text: str) -> list[str | ToolCallDelta]:
        """What this text completes: content and calls, in order."""
        found: list[str | ToolCallDelta] = []
        while text:
            if self._block is None:
                shown, tag, text = self._outside.find(text)
                found += self._content(shown)
                self._block = [] if tag else None
            else:
                piece, tag, text = self._inside.find(text)
                self._block.append(piece)
                if tag:
                    found += self._closed(CLOSE_TAG)
        return found

    def finish(self, *, cut: bool = False) -> list[str | ToolCallDelta]:
        """What is left at the end; a call that is complete but for its closing tag counts. `cut`: the text ended
        because it may be no longer, and a call that it broke off counts as far as it came."""
        if self._block is not None:
            self._block.append(self._inside.flush())
            found = self._closed("", cut=cut)
        else:
            found = self._content(self._outside.flush())
        blanks, self._blanks = self._blanks, ""
        return [*found, blanks] if blanks and not self.calls else found

    def _content(self, text: str) -> list[str | ToolCallDelta]:
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        if not shown:
            return []
        return [shown]

    def _closed(self, tag: str, *, cut: bool = False) -> list[str | ToolCallDelta]:
        block, self._block = "".join(self._block or ()), None
        calls = read_calls(block, self._names)
        if calls is None and cut:
            calls = read_cut_calls(block, self._names)
        if calls is None:
            return self._content(f"{OPEN_TAG}{block}{tag}")
        if calls:
            self._blanks = ""
        return list(self._deltas(calls))

    def _deltas(self, calls: Iterable[tuple[str, str]]) -> Iterator[ToolCallDelta]:
        for name, arguments in calls:
            yield ToolCallDelta(index=self.calls, id=call_id(self._randomness), name=name, arguments=arguments)
            self.calls += 1


def read_calls(block: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """(name, arguments as written) of each call in what stood between the tags; None when it is malformed or calls a
    function that was not offered. An empty list is SmolLM2's way to say that no call is needed."""
    try:
        calls = list(_calls(block))
    except (ValueError, RecursionError):
        return None
    return calls if all(name in names for name, _ in calls) else None


def read_cut_calls(block: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """The same of what breaks off in the middle of a call, whose arguments then are as far as they came; a call without
    its whole name is none. None where it could not become calls."""
    calls: list[tuple[str, str]] = []
    place = _skip(block, 0)
    place += block.startswith("[", place)
    while True:
        try:
            call, end = _call(block, place)
        except (ValueError, RecursionError):
            break
        calls.append(call)
        if not block.startswith(",", end):
            return None  # whole calls and something else: for `read_calls` to say
        place = end + 1
    if not all(name in names for name, _ in calls):
        return None
    if begun := _BEGUN.match(block, place):
        return [*calls, (begun[1], begun[2] or "")] if begun[1] in names else None
    rest = re.sub(r"\s", "", block[place:])
    return calls if any(f'{{"name":"{name}",'.startswith(rest) for name in names) else None


def _calls(block: str) -> Iterator[tuple[str, str]]:
    place = _skip(block, 0)
    if not block.startswith("[", place):
        call, place = _call(block, place)
        yield call
    elif block.startswith("]", _skip(block, place + 1)):
        place = _skip(block, place + 1) + 1
    else:
        call, place = _call(block, place + 1)
        yield call
        while block.startswith(",", place):
            call, place = _call(block, place + 1)
            yield call
        place = _expect(block, place, "]")
    if _skip(block, place) != len(block):
        raise ValueError("text after the call")


def _call(block: str, place: int) -> tuple[tuple[str, str], int]:
    """One call and where it ends, blanks after it included. Its arguments are cut from the text, never re-written."""
    place = _expect(block, place, "{")
    name, arguments = None, "{}"
    while True:
        key, place = _value(block, place)
        start = _skip(block, _expect(block, place, ":"))
        value, end = _value(block, start)
        if key == "name" and isinstance(value, str):
            name = value
        elif key == "arguments" and isinstance(value, dict):
            arguments = block[start:end]
        else:
            raise ValueError(f"unexpected {key!r}")
        place = _skip(block, end)
        if not block.startswith(",", place):
            break
        place += 1
    place = _expect(block, place, "}")
    if name is None:
        raise ValueError("a call without a name")
    return (name, arguments), _skip(block, place)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _value(text: str, place: int) -> tuple[Any, int]:
    return _DECODER.raw_decode(text, _skip(text, place))


def _expect(text: str, place: int, character: str) -> int:
    place = _skip(text, place)
    if not text.startswith(character, place):
        raise ValueError(f"{character!r} is missing")
    return place + 1


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
