"""An older and a newer version of Interlace side by side on one database, while callers ask.

The newer one is a copy of this one with one more step of the schema. What the steps do, and in which order, is the rule
of decision 0018.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from interlace.ledger.migrations import HEAD, OLDEST
from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants, usd
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, until
from tests.support.serving import environment
from tests.support.stores import ledger_url, store_fixture
from tests.support.tenants import Tenant
from tests.support.versions import CONTRACT, EXPAND, NEXT, add_step, copied

store = store_fixture(sqlite=False)
pytestmark = pytest.mark.usefixtures("store")

ANSWER, MORE = 20, 80
COST = ANSWER * ANSWER_NANOS
BODY = {"model": "m", "max_tokens": ANSWER}
OURS = (sys.executable, "-m", "interlace")


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def newer(folder: Path, does: str, oldest: str = OLDEST) -> tuple[str, ...]:
    """The command of a version with one more step."""
    package, command = copied(folder)
    add_step(package, does, oldest)
    return command


def machine(
    folder: Path, provider: Provider, url: str, command: tuple[str, ...] = OURS
) -> AbstractContextManager[Served]:
    """An installation in that folder, on that database."""
    model = {"m": f"slow:{2 * ANSWER}"}
    return billing(
        folder, provider, model, prices=[priced("m", prompt=0)], workers=2, ledger={"url": url}, command=command
    )


def other_home(folder: Path) -> Path:
    """A folder for a second machine, which hashes keys as the first does."""
    other = folder / "other"
    (other / "home").mkdir(parents=True)
    shutil.copy(folder / "home" / "secret", other / "home" / "secret")
    return other


def step(url: str) -> str:
    """That the database is at."""
    with psycopg.connect(url) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])  # type: ignore[index]


class Traffic:
    """Callers of one machine, each asking again and again until it is told that the budget is spent."""

    def __init__(self, there: Served, who: Tenant, callers: int = 4) -> None:
        self.there, self.who = there, who
        self.every: list[Asked] = []
        self.over = False
        self.tasks = [asyncio.create_task(self._call()) for _ in range(callers)]

    async def _call(self) -> None:
        async with self.there.callers() as client:
            while not self.over:
                asked = Asked(BODY, self.who)
                self.every.append(asked)
                await asked.run(client)
                if not asked.whole:
                    return

    @property
    def whole(self) -> int:
        """How many have their answer."""
        return sum(asked.whole for asked in self.every)

    async def some(self, more: int = 12) -> None:
        """Wait until so many more have theirs, or somebody has not."""
        enough = self.whole + more
        await until(lambda: self.whole >= enough or any(task.done() for task in self.tasks))

    async def end(self) -> None:
        """Ask no more, and wait for what runs; raises what any caller met."""
        self.over = True
        await asyncio.gather(*self.tasks)


def budget(there: Served, who: Tenant, nanos: int | None = None) -> int:
    """That of a tenant's organisation as a machine knows it; set there first, if one is given."""
    url, admin = f"{there.url}/admin/v1/orgs/{who.organisation.id}", {"authorization": f"Bearer {there.key}"}
    if nanos is not None:
        body = {"budget_usd": usd(nanos)}
        assert httpx.patch(url, json=body, headers=admin, trust_env=False, timeout=60).is_success
    return int(httpx.get(url, headers=admin, trust_env=False, timeout=60).json()["budget_nanos"])


async def test_old_and_new_serve_side_by_side(tmp_path: Path, provider: Provider) -> None:
    """A step that the version before cannot live with would stop the machines that are not upgraded yet; a budget that
    the two do not share would be spent twice, or not to its end."""
    books = Books(tmp_path)
    (who,) = tenants(tmp_path, {"org_budget": 10**6 * COST})
    url, other = ledger_url(tmp_path / "home"), other_home(tmp_path)
    command = newer(tmp_path, EXPAND)
    with machine(tmp_path, provider, url) as old, ExitStack() as stack:
        at_old = Traffic(old, who)
        await at_old.some()
        assert step(url) == HEAD
        before = at_old.whole
        new = await asyncio.to_thread(stack.enter_context, machine(other, provider, url, command))
        assert step(url) == NEXT
        assert at_old.whole > before, "requests went on meanwhile"
        at_new = Traffic(new, who)
        await at_new.some()
        await at_old.some()
        for each in (at_old, at_new):
            await each.end()
            assert each.whole == len(each.every)
        for process in (old.coordinator(), old.workers()["w1"]):  # what starts now is of the old version
            assert process is not None
            process.kill()
            await until(lambda pid=process.pid: pid not in pids(old) and len(pids(old)) == 3)
        at_old = Traffic(old, who)
        await at_old.some()
        await at_old.end()
        end = books.spent(who) + MORE * COST
        assert await asyncio.to_thread(budget, old, who, end) == end
        while await asyncio.to_thread(budget, new, who) != end:
            await asyncio.sleep(0.05)
        at_old, at_new = Traffic(old, who), Traffic(new, who)
        await at_old.some(4)
        at_old.over = True
        old.process.terminate()
        await at_old.end()
        assert at_old.whole == len(at_old.every), "a drain finishes what runs"
        assert await asyncio.to_thread(old.process.wait, 60) == 0
        await asyncio.gather(*at_new.tasks)
        assert {asked.refusal for asked in at_new.every if not asked.whole} == {(429, "insufficient_quota")}
        assert at_old.whole + at_new.whole == MORE
        assert books.spent(who) == end
    books.check()
    checked = subprocess.run(
        [*OURS, "ledger", "check", "--config", str(tmp_path / "interlace.yaml")],
        env=environment(tmp_path / "home"), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def pids(there: Served) -> set[int]:
    """Of coordinator and workers."""
    found = (there.coordinator(), *there.workers().values())
    return {process.pid for process in found if process is not None}


def test_what_the_old_version_needs_is_not_taken_away_from_it(tmp_path: Path, provider: Provider) -> None:
    """A step that takes something away waits until no worker is left that may need it; afterwards the old version
    starts no more, and says why."""
    tenants(tmp_path, {})
    url, other = ledger_url(tmp_path / "home"), other_home(tmp_path)
    command = newer(tmp_path, CONTRACT, oldest=NEXT)
    with machine(tmp_path, provider, url) as old:
        with (
            pytest.raises(AssertionError, match=r"are not closed: .*-w1, .*-w2"),
            machine(other, provider, url, command),
        ):
            pass
        assert step(url) == HEAD
        assert old.ready()
    with machine(other, provider, url, command):
        assert step(url) == NEXT
        with pytest.raises(AssertionError, match=f"from step '{NEXT}' on"), machine(tmp_path, provider, url):
            pass


def test_a_version_that_is_left_behind_finishes_and_leaves(tmp_path: Path, provider: Provider) -> None:
    """It began in the moment in which the database was changed, or its workers were closed by an operator: it must
    not go on writing what nobody understands any more."""
    (who,) = tenants(tmp_path, {})
    url = ledger_url(tmp_path / "home")
    with machine(tmp_path, provider, url) as old:

        async def left_behind() -> Asked:
            async with old.callers() as client:
                asked = Asked({**BODY, "stream": True}, who)
                task = asyncio.create_task(asked.run(client))
                await until(lambda: asked.answer.events)
                with psycopg.connect(url) as connection:
                    connection.execute("UPDATE alembic_version SET version_num = '9999'")
                    connection.execute("UPDATE facts SET value = '9999' WHERE name = 'oldest'")
                return await task

        assert asyncio.run(left_behind()).whole
        assert old.process.wait(60) == 2
        assert "from step '9999' on" in old.log
