"""What guards leave out to be quick: a glance instead of a search, a search without a time limit. Neither may change
what is found."""

from __future__ import annotations

import time
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.engines.types import Delta
from interlace.safety.effort import harmless_length, limit_of
from interlace.safety.output import OutputGuard
from interlace.safety.redactor import Redactor, Search
from interlace.safety.secret_output import SecretGuard
from interlace.safety.secrets import DETECTORS, Glance

PIECES = st.sampled_from(
    [
        *(sign for one in DETECTORS for sign in one.signs),
        *(sign[:2] for one in DETECTORS for sign in one.signs),
        "4111 1111 1111 1111", "4111111111111111", "411", " 1", "\\n", "\\u0041", "a", "Z9", "-", "_", " ", ".", "é",
        "\n", "abcdefghij0123456789ABCDEFGHIJ0123456789abcd", "PRIVATE KEY-----", ".eyJ",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)
ACTIONS = st.sampled_from(
    [
        {"card": "mask", "api_key": "mask", "private_key": "mask"},
        {"card": "mask"},
        {"api_key": "refuse", "private_key": "mask"},
        {"private_key": "mask"},
    ]
)


class Staring(Glance):
    """Never sure of anything."""

    def may_hold(self, text: str, at: int = 0) -> bool:
        """Look."""
        return bool(text) or bool(at) or True

    def may_begin(self, text: str, at: int) -> bool:
        """Look."""
        return bool(text) or bool(at) or True


def staring(actions: Any) -> Search:
    """A search that looks everywhere."""
    search = Search(actions)
    search._glance = Staring(DETECTORS)
    return search


def read(search: Search, pieces: list[str], *, json: bool) -> list[Any]:
    """What is known after each piece, and at the end."""
    redactor, known = Redactor(search, json=json), []
    for at, piece in enumerate([*pieces, ""]):
        redactor.feed(piece, final=at == len(pieces))
        known.append((redactor.decided, [*redactor.found], redactor.refused, [(c.start, c.end) for c in redactor.cuts]))
    return known


@given(pieces=st.lists(TEXTS, max_size=5), actions=ACTIONS, json=st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_glance_changes_nothing(pieces: list[str], actions: Any, json: bool) -> None:
    """However a text is cut, the same secrets are found at the same places, and the same is held back."""
    assert read(Search(actions), pieces, json=json) == read(staring(actions), pieces, json=json)


@given(text=TEXTS, actions=ACTIONS)
@settings(max_examples=200, deadline=None)
def test_what_a_glance_passes_holds_no_secret(text: str, actions: Any) -> None:
    """A request is passed by a glance at all of its texts together: then no search of any of them finds anything."""
    if not Search(actions).may_find(text):
        assert read(staring(actions), [text], json=False)[-1][1] == []


class Plodding(OutputGuard):
    """Takes no answer for whole."""

    def _passes_whole(self, delta: Delta) -> bool:
        return bool(delta) and False


class PloddingSecrets(SecretGuard):
    """Takes no answer for whole."""

    def _passes_whole(self, delta: Delta) -> bool:
        return bool(delta) and False


DENIED = (regex.compile(r"PRIVATE.*Z9"), regex.compile(r"^a"), regex.compile(r"411$"), regex.compile("(a+)+b"))
DELTAS = st.builds(Delta, index=st.integers(0, 1), text=TEXTS, tokens=st.just(1),
                   finish_reason=st.sampled_from([None, "stop", "length"]))  # fmt: skip


@given(deltas=st.lists(DELTAS, max_size=4), actions=ACTIONS, json=st.booleans(), before=st.sampled_from(["", "a"]))
@settings(max_examples=400, deadline=None)
def test_an_answer_that_comes_whole_is_judged_as_if_it_came_in_pieces(
    deltas: list[Delta], actions: Any, json: bool, before: str
) -> None:
    """Otherwise something denied is shown, or a secret, because it came in one piece; or what follows an end."""
    search, seen = Search(actions), lambda _kind, _action: None
    quick, slow = (one(DENIED, 64, json=json, before=before) for one in (OutputGuard, Plodding))
    assert [quick.feed(delta) for delta in deltas] == [slow.feed(delta) for delta in deltas]
    secret, slow_secret = SecretGuard(search, seen, json=json), PloddingSecrets(search, seen, json=json)
    assert [secret.feed(delta) for delta in deltas] == [slow_secret.feed(delta) for delta in deltas]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b", r"(a|aa)+b", r"(?:a*)*b", r"(a)\1+", r"\p{L}+", r"(?<=a+)b", r"x{e<=1}", r"(?:ab){e}",
        r"[[:alpha:]]+", r"[\w--\d]+", r"(?V1)[a&&b]", r"(?P<n>a)+", r"(?R)", r"a(?1)", r"\X+", r"(?|a|b)+",
        r"(?i:a+)+", r"(a{1,9}){1,9}", r"a{,5}", r"\L<names>",
    ],
)  # fmt: skip
def test_patterns_that_are_not_plain_keep_their_limit(pattern: str) -> None:
    """Groups that repeat, references, and what only the `regex` package knows are never searched without a limit."""
    assert harmless_length(pattern) == 0


@pytest.mark.parametrize(
    ("pattern", "filler"),
    [
        (r"a+b", "a"),
        (r"(?i)project\s+nightingale", "project "),
        (r"a+a+a+b", "a"),
        (r".*x.*y.*z", "x"),
        (r"a?a?a?a?a?a?a?a?a?aaaaaaaaaab", "a"),
        (r"a{1,16}a{1,16}a{1,16}b", "a"),
        (r"[a-z.]+@[a-z.]+\.com", "a."),
        (r"\b\d{3}-\d{2}-\d{4}\b", "123-45-"),
        (r"(secret|hid+en)\s*:?\s*\w+!", "hidden "),
    ],
)
def test_a_search_without_a_limit_takes_no_time(pattern: str, filler: str) -> None:
    """At the longest text that a plain pattern is searched in without a limit, the worst text for it takes less than
    half a second, and usually a thousandth of one; a longer text has its limit."""
    length = harmless_length(pattern)
    assert length >= 8
    compiled = regex.compile(pattern)
    assert limit_of(compiled, length, 0.5) is None
    assert limit_of(compiled, length + 1, 0.5) == 0.5
    began = time.process_time()
    compiled.search((filler * length)[:length])
    compiled.search((filler * length)[:length], partial=True)
    assert time.process_time() - began < 0.5
