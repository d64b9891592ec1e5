"""Limits that several machines count on one Redis server: as with one, exact together, and what becomes of them when a
machine or the server goes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.config import BreakerSettings, ModelSettings, ReuseSettings, RouteSettings
from interlace.engines.types import Delta, Usage
from interlace.errors import ConfigError
from interlace.gateway.processes.redis_answers import RedisMemory, knows_answers
from interlace.gateway.routing import AnyBreaker, Kept, RedisBreakers
from interlace.gateway.routing.live import Breaker
from interlace.ledger.limits import WINDOW_SECONDS, Counted, Exceeded, Rates
from interlace.ledger.mapped_limits import MappedLimits
from interlace.ledger.redis_limits import RedisLimits
from interlace.mapped import area_file
from interlace.redis_link import ALIVE, LEASE_SECONDS, RedisLink
from tests.support.certificates import pair
from tests.support.limiters import compare, histories, on_redis
from tests.support.serving import free_port
from tests.support.stores import Redis

ROOT = Path(__file__).parents[2]
MACHINES = 3


def now() -> float:
    """As callers have it; where the server's own clock counts, nobody looks at it."""
    return time.monotonic()


@pytest.fixture
def server(redis_server: Redis) -> Iterator[Redis]:
    """The server, empty, and running again after a test that stopped it."""
    with redis_server.client() as client:
        client.flushall()
    yield redis_server
    redis_server.go_on()
    if redis_server.process is None:
        redis_server.start()


class Machine:
    """One of several processes that ask the same server."""

    def __init__(self, server: Redis, place: str, machines: int = MACHINES, seconds: float = 5.0) -> None:
        self.link = RedisLink(server.url, place, timeout_seconds=seconds)
        self.near = MappedLimits(area_file(Path()), 1, 0)
        self.far = RedisLimits(self.link, self.near, lambda: machines)
        self.keeping: asyncio.Task[None] | None = None

    async def start(self) -> Machine:
        """Be connected."""
        self.keeping = asyncio.create_task(self.link.keep())
        await self.link.tried()
        return self

    async def die(self) -> None:
        """Be gone, with no word to anybody."""
        assert self.keeping is not None
        self.keeping.cancel()
        await asyncio.gather(self.keeping, return_exceptions=True)

    async def begins(self, rates: Rates, key: str = "k") -> bool:
        """Whether a request may begin; it ends at once where nothing is said of what runs."""
        begun = await self.far.begin(key, rates, now()) is None
        if begun and rates.concurrency is None:
            self.far.end(key)
        return begun

    async def until(self, up: bool) -> None:
        """Wait until the connection is there, or gone."""
        deadline = time.monotonic() + 30
        while self.link.trusted != up:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


@asynccontextmanager
async def machines(server: Redis, count: int = MACHINES, **more: Any) -> AsyncGenerator[list[Machine]]:
    """So many, connected."""
    there = [await Machine(server, f"m{number}-w1", count, **more).start() for number in range(count)]
    try:
        yield there
    finally:
        for one in there:
            await one.die()


def test_redis_counts_as_one_process_does_alone(redis_server: Redis) -> None:
    """A plan means the same on one machine and on several: whatever happens, both say the same, with the same numbers
    in their refusals and headers."""
    with on_redis(redis_server) as make:

        @given(st.floats(0, 1e6, allow_nan=False), histories)
        def compared(start: float, history: list[tuple[float, str, int, int]]) -> None:
            compare(make(), start, history)

        compared()


async def test_machines_together_keep_to_the_limits(server: Redis) -> None:
    """Each with counts of its own would let three times as many through; and what one has counted, all are told."""
    async with machines(server) as there:

        async def crowd(rates: Rates, key: str) -> int:
            asking = (there[n % MACHINES].begins(rates, key) for n in range(60))
            return sum(await asyncio.gather(*asking))

        assert await crowd(Rates(rpm=20), "by the minute") == 20
        assert await crowd(Rates(concurrency=7), "at once") == 7
        there[0].far.end("at once")
        assert await crowd(Rates(concurrency=7), "at once") == 1
        taken = await asyncio.gather(
            *(there[n % MACHINES].far.take_tokens("tokens", Rates(tpm=1000), 30, now()) for n in range(60))
        )
        assert sum(not isinstance(one, Exceeded) for one in taken) == 33
        refused = next(one for one in taken if isinstance(one, Exceeded))
        assert (refused.most, refused.used, refused.wanted, refused.hopeless) == (1000, 990, 30, False)
        assert 0 < refused.retry_after_seconds <= WINDOW_SECONDS + 1
        for one in there:
            assert await one.far.look("at once", now()) == 7
            left = one.far.left("at once", Rates(concurrency=7), now())
            assert left == {}
            await one.far.look("tokens", now())
            assert one.far.left("tokens", Rates(tpm=1000), now())["tokens"].remaining == 10
            assert one.far.alone == 0


