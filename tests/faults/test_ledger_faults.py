"""What the ledger survives: `kill -9`, SIGTERM, a second server, a disk that is full, and a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently, until
from tests.support.serving import COMMAND, environment
from tests.support.stores import PostgreSQL, ledger_url, on_both, only_postgresql, only_sqlite
from tests.support.surroundings import FAKETIME, FilesCannotGrow, FullDisk, Hands

pytestmark = pytest.mark.usefixtures("store")

WORKS = ("instant:5", "slow:3", "slow:25", "slow:60")  # at five milliseconds a word


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


# --- kill -9 -----------------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize(
    "kills", [8, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])], ids=lambda n: f"{n} kills"
)
async def test_kill_9_under_load_loses_no_answer_and_bills_none_twice(
    tmp_path: Path, provider: Provider, kills: int
) -> None:
    """Were the last byte sent before the commit, an answer would be free; were a request written again after the
    restart, it would be paid twice; were holds written down, the cut ones would stay."""
    chance, books = random.Random(kills), Books(tmp_path)
    every: list[Asked] = []
    for _ in range(kills):
        with billing(tmp_path, provider, WORKS) as there:
            _check_billed(books, provider, every)
            every += await _killed_under_load(there, chance)
    with billing(tmp_path, provider, WORKS):
        _check_billed(books, provider, every)
    ends = Counter((asked.streams, asked.whole) for asked in every)
    assert all(ends[streams, whole] >= kills for streams in (False, True) for whole in (False, True)), ends


async def _killed_under_load(there: Served, chance: random.Random) -> list[Asked]:
    """What was asked of a server until it was killed."""
    every: list[Asked] = []

    async def ask_on_and_on(client: httpx.AsyncClient) -> None:
        while True:
            every.append(Asked({"model": chance.choice(WORKS), "stream": chance.random() < 0.5}))
            await every[-1].run(client)

    async with there.callers() as client:
        asking = [asyncio.create_task(ask_on_and_on(client)) for _ in range(24)]
        await until(lambda: any(asked.whole for asked in every))
        await asyncio.sleep(chance.uniform(0.05, 0.3))
        there.process.kill()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert {isinstance(end, httpx.TransportError) for end in ends} == {True}, ends
    assert {asked.refusal for asked in every} <= {(200, ""), (0, "")}
    return every


def _check_billed(books: Books, provider: Provider, every: list[Asked]) -> None:
    """Whole answers are billed once, as their callers were told; others at most once, for no more than was made."""
    books.check()
    found = books.by_tag()
    assert found.keys() <= {asked.tag for asked in every}
    assert len(books.events()) == sum(map(len, found.values()))
    for asked in every:
        events = found.get(asked.tag, [])
        assert len(events) <= 1
        for event in events:
            assert event["completion_tokens"] <= provider.said[asked.tag]
        if asked.whole:
            (event,) = events
            assert (event["id"], event["outcome"]) == (asked.id, "finished")
            assert (event["prompt_tokens"], event["completion_tokens"]) == asked.usage


async def test_kill_9_while_the_first_start_makes_the_ledger(tmp_path: Path, provider: Provider) -> None:
    """A ledger that was left half made could not be opened again, or would have made two first keys."""
    for number, wait in enumerate((0, 0.02, 0.06)):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = folder / "c.yaml"
        url = ledger_url(folder / "home")
        ledger = f"ledger: {{url: '{url}'}}" if url else "ledger: {}"
        models = "models: [{name: m, engine: openai, base_url: 'http://127.0.0.1:1/v1', model: m}]"
        config.write_text(f"{{port: 0, {ledger}, {models}}}")
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(config)],
            env=environment(folder / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        patiently((folder / "home" / ("secret" if url else "ledger.db")).exists)
        time.sleep(wait)
        process.kill()
        process.wait()
        with billing(folder, provider, ["instant:5"]) as there:
            assert (await _asked(there, Asked({"model": "instant:5"}))).whole
        books = Books(folder)
        books.check()
        assert len(books.rows("SELECT * FROM api_keys")) == len(books.events()) == 1


# --- the end of a server, and the next ---------------------------------------------------------------------------


async def test_sigterm_lets_requests_finish_and_the_next_start_finds_them(tmp_path: Path, provider: Provider) -> None:
    """A budget that forgot over a restart what was spent before would be overspent after it."""
    cost = 60 * ANSWER_NANOS  # each prompt is free, so that a hold is what the answer will cost
    (who,) = tenants(tmp_path, {"org_budget": 21 * cost, "project_budget": 21 * cost, "key_budget": 21 * cost})
    prices = [priced(name, prompt=0) for name in WORKS]
    every = [Asked({"model": "slow:60", "max_tokens": 60, "stream": i % 2 == 0}, who) for i in range(20)]
    with billing(tmp_path, provider, WORKS, prices=prices) as there:
        async with there.callers() as client:
            asking = [asyncio.create_task(asked.run(client)) for asked in every]
            await until(lambda: all(provider.said[asked.tag] for asked in every))
            there.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*asking)
        assert there.process.wait(20) == 0
    books = Books(tmp_path)
    books.check()
    assert [books.of(asked)["id"] for asked in every] == [asked.id for asked in every]
    assert (books.spent(who), len(books.events())) == (20 * cost, 20)
    with billing(tmp_path, provider, WORKS, prices=prices) as there:
        last = [await _asked(there, Asked({"model": "slow:60", "max_tokens": 60}, who)) for _ in range(2)]
    assert [asked.answer.status for asked in last] == [200, 429]
    assert books.spent(who) == 21 * cost
    books.check()


async def test_a_second_server_on_one_home_is_refused_and_the_first_goes_on(tmp_path: Path, provider: Provider) -> None:
    """Two bookkeepers over one budget would spend it twice; and a lock that outlives its holder would keep everybody
    out after a crash."""
    with billing(tmp_path, provider, WORKS) as first:
        for _ in range(3):
            config = tmp_path / "interlace.yaml"  # its port is 0, so the port is not what stands in the way
            second = subprocess.run(
                [*COMMAND, "serve", "--config", str(config)],
                env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert second.returncode == 2
            assert "Another Interlace has the ledger in" in second.stderr
            assert "Traceback" not in second.stderr
            assert (await _asked(first, Asked({"model": "instant:5"}))).whole
        first.process.kill()
        began = time.monotonic()
        with billing(tmp_path, provider, WORKS) as next_one:
            assert time.monotonic() - began < 15, "it waited for the dead one"
            assert (await _asked(next_one, Asked({"model": "instant:5"}))).whole
    books = Books(tmp_path)
    books.check()
    assert len(books.events()) == 4


# --- no room -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[FullDisk, FilesCannotGrow])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Where the home will be, and how it runs out of room."""
    with contextlib.closing(request.param(tmp_path / "home")) as disk:
        yield disk


