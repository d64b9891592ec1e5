"""How much work a pattern can make at most, where that is plain to see.

A search with a time limit asks the clock, which takes longer than most searches do. Patterns of single characters and
classes, each repeated or not, with groups that are not repeated, cannot blow up: from each place of the text every
repeat has so many ways to go, and no more. Of such a pattern a bound follows from the length of the text, and a search
within the bound needs no limit. Anything else is not judged here.
"""

from __future__ import annotations

import functools
import math
import re

import regex

MOST_STEPS = 10_000_000  # a tenth of a second at the very worst, a fraction of any limit here

_ESCAPE = r"\\[dDwWsSbB.\-+*?()\[\]{}|/^$@#:;,!%&=~<>\"' ]"
_PIECE = re.compile(
    rf"(?P<atom>{_ESCAPE}|\[\^?(?:\\[dDwWsS.\-\]\[/]|[A-Za-z0-9_.,:;@/ ]|-(?=[A-Za-z0-9\]\\]))+\]"
    r"|[^\\\[\](){}|*+?.^$]|[.^$])(?P<repeat>[*+?]|\{(?P<least>[0-9]{1,4})(?P<upto>,(?P<most>[0-9]{0,4}))?\})?[?+]?"
    r"|(?P<group>\((?:\?:|(?!\?))|\)(?![*+?{])|\|)"
)
_FLAGS = re.compile(r"\(\?[ims]+\)")


def limit_of(pattern: regex.Pattern[str], length: int, seconds: float) -> float | None:
    """The time limit for a search in a text of that length: none where it cannot take long."""
    return None if length <= harmless_length(pattern.pattern) else seconds


@functools.lru_cache(maxsize=4096)
def harmless_length(pattern: str) -> int:
    """Texts up to that many characters are searched for the pattern within `MOST_STEPS`; 0: nobody knows."""
    judged = _judged(pattern)
    if judged is None:
        return 0
    width, ways = judged
    length = 8192
    while length and length * width * math.prod(min(length, one) for one in ways) > MOST_STEPS:
        length //= 2
    return length


def _judged(pattern: str) -> tuple[int, list[float]] | None:
    """How many characters a plain pattern matches at least, and how many ways each of its repeats has to go; None for
    any other pattern."""
    flags = _FLAGS.match(pattern)
    at, width, ways = flags.end() if flags else 0, 1, list[float]()
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if piece is None:
            return None
        at = piece.end()
        match piece["repeat"]:
            case None:
                width += 1
            case "*":
                ways.append(math.inf)
            case "+":
                width += 1
                ways.append(math.inf)
            case "?":
                ways.append(2)
            case _:
                least = int(piece["least"])
                width += least
                if piece["upto"] is not None:
                    ways.append(int(piece["most"]) - least + 1 if piece["most"] else math.inf)
    return width, ways
