"""The three places where the limits of plans are counted, asked in the same way: this process's memory, memory that
several processes map, and a Redis server that several machines ask."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from interlace.ledger.limits import Counted, Exceeded, Left, Limiter, Limits, Rates
from interlace.ledger.mapped_limits import MappedLimits
from interlace.ledger.redis_limits import RedisLimits
from interlace.mapped import area_file
from interlace.redis_link import RedisLink
from tests.support.stores import Redis

MANY = 10**9
_numbers = itertools.count()

RATES = Rates(rpm=6, tpm=60, concurrency=3)
pauses = st.sampled_from([0.0, 0.001, 0.4, 0.999, 1.0, 5.0, 29.5, 59.0, 60.0, 61.0, 200.0])
histories = st.lists(
    st.tuples(
        pauses,
        st.sampled_from(["begin", "idle", "visit", "end", "take", "take idle", "more", "settle"]),
        st.integers(0, 70),
        st.integers(0, 10),
    ),
    max_size=60,
)


def used(limits: Limiter, what: str, now: float, key_id: str = "key") -> int:
    """What is counted of "requests" or "tokens" in the minute that ends now."""
    return MANY - limits.left(key_id, Rates(rpm=MANY, tpm=MANY), now)[what].remaining


@dataclass(eq=False)
class OnRedis:
    """`RedisLimits` as those of a process that waits for each answer; `number` sets its keys apart."""

    runner: asyncio.Runner
    link: RedisLink
    far: RedisLimits
    number: int
    now: float = 0.0  # when `left` was last asked

    def _key(self, key_id: str) -> str:
        return f"{self.number}-{key_id}"

    def begin(self, key_id: str, rates: Rates, now: float, *, idle: bool = False) -> Exceeded | None:
        """As `Limiter` has it."""
        return self.runner.run(self.far.begin(self._key(key_id), rates, now, idle=idle))

    def visit(self, key_id: str, rates: Rates, now: float) -> Exceeded | None:
        """As `Limiter` has it."""
        return self.runner.run(self.far.visit(self._key(key_id), rates, now))

    def end(self, key_id: str) -> None:
        """As `Limiter` has it."""
        self._said(lambda: self.far.end(self._key(key_id)))

    def take_tokens(
        self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool = False
    ) -> Counted | Exceeded:
        """As `Limiter` has it."""
        return self.runner.run(self.far.take_tokens(self._key(key_id), rates, tokens, now, idle=idle))

    def more_tokens(self, key_id: str, tokens: int, now: float) -> Counted:
        """As `Limiter` has it."""
        counted: Counted = self._said(lambda: self.far.more_tokens(self._key(key_id), tokens, now))
        return counted

    def settle_tokens(self, key_id: str, counted: Counted, tokens: int, used: int, now: float) -> None:
        """As `Limiter` has it."""
        self._said(lambda: self.far.settle_tokens(self._key(key_id), counted, tokens, used, now))

    def left(self, key_id: str, rates: Rates, now: float) -> dict[str, Left]:
        """As `Limiter` has it, as of now."""
        self.now = now

        async def looked() -> dict[str, Left]:
            assert await self.far.look(self._key(key_id), now) is not None
            return self.far.left(self._key(key_id), rates, now)

        return self.runner.run(looked())

    def running(self, key_id: str) -> int:
        """As `Limiter` has it, at all machines."""
        running = self.runner.run(self.far.look(self._key(key_id), self.now))
        assert running is not None
        return running

    def _said(self, saying: Callable[[], Any]) -> Any:
        async def said() -> Any:
            return saying()  # sent with the next question, and before it

        return self.runner.run(said())


@contextmanager
def on_redis(server: Redis, place: str = "test", *, given: bool = True) -> Iterator[Callable[[], OnRedis]]:
    """Makes limits at that server: those of one process, each with keys of its own. `given`: time is the test's."""
    with asyncio.Runner() as runner:
        link = RedisLink(server.url, place, timeout_seconds=10.0)
        far = RedisLimits(link, Limits(), given=given)

        async def begin() -> asyncio.Task[None]:
            keeping = asyncio.create_task(link.keep())
            await link.tried()
            assert link.up
            return keeping

        runner.run(begin())
        yield lambda: OnRedis(runner, link, far, next(_numbers))
        runner.run(link.leave())
        assert far.alone == 0, "it was not the server that counted"


@contextmanager
def mapped() -> Iterator[Callable[[], MappedLimits]]:
    """Makes limits in mapped memory, those of the second worker of three."""
    files: list[int] = []

    def make() -> MappedLimits:
        while files:
            os.close(files.pop())
        files.append(area_file(Path()))
        return MappedLimits(files[-1], 3, 1)

    try:
        yield make
    finally:
        for file in files:
            os.close(file)


def compare(other: Limiter, start: float, history: list[tuple[float, str, int, int]]) -> None:
    """Whatever happens, `other` says what `Limits` does, with the same numbers in refusals and headers."""
    alone, now = Limits(), start
    running: list[tuple[Counted, Counted, int]] = []
    begun = 0
    for wait, what, amount, pick in history:
        now += wait
        if what in {"begin", "idle"}:
            one, two = (each.begin("k", RATES, now, idle=what == "idle") for each in (alone, other))
            begun += what == "begin" and one is None
            assert _told(one) == _told(two)
        elif what == "visit":
            assert _told(alone.visit("k", RATES, now)) == _told(other.visit("k", RATES, now))
        elif what == "end" and begun:
            begun -= 1
            alone.end("k")
            other.end("k")
        elif what in {"take", "take idle"}:
            first, second = (
                each.take_tokens("k", RATES, amount, now, idle=what == "take idle") for each in (alone, other)
            )
            assert _told(first) == _told(second)
            if not isinstance(first, Exceeded) and not isinstance(second, Exceeded):
                running.append((first, second, amount))
        elif what == "more" and running:
            _, _, tokens = running.pop(pick % len(running))
            running.append((alone.more_tokens("k", 9, now), other.more_tokens("k", 9, now), tokens + 9))
        elif what == "settle" and running:
            first, second, tokens = running.pop(pick % len(running))
            alone.settle_tokens("k", first, tokens, amount, now)
            other.settle_tokens("k", second, tokens, amount, now)
        left = alone.left("k", RATES, now)
        theirs = other.left("k", RATES, now)
        assert theirs == left
        assert other.running("k") == alone.running("k") == begun


def _told(answer: object) -> object:
    """What can be compared: where something was counted is everybody's own."""
    return None if isinstance(answer, Counted) else answer
