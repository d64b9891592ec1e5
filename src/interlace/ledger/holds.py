"""What a running request holds: the most it can cost, in one reservation, shared by the attempts that run at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from interlace.ledger.book import Book, Reservation
from interlace.ledger.directory import Caller
from interlace.ledger.escrow import Teller
from interlace.ledger.events import AttemptEnd
from interlace.ledger.limits import Counted
from interlace.ledger.outcomes import Outcome
from interlace.ledger.prices import Price, Tokens, affordable, charge, most
from interlace.money import MOST_NANOS

STEP_TOKENS = 16  # the first step of an open-ended answer: what it holds beyond what it has used
LARGEST_STEP_TOKENS = 256


GrowLater = Callable[[Reservation, int, int], Awaitable[bool]]
"""Raises a reservation to between two amounts in all, waiting for what others may give back; whether it did."""


class Bound(msgspec.Struct, frozen=True):
    """The most a request may use. `completion` None: open-ended, held in steps; else all of it is held at once. A
    `batch` pays the price for batches."""

    prompt: int
    completion: int | None = 0
    embedding: bool = False
    batch: bool = False


class Tried(msgspec.Struct, frozen=True):
    """What one attempt of a request that came by a route turned out to use, and how it ended."""

    model: str
    engine: str
    price: Price
    why: str
    end: AttemptEnd
    tokens: Tokens
    latency_us: int
    error: str = ""
    estimated: bool = False
    disputed: bool = False
    percent: int = 100


class Used(msgspec.Struct, frozen=True):
    """What a request turned out to use, and how it ended. By a route: `tried` has every attempt, and what `told` says
    goes before `tokens` and `estimated`."""

    outcome: Outcome
    tokens: Tokens
    latency_us: int
    first_token_us: int | None = None
    estimated: bool = False
    disputed: bool = False
    tried: tuple[Tried, ...] = ()

    @property
    def told(self) -> Tried | None:
        """The attempt whose model, price and tokens the usage event tells: what served, else the last; None without."""
        return next((one for one in self.tried if one.end == "served"), self.tried[-1]) if self.tried else None


@dataclass(slots=True, eq=False)
class Share:
    """One attempt's part of a hold: its own price and bound. A request by a model's own name has just one."""

    hold: Hold
    price: Price
    bound: Bound
    nanos: int  # of the reservation
    covered: int | None = 0  # completion tokens that this part pays for; None: any number

    def cover(self, completion: int) -> bool:
        """Whether `completion` tokens in all are paid for; raises the hold where it has to. Never waits.

        Steps double with the answer, so that one caller never holds a whole budget, and a long answer asks seldom.
        Near the end of a budget a step is what is left of it. The plan's tokens per minute count the steps too: they
        end no answer, they hold up the next one.
        """
        self.hold.count(completion)
        if self.covered is None or completion <= self.covered:
            return True
        if not self.hold.stretch(self, *self._step(completion)):
            return False
        self.covered = affordable(self.price, self.bound.prompt, self.nanos, batch=self.bound.batch)
        return True

    async def cover_later(self, completion: int) -> bool:
        """After `cover` said no: what other processes hold of the budgets may pay. False at once where there are
        none."""
        if not await self.hold.stretch_later(self, *self._step(completion)):
            return False
        self.covered = affordable(self.price, self.bound.prompt, self.nanos, batch=self.bound.batch)
        return True

    def _step(self, completion: int) -> tuple[int, int]:
        """What the tokens cost at least, and with a step ahead."""
        larger = completion + _step(completion)
        least, wanted = (
            most(self.price, self.bound.prompt, tokens, batch=self.bound.batch) for tokens in (completion, larger)
        )
        return least, wanted

    def end(self, tokens: Tokens, *, charged: bool) -> None:
        """The attempt is over: what it leaves of its part is free for the next attempt of the same request."""
        cost = min(charge(self.price, tokens, batch=self.bound.batch), MOST_NANOS) if charged else 0
        self.hold.taken += cost - self.nanos
        self.nanos = cost


@dataclass(slots=True, eq=False)
class Hold:
    """One request's right to run: its reservation, on its day. At its price where it has one model to ask; by a route,
    each attempt has a `Share` of the reservation, which always covers those that run and what those before cost."""

    id: str
    caller: Caller
    model: str
    engine: str
    endpoint: str
    tags: tuple[str, ...]
    price: Price
    bound: Bound
    day: str
    started_us: int
    counted: Counted
    counted_tokens: int
    reservation: Reservation
    book: Book | Teller
    grow_later: GrowLater | None = None  # where other processes hold parts of the budgets
    count_more: Callable[[int], Counted] | None = None  # counts tokens against the plan's tokens per minute
    counted_completion: int = 0
    bounded: bool = False  # whether any budget holds
    settled: bool = False
    route: str | None = None
    taken: int = 0  # nano-dollars of the reservation that running attempts hold and ended ones cost
    first: Share = field(init=False)  # of the attempt that was reserved for

    @property
    def batch(self) -> bool:
        """Whether it pays the price for batches."""
        return self.bound.batch

    @property
    def covered(self) -> int | None:
        """Completion tokens that are paid for, of the first attempt; None: any number."""
        return self.first.covered

    def cover(self, completion: int) -> bool:
        """`Share.cover` of the first attempt."""
        return self.first.cover(completion)

    def part(self) -> None:
        """Nobody asks it any more: it and its first share let go of each other, and need not be collected."""
        del self.first

    def count(self, completion: int) -> None:
        """Count so many completion tokens, and a step ahead, against the plan's tokens per minute."""
        if self.count_more is not None and completion > self.counted_completion:
            step = _step(completion)
            self.counted = self.count_more(completion + step - self.counted_completion)
            self.counted_tokens += completion + step - self.counted_completion
            self.counted_completion = completion + step

    async def begin(self, price: Price, bound: Bound) -> Share | None:
        """A part for one more attempt, beside those that run; None where no budget pays for it. Waits for nothing but
        what other processes hold of the budgets."""
        least, wanted = amounts(price, bound) if self.bounded else (0, 0)
        share = Share(self, price, bound, 0)
        if not self.stretch(share, least, wanted) and not await self.stretch_later(share, least, wanted):
            return None
        share.covered = covered_by(price, bound, share.nanos, bounded=self.bounded)
        return share

    def stretch(self, share: Share, least: int, wanted: int) -> bool:
        """Raise a share to between `least` and `wanted`: from what ended attempts left, then from the budgets."""
        more = self._beyond(share, least, wanted)
        if more is not None and not self.book.grow(self.reservation, *more):
            return False
        self._raise(share, wanted)
        return True

    async def stretch_later(self, share: Share, least: int, wanted: int) -> bool:
        """The same, from what other processes hold of the budgets; False at once where there are none."""
        more = self._beyond(share, least, wanted)
        if self.grow_later is None or (more is not None and not await self.grow_later(self.reservation, *more)):
            return False
        self._raise(share, wanted)
        return True

    def _beyond(self, share: Share, least: int, wanted: int) -> tuple[int, int] | None:
        """Between which amounts the reservation has to be for it; None: it is large enough."""
        held, free = self.reservation.nanos, self.reservation.nanos - self.taken
        least, wanted = least - share.nanos, wanted - share.nanos
        return (held + max(0, least - free), held + wanted - free) if wanted > free else None

    def _raise(self, share: Share, wanted: int) -> None:
        gained = max(0, min(wanted - share.nanos, self.reservation.nanos - self.taken))
        share.nanos += gained
        self.taken += gained


def amounts(price: Price, bound: Bound) -> tuple[int, int]:
    """The least and the most nano-dollars to hold at first, where a budget holds."""
    if bound.completion is None:
        first = (most(price, bound.prompt, tokens, batch=bound.batch) for tokens in (1, STEP_TOKENS))
        return next(first), next(first)
    amount = most(price, bound.prompt, bound.completion, embedding=bound.embedding, batch=bound.batch)
    return amount, amount


def covered_by(price: Price, bound: Bound, nanos: int, *, bounded: bool) -> int | None:
    """Completion tokens that `nanos` pay for; None: any number."""
    if bound.completion is not None:
        return bound.completion
    return affordable(price, bound.prompt, nanos, batch=bound.batch) if bounded else None


def _step(completion: int) -> int:
    return min(max(STEP_TOKENS, completion), LARGEST_STEP_TOKENS)