@only_sqlite
async def test_a_full_disk_stops_new_work_and_loses_nothing(tmp_path: Path, provider: Provider, disk: Any) -> None:
    """A gateway that went on would give away what it cannot record; one that dropped the events would bill too little;
    one that died would take everybody along."""
    await _stops_new_work_and_loses_nothing(tmp_path, provider, disk)


class Stopped:
    """The PostgreSQL server is not there."""

    readable = False

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server

    def fill(self, _: Served) -> None:
        """Nothing answers."""
        self.server.stop(signal.SIGQUIT)

    def free(self, _: Served) -> None:
        """It is back."""
        self.server.start()


class ReadOnly(Stopped):
    """It answers, and takes nothing."""

    readable = True

    def fill(self, _: Served) -> None:
        """No transaction may write."""
        self.server.read_only(True)

    def free(self, _: Served) -> None:
        """They may."""
        self.server.read_only(False)


@only_postgresql
@pytest.mark.parametrize("how", [Stopped, ReadOnly])
async def test_a_server_that_is_away_stops_new_work_and_loses_nothing(
    tmp_path: Path, provider: Provider, how: type[Stopped], postgresql: PostgreSQL
) -> None:
    """As a full disk does; and the gateway finds it again by itself."""
    await _stops_new_work_and_loses_nothing(tmp_path, provider, how(postgresql), words=400)


async def _stops_new_work_and_loses_nothing(tmp_path: Path, provider: Provider, disk: Any, words: int = 60) -> None:
    books = Books(tmp_path)
    with billing(tmp_path, provider, [*WORKS, "slow:400"]) as there:
        before = await _asked(there, Asked({"model": "instant:5"}))
        running = [Asked({"model": f"slow:{words}", "stream": i % 2 == 0}) for i in range(12)]
        leaving = [Asked({"model": f"slow:{words}", "stream": i % 2 == 0}) for i in range(4)]
        async with there.callers() as client:
            asking = [asyncio.create_task(asked.run(client)) for asked in running]
            gone = [asyncio.create_task(asked.run(client)) for asked in leaving]
            await until(lambda: all(provider.said[asked.tag] for asked in running + leaving))
            disk.fill(there)
            for task in gone:
                task.cancel()
            await until(lambda: there.logged("the ledger cannot write"))
            await until(lambda: all(provider.said[asked.tag] == words for asked in running))
            await asyncio.sleep(0.3)
            if getattr(disk, "readable", True):
                _check_waiting(books, running)
            for stream in (False, True, False):
                refused = await Asked({"model": "instant:5", "stream": stream}).run(client)
                assert refused.refusal == (503, "ledger_unavailable")
                assert int(refused.answer.headers["retry-after"]) >= 1
            assert there.get("/healthz").status_code == httpx.codes.OK
            disk.free(there)
            await asyncio.gather(*asking)
            await until(lambda: there.logged("the ledger can write again"))
            after = await Asked({"model": "instant:5"}).run(client)
            while after.refusal == (503, "ledger_unavailable"):  # workers hear of it a moment after it is logged
                after = await Asked({"model": "instant:5"}).run(client)
        assert there.process.poll() is None
        await until(lambda: there.metric("interlace_requests_running") == 0)
        assert len(there.logged("the ledger cannot write")) == 1, "once, not at every try"
    books.check()
    for asked in [before, *running, after]:
        event = books.of(asked)
        assert asked.whole
        assert (event["id"], event["outcome"], event["completion_tokens"]) == (asked.id, "finished", asked.usage[1])
    for asked in leaving:
        event = books.of(asked)
        assert event["outcome"] == "client_gone"
        assert asked.words <= event["completion_tokens"] <= provider.said[asked.tag]
    assert len(books.events()) == 2 + len(running) + len(leaving)


