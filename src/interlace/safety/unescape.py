r"""JSON text as its reader will see it: `\u0041` is an `A`, `\n` the end of a line.

Guards look at both: what is forbidden must not be told in escapes either.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([^u]))")
_CUT_OFF = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class Unescaper:
    """One text, piece by piece. `waits`: the end of it is part of an escape whose rest has not come."""

    def __init__(self) -> None:
        self._rest = ""

    @property
    def waits(self) -> bool:
        """Whether something is kept back."""
        return bool(self._rest)

    def feed(self, piece: str) -> str:
        """What the piece adds."""
        text = self._rest + piece
        escapes = list(_ESCAPE.finditer(text))
        cut = _CUT_OFF.search(text, escapes[-1].end() if escapes else 0)  # after an escaped backslash, u is a letter
        at = len(text) if cut is None else cut.start()
        if escapes and escapes[-1].end() == at and _is_first_half(escapes[-1]):
            at = escapes[-1].start()
        self._rest = text[at:]
        return _unescaped(text[:at])

    def end(self) -> str:
        """What is left, as it stands."""
        rest, self._rest = self._rest, ""
        return rest


def _is_first_half(escape: re.Match[str]) -> bool:
    """Whether it is the first half of a character beyond the basic plane."""
    return escape[1] is not None and 0xD800 <= int(escape[1], 16) <= 0xDBFF


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _PLAIN.get(m[2], m[2]), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
