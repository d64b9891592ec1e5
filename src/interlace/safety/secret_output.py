"""Masks or refuses secrets in what an engine says, delta by delta, whatever the chunks were.

A delta is released whole, in order, once it is decided of all its text whether it belongs to a secret. A delta that
held a part of one keeps its token count and loses its logprobs; so does one whose logprobs tell more than its text,
such as those of a tool call before it is complete.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from interlace.engines.types import Delta, ToolCallDelta
from interlace.safety.redactor import Action, Redactor, Search, masked, whole
from interlace.safety.secrets import Kind
from interlace.safety.unescape import Unescaper

_log = logging.getLogger(__name__)

Seen = Callable[[Kind, Action], None]
"""Told of each secret that is masked or refused: for counting. Never of its value."""


@dataclass(slots=True)
class _Inner:
    """JSON text as its reader sees it, and how many secrets were found in it, and in the text as it stands. `hidden_at`
    is where those begin that are only found here."""

    redactor: Redactor
    unescaper: Unescaper = field(default_factory=Unescaper)
    found: int = 0
    found_plainly: int = 0
    hidden_at: int | None = None

    def feed(self, piece: str, plain: Redactor, *, final: bool) -> int:
        """Take what `plain` has just taken; up to where this must be decided before that piece may be shown."""
        self.redactor.feed(self.unescaper.feed(piece) + (self.unescaper.end() if final else ""), final=final)
        news = len(self.redactor.found)
        self.redactor.found.clear()
        self.found += news
        self.found_plainly += len(plain.found)
        if self.hidden_at is None and self.found > self.found_plainly:
            self.hidden_at = self.redactor.decided
            if not self.redactor.refused:
                self.hidden_at = self.redactor.cuts[-news].start if news else 0
        return self.redactor.fed + self.unescaper.waits

    @property
    def decided(self) -> int:
        """Up to where it may be shown."""
        return self.redactor.decided if self.hidden_at is None else self.hidden_at


@dataclass(slots=True)
class _Held:
    """A delta that waits, with where its text and the arguments of its calls begin."""

    delta: Delta
    text_at: int
    calls_at: tuple[int, ...]
    thought: Redactor | None = None  # the one its thought belongs to, which begins there at `thought_at`
    thought_at: int = 0
    inner_ends: tuple[tuple[_Inner, int], ...] = ()


@dataclass(slots=True)
class _Choice:
    """One choice: its text, its tool calls (each a text of its own), and what is held back."""

    text: Redactor
    thought: Redactor | None = None  # the one under way
    calls: dict[int, Redactor] = field(default_factory=dict)
    inner: dict[int, _Inner] = field(default_factory=dict)  # arguments of calls out of their escapes
    names: list[Redactor] = field(default_factory=list)  # of functions and ids of calls: each comes in one piece
    thoughts: list[Redactor] = field(default_factory=list)
    spoiled: set[int] = field(default_factory=set)  # thoughts that were changed: their seals would not fit any more
    held: deque[_Held] = field(default_factory=deque)
    ended: bool = False

    def redactors(self) -> list[Redactor]:
        return [self.text, *self.calls.values(), *self.names, *self.thoughts]

    def refused(self) -> bool:
        """Whether there is a secret that is to be refused, or one in escapes, which nothing can be put in place of."""
        hidden = any(inner.hidden_at is not None for inner in self.inner.values())
        return hidden or any(redactor.refused for redactor in self.redactors())


_ENDED = _Choice(Redactor(Search({})), ended=True)  # of those that came whole: nothing more is taken of them


class SecretGuard:
    """The secret guard of one request's output, for all of its choices. `json`: its text is JSON and stays valid."""

    def __init__(self, search: Search, seen: Seen, *, json: bool = False) -> None:
        self._search = search
        self._seen = seen
        self._json = json
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
            if not self._json and _plain(choice, delta):
                if self._passes(choice, delta):
                    return [delta]
            else:
                self._scan(choice, delta)
            released = self._release(choice)
        except Exception:  # noqa: BLE001 - default deny: a guard that cannot decide refuses
            _log.exception("the secret guard failed, so the answer is refused")
            return [_end(choice or self._opened(delta.index), delta.index, "")]
        if choice.refused():
            clean = _clean(choice)
            released = [msgspec.structs.replace(shown, finish_reason=None) for shown in released]
            return [*released, _end(choice, delta.index, clean)]
        choice.ended = delta.finish_reason is not None
        return released

    def _opened(self, index: int) -> _Choice:
        choice = self._choices[index] = _Choice(Redactor(self._search, json=self._json))
        return choice

    def _passes_whole(self, delta: Delta) -> bool:
        """A glance at a delta that is all of its choice, and nothing but text: whether there can be no secret in it.
        Where it is not plain to see, it goes the long way."""
        if delta.finish_reason is None or self._json or not _only_text(delta):
            return False
        return not self._search.may_find(delta.text)

    def _passes(self, choice: _Choice, delta: Delta) -> bool:
        """Take a delta that is nothing but text; whether all of it may be shown as it is. Else it waits."""
        text, text_at = choice.text, choice.text.fed
        choice.ended = delta.finish_reason is not None
        text.feed(delta.text, final=choice.ended)
        if text.decided == text.fed and not text.cuts and text.refused is None and not choice.held:
            return True
        choice.held.append(_Held(delta, text_at, ()))
        self._count(text)
        return False

    def _scan(self, choice: _Choice, delta: Delta) -> None:
        thought, thought_at = self._scan_thought(choice, delta)
        text_at, calls_at, final = choice.text.fed, [], delta.finish_reason is not None
        choice.text.feed(delta.text, final=final)
        inner_ends: list[tuple[_Inner, int]] = []
        for call in delta.tool_calls:
            if call.index not in choice.calls:
                choice.calls[call.index] = Redactor(self._search, json=True)
                choice.inner[call.index] = _Inner(Redactor(self._search))
            plain, inner = choice.calls[call.index], choice.inner[call.index]
            calls_at.append(plain.fed)
            plain.feed(call.arguments)
            inner_ends.append((inner, inner.feed(call.arguments, plain, final=False)))
            self._count(plain)
        for name in (delta.stop, *(name for call in delta.tool_calls for name in (call.name, call.id))):
            if name:
                choice.names.append(whole(self._search, name))
        choice.held.append(_Held(delta, text_at, tuple(calls_at), thought, thought_at, tuple(inner_ends)))
        if final:
            for redactor in choice.redactors():
                redactor.feed("", final=True)
            for index, inner in choice.inner.items():
                inner.feed("", choice.calls[index], final=True)
        for redactor in choice.redactors():
            self._count(redactor)

    def _count(self, redactor: Redactor) -> None:
        for kind in redactor.found:
            self._seen(kind, self._search.actions[kind])
        redactor.found.clear()

    def _scan_thought(self, choice: _Choice, delta: Delta) -> tuple[Redactor | None, int]:
        """The redactor of the delta's thought, and where that begins in it. A thought ends where anything else begins:
        what of it is undecided then must not hold back the rest."""
        thought, at = choice.thought, 0
        if delta.thought is not None:
            if thought is None:
                thought = choice.thought = Redactor(self._search)
                choice.thoughts.append(thought)
            at = thought.fed
            thought.feed(delta.thought.text)
        sealed = delta.thought is not None and (delta.thought.signature or delta.thought.redacted)
        if thought is not None and (delta.text or delta.tool_calls or delta.finish_reason is not None or sealed):
            thought.feed("", final=True)
            choice.thought = None
        return (thought if delta.thought is not None else None), at

    def _release(self, choice: _Choice) -> list[Delta]:
        released: list[Delta] = []
        while choice.held and _decided(choice, choice.held[0]):
            released.append(self._shown(choice, choice.held.popleft()))
        return released

    def _shown(self, choice: _Choice, held: _Held) -> Delta:
        """The delta with its secrets replaced; the very same where it has none."""
        delta = self._thought_shown(choice, held)
        text, cut = choice.text.render(delta.text, held.text_at)
        calls: list[ToolCallDelta] = []
        for call, at in zip(delta.tool_calls, held.calls_at, strict=True):
            arguments, touched = choice.calls[call.index].render(call.arguments, at)
            name, id = call.name and masked(self._search, call.name), call.id and masked(self._search, call.id)
            cut |= touched or (name, id) != (call.name, call.id)
            calls.append(msgspec.structs.replace(call, arguments=arguments, name=name, id=id))
        stop = delta.stop and masked(self._search, delta.stop)
        if cut or stop != delta.stop:
            kept = tuple(call for call in calls if call.arguments or call.id or call.name)
            return msgspec.structs.replace(delta, text=text, logprobs=(), tool_calls=kept, stop=stop)
        if delta.logprobs and not _told(delta):
            return msgspec.structs.replace(delta, logprobs=())
        return delta

    @staticmethod
    def _thought_shown(choice: _Choice, held: _Held) -> Delta:
        """The delta with the secrets in its thought replaced. A thought that was changed loses its seal: its provider
        would not take it back as its own."""
        thought = held.delta.thought
        if thought is None or held.thought is None:
            return held.delta
        text, cut = held.thought.render(thought.text, held.thought_at)
        if cut:
            choice.spoiled.add(id(held.thought))
        if id(held.thought) not in choice.spoiled:
            return held.delta
        return msgspec.structs.replace(
            held.delta, thought=msgspec.structs.replace(thought, text=text, signature="", redacted=""), logprobs=()
        )


