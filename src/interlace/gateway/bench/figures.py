"""From what was seen of single chats to what may be said of all that ran at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from interlace.money import show_usd

_SHORTEST_TIMED_SECONDS = 0.05  # an answer that came within it came at once: no rate can be told of it


@dataclass(slots=True)
class Sample:
    """One chat: moments by a monotonic clock, each event that brought text, and what the server counted."""

    asked: float
    first: float | None = None
    last: float | None = None
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    id: str | None = None
    error: str | None = None
    stopped: bool = False  # by the person at the terminal
    refused: bool = False  # before anything ran: there is nothing to pay
    cost_nanos: int | None = None

    def piece(self, now: float) -> None:
        """Text came."""
        if self.last is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    @property
    def pieces(self) -> int:
        """Events that brought text."""
        return 0 if self.first is None else len(self.gaps) + 1

    @property
    def tokens(self) -> int:
        """What came: by the server's count, else a token for each piece, as for an answer that was cut off."""
        return self.pieces if self.completion_tokens is None else self.completion_tokens

    @property
    def rate(self) -> float | None:
        """Tokens a second behind the first one; None where the answer was too short to tell."""
        if self.first is None or self.last is None or self.last - self.first < _SHORTEST_TIMED_SECONDS:
            return None
        return (self.tokens - 1) / (self.last - self.first)


@dataclass(slots=True)
class Level:
    """All chats of one number of streams. `warm` has those before the clock ran."""

    streams: int
    warm: list[Sample] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    stopped: bool = False

    @property
    def good(self) -> list[Sample]:
        """Chats that were answered to the end."""
        return [one for one in self.samples if one.error is None and not one.stopped]

    @property
    def errors(self) -> list[str]:
        """One text for each chat that failed, warm-up included."""
        return [one.error for one in (*self.warm, *self.samples) if one.error is not None]

    @property
    def tokens(self) -> int:
        """All that came while the clock ran, also of chats that then failed."""
        return sum(one.tokens for one in self.samples)

    @property
    def seconds(self) -> float:
        """From the first chat asked to the last one ended."""
        return self.ended - self.began

    @property
    def tokens_per_second(self) -> float | None:
        """Of all streams together."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def stream_tokens_per_second(self) -> float | None:
        """What one reader sees behind the first token: the median over the chats."""
        rates = [one.rate for one in self.good if one.rate is not None]
        return median(rates) if rates else None

    @property
    def firsts(self) -> list[float]:
        """Seconds to the first token of each chat."""
        return [one.first - one.asked for one in self.good if one.first is not None]

    @property
    def gaps(self) -> list[float]:
        """Seconds between the pieces of all chats."""
        return [gap for one in self.good for gap in one.gaps]

    @property
    def tokens_per_piece(self) -> float | None:
        """More than one where a server sends several tokens in an event, or a guard holds some back."""
        pieces = sum(one.pieces for one in self.good)
        return sum(one.tokens for one in self.good) / pieces if pieces else None

    @property
    def cost_nanos(self) -> int | None:
        """Of all chats, warm-up included; None where the server does not say."""
        return total(one.cost_nanos for one in (*self.warm, *self.samples))

    @property
    def cost_unknown(self) -> int:
        """Chats that may have cost something, of which nobody said how much."""
        return sum(one.cost_nanos is None and not one.refused for one in (*self.warm, *self.samples))

    def json(self) -> dict[str, Any]:
        """Times in milliseconds."""
        read = [one.prompt_tokens for one in self.good if one.prompt_tokens is not None]
        cost = self.cost_nanos
        return {
            "streams": self.streams,
            "stopped": self.stopped,
            "requests": len(self.samples),
            "answered": len(self.good),
            "errors": len(self.errors),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "prompt_tokens": sum(read),
            "tokens_per_second": self.tokens_per_second,
            "stream_tokens_per_second": self.stream_tokens_per_second,
            "first_token_ms": _percentiles(self.firsts),
            "between_pieces_ms": _percentiles(self.gaps),
            "tokens_per_piece": self.tokens_per_piece,
            "cost_nanos": cost,
            "cost_usd": None if cost is None else show_usd(cost),
            "cost_unknown": self.cost_unknown,
        }


def total(costs: Iterable[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that so many of a hundred do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(percent * len(values) / 100), 1) - 1]


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{percent}": 1000 * (percentile(seconds, percent) or 0.0) for percent in (50, 95, 99)}
