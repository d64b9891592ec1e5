"""Looks for denied patterns in a text that arrives in pieces, and says how much of it is safe to show.

Why the `regex` package and not `re`: it knows *partial* matches ("what is here could still become a match"), which is
exactly what a stream needs, and it takes a timeout, so that a pattern that blows up refuses one request and no more.
RE2 never blows up, but has neither partial matches nor lookaround.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from interlace.safety.effort import limit_of

SEARCH_SECONDS = 0.5  # for one pattern and one piece of output; far more than any sane pattern takes
LONG_CHARACTERS = 2_000  # beyond that a search lets other threads run; a shorter one would wait longer than it takes


class StreamScanner:
    r"""One text, fed piece by piece, against all patterns.

    The promise, with `window` W in characters:

    - A match of up to W characters is found before any character of it is shown, however it is split into pieces.
    - A longer one, up to 4 W, is found when it is complete; its first part may have been shown by then.
    - Text is held back only from where a match may still be under way, and never more than W characters.
    - A match that ends where the text so far ends is decided when more text comes (`\bfoo\b` must not refuse "food").
      Lookahead that goes further sees only what has arrived.

    After `feed`: `safe` is how many characters from the start may be shown, `denied_at` where a match begins.
    """

    def __init__(self, patterns: Sequence[regex.Pattern[str]], window: int) -> None:
        self._patterns = patterns
        self._window = window
        self._live = [0] * len(patterns)  # per pattern: no match can begin before this character
        self._ended = False
        self.text = ""
        self.safe = 0
        self.denied_at: int | None = None

    def feed(self, piece: str, *, final: bool = False) -> None:
        """Take the next piece (`final`: there will be none after it). Raises `TimeoutError` on a runaway pattern."""
        if self._ended and not piece:
            return
        self._ended = final
        self.text += piece
        length = len(self.text)
        for i, pattern in enumerate(self._patterns):
            self._scan(i, pattern, length, final)
        if self.denied_at is not None:
            self.safe = min(self.denied_at, length)
        elif final:
            self.safe = length
        else:
            self.safe = max(self.safe, min(self._live, default=length), length - self._window)

    def _scan(self, i: int, pattern: regex.Pattern[str], length: int, final: bool) -> None:
        live = self._live[i]
        limit = limit_of(pattern, length - live, SEARCH_SECONDS)
        concurrent = length - live > LONG_CHARACTERS
        found = pattern.search(self.text, live, partial=not final, timeout=limit, concurrent=concurrent)
        if found is None:
            self._live[i] = length
        elif found.partial:
            self._live[i] = max(found.start(), length - 4 * self._window)
        elif found.end() == length and not final:
            # Undecided. A full match is reported before an earlier partial one, so keep the earlier bound.
            self._live[i] = max(self._live[i], length - 4 * self._window)
        else:
            start = found.start()
            self.denied_at = start if self.denied_at is None else min(start, self.denied_at)