async def test_where_nothing_is_limited_nothing_is_asked(server: Redis) -> None:
    """Callers without limits would pay for those with."""
    async with machines(server, 1) as (one,):
        with server.client() as client:
            client.config_resetstat()
            for rates in (Rates(), Rates(tpm=5)):
                assert await one.far.begin("k", rates, now()) is None
                one.far.end("k")
            counted = await one.far.take_tokens("k", Rates(rpm=5), 3, now())
            one.far.settle_tokens("k", counted, 3, 2, now())
            assert await one.far.visit("k", Rates(tpm=5), now()) is None
            await asyncio.sleep(0.05)
            assert client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"] <= 1  # a sign of life
            await one.far.begin("k", Rates(rpm=5), now())
            assert client.keys("interlace:*k") == [b"interlace:requests:k"]


async def test_what_a_dead_machine_ran_is_free_after_half_a_minute(server: Redis) -> None:
    """It holds its places that long, for it may only be out of reach; for ever would lock its keys out."""
    rates = Rates(concurrency=2)
    async with machines(server, 2) as (first, second):
        assert [await first.begins(rates), await first.begins(rates), await second.begins(rates)] == [True, True, False]
        await first.die()
        assert not await second.begins(rates)
        with server.client() as client:
            client.zincrby(ALIVE, -LEASE_SECONDS + 2, first.link.token)
            assert not await second.begins(rates)
            client.zincrby(ALIVE, -4, first.link.token)
        assert await second.begins(rates)
        assert await second.far.look("k", now()) == 1


async def test_what_a_dead_worker_ran_is_free_when_another_has_its_place(server: Redis) -> None:
    """That is within a second; and what a connection of before still had on its way counts no more."""
    rates = Rates(concurrency=2)
    async with machines(server, 2) as (first, second):
        assert await first.begins(rates)
        assert await first.begins(rates)
        await first.die()
        successor = await Machine(server, first.link.place).start()
        assert [await second.begins(rates), await successor.begins(rates), await second.begins(rates)] == [
            True,
            True,
            False,
        ]
        await successor.die()


async def test_a_request_whose_caller_goes_while_redis_is_asked_holds_nothing(server: Redis) -> None:
    """Callers that hang up at that moment would fill a key's places, one by one."""
    rates = Rates(concurrency=2, tpm=100)
    async with machines(server, 1) as (one,):
        for pause in (0, 0, 0.0003, 0.001):
            for _ in range(5):
                begin = asyncio.create_task(one.far.begin("k", rates, now()))
                take = asyncio.create_task(one.far.take_tokens("k", rates, 50, now()))
                await asyncio.sleep(pause)
                gone = [task.cancel() for task in (begin, take)]
                began, took = await asyncio.gather(begin, take, return_exceptions=True)
                if not gone[0] and began is None:
                    one.far.end("k")
                if not gone[1] and isinstance(took, Counted):
                    one.far.settle_tokens("k", took, 50, 0, now())
        await asyncio.sleep(0.05)
        assert await one.far.look("k", now()) == 0
        assert one.far.left("k", rates, now())["tokens"].remaining == 100


