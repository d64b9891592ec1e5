"""Guards what an engine says, delta by delta: nothing denied is shown, whatever the chunks were.

A delta is released whole, in order, once all its text lies before anything that may still become a denied match; so
logprobs never tell what the text does not. When a match is found its choice ends with `content_filter`, keeping the
clean text before it.
"""

from __future__ import annotations

import codecs
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import regex

from interlace.engines.types import Delta, Thought, TokenLogprob
from interlace.safety.effort import harmless_length
from interlace.safety.scanner import SEARCH_SECONDS, StreamScanner
from interlace.safety.unescape import Unescaper

_log = logging.getLogger(__name__)


_MOST_WINDOWS = 4  # as far as `StreamScanner` looks back for where a match begins

_utf8 = partial(codecs.getincrementaldecoder("utf-8"), "replace")


@dataclass(slots=True)
class _Held:
    """A delta that waits: it may go once each scanner has passed its `end`."""

    delta: Delta
    ends: list[tuple[StreamScanner, int]]


@dataclass(slots=True)
class _Inner:
    """JSON text as its reader sees it, from its first escape on: until then that is the text itself."""

    scanner: StreamScanner
    unescaper: Unescaper = field(default_factory=Unescaper)


@dataclass(slots=True)
class _Choice:
    """What is known of one choice: its text, its thoughts and tool calls (each a text of its own), what its logprobs
    tell, and what is held back. `inner` are those of its texts that are JSON with escapes, by call, -1 being the text.
    `denied`: a scanner has found something."""

    text: StreamScanner
    thought: StreamScanner | None = None  # the one under way
    tools: dict[int, StreamScanner] = field(default_factory=dict)
    inner: dict[int, _Inner] = field(default_factory=dict)
    logprobs: StreamScanner | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=_utf8)
    held: deque[_Held] = field(default_factory=deque)
    denied: bool = False
    ended: bool = False


_ENDED = _Choice(StreamScanner((), 0), ended=True)  # of those that came whole: nothing more is taken of them