def _plain(choice: _Choice, delta: Delta) -> bool:
    """Whether there is nothing but text, in the delta and before it."""
    return _only_text(delta) and not (choice.thoughts or choice.calls or choice.names)


def _only_text(delta: Delta) -> bool:
    return not (delta.tool_calls or delta.logprobs or delta.thought is not None or delta.stop)


def _decided(choice: _Choice, held: _Held) -> bool:
    thought = held.delta.thought
    if held.thought is not None and thought and held.thought_at + len(thought.text) > held.thought.decided:
        return False
    if held.text_at + len(held.delta.text) > choice.text.decided:
        return False
    if any(end > inner.decided for inner, end in held.inner_ends):
        return False
    calls = zip(held.delta.tool_calls, held.calls_at, strict=True)
    return all(at + len(call.arguments) <= choice.calls[call.index].decided for call, at in calls)


def _told(delta: Delta) -> bool:
    """Whether the text of the delta's logprobs stands in its text: then they tell nothing that waits to be decided."""
    said = b"".join(logprob.bytes for logprob in delta.logprobs).decode("utf-8", "replace")
    return said.strip() in delta.text


def _clean(choice: _Choice) -> str:
    """What may be shown of the text of the first delta that waits."""
    if not choice.held:
        return ""
    held = choice.held[0]
    return choice.text.render(held.delta.text, held.text_at)[0]


def _end(choice: _Choice, index: int, clean: str) -> Delta:
    choice.ended = True
    choice.held.clear()
    return Delta(index=index, text=clean, finish_reason="content_filter")
