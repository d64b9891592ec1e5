"""A version that is installed in place takes over from the one that runs, on SIGUSR2, while callers ask."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.billing import Asked, Books, billing
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently, until
from tests.support.versions import EXPAND, NEXT, add_step, copied

MODEL, LONG = "slow:10", "slow:500"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


class Crowd:
    """Callers who ask again and again, half of them on new connections; none of them may fail."""

    def __init__(self, there: Served, callers: int = 6) -> None:
        self.there = there
        self.every: list[Asked] = []
        self.over = False
        self.tasks = [asyncio.create_task(self._call(n % 2)) for n in range(callers)]

    async def _call(self, kept: int) -> None:
        limits = httpx.Limits(max_keepalive_connections=kept)
        key = {"authorization": f"Bearer {self.there.key}"}
        async with httpx.AsyncClient(
            base_url=self.there.url, headers=key, limits=limits, trust_env=False, timeout=90
        ) as client:
            while not self.over:
                self.every.append(asked := Asked({"model": MODEL, "max_tokens": 10}))
                await asked.run(client)
                assert asked.whole, asked.answer

    @property
    def whole(self) -> int:
        """How many have their answer."""
        return sum(asked.whole for asked in self.every)

    async def some(self, more: int = 12) -> None:
        """Wait until so many more have theirs; raises what any caller met."""
        enough = self.whole + more
        await until(lambda: self.whole >= enough or any(task.done() for task in self.tasks))

    async def end(self) -> None:
        """Ask no more; raises what any caller met."""
        self.over = True
        await asyncio.gather(*self.tasks)


def processes(there: Served) -> set[int]:
    """Of coordinator and workers."""
    found = (there.coordinator(), *there.workers().values())
    return {process.pid for process in found if process is not None}


async def test_an_upgrade_in_place_turns_nobody_away(tmp_path: Path, provider: Provider) -> None:
    """The port stays open; what runs is finished by the old version, and what comes meanwhile is answered by the new
    one. A package that cannot be run is left alone."""
    books = Books(tmp_path)
    package, command = copied(tmp_path)
    with billing(tmp_path, provider, [MODEL], workers=2, command=command) as there:
        crowd, before = Crowd(there), processes(there)
        await crowd.some()
        broken = package / "gateway" / "app.py"
        good = broken.read_text()
        broken.write_text("half a fi")
        there.process.send_signal(signal.SIGUSR2)
        await until(lambda: there.logged("the version that is installed now cannot take over"))
        assert processes(there) == before
        broken.write_text(good)
        add_step(package, EXPAND)
        there.process.send_signal(signal.SIGUSR2)
        await until(lambda: len(processes(there)) == 3 and not processes(there) & before)
        await crowd.some()
        await crowd.end()
        patiently(there.ready)
        assert there.process.poll() is None
        assert books.rows("SELECT version_num FROM alembic_version") == [{"version_num": NEXT}]
        assert len({event["id"] for event in books.events()}) == len(crowd.every)
    books.check()


async def test_workers_are_replaced_one_after_the_other(tmp_path: Path, provider: Provider) -> None:
    """While one drains, which a long answer makes last, its successor serves already: nobody waits for it, and at no
    time are there fewer workers than there shall be."""
    books = Books(tmp_path)
    with billing(tmp_path, provider, [MODEL, LONG], workers=2) as there:
        crowd = Crowd(there)
        async with there.callers() as client:
            for names in ({"w1b", "w2b"}, {"w1", "w2"}):
                long = [Asked({"model": LONG, "stream": True}) for _ in range(4)]
                running = [asyncio.create_task(asked.run(client)) for asked in long]
                await until(lambda long=long: all(asked.answer.events for asked in long))
                coordinator = there.coordinator()
                there.process.send_signal(signal.SIGUSR1)
                await until(lambda: len(there.workers()) == 3)
                fewest = len(there.workers())

                def replaced(names: set[str] = names) -> bool:
                    nonlocal fewest
                    there_now = set(there.workers())
                    fewest = min(fewest, len(there_now))
                    return there_now == names

                await until(replaced)
                assert fewest == 2
                assert there.coordinator() == coordinator
                await crowd.some()
                await asyncio.gather(*running)
                assert all(asked.whole for asked in long)
        await crowd.end()
        assert len(books.events()) == len(crowd.every) + 8
    books.check()