class OutputGuard:
    """The output guard of one request, for all of its choices. `json`: its text is JSON, as the arguments of calls
    always are, and is looked at out of its escapes as well. `before`: the text that the answer goes on from, which is
    read with it and not shown: what is denied may begin there."""

    def __init__(
        self, patterns: Sequence[regex.Pattern[str]], window: int, *, json: bool = False, before: str = ""
    ) -> None:
        self._patterns = patterns
        self._window = window
        self._json = json
        self._before = before[-_MOST_WINDOWS * window :]
        self._choices: dict[int, _Choice] = {}

    def feed(self, delta: Delta) -> list[Delta]:
        """The deltas that may be shown now. Deltas of a choice that has ended are dropped."""
        choice = self._choices.get(delta.index)
        try:
            if choice is None:
                if self._passes_whole(delta):
                    self._choices[delta.index] = _ENDED
                    return [delta]
                choice = self._opened(delta.index)
            if choice.ended:
                return []
            if self._before and not choice.text.text:
                self._feed(choice, choice.text, self._before)
            if not self._json and _plain(choice, delta):
                if self._passes(choice, delta):
                    return [delta]
            else:
                self._scan(choice, delta)
        except Exception:  # noqa: BLE001 - default deny: a guard that cannot decide refuses
            _log.exception("an output guard failed, so the answer is refused")
            return [self._end(choice or self._opened(delta.index), delta.index, "")]
        if choice.denied:
            return self._refuse(choice, delta.index)
        choice.ended = delta.finish_reason is not None
        return self._release(choice)

    def _opened(self, index: int) -> _Choice:
        choice = self._choices[index] = _Choice(self._scanner())
        return choice

    def _passes_whole(self, delta: Delta) -> bool:
        """A glance at a delta that is all of its choice, and nothing but text: whether there is nothing denied in it.
        Where it is not plain to see, it goes the long way."""
        if delta.finish_reason is None or self._json or self._before or not _only_text(delta):
            return False
        text, length = delta.text, len(delta.text)
        for pattern in self._patterns:
            if length > harmless_length(pattern.pattern) or pattern.search(text):
                return False
        return True

    def _passes(self, choice: _Choice, delta: Delta) -> bool:
        """Take a delta that is nothing but text; whether all of it may be shown now. Else it waits."""
        text = choice.text
        text.feed(delta.text, final=delta.finish_reason is not None)
        choice.denied |= text.denied_at is not None
        if not choice.denied and not choice.held and text.safe == len(text.text):
            choice.ended = delta.finish_reason is not None
            return True
        choice.held.append(_Held(delta, [(text, len(text.text))]))
        return False

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
            self._feed(choice, choice.text, delta.text, final=delta.finish_reason is not None)
            ends.append((choice.text, len(choice.text.text)))
            if self._json:
                ends += self._feed_inner(choice, -1, choice.text, delta.text)
        for call in delta.tool_calls:
            scanner = choice.tools.get(call.index)
            if scanner is None:
                scanner = choice.tools[call.index] = self._scanner()
            self._feed(choice, scanner, (call.name or "") + call.arguments)
            ends.append((scanner, len(scanner.text)))
            ends += self._feed_inner(choice, call.index, scanner, call.arguments)
            ends += self._feed_name(choice, call.id)
        ends += self._feed_name(choice, delta.stop)
        if choice.logprobs is not None and delta.text and not delta.logprobs:
            self._feed(choice, choice.logprobs, "", final=True)  # nobody tells how it goes on
            choice.logprobs = None
        if delta.logprobs:
            ends += self._feed_logprobs(choice, delta.logprobs)
            delta = self._without_denied_alternatives(delta)
        choice.held.append(_Held(delta, ends))
        if delta.finish_reason is not None:
            for inner in choice.inner.values():
                self._feed(choice, inner.scanner, inner.unescaper.end(), final=True)
            for scanner in (choice.text, *choice.tools.values(), *filter(None, [choice.logprobs])):
                self._feed(choice, scanner, "", final=True)

    def _feed_inner(
        self, choice: _Choice, index: int, scanner: StreamScanner, piece: str
    ) -> Iterator[tuple[StreamScanner, int]]:
        """The same piece out of its escapes, where there have been any; `scanner` has all of the text."""
        inner = choice.inner.get(index)
        if inner is None:
            if "\\" not in piece:
                return
            inner = choice.inner[index] = _Inner(self._scanner())
            piece = scanner.text
        self._feed(choice, inner.scanner, inner.unescaper.feed(piece))
        yield inner.scanner, len(inner.scanner.text) + inner.unescaper.waits

    def _feed_name(self, choice: _Choice, name: str | None) -> Iterator[tuple[StreamScanner, int]]:
        """A text that comes in one piece: the id of a call, the stop string that ended an answer."""
        if name:
            scanner = self._scanner()
            self._feed(choice, scanner, name, final=True)
            yield scanner, len(name)

    def _feed_logprobs(self, choice: _Choice, told: Sequence[TokenLogprob]) -> Iterator[tuple[StreamScanner, int]]:
        """The tokens that logprobs tell, as a text of their own: a provider may tell others than it says."""
        if choice.logprobs is None:
            choice.logprobs = self._scanner()
        self._feed(choice, choice.logprobs, choice.decoder.decode(b"".join(token.bytes for token in told)))
        yield choice.logprobs, len(choice.logprobs.text)

    def _without_denied_alternatives(self, delta: Delta) -> Delta:
        """The delta without those tokens that might have been chosen, were not, and are denied by themselves."""
        logprobs = tuple(
            token
            if len(shown := tuple(top for top in token.top if not self._denies(top.bytes))) == len(token.top)
            else msgspec.structs.replace(token, top=shown)
            for token in delta.logprobs
        )
        return msgspec.structs.replace(delta, logprobs=logprobs)

    def _denies(self, token: bytes) -> bool:
        text = token.decode("utf-8", "replace")
        return any(pattern.search(text, timeout=SEARCH_SECONDS) for pattern in self._patterns)

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
        ends = choice.held[0].ends if choice.held else []
        if ends and all(one.denied_at is None for one, _ in ends[1:]):
            (scanner, end), delta = ends[0], choice.held[0].delta
            if scanner is choice.text:
                clean = delta.text[: max(0, scanner.safe - (end - len(delta.text)))]
            elif delta.thought is not None:
                said = delta.thought.text
                thought = Thought(said[: max(0, scanner.safe - (end - len(said)))], delta.thought.summary)
                released.append(Delta(index=index, thought=thought))
        return [*released, self._end(choice, index, clean)]

    def _end(self, choice: _Choice, index: int, clean: str) -> Delta:
        choice.ended = True
        choice.held.clear()
        return Delta(index=index, text=clean, finish_reason="content_filter")

    def _scanner(self) -> StreamScanner:
        return StreamScanner(self._patterns, self._window)


def _plain(choice: _Choice, delta: Delta) -> bool:
    """Whether there is nothing but text, in the delta and before it."""
    return _only_text(delta) and not (
        choice.thought is not None or choice.tools or choice.inner or choice.logprobs is not None
    )


def _only_text(delta: Delta) -> bool:
    return not (delta.tool_calls or delta.logprobs or delta.thought is not None or delta.stop)


def _sealed(delta: Delta) -> bool:
    return delta.thought is not None and bool(delta.thought.signature or delta.thought.redacted)


def _unfinished(delta: Delta) -> Delta:
    """The delta without its finish reason: the guard ends the choice, not the engine."""
    if delta.finish_reason is None:
        return delta
    return msgspec.structs.replace(delta, finish_reason=None)
