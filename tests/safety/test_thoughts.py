"""What a model thinks is guarded as what it says: across chunks, without holding back what comes after it."""

from __future__ import annotations

import itertools

import regex
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.types import Delta, Thought
from interlace.safety.guards import Chain
from interlace.safety.output import OutputGuard
from interlace.safety.redactor import Search
from interlace.safety.secret_output import SecretGuard

CARD = "4111 1111 1111 1111"


def thoughts(*pieces: str) -> list[Delta]:
    """A thought in pieces, one token each."""
    return [Delta(tokens=1, thought=Thought(piece)) for piece in pieces]


def shown(guard: OutputGuard | SecretGuard | Chain, deltas: list[Delta]) -> list[Delta]:
    """Everything the guard lets pass."""
    return [passed for delta in deltas for passed in guard.feed(delta)]


def thought_of(deltas: list[Delta]) -> str:
    """The text of all thoughts."""
    return "".join(delta.thought.text for delta in deltas if delta.thought)


def denying(*patterns: str) -> OutputGuard:
    """A guard with a window of 64 characters."""
    return OutputGuard([regex.compile(pattern) for pattern in patterns], 64)


def masking(action: str = "mask") -> SecretGuard:
    """A guard that looks for payment cards."""
    return SecretGuard(Search({"card": action}), lambda kind, action: None)  # type: ignore[dict-item]


@given(st.lists(st.integers(0, 30), max_size=6))
def test_a_denied_thought_is_never_shown_however_it_is_cut(cuts: list[int]) -> None:
    """A match in a thought ends the choice before any of it is shown, whatever the chunks are."""
    text = "well, the word is open sesame now"
    edges = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    passed = shown(denying("open sesame"), [*thoughts(*pieces), Delta(text="Hello", finish_reason="stop")])
    assert passed[-1].finish_reason == "content_filter"
    assert "open" not in thought_of(passed)
    assert not any(delta.text for delta in passed)


def test_an_undecided_thought_does_not_hold_back_the_answer() -> None:
    """A thought that ends in what could become a match is over once the answer begins: the answer must flow."""
    guard = denying("open sesame")
    held = shown(guard, thoughts("I could say open"))
    assert thought_of(held) == ""
    passed = guard.feed(Delta(text="Hello ", tokens=1))
    assert thought_of(passed) == "I could say open"
    assert passed[-1].text == "Hello "


def test_thought_and_answer_are_texts_of_their_own() -> None:
    """A pattern that only the seam of thought and answer would match denies nothing."""
    passed = shown(denying("open sesame"), [*thoughts("open"), Delta(text=" sesame", finish_reason="stop")])
    assert passed[-1].finish_reason == "stop"


def test_the_thought_after_the_answer_is_guarded_too() -> None:
    """Thoughts between tool calls are thoughts of their own."""
    deltas = [*thoughts("fine"), Delta(text="Hello"), *thoughts("open ", "sesame"), Delta(finish_reason="stop")]
    passed = shown(denying("open sesame"), deltas)
    assert passed[-1].finish_reason == "content_filter"
    assert "sesame" not in thought_of(passed)


@given(st.lists(st.integers(0, 30), max_size=6))
def test_a_secret_in_a_thought_is_masked_and_its_seal_taken_off(cuts: list[int]) -> None:
    """A changed thought is no longer what its provider sealed, so the seal goes; the tokens stay counted."""
    text = f"pay with {CARD} then"
    edges = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    sealed = Delta(thought=Thought(signature="seal"))
    passed = shown(masking(), [*thoughts(*pieces), sealed, Delta(text="Done", finish_reason="stop")])
    assert thought_of(passed) == "pay with [card number removed] then"
    assert not any(delta.thought.signature for delta in passed if delta.thought)
    assert sum(delta.tokens for delta in passed) == len(pieces)
    assert passed[-1].text == "Done"


def test_a_clean_thought_keeps_its_seal() -> None:
    """Nothing was changed, so its provider will take it back."""
    sealed = Delta(thought=Thought(signature="seal"))
    passed = shown(masking(), [*thoughts("all ", "fine"), sealed, Delta(text="Done", finish_reason="stop")])
    assert [delta.thought.signature for delta in passed if delta.thought][-1] == "seal"


def test_a_secret_in_a_thought_can_be_refused() -> None:
    """With `refuse` the choice ends there."""
    passed = shown(masking("refuse"), [*thoughts("pay with ", CARD, " then"), Delta(text="Done", finish_reason="stop")])
    assert passed[-1].finish_reason == "content_filter"
    assert "4111" not in thought_of(passed)


def test_a_denied_word_behind_a_secret_does_not_show_the_secrets_beginning() -> None:
    """When patterns end an answer inside a thought, what was clean of it still reaches the guard of secrets: else the
    first half of a card number, with its second half cut off, would pass as no secret."""
    guard = Chain(denying("open sesame"), masking())
    deltas = thoughts("pay with 4111 1111 11", "11 1111 and open sesame")
    passed = shown(guard, [*deltas, Delta(text="Done", finish_reason="stop")])
    assert passed[-1].finish_reason == "content_filter"
    assert "4111" not in thought_of(passed)
    assert thought_of(passed).startswith("pay with [card number removed]")
