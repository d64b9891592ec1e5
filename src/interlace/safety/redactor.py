"""Finds the secrets of a text that arrives in pieces, and puts a word in place of each.

A single way from left to right: at each place where a secret may begin it is decided whether one does, and nothing
after that place is looked at before. So what is found does not depend on the pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import regex

from interlace.safety.scanner import LONG_CHARACTERS
from interlace.safety.secrets import DETECTORS, NAMES, Detector, Glance, Kind, Rest

Action = str
"""`mask` or `refuse`; what is `off` is not looked for."""

_BEFORE = 16  # characters that are kept to tell what stands before a secret
_STRING = regex.compile(r'\\.|"', regex.DOTALL)


@dataclass(slots=True)
class Cut:
    """One secret, in characters of the whole text; `end` grows while its end has not come."""

    start: int
    end: int
    kind: Kind
    word: str  # what stands in its place


class Search:
    """The detectors of the kinds that are not `off`, as one search; made once, shared by all texts."""

    def __init__(self, actions: Mapping[Kind, Action]) -> None:
        self.actions = {kind: action for kind, action in actions.items() if action != "off"}
        self._detectors = [detector for detector in DETECTORS if detector.kind in self.actions]
        starts = (f"(?P<d{i}>{detector.start})" for i, detector in enumerate(self._detectors))
        self._starts = regex.compile("|".join(starts) or r"(?!)")
        self._glance = Glance(self._detectors)

    def may_find(self, text: str, at: int = 0, *, final: bool = True) -> bool:
        """A glance: whether there may be anything in a text from `at` on. It costs little, but as much for each place
        as for the whole, so look once."""
        return self._glance.may_hold(text, at) if final else self._glance.may_begin(text, at)

    def start(self, text: str, at: int, *, final: bool) -> tuple[int, Detector | None]:
        """Where, from `at` on, a secret may begin, and of what kind. No detector: nothing begins before that place."""
        found = self._starts.search(text, at, partial=not final, concurrent=len(text) - at > LONG_CHARACTERS)
        if found is None:
            return len(text), None
        if found.partial or found.lastgroup is None:
            return found.start(), None
        return found.start(), self._detectors[int(found.lastgroup[1:])]


class Redactor:
    """One text, fed piece by piece. With `json` it is JSON text, which stays valid.

    After `feed`: `decided` is how many characters from the start are decided, `cuts` the secrets among them that
    `render` has not passed yet, `refused` the kind of a secret that is to be refused, which begins at `decided` and
    ends the search. Nothing is undecided for longer than the longest beginning of a secret, about 300 characters.
    """

    def __init__(self, search: Search, *, json: bool = False) -> None:
        self._search = search
        self._json = json
        self._text = ""  # what of the text is still needed
        self._gone = 0  # characters before it
        self._at = 0  # decided so far, in `_text`
        self._rest: Rest | None = None  # of a secret whose end has not come
        self._quotes_to = 0
        self._in_string = False
        self.fed = 0
        self.cuts: deque[Cut] = deque()
        self.found: list[Kind] = []
        self.refused: Kind | None = None

    @property
    def decided(self) -> int:
        """Characters from the start of the whole text."""
        return self._gone + self._at

    def feed(self, piece: str, *, final: bool = False) -> None:
        """Take the next piece (`final`: there will be none after it)."""
        self._text += piece
        self.fed += len(piece)
        if self._rest is None and self.refused is None and not self._search.may_find(self._text, self._at, final=final):
            self._at = len(self._text)  # where a search would find nothing either
        else:
            while self.refused is None and self._step(final=final):
                pass
        if not self._json and self._at > 2 * _BEFORE:
            self._gone += self._at - _BEFORE
            self._text = self._text[self._at - _BEFORE :]
            self._at = _BEFORE

    def render(self, piece: str, start: int) -> tuple[str, bool]:
        """The decided part of `piece`, which stands at `start`, with its secrets replaced; and whether it had any.
        Pieces are rendered in order: cuts before `start` are forgotten."""
        while self.cuts and self.cuts[0].end <= start and not (len(self.cuts) == 1 and self._rest):
            self.cuts.popleft()
        end = min(start + len(piece), self.decided)
        shown, at, touched = [], start, False
        for cut in self.cuts:
            if cut.start >= end:
                break
            shown.append(piece[at - start : max(at, cut.start) - start])
            if cut.start >= start:
                shown.append(cut.word)
            touched |= cut.end > at
            at = max(at, min(cut.end, end))
        shown.append(piece[at - start : max(at, end) - start])
        return "".join(shown), touched

    def _step(self, *, final: bool) -> bool:
        """Decide up to the next secret, or go along one; whether there is more to do."""
        if self._rest is not None:
            self._at, ended = self._rest(self._text, self._at, final, self._json)
            self.cuts[-1].end = self.decided
            if not ended:
                return False
            self._rest = None
        self._at, detector = self._search.start(self._text, self._at, final=final)
        if detector is None:
            return False
        length = detector.judge(self._text, self._at, final)
        if length is None:
            return False
        if length == 0:
            self._at += 1
        else:
            self._cut(detector, length)
        return True

    def _cut(self, detector: Detector, length: int) -> None:
        self.found.append(detector.kind)
        if self._search.actions[detector.kind] == "refuse":
            self.refused = detector.kind
            return
        word = f"[{NAMES[detector.kind]} removed]"
        if self._json and not self._inside_string():
            word = f'"{word}"'
        start = self.decided
        self._at += length
        self.cuts.append(Cut(start, self.decided, detector.kind, word))
        self._rest = detector.rest

    def _inside_string(self) -> bool:
        """Whether the place reached lies inside a string of the JSON text. (A secret holds no quote that ends one.)"""
        quotes = sum(part == '"' for part in _STRING.findall(self._text, self._quotes_to, self._at))
        self._in_string ^= bool(quotes % 2)
        self._quotes_to = self._at
        return self._in_string


def whole(search: Search, text: str, *, json: bool = False) -> Redactor:
    """What is found in a text that is all there."""
    redactor = Redactor(search, json=json)
    redactor.feed(text, final=True)
    return redactor


def masked(search: Search, text: str) -> str:
    """The text with its secrets replaced, up to the first that is to be refused."""
    return whole(search, text).render(text, 0)[0]
