"""Input and output guards: what is refused, what is kept, and that failing means refusing."""

from __future__ import annotations

import pytest
import regex

from interlace.config import GuardSettings
from interlace.engines.types import Delta, TokenLogprob, ToolCallDelta
from interlace.errors import ContentFiltered
from interlace.safety import Guards, OutputGuard


def guard(*patterns: str) -> OutputGuard:
    """An output guard over these patterns."""
    return OutputGuard([regex.compile(pattern) for pattern in patterns], 64)


def run(output: OutputGuard, *deltas: Delta) -> list[Delta]:
    """Everything the guard lets out of these deltas."""
    return [shown for delta in deltas for shown in output.feed(delta)]


def text_of(deltas: list[Delta], index: int = 0) -> str:
    """The shown text of one choice."""
    return "".join(delta.text for delta in deltas if delta.index == index)


async def test_input_over_the_limit_is_refused_with_both_numbers() -> None:
    """The maximum counts all texts of the request together, and the message says how far off it is."""
    guards = Guards.from_settings(GuardSettings(max_input_characters=10))
    await guards.check_input(["12345", "67890"], param="messages")
    with pytest.raises(ContentFiltered, match="11 characters; at most 10") as caught:
        await guards.check_input(["12345", "678901"], param="messages")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "content_filter", "messages")


@pytest.mark.parametrize("padding", [0, 50_000])
async def test_denied_input_is_refused_long_or_short(padding: int) -> None:
    """Short inputs are searched in place, long ones on a thread: same verdict."""
    guards = Guards.from_settings(GuardSettings(deny=("open sesame",)))
    await guards.check_input(["x" * padding + "open the door"], param="prompt")
    with pytest.raises(ContentFiltered):
        await guards.check_input(["fine", "x" * padding + "open sesame"], param="prompt")


async def test_a_failing_input_guard_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that runs out of time is a refusal, not a pass and not a 500."""
    monkeypatch.setattr("interlace.safety.guards.INPUT_SECONDS", 0.01)
    guards = Guards.from_settings(GuardSettings(deny=(r"(?:a|a|aa)+$",)))
    with pytest.raises(ContentFiltered, match="could not be checked"):
        await guards.check_input(["a" * 5000 + "b"], param="prompt")


def test_no_pattern_means_no_output_guard() -> None:
    """With nothing to look for there is nothing to hold back."""
    assert Guards.from_settings(GuardSettings()).open_output() is None


def test_a_match_across_deltas_ends_the_choice_and_keeps_clean_text() -> None:
    """The clean text stays, the match never shows, the finish reason says why, later deltas are dropped."""
    shown = run(
        guard("open sesame"),
        Delta(text="Say: op", tokens=1),
        Delta(text="en ses", tokens=1),
        Delta(text="ame now", tokens=1),
        Delta(text=" more", tokens=1, finish_reason="stop"),
    )
    assert text_of(shown) == "Say: "
    assert [delta.finish_reason for delta in shown if delta.finish_reason] == ["content_filter"]


def test_choices_are_guarded_apart() -> None:
    """Half a match in one choice and half in another is no match; a real one ends only its own choice."""
    shown = run(
        guard("abcd"),
        Delta(index=0, text="ab"),
        Delta(index=1, text="cd", finish_reason="stop"),
        Delta(index=0, text="cd", finish_reason="stop"),
    )
    assert text_of(shown, 1) == "cd"
    assert text_of(shown, 0) == ""
    assert {delta.index: delta.finish_reason for delta in shown} == {0: "content_filter", 1: "stop"}


def test_tool_arguments_are_guarded() -> None:
    """A match inside the arguments of one call, split over deltas, is never shown."""
    shown = run(
        guard("rm -rf"),
        Delta(tool_calls=(ToolCallDelta(index=0, id="call_1", name="sh", arguments='{"c":"r'),)),
        Delta(tool_calls=(ToolCallDelta(index=0, arguments="m -rf /"),)),
        Delta(finish_reason="tool_calls"),
    )
    assert "m -rf" not in "".join(call.arguments for delta in shown for call in delta.tool_calls)
    assert shown[-1].finish_reason == "content_filter"


def test_logprobs_wait_with_their_text() -> None:
    """A held delta is held whole: its logprobs would tell its text."""
    output = guard("abcd")
    assert output.feed(Delta(text="ab", logprobs=(TokenLogprob(id=1, bytes=b"ab", logprob=-1.0),))) == []
    released = output.feed(Delta(text="xy"))
    assert [delta.text for delta in released] == ["ab", "xy"]


def test_a_failing_output_guard_refuses() -> None:
    """A pattern that runs away means content_filter, and nothing of the piece in doubt is shown."""
    output = guard(r"(?:a|a|aa)+$")
    shown = run(output, Delta(text="fine "), Delta(text="a" * 5000 + "b"), Delta(text="more", finish_reason="stop"))
    assert text_of(shown) == "fine "
    assert [delta.finish_reason for delta in shown if delta.finish_reason] == ["content_filter"]


def test_a_match_at_the_very_end_is_denied() -> None:
    """A match that could still have grown is decided when the choice finishes."""
    shown = run(guard(r"\bfoo\b"), Delta(text="x foo", finish_reason="stop"))
    assert text_of(shown) == "x "
    assert shown[-1].finish_reason == "content_filter"
    assert text_of(run(guard(r"\bfoo\b"), Delta(text="x foo"), Delta(text="d", finish_reason="stop"))) == "x food"
