"""The scanner sees the same matches in pieces as in one, and shows nothing of them."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from interlace.safety import StreamScanner

PATTERNS = [
    r"secret",
    r"\bfoo\b",
    r"a[ab]{2,5}c",
    r"(?i)ba+d",
    r"a.*z|b\b",
    r"(?<=b)ca",
    r"ab|abc+d",
    r"foo(?!o)",
    r"s\s*e\s*c",
]
pieces = st.lists(st.text(alphabet="abcdfosecrtz \n", max_size=6), max_size=12)


def shown_and_denied(pattern: str, parts: list[str], window: int = 1024) -> tuple[str, bool]:
    """What a reader would have seen, and whether the stream was stopped."""
    scanner = StreamScanner([regex.compile(pattern)], window)
    for part in parts:
        scanner.feed(part)
        if scanner.denied_at is not None:
            return scanner.text[: scanner.safe], True
    scanner.feed("", final=True)
    return scanner.text[: scanner.safe], scanner.denied_at is not None


@pytest.mark.parametrize("pattern", PATTERNS)
@given(parts=pieces)
def test_pieces_are_judged_like_the_whole(pattern: str, parts: list[str]) -> None:
    """Any split of any text is denied exactly when the text up to there matches; the match itself is never shown."""
    whole = "".join(parts)
    shown, denied = shown_and_denied(pattern, parts)
    assert denied == bool(regex.search(pattern, whole))
    assert whole.startswith(shown)
    assert regex.search(pattern, shown) is None or pattern in {r"\bfoo\b", r"a.*z|b\b", r"foo(?!o)"}
    if not denied:
        assert shown == whole


@given(parts=pieces, pattern=st.sampled_from(PATTERNS))
def test_safe_never_shrinks(parts: list[str], pattern: str) -> None:
    """What was shown once stays shown: `safe` only grows, and never passes the text."""
    scanner = StreamScanner([regex.compile(pattern)], 8)
    before = 0
    for part in parts:
        scanner.feed(part)
        if scanner.denied_at is not None:
            return
        assert before <= scanner.safe <= len(scanner.text)
        assert len(scanner.text) - scanner.safe <= 8
        before = scanner.safe


def test_nothing_is_held_without_a_partial_match() -> None:
    """Text that cannot become a match goes out at once."""
    scanner = StreamScanner([regex.compile("secret")], 1024)
    scanner.feed("hello wor")
    assert scanner.safe == 9
    scanner.feed("ld, se")
    assert scanner.safe == len("hello world, ")


def test_a_match_as_long_as_the_window_is_never_shown() -> None:
    """The window's promise at its edge: W characters fed one by one are all held until the match is complete."""
    scanner = StreamScanner([regex.compile("x{8}")], 8)
    for letter in "ab" + "x" * 8:
        scanner.feed(letter)
        assert "x" not in scanner.text[: scanner.safe]
    scanner.feed("!")
    assert scanner.denied_at == 2


def test_a_match_longer_than_the_window_still_stops_the_stream() -> None:
    """Up to four windows: the beginning was shown, the stream ends all the same."""
    shown, denied = shown_and_denied("x[^x]{20}x", ["x", "a" * 10, "a" * 10, "x", "rest"], window=8)
    assert denied
    assert "rest" not in shown


def test_a_runaway_pattern_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catastrophic backtracking ends in `TimeoutError`, which the guard turns into a refusal."""
    monkeypatch.setattr("interlace.safety.scanner.SEARCH_SECONDS", 0.05)
    scanner = StreamScanner([regex.compile(r"(?:a|a|aa)+$")], 10_000)
    with pytest.raises(TimeoutError):
        scanner.feed("a" * 5000 + "b", final=True)
