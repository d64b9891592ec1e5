"""Stop strings, against a search of the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from interlace.engines.local.stops import StopFinder
from interlace.errors import InvalidRequest

_texts = st.text("ab\n", max_size=40)
_stops = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4).map(tuple)


def _naive(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def _cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(_texts, _stops, st.lists(st.integers(0, 100), max_size=8))
@example("ab", ("aba", "b"), [])
@example("aaab", ("aab", "ab"), [2])
@example("abab", ("ab", "bab"), [1, 2])
@example("aab", ("b", "ab"), [1])
def test_any_cutting_finds_what_a_search_of_the_whole_text_finds(
    text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    """First end wins, then the longest; nothing is shown that belongs to the match, nothing before it is lost."""
    finder, shown, matched = StopFinder(stops), "", None
    for piece in _cut(text, cuts):
        safe, matched = finder.push(piece)
        shown += safe
    shown += finder.flush() if matched is None else ""
    assert (shown, matched) == _naive(text, stops)


def test_no_more_is_held_back_than_could_become_a_stop() -> None:
    """Text is shown as soon as no stop can begin in it."""
    finder = StopFinder(("END",))
    assert finder.push("the E") == ("the ", None)
    assert finder.push("N") == ("", None)
    assert finder.push("ds") == ("ENds", None)
    assert finder.push("END more") == ("", "END")
    assert finder.push("later") == ("", "END")


def test_repetitive_text_takes_linear_steps() -> None:
    """A long stop that nearly matches everywhere: quadratic work would be 10^10 steps and never end."""
    finder = StopFinder(("a" * 100_000 + "b",))
    assert finder.push("a" * 200_000) == ("a" * 100_000, None)
    assert finder.flush() == "a" * 100_000


def test_an_empty_stop_is_refused() -> None:
    """It would match everywhere."""
    with pytest.raises(InvalidRequest) as caught:
        StopFinder(("x", ""))
    assert caught.value.param == "stop"
