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
from tests.support.served import patiently, until
from tests.support.versions import EXPAND, NEXT, add_step, copied

MODEL = "slow:10"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


async def test_an_upgrade_in_place_turns_nobody_away(tmp_path: Path, provider: Provider) -> None:
    """The port stays open; what runs is finished by the old version, and what comes meanwhile is answered by the new
    one. A package that cannot be run is left alone."""
    books = Books(tmp_path)
    package, command = copied(tmp_path)
    with billing(tmp_path, provider, [MODEL], workers=2, command=command) as there:
        every: list[Asked] = []
        over = False

        async def call(kept: int) -> None:
            limits = httpx.Limits(max_keepalive_connections=kept)
            key = {"authorization": f"Bearer {there.key}"}
            async with httpx.AsyncClient(
                base_url=there.url, headers=key, limits=limits, trust_env=False, timeout=90
            ) as client:
                while not over:
                    every.append(asked := Asked({"model": MODEL, "max_tokens": 10}))
                    await asked.run(client)
                    assert asked.whole, asked.answer

        def whole() -> int:
            return sum(asked.whole for asked in every)

        def now() -> set[int]:
            return {process.pid for process in (there.coordinator(), *there.workers().values()) if process is not None}

        tasks = [asyncio.create_task(call(n % 2)) for n in range(6)]
        before = now()
        await until(lambda: whole() >= 12)
        broken = package / "gateway" / "app.py"
        good = broken.read_text()
        broken.write_text("half a fi")
        there.process.send_signal(signal.SIGUSR2)
        await until(lambda: there.logged("the version that is installed now cannot take over"))
        assert now() == before
        broken.write_text(good)
        add_step(package, EXPAND)
        there.process.send_signal(signal.SIGUSR2)
        await until(lambda: len(now()) == 3 and not now() & before)
        so_far = whole()
        await until(lambda: whole() >= so_far + 12)
        over = True
        await asyncio.gather(*tasks)
        patiently(there.ready)
        assert there.process.poll() is None
        assert books.rows("SELECT version_num FROM alembic_version") == [{"version_num": NEXT}]
        assert len({event["id"] for event in books.events()}) == len(every)
    books.check()
