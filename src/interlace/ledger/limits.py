"""Rates and concurrency of a plan, for each key on it: in any sixty seconds, so many requests and tokens; at any
instant, so many requests. The tokens of an answer whose length nobody bounded count as they come: they hold up the next
request and end no answer, so they alone may go beyond. In memory: after a restart the minute starts afresh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import ItemsView
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

WINDOW_SECONDS = 60


@dataclass(slots=True)
class Counted:
    """What was counted within one second."""

    second: int
    amount: int


@dataclass(slots=True)
class Window:
    """How much happened in the last sixty seconds, counted second by second: memory is bounded by the window's length,
    and no sixty seconds, wherever they begin, hold more than the limit."""

    total: int = 0
    _seconds: deque[Counted] = field(default_factory=deque)

    def used(self, now: float) -> int:
        """The amount in the window that ends at `now` (monotonic seconds)."""
        oldest = int(now) - WINDOW_SECONDS
        while self._seconds and self._seconds[0].second < oldest:
            self.total -= self._seconds.popleft().amount
        return self.total

    def add(self, amount: int, now: float) -> Counted:
        """Count `amount` at `now`; what is returned can be corrected later."""
        second = int(now)
        if not self._seconds or self._seconds[-1].second < second:
            self._seconds.append(Counted(second, 0))
        entry = self._seconds[-1]
        entry.amount += amount
        self.total += amount
        return entry

    def take_back(self, entry: Counted, amount: int, now: float) -> None:
        """Uncount `amount` where it was counted: taken back at any other second it would outlive what it cancels. No
        second counts less than nothing: what was counted before it may be forgotten already."""
        self.used(now)
        if entry.second >= int(now) - WINDOW_SECONDS:
            amount = min(amount, entry.amount)
            entry.amount -= amount
            self.total -= amount

    def seconds_until_empty(self, now: float) -> float:
        """How long until the whole limit is there again."""
        return self._seconds[-1].second + WINDOW_SECONDS + 1 - now if self.used(now) else 0.0

    def seconds_until(self, amount: int, limit: int, now: float) -> float:
        """How long until `amount` more fits under `limit`; 0 when it does. A window's length when it never will."""
        excess = self.used(now) + amount - limit
        if excess <= 0:
            return 0.0
        for entry in self._seconds:
            excess -= entry.amount
            if excess <= 0:
                return entry.second + WINDOW_SECONDS + 1 - now
        return float(WINDOW_SECONDS)


@dataclass(slots=True)
class KeyUse:
    """What one key does now."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a plan allows each key; None: any number."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


NO_RATES = Rates()


@dataclass(frozen=True, slots=True)
class Exceeded:
    """Which limit stands in the way, and when to come back. `most` is the limit, `used` what is taken of it."""

    what: str  # "requests per minute", "tokens per minute", "concurrent requests"
    most: int
    used: int
    wanted: int
    retry_after_seconds: float
    hopeless: bool = False  # more at once than the limit ever allows


class Left(msgspec.Struct, frozen=True):
    """What is left of one limit, for the `x-ratelimit-*` headers."""

    limit: int
    remaining: int
    reset_seconds: float


class Counting(Protocol):
    """What needs no answer, wherever the uses of keys are counted. `now` is in seconds of the machine's monotonic
    clock."""

    def end(self, key_id: str) -> None:
        """One request of the key is over."""
        ...

    def more_tokens(self, key_id: str, tokens: int, now: float) -> Counted:
        """Count what a running answer takes beyond that, limit or no limit."""
        ...

    def settle_tokens(self, key_id: str, counted: Counted, tokens: int, used: int, now: float) -> None:
        """A request for which `tokens` were counted, those at `counted` last, has used `used`."""
        ...

    def left(self, key_id: str, rates: Rates, now: float) -> dict[str, Left]:
        """What is left of the limits on requests and tokens that the key has."""
        ...

    def running(self, key_id: str) -> int:
        """How many requests of the key run now."""
        ...


class Limiter(Counting, Protocol):
    """The uses of all keys: `Limits` in this process's memory, `MappedLimits` in memory that several share."""

    def begin(self, key_id: str, rates: Rates, now: float, *, idle: bool = False) -> Exceeded | None:
        """Count one request that begins, or say what stands in its way. Whoever begins must `end`, but for one that
        takes `idle` capacity only: it leaves half of every limit to others, and does not count as running."""
        ...

    def visit(self, key_id: str, rates: Rates, now: float) -> Exceeded | None:
        """Count one request that is over at once, or say what stands in its way: requests per minute alone."""
        ...

    def take_tokens(
        self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool = False
    ) -> Counted | Exceeded:
        """Count the tokens a request may use before it runs, or say when there is room for them; with `idle`, room that
        leaves half of the limit to others, unless the request itself is larger than that."""
        ...


