"""What one request used and how quickly: read off the engine's events as they pass, whoever gets to see them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from interlace.engines.types import Delta, Embeddings, Event, Started, Usage
from interlace.gateway.metrics import TokenTimes

_NOTHING = Usage(0, 0)


@dataclass(slots=True)
class Meter:
    """Counts of one request. Works without the engine's last word: a request that was cut off is billed by deltas."""

    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)
    first_token_seconds: float | None = None
    filtered: bool = False  # the output guard ended a choice
    budget_ended: bool = False  # a budget ended the answer
    completion_tokens: int = 0  # of all parts, so far
    outcome: str = ""  # how the request ended, once it has
    cost_nanos: int = 0
    times: TokenTimes | None = None
    instead: Meter | None = None  # of the attempt that answers, where the request came by a route
    said: dict[int, str] = field(default_factory=dict)  # by choice; filled only where prompts are logged
    _parts: dict[int, Usage] = field(default_factory=dict)
    _grown: dict[int, int] = field(default_factory=dict)  # by part: completion tokens beyond what stands in `_parts`
    _last_token: dict[tuple[int, int], float] = field(default_factory=dict)

    def see(self, part: int, event: Event | Embeddings) -> None:
        """Take one event of part number `part` (a request with several prompts has several parts)."""
        if isinstance(event, Delta):
            if event.tokens:
                self._generated(part, event)
        elif isinstance(event, Started):
            self._put(part, Usage(event.prompt_tokens, 0, event.cached_tokens, estimated=event.estimated))
        elif isinstance(event, Usage):
            self._put(part, event)
        else:
            self._put(part, Usage(event.prompt_tokens, 0, estimated=event.estimated))

    @property
    def answering(self) -> Meter:
        """The meter of the attempt that answers: of a request by a model's own name, this one."""
        return self.instead or self

    def usage(self) -> Usage:
        """Tokens of all parts, so far."""
        if self.instead is not None:
            return self.instead.usage()
        for part, grown in self._grown.items():
            before = self._parts.get(part) or _NOTHING
            self._parts[part] = msgspec.structs.replace(before, completion_tokens=before.completion_tokens + grown)
        self._grown.clear()
        parts = self._parts.values()
        if len(parts) == 1:
            return next(iter(parts))
        return Usage(
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
            cache_write_tokens=sum(part.cache_write_tokens for part in parts),
            cache_write_1h_tokens=sum(part.cache_write_1h_tokens for part in parts),
            reasoning_tokens=sum(part.reasoning_tokens for part in parts),
            estimated=any(part.estimated for part in parts),
            disputed=any(part.disputed for part in parts),
        )

    def latency_seconds(self) -> float:
        """Since the request began."""
        return time.perf_counter() - self.started

    def _put(self, part: int, usage: Usage) -> None:
        before = self._parts.get(part) or _NOTHING
        grown = self._grown.pop(part, 0)
        self.completion_tokens += usage.completion_tokens - before.completion_tokens - grown
        self._parts[part] = usage

    def _generated(self, part: int, delta: Delta) -> None:
        now = time.perf_counter()
        self._grown[part] = self._grown.get(part, 0) + delta.tokens
        self.completion_tokens += delta.tokens
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.started
            if self.times:
                self.times.first.observe(self.first_token_seconds)
        last = self._last_token.get((part, delta.index))
        if last is not None and self.times:
            self.times.between.observe((now - last) / delta.tokens)
        self._last_token[part, delta.index] = now
