"""The fault matrix: every fault × streamed or not × one process or three, under load, and what must hold all the same.

`make faults` prints it as a table. Rows are in `tests/support/faults.py`, what must hold in `tests/support/storm.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.billing import Books, priced, tenants
from tests.support.faults import FAULTS, PROVIDED, Fault, Hands
from tests.support.installation import Installation, installation
from tests.support.provider import Provider, running_provider
from tests.support.served import until
from tests.support.stores import on_postgresql
from tests.support.storm import (
    HASTY_TENANT,
    PRICES,
    SCRIPTS,
    STEADY,
    STEADY_TENANT,
    TIGHT_CALLERS,
    TIGHT_TENANT,
    Payers,
    check_bills,
    check_limits,
    settled,
    storm_of,
)
from tests.support.surroundings import FAKETIME, FullDisk
from tests.support.surroundings import Hands as ClockHands
from tests.support.tenants import Tenant
from tests.support.tiny import tiny_llama_gguf

# Whoever hangs up while a connection is being made leaves a socket to the collector: the callers' library does.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

A_FEW = 3  # descriptors a process that may be open just then: a file that is read, a connection that is made
CELLS = 2 * sum(not fault.own for fault in FAULTS)  # that share an installation at most
BY_DAY = {  # and of those that share an installation, all with one process: a third of the matrix
    ("kill -9: worker", True, 3),
    ("kill -9: coordinator", False, 3),
    ("kill -9: all of them", True, 1),
    ("PostgreSQL: stopped", True, 3),
    ("Redis: paused", True, 3),
    ("provider: liar", False, 3),
    ("provider: hangs-mid", True, 3),
    ("provider: cuts", True, 3),
    ("caller: goes during", True, 3),
    ("caller: goes before", False, 3),
}


def _by_day(fault: Fault, *, stream: bool, processes: int) -> bool:
    return (fault.name, stream, processes) in BY_DAY or (not fault.own and processes == 1)


def _cells() -> Iterator[Any]:
    for fault in FAULTS:
        for stream in (True, False):
            for processes in (1, 3):
                shape = f"{'streamed' if stream else 'whole'}-{processes}"
                marks = [pytest.mark.nightly]
                if _by_day(fault, stream=stream, processes=processes):
                    marks = []
                if processes not in fault.only:
                    marks = [pytest.mark.nightly, pytest.mark.skip(reason=fault.why_only)]
                yield pytest.param(fault, stream, processes, id=f"{fault.name}-{shape}", marks=marks)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@contextlib.contextmanager
def _installed(
    folder: Path, provider: Provider, processes: int, *, cells: int = 1, local: bool = False, **more: Any
) -> Iterator[tuple[Installation, list[Payers]]]:
    """An installation of so many processes, and tenants for so many cells."""
    first = tenants(folder, *([STEADY_TENANT, TIGHT_TENANT, HASTY_TENANT] * cells))
    beside = tenants(folder, *({"beside": steady} for steady in first[::3]))
    payers = [Payers(*each) for each in zip(first[::3], beside, first[1::3], first[2::3], strict=True)]
    usual = {"engine": "openai", "base_url": provider.url}
    models = [{"name": name, "model": script, **usual} for name, script in SCRIPTS.items()]
    models += [{"name": one.name, "model": one.script or "none", **usual, **one.settings} for one in PROVIDED]
    prices = [*PRICES, *(priced(one.name, prompt=0) for one in PROVIDED)]
    if local:
        models.append({"name": "talker", "checkpoint": str(tiny_llama_gguf(folder / "tiny.gguf"))})
        prices.append(priced("talker", prompt=0))
    with installation(folder, models, prices=prices, workers=processes, **more) as there:
        yield there, payers


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Callable[[int], Any]]:
    """Installations for faults that are outside of them, by the number of processes; each cell has its own tenants."""
    made: dict[int, tuple[Installation, list[Payers]]] = {}
    with ExitStack() as stack:

        def of(processes: int) -> tuple[Installation, Payers]:
            if processes not in made:
                folder = tmp_path_factory.mktemp(f"shared-{processes}")
                made[processes] = stack.enter_context(_installed(folder, provider, processes, cells=CELLS))
            there, payers = made[processes]
            return there, payers.pop()

        yield of
        for there, _ in made.values():
            done = there.checked()
            assert done.returncode == 0, done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("fault", "stream", "processes"), list(_cells()))
async def test_cell(
    request: pytest.FixtureRequest, tmp_path: Path, provider: Provider, fault: Fault, stream: bool, processes: int
) -> None:
    """Whole answers are billed once, others are not charged, budgets and limits hold at every instant, and ordinary
    callers are answered again by themselves, with nothing left behind."""
    if not fault.own:
        there, payers = request.getfixturevalue("shared")(processes)
        await _blow_over(fault, Hands(), there, payers, provider, stream=stream, processes=processes)
        return
    with ExitStack() as stack:
        hands, more = _surroundings(request, tmp_path, fault, stack)
        local = fault.needs == "host"
        there, (payers,) = stack.enter_context(_installed(tmp_path, provider, processes, local=local, **more))
        await _blow_over(fault, hands, there, payers, provider, stream=stream, processes=processes)
        done = there.checked()
        assert done.returncode == 0, done.stdout


def _surroundings(
    request: pytest.FixtureRequest, folder: Path, fault: Fault, stack: ExitStack
) -> tuple[Hands, dict[str, Any]]:
    hands, more = Hands(), {}
    if fault.store == "postgresql":
        hands.postgresql = request.getfixturevalue("postgresql")
        stack.enter_context(on_postgresql(hands.postgresql))
    if fault.needs == "redis":
        hands.redis = request.getfixturevalue("redis_server")
        stack.callback(hands.redis.go_on)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("REDIS_URL", hands.redis.url)
        more["redis"] = {"url": "${REDIS_URL}"}
    if fault.needs == "disk":
        hands.disk = stack.enter_context(contextlib.closing(FullDisk(folder / "home", "32m")))
    if fault.needs == "clock":
        if FAKETIME is None:
            pytest.skip("faketime is not installed")
        hands.clock = Clock(ClockHands(folder))
        hands.clock.right()
        more["command"] = hands.clock.hands.command
    return hands, more


class Clock:
    """A clock in the middle of a month, so that an hour more or less is in the same one."""

    def __init__(self, hands: ClockHands) -> None:
        self.hands = hands
        self._offset = (15 - datetime.now(UTC).day) * 86400

    def right(self) -> None:
        """As it was at first."""
        self.hands.turn(self._offset)

    def back(self) -> None:
        """An hour less."""
        self.hands.turn(self._offset - 3600)


async def _blow_over(
    fault: Fault,
    hands: Hands,
    there: Installation,
    payers: Payers,
    provider: Provider,
    *,
    stream: bool,
    processes: int,
) -> None:
    books = Books(there.folder)
    ports = (int(provider.url.rpartition(":")[2].partition("/")[0]),)
    ports += tuple(server.port for server in (hands.postgresql, hands.redis) if server is not None)
    provider.most_of.clear()
    async with storm_of(there, provider, books, payers, stream=stream) as storm:
        storm.begin(all=False)
        await until(lambda: storm.whole_since(0) >= 2 * STEADY)
        await storm.end()
        await settled(there, processes)
        memory, descriptors = there.memory(), there.descriptors(*ports)
        storm.begin()
        await until(lambda: len(storm.of(payers.tight)) >= TIGHT_CALLERS)
        await fault.make(storm, hands)
        mended = time.monotonic()
        await until(lambda: storm.whole_since(mended) >= STEADY)
        took = time.monotonic() - mended
        await storm.end()
        assert took <= fault.seconds, f"ordinary callers were answered {took:.1f} s after the fault was over"
        await settled(there, processes)
        await storm.spend_the_rest()
    await settled(there, processes)
    check_bills(storm, fault.excused)
    _check_refusals(fault, storm.tries, {payers.steady, payers.tight, payers.hasty})
    check_limits(storm, shared=1, forgotten=fault.forgets)
    books.check()
    assert there.memory() < memory * 1.3 + processes * (32 << 20)
    await _until_no_more_than(descriptors + A_FEW * processes, lambda: there.descriptors(*ports))


async def _until_no_more_than(before: int, count: Callable[[], int]) -> None:
    """Descriptors are closed soon after what they were for."""
    deadline = time.monotonic() + 10
    while (now := count()) > before:
        assert time.monotonic() < deadline, f"{before} descriptors before, {now} after"
        await asyncio.sleep(0.1)


def _check_refusals(fault: Fault, tries: list[Any], ordinary: set[Tenant]) -> None:
    """Ordinary callers hear of a limit, of their budget, and of nothing else than the fault may bring."""
    usual = {(200, ""), (429, "insufficient_quota"), (429, "rate_limit_exceeded"), *fault.refuses}
    for one in tries:
        if one.who in ordinary:
            assert one.whole or (one.cut and fault.cuts) or one.refusal in usual - {(200, "")}, one