class FarLimiter(Counting, Protocol):
    """The uses of all keys where several machines count them (`RedisLimits`): the same questions, which are waited for.
    Whoever is cancelled meanwhile has counted nothing that runs."""

    async def begin(self, key_id: str, rates: Rates, now: float, *, idle: bool = False) -> Exceeded | None:
        """As `Limiter` has it."""
        ...

    async def visit(self, key_id: str, rates: Rates, now: float) -> Exceeded | None:
        """As `Limiter` has it."""
        ...

    async def take_tokens(
        self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool = False
    ) -> Counted | Exceeded:
        """As `Limiter` has it."""
        ...

    async def look(self, key_id: str, now: float) -> int | None:
        """How many requests of the key run at all machines; None while nobody can say. `left` is exact after it."""
        ...


class Limits:
    """The uses of all keys, in memory; a `Limiter`."""

    def __init__(self) -> None:
        self._uses: dict[str, KeyUse] = {}

    def use(self, key_id: str) -> KeyUse:
        """What this key does now."""
        found = self._uses.get(key_id)
        if found is None:
            found = self._uses[key_id] = KeyUse()
        return found

    def uses(self) -> ItemsView[str, KeyUse]:
        """All keys that did something, with what."""
        return self._uses.items()

    def begin(self, key_id: str, rates: Rates, now: float, *, idle: bool = False) -> Exceeded | None:
        """As `Limiter` has it."""
        use = self.use(key_id)
        if idle:
            return self._begin_idle(use, rates, now)
        if rates.concurrency is not None and use.running >= rates.concurrency:
            return Exceeded("concurrent requests", rates.concurrency, use.running, 1, 1.0)
        exceeded = self._visit(use, rates, now)
        use.running += exceeded is None
        return exceeded

    def visit(self, key_id: str, rates: Rates, now: float) -> Exceeded | None:
        """As `Limiter` has it."""
        return self._visit(self.use(key_id), rates, now)

    def _visit(self, use: KeyUse, rates: Rates, now: float) -> Exceeded | None:
        if rates.rpm is not None and (wait := use.requests.seconds_until(1, rates.rpm, now)):
            return Exceeded("requests per minute", rates.rpm, use.requests.used(now), 1, wait)
        use.requests.add(1, now)
        return None

    def _begin_idle(self, use: KeyUse, rates: Rates, now: float) -> Exceeded | None:
        if rates.concurrency is not None and 2 * use.running > rates.concurrency:
            return Exceeded("concurrent requests", rates.concurrency, use.running, 1, 1.0)
        half = None if rates.rpm is None else half_of(rates.rpm)
        if half is not None and (wait := use.requests.seconds_until(1, half, now)):
            return Exceeded("requests per minute", half, use.requests.used(now), 1, wait)
        use.requests.add(1, now)
        return None

    def end(self, key_id: str) -> None:
        """As `Limiter` has it."""
        use = self._uses[key_id]
        use.running -= 1
        assert use.running >= 0

    def take_tokens(
        self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool = False
    ) -> Counted | Exceeded:
        """As `Limiter` has it."""
        use, most = self.use(key_id), rates.tpm
        if most is not None and idle:
            most = min(most, max(half_of(most), tokens))
        if most is not None and (wait := use.tokens.seconds_until(tokens, most, now)):
            return Exceeded("tokens per minute", most, use.tokens.used(now), tokens, wait, tokens > most)
        return use.tokens.add(tokens, now)

    def more_tokens(self, key_id: str, tokens: int, now: float) -> Counted:
        """As `Limiter` has it."""
        return self.use(key_id).tokens.add(tokens, now)

    def settle_tokens(self, key_id: str, counted: Counted, tokens: int, used: int, now: float) -> None:
        """As `Limiter` has it."""
        window = self.use(key_id).tokens
        if used > tokens:
            window.add(used - tokens, now)
        else:
            window.take_back(counted, tokens - used, now)

    def left(self, key_id: str, rates: Rates, now: float) -> dict[str, Left]:
        """As `Limiter` has it."""
        use = self.use(key_id)
        found: dict[str, Left] = {}
        for name, limit, window in (("requests", rates.rpm, use.requests), ("tokens", rates.tpm, use.tokens)):
            if limit is not None:
                remaining = max(0, limit - window.used(now))
                found[name] = Left(limit, remaining, window.seconds_until_empty(now))
        return found

    def running(self, key_id: str) -> int:
        """As `Limiter` has it."""
        return self.use(key_id).running


def half_of(limit: int) -> int:
    """Half of a limit, upwards: of one there is one."""
    return (limit + 1) // 2
