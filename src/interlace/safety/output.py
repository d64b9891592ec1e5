"""Guards what an engine says, delta by delta: nothing denied is shown, whatever the chunks were.

A delta is released whole, in order, once all its text lies before anything that may still become a denied match; so
logprobs never tell what the text does not. When a match is found its choice ends with `content_filter`, keeping the
clean text before it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import regex

from interlace.engines.types import Delta, Thought
from interlace.safety.scanner import StreamScanner

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """A delta that waits: it may go once each scanner has passed its `end`."""

    delta: Delta
    ends: list[tuple[StreamScanner, int]]


@dataclass(slots=True)
class _Choice:
    """What is known of one choice: its text, its thoughts and tool calls (each a text of its own), and what is held
    back. `denied`: a scanner has found something."""

    text: StreamScanner
    thought: StreamScanner | None = None  # the one under way
    tools: dict[int, StreamScanner] = field(default_factory=dict)
    held: deque[_Held] = field(default_factory=deque)
    denied: bool = False
    ended: bool = False


class OutputGuard:
    """The output guard of one request, for all of its choices."""

    def __init__(self, patterns: Sequence[regex.Pattern[str]], window: int) -> None:
        self._patterns = patterns
        self._window = window
        self._choices: dict[int, _Choice] = {}

    def feed(self, delta: Delta) -> list[Delta]:
        """The deltas that may be shown now. Deltas of a choice that has ended are dropped."""
        choice = self._choices.get(delta.index)
        if choice is None:
            choice = self._choices[delta.index] = _Choice(self._scanner())
        if choice.ended:
            return []
        try:
            self._scan(choice, delta)
        except Exception:  # noqa: BLE001 - default deny: a guard that cannot decide refuses
            _log.exception("an output guard failed, so the answer is refused")
            return [self._end(choice, delta.index, "")]
        if choice.denied:
            return self._refuse(choice, delta.index)
        choice.ended = delta.finish_reason is not None
        return self._release(choice)

    def _scan(self, choice: _Choice, delta: Delta) -> None:
        """A thought ends where anything else begins: what of it is undecided then must not hold back the rest."""
        ends: list[tuple[StreamScanner, int]] = []
        if delta.thought is not None:
            if choice.thought is None:
                choice.thought = self._scanner()
            self._feed(choice, choice.thought, delta.thought.text)
            ends.append((choice.thought, len(choice.thought.text)))
        if choice.thought is not None and (
            delta.text or delta.tool_calls or delta.finish_reason is not None or _sealed(delta)
        ):
            self._feed(choice, choice.thought, "", final=True)
            choice.thought = None
        if delta.text:
            self._feed(choice, choice.text, delta.text)
            ends.append((choice.text, len(choice.text.text)))
        for call in delta.tool_calls:
            scanner = choice.tools.get(call.index)
            if scanner is None:
                scanner = choice.tools[call.index] = self._scanner()
            self._feed(choice, scanner, (call.name or "") + call.arguments)
            ends.append((scanner, len(scanner.text)))
        choice.held.append(_Held(delta, ends))
        if delta.finish_reason is not None:
            for scanner in (choice.text, *choice.tools.values()):
                self._feed(choice, scanner, "", final=True)

    @staticmethod
    def _feed(choice: _Choice, scanner: StreamScanner, piece: str, *, final: bool = False) -> None:
        scanner.feed(piece, final=final)
        choice.denied |= scanner.denied_at is not None

    def _release(self, choice: _Choice) -> list[Delta]:
        released: list[Delta] = []
        while choice.held and all(end <= scanner.safe for scanner, end in choice.held[0].ends):
            released.append(choice.held.popleft().delta)
        return released

    def _refuse(self, choice: _Choice, index: int) -> list[Delta]:
        """Everything before the match, then the end. What is clean of the delta with the match is told too: another
        guard may need it, to know what the text before it was the beginning of."""
        released = [_unfinished(delta) for delta in self._release(choice)]
        clean = ""
        if choice.held and choice.held[0].ends:
            held = choice.held[0]
            scanner, end = held.ends[0]
            if scanner is choice.text:
                clean = held.delta.text[: max(0, scanner.safe - (end - len(held.delta.text)))]
            elif held.delta.thought is not None:
                said = held.delta.thought.text
                thought = Thought(said[: max(0, scanner.safe - (end - len(said)))], held.delta.thought.summary)
                released.append(Delta(index=index, thought=thought))
        return [*released, self._end(choice, index, clean)]

    def _end(self, choice: _Choice, index: int, clean: str) -> Delta:
        choice.ended = True
        choice.held.clear()
        return Delta(index=index, text=clean, finish_reason="content_filter")

    def _scanner(self) -> StreamScanner:
        return StreamScanner(self._patterns, self._window)


def _sealed(delta: Delta) -> bool:
    return delta.thought is not None and bool(delta.thought.signature or delta.thought.redacted)


def _unfinished(delta: Delta) -> Delta:
    """The delta without its finish reason: the guard ends the choice, not the engine."""
    if delta.finish_reason is None:
        return delta
    return msgspec.structs.replace(delta, finish_reason=None)