def _check_waiting(books: Books, running: list[Asked]) -> None:
    """Some are not answered yet, and those that are were written down first, while there still was room."""
    there = books.by_tag().keys()
    whole = {asked.tag for asked in running if asked.whole}
    assert whole <= there, "an answer ended before its event could be written"
    assert len(whole) < len(running)


@only_sqlite
@pytest.mark.parametrize("disk", [FullDisk], indirect=True)
async def test_the_end_on_a_full_disk_comes_soon_and_tells_what_could_not_be_written(
    tmp_path: Path, provider: Provider, disk: Any
) -> None:
    """A server that never ended would be killed, and then nobody would know what was not billed."""
    books = Books(tmp_path)
    running = [Asked({"model": "slow:25", "stream": i % 2 == 0}) for i in range(6)]
    with billing(tmp_path, provider, WORKS, drain_seconds=1) as there:
        async with there.callers() as client:
            asking = [asyncio.create_task(asked.run(client)) for asked in running]
            await until(lambda: all(provider.said[asked.tag] for asked in running))
            disk.fill(there)
            await until(lambda: there.logged("the ledger cannot write"))
            there.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*asking, return_exceptions=True)
        assert there.process.wait(30) == 0
        told = [usage for line in there.log_lines() if line["level"] == "critical" for usage in line["usage"]]
    _check_waiting(books, running)
    assert {tag for usage in told for tag in usage["tags"]} | books.by_tag().keys() == {a.tag for a in running}
    assert len(told) + len(books.events()) == len(running)
    books.check()


# --- the clock ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
async def test_a_request_is_billed_to_the_month_that_admitted_it(tmp_path: Path, provider: Provider) -> None:
    """Over the end of a month, and when the clock is set back into one that seemed over, each month's budget pays for
    what began in it, and none is overspent."""
    hands, books = Hands(tmp_path), Books(tmp_path)
    cost = 60 * ANSWER_NANOS  # each prompt is free
    (who,) = tenants(tmp_path, {"org_budget": 3 * cost})
    prices = [priced(name, prompt=0) for name in WORKS]
    body = {"model": "slow:60", "max_tokens": 60}
    hands.set("2026-01-31 23:59:59")
    with billing(tmp_path, provider, WORKS, prices=prices, command=hands.command) as there:
        async with there.callers() as client:

            async def all_at(moment: str, count: int) -> list[Asked]:
                hands.set(moment)
                return await asyncio.gather(*(Asked(body, who).run(client) for _ in range(count)))

            over = [Asked({**body, "stream": i == 0}, who) for i in range(2)]
            asking = [asyncio.create_task(asked.run(client)) for asked in over]
            await until(lambda: all(provider.said[asked.tag] for asked in over))
            new = await all_at("2026-02-01 00:00:01", 5)
            await asyncio.gather(*asking)
            back = await all_at("2026-01-31 12:00:00", 3)
            again = await all_at("2026-02-28 23:59:59", 1)
            later = await all_at("2026-03-01 00:00:00", 1)
    books.check()
    days = {asked.tag: books.of(asked)["day"] for asked in [*over, *new, *back, *later] if asked.whole}
    assert [days[asked.tag] for asked in over] == ["2026-01-31"] * 2, "whoever began in January pays in January"
    assert Counter((a.answer.status, days.get(a.tag)) for a in new) == {(200, "2026-02-01"): 3, (429, None): 2}
    assert Counter((a.answer.status, days.get(a.tag)) for a in back) == {(200, "2026-01-31"): 1, (429, None): 2}
    assert [asked.answer.status for asked in again] == [429]
    assert [days[asked.tag] for asked in later] == ["2026-03-01"]
    spent = {row["month"]: row["spent_nanos"] for row in books.rows("SELECT * FROM balances WHERE scope = 'org'")}
    assert spent == {"2026-01": 3 * cost, "2026-02": 3 * cost, "2026-03": cost}
    for asked in [*over, *back]:
        if asked.whole:
            assert books.of(asked)["latency_us"] >= 0


# --- asking ------------------------------------------------------------------------------------------------------


async def _asked(there: Served, asked: Asked) -> Asked:
    """One request on a connection of its own."""
    async with there.callers() as client:
        return await asked.run(client)
