"""Breakers that several machines share on Redis: one state for all, one probe among all their requests, and each for
itself while the server is away."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import pytest

from interlace.config import BreakerSettings, ModelSettings
from interlace.gateway.routing import AnyBreaker, RedisBreakers
from interlace.gateway.routing.live import Breaker
from interlace.gateway.routing.redis_breakers import is_of_this_machine
from interlace.redis_link import ALIVE, LEASE_SECONDS, RedisLink
from tests.support.stores import Redis

MODEL = ModelSettings(
    name="m",
    engine="openai",
    base_url="https://provider.example/v1",
    breaker=BreakerSettings(failures=4, window_seconds=10, open_seconds=0.2),
)


@pytest.fixture
def server(redis_server: Redis) -> Iterator[Redis]:
    """The server, empty, and running again after a test that paused it."""
    with redis_server.client() as client:
        client.flushall()
    yield redis_server
    redis_server.go_on()


@dataclasses.dataclass
class Machine:
    """A process of its own."""

    link: RedisLink
    breakers: RedisBreakers
    keeping: asyncio.Task[None]

    @property
    def breaker(self) -> AnyBreaker:
        """The model's."""
        return self.breakers.breaker(MODEL)


@asynccontextmanager
async def machines(server: Redis, count: int = 2) -> AsyncGenerator[list[Machine]]:
    """So many, connected."""
    there = []
    for number in range(count):
        link = RedisLink(server.url, f"m{number}-w1", timeout_seconds=5.0)
        breakers = RedisBreakers(link, lambda model: Breaker(model.breaker))
        breakers.breaker(MODEL)
        there.append(Machine(link, breakers, asyncio.create_task(link.keep())))
        await link.tried()
    try:
        yield there
    finally:
        for one in there:
            one.keeping.cancel()
        await asyncio.gather(*(one.keeping for one in there), return_exceptions=True)


async def until(breaker: AnyBreaker, *states: str) -> None:
    """News come with the next sign of life."""
    deadline = time.monotonic() + 20
    while breaker.state not in states:
        assert time.monotonic() < deadline, breaker.state
        await asyncio.sleep(0.01)


async def begins(breaker: AnyBreaker) -> bool | None:
    """As an attempt begins: whether it is the probe; None where it must not begin."""
    if breaker.state == "half_open":
        return breaker.enter() if await breaker.claim() else None
    return None if breaker.state in {"open", "probing"} else breaker.enter()


async def test_machines_open_it_together_and_one_of_them_probes(server: Redis) -> None:
    """Failures of all count, and of all who wait one is sent to the sick model; its end is the end for all."""
    async with machines(server, 3) as there:
        breakers = [one.breaker for one in there]
        for number in range(4):
            assert {one.state for one in breakers} == {"closed"}
            breakers[number % 3].failed()
        for one in breakers:
            await until(one, "open", "half_open")
        for one in breakers:
            await until(one, "half_open")
        for end in ("failed", "left", "succeeded"):
            began = await asyncio.gather(*(begins(one) for one in breakers for _ in range(5)))
            assert sorted(map(str, began)) == ["None"] * 14 + ["True"]
            prober = breakers[began.index(True) // 5]
            assert prober.state == "probing"
            for one in breakers:
                await until(one, "probing")
                one.leave() if one is not prober else None
            assert await begins(breakers[0]) is None, "only who probes can leave"
            if end == "failed":
                prober.failed(probe=True)
            elif end == "left":
                prober.leave()
            else:
                prober.succeeded()
            for one in breakers:
                await until(one, "closed" if end == "succeeded" else "half_open")
        for _ in range(3):
            breakers[0].failed()
        await asyncio.sleep(0.05)
        assert breakers[0].state == "closed", "a success forgets the failures before it, wherever they were"


async def test_the_probe_of_a_dead_machine_is_given_to_another(server: Redis) -> None:
    """Else nobody would ever ask that model again."""
    async with machines(server) as (first, second):
        for _ in range(4):
            first.breaker.failed()
        await until(second.breaker, "half_open")
        await until(first.breaker, "half_open")
        assert await begins(first.breaker)
        first.keeping.cancel()
        await until(second.breaker, "probing")
        assert await begins(second.breaker) is None
        with server.client() as client:
            client.zincrby(ALIVE, -LEASE_SECONDS - 2, first.link.token)
        await until(second.breaker, "half_open")
        assert await begins(second.breaker)


async def test_a_caller_that_goes_while_it_asks_for_the_probe_does_not_keep_it(server: Redis) -> None:
    """The model would be taken for broken until that process ends."""
    async with machines(server, 1) as (one,):
        for _ in range(4):
            one.breaker.failed()
        await until(one.breaker, "half_open")
        for _ in range(5):
            asking = asyncio.create_task(one.breaker.claim())
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert await begins(one.breaker)


async def test_while_redis_is_away_each_machine_goes_by_what_it_sees_itself(server: Redis) -> None:
    """A breaker that nobody can open or probe would leave callers with a broken model, or without a whole one."""
    async with machines(server, 2) as (first, second):
        first.link.timeout_seconds = second.link.timeout_seconds = 0.2
        server.pause()
        while first.link.up or second.link.up:
            await asyncio.sleep(0.01)
        for _ in range(4):
            first.breaker.failed()
        assert (first.breaker.state, second.breaker.state) == ("open", "closed")
        await until(first.breaker, "half_open")
        assert await begins(first.breaker)
        first.breaker.succeeded()
        assert first.breaker.state == "closed"
        server.go_on()
        while not (first.link.up and second.link.up):
            await asyncio.sleep(0.01)
        for _ in range(4):
            second.breaker.failed()
        await until(first.breaker, "open", "half_open")


def test_models_on_the_machine_itself_are_not_shared() -> None:
    """A broken engine here says nothing of the engine by the same name there."""
    here = [
        ModelSettings(name="m"),
        ModelSettings(name="m", engine="ollama"),
        ModelSettings(name="m", engine="openai", base_url="http://localhost:8000/v1"),
        ModelSettings(name="m", engine="openai", base_url="http://127.0.0.2:8000/v1"),
        ModelSettings(name="m", engine="openai", base_url="http://[::1]:8000/v1"),
    ]
    assert all(map(is_of_this_machine, here))
    assert not is_of_this_machine(MODEL)
    assert not is_of_this_machine(ModelSettings(name="m", engine="ollama", base_url="http://gpu.internal:11434/v1"))
    assert not is_of_this_machine(ModelSettings(name="m", engine="anthropic"))