async def test_while_redis_is_paused_each_machine_lets_its_part_through(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits longer than is set, nobody is refused because of it alone, all together let no more through than
    the limit, the log says so once, and it mends itself."""
    rates = Rates(rpm=30, tpm=300, concurrency=6)
    async with machines(server, seconds=0.2) as there:
        server.pause()
        with caplog.at_level(logging.INFO):
            for one in there:
                began = time.monotonic()
                begun = await asyncio.gather(*(one.far.begin("k", rates, now()) for _ in range(12)))
                assert time.monotonic() - began < 2.0
                assert sum(answer is None for answer in begun) == 2
                assert {answer.most for answer in begun if answer is not None} <= {2, 6}
                one.far.end("k")
                one.far.end("k")
                taken = await asyncio.gather(*(one.far.take_tokens("k", rates, 30, now()) for _ in range(12)))
                assert sum(not isinstance(answer, Exceeded) for answer in taken) == 3
                large = await one.far.take_tokens("k", rates, 200, now())
                assert isinstance(large, Exceeded)
                assert not large.hopeless, "it fits the limit"
                assert one.far.alone
            await asyncio.sleep(0.6)
            server.go_on()
            for one in there:
                await one.until(up=True)
        away = [record for record in caplog.records if record.message.startswith("Redis is away")]
        assert len(away) == MACHINES
        assert sum(record.message.startswith("Redis answers") for record in caplog.records) == MACHINES
        await there[0].far.look("k", now())
        left = there[0].far.left("k", rates, now())
        remaining = left["requests"].remaining
        assert 0 < remaining <= 30 - 6, "what was let through meanwhile is counted, and what was on its way, too"
        assert left["tokens"].remaining == 300 - 270
        begun = await asyncio.gather(*(one.begins(Rates(rpm=30)) for one in there for _ in range(20)))
        assert sum(begun) == remaining


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_a_server_that_has_lost_its_data_lets_one_window_through_again_and_no_more(
    server: Redis, how: str
) -> None:
    """And what runs is told to it anew: concurrency holds at once."""
    rates = Rates(rpm=20)
    async with machines(server, seconds=0.5) as there:
        many = [one for one in there for _ in range(20)]
        assert sum(await asyncio.gather(*(one.begins(rates) for one in many))) == 20
        assert sum(await asyncio.gather(*(one.begins(Rates(concurrency=6), "runs") for one in many))) == 6
        if how == "flushed":
            with server.client() as client:
                client.flushall()
        else:
            server.stop()
            server.start()
        through = 0
        for _ in range(30):
            through += sum(await asyncio.gather(*(one.begins(rates) for one in many)))
            await asyncio.sleep(0.05)
        for one in there:
            await one.until(up=True)
        assert 0 < through <= 20
        assert [await one.begins(Rates(concurrency=6), "runs") for one in there] == [False] * MACHINES
        for one in there:
            while one.near.running("runs"):
                one.far.end("runs")
        assert await there[0].far.look("runs", now()) == 0


async def test_one_machine_that_loses_redis_keeps_to_what_it_has_let_through_itself(server: Redis) -> None:
    """A connection that was cut for a moment would be another minute's worth, whenever it happens."""
    rates = Rates(rpm=20, tpm=100)
    async with machines(server, 1) as (one,):
        assert sum([await one.begins(rates) for _ in range(25)]) == 20
        counted = await one.far.take_tokens("k", rates, 90, now())
        one.far.settle_tokens("k", counted, 90, 60, now())  # type: ignore[arg-type]
        one.link.give_up("it is cut")
        assert not await one.begins(rates)
        assert isinstance(await one.far.take_tokens("k", rates, 41, now()), Exceeded)
        assert isinstance(await one.far.take_tokens("k", rates, 40, now()), Counted)
        assert one.far.alone == 3
        await one.until(up=True)
        assert not await one.begins(rates)
        assert await one.far.look("k", now()) == 0
        assert one.far.left("k", rates, now())["tokens"].remaining == 0


async def test_a_clock_that_is_set_back_locks_nobody_out(server: Redis) -> None:
    """What lies ahead of the server's clock counts as of now: no more than the limit, and for a minute at most."""
    with server.client() as client:
        ahead = int(time.time()) + 3600
        client.hset("interlace:requests:k", mapping={str(ahead): 4, str(ahead + 1): 5})
        async with machines(server, 1) as (one,):
            assert await one.begins(Rates(rpm=10))
            refused = await one.far.begin("k", Rates(rpm=10), now())
            assert refused is not None
            assert (refused.used, refused.retry_after_seconds <= WINDOW_SECONDS + 1) == (10, True)
            assert len(client.hgetall("interlace:requests:k")) <= 2
            assert 0 < client.ttl("interlace:requests:k") <= WINDOW_SECONDS + 2


async def test_something_else_under_a_name_of_ours_hurts_one_key_only(server: Redis) -> None:
    """Another program's data, or damage: that key is counted here, all others there."""
    with server.client() as client:
        client.set("interlace:requests:bad", "x")
    async with machines(server, 1) as (one,):
        assert await one.begins(Rates(rpm=5), "bad")
        assert one.far.alone == 1
        assert one.link.up
        assert await one.begins(Rates(rpm=5), "good")
        assert one.far.alone == 1


async def test_a_password_is_in_no_log_and_no_message(
    server: Redis, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Logs go to more people than passwords do."""
    secret = "hunter2-quartz"
    port = server.port
    with caplog.at_level(logging.DEBUG):
        for url in (f"redis://:{secret}@127.0.0.1:{port}/0", f"rediss://u:{secret}@127.0.0.1:{port}/0"):
            link = RedisLink(url, "m-w1")
            keeping = asyncio.create_task(link.keep())
            await link.tried()
            assert not link.up
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            assert secret not in repr(link)
        with pytest.raises(ConfigError) as refused:
            RedisLink(f"http://:{secret}@x", "m-w1")
    said = json.dumps([{**record.__dict__, "msg": record.getMessage()} for record in caplog.records], default=str)
    assert "Redis is away" in said
    assert secret not in said + str(refused.value) + repr(refused.value.__cause__)


async def test_what_is_asked_together_is_sent_together(server: Redis) -> None:
    """One packet and one answer for each of many requests would be most of what they cost."""
    packets: list[bytes] = []

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", server.port)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, seen: bool) -> None:
            while data := await source.read(1 << 20):
                if seen:
                    packets.append(data)
                sink.write(data)
            sink.close()

        await asyncio.gather(
            pass_on(reader, back_writer, seen=True), pass_on(back_reader, writer, seen=False), return_exceptions=True
        )

    async with await asyncio.start_server(between, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        one = Machine(dataclasses.replace(server, port=port, process=None), "m-w1")
        await one.start()
        packets.clear()
        rates = Rates(rpm=100, tpm=1000, concurrency=50)
        asked = await asyncio.gather(
            *(one.far.begin(f"k{n}", rates, now()) for n in range(20)),
            *(one.far.take_tokens(f"k{n}", rates, 5, now()) for n in range(20)),
        )
        assert not any(isinstance(answer, Exceeded) for answer in asked)
        assert [packet.count(b"EVALSHA") for packet in packets if b"EVALSHA" in packet][:1] == [40]
        await one.die()


async def test_with_tls_and_a_user_that_may_do_no_more_than_the_docs_say(tmp_path: Path) -> None:
    """A right that is missing would be found by an operator, at night; a certificate of nobody's must not do."""
    rights = re.search(r"`(~interlace:[^`]+)`", (ROOT / "docs/how-to/postgresql.md").read_text())
    assert rights is not None
    identity, authority = pair(tmp_path), tmp_path / "authority.pem"
    identity.authority.cert_pem.write_to_path(str(authority))
    port = free_port()
    files = ("--tls-cert-file", str(identity.certificate), "--tls-key-file", str(identity.key))
    words = ("--tls-port", str(port), *files, "--tls-ca-cert-file", str(authority), "--tls-auth-clients", "no")
    secured = Redis(tmp_path, words=(*words, "--user", "interlace", "on", ">hunter2", *rights[1].split()))
    secured.start()
    try:
        url = f"rediss://interlace:hunter2@127.0.0.1:{port}/0"
        for address, trusted in ((url, False), (f"{url}?ssl_ca_certs={authority}", True)):
            link = RedisLink(address, "m-w1", timeout_seconds=5.0)
            far = RedisLimits(link, MappedLimits(area_file(tmp_path), 1, 0))
            breakers = RedisBreakers(link, lambda model: Breaker(model.breaker))
            breaker = breakers.breaker(ModelSettings(name="m", engine="anthropic", breaker=BreakerSettings(failures=1)))
            knows_answers(link)
            keeping = asyncio.create_task(link.keep())
            await link.tried()
            assert link.up == trusted
            if trusted:
                await _ask_everything(link, far, breaker)
                assert (link.up, link.losses, far.alone) == (True, 0, 0)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
    finally:
        secured.stop()


async def _ask_everything(link: RedisLink, far: RedisLimits, breaker: AnyBreaker) -> None:
    rates = Rates(rpm=5, tpm=50, concurrency=5)
    assert await far.begin("k", rates, now()) is None
    counted = await far.take_tokens("k", rates, 9, now())
    assert isinstance(counted, Counted)
    far.settle_tokens("k", counted, 9, 5, now())
    far.end("k")
    assert await far.look("k", now()) == 0
    breaker.failed()
    breaker.leave()
    await breaker.claim()
    breaker.succeeded()
    memory = RedisMemory(link, RouteSettings(name="r", models=(), reuse=ReuseSettings(seconds=60)), "d")
    kept = Kept("m", (Delta(index=0, text="zebra"),), Usage(1, 2))
    assert await memory.find(b"key") is None
    await memory.keep(b"key", kept)
    assert await memory.find(b"key") == kept
    for hook in link.beats:
        hook()
    await far.look("k", now())
