"""What is forgotten, and what must not be: details go, sums stay, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from interlace.config import LedgerSettings
from interlace.ledger import Registry, Retention, UsageEvent, read_events
from interlace.ledger import retention as retention_module
from interlace.ledger.audit import audit
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.operations.tenants import Erasure, ProjectNamed
from interlace.ledger.retention import erase_project
from interlace.money import Micros
from tests.support.gateway_thread import wait_for
from tests.support.ledgers import open_ledger, record, used
from tests.support.serving import environment
from tests.support.simulation import Hands
from tests.support.stores import ledger_url
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")

NOON = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z
DAY = 86_400 * 10**6
TAG = "customer:zebra-quartz"


@pytest.fixture
def hands() -> Hands:
    """A clock to turn; prices were written down long before."""
    return Hands(NOON - 3000 * DAY)


@pytest.fixture
def registry(tmp_path: Path, hands: Hands) -> Iterator[Registry]:
    """A ledger that keeps details for thirty days, at first."""
    settings = LedgerSettings(details_days=30)
    with open_ledger(tmp_path, clock=hands, ledger=settings) as opened:
        hands.micros = NOON
        yield opened


def happened(registry: Registry, who: Tenant, days_ago: int, count: int = 1) -> list[UsageEvent]:
    """Events of some days ago."""
    began = registry.clock.now() - days_ago * DAY
    events = [used(registry, who, started_us=began, tags=(TAG, "x")) for _ in range(count)]
    record(registry, *events)
    return events


def kept(registry: Registry) -> dict[str, bool]:
    """Which events have their details still: all of them or none."""
    found = {}
    for event in registry.store.read(lambda connection: list(read_events(connection))):
        details = (event.endpoint, event.latency_us, event.first_token_us)
        assert (details == (None, None, None)) == (event.tags == ())
        found[event.id] = event.tags != ()
    return found


def sums(registry: Registry) -> list[tuple[object, ...]]:
    """All that is billed."""
    events = registry.store.read(lambda connection: list(read_events(connection)))
    return [(e.id, e.key_id, e.model, e.outcome, e.tokens, e.cost_nanos, e.day, e.started_us) for e in events]


def is_right(registry: Registry) -> bool:
    """Whether the auditor finds nothing, not even a notice."""
    return registry.store.read(lambda connection: list(audit(connection))) == []


def test_details_go_after_their_days_and_sums_stay(registry: Registry) -> None:
    """Thirty days are thirty days, and a bill is a bill."""
    who = tenant(registry)
    (old,), (edge,), (new,) = (happened(registry, who, days) for days in (31, 30, 0))
    before = sums(registry)
    assert Retention(registry).sweep() == 1
    assert kept(registry) == {old.id: False, edge.id: True, new.id: True}
    assert sums(registry) == before
    assert is_right(registry)


def test_each_day_takes_one_more(registry: Registry, hands: Hands) -> None:
    """A server that runs for months forgets day by day, and does not look at everything each time."""
    who, retention = tenant(registry), Retention(registry)
    events = [happened(registry, who, days)[0] for days in (31, 30, 29)]
    assert [retention.sweep(), retention.sweep()] == [1, 0]
    hands.micros += DAY
    assert [retention.sweep(), retention.sweep()] == [1, 0]
    assert kept(registry) == {events[0].id: False, events[1].id: False, events[2].id: True}
    assert is_right(registry)


def test_without_the_setting_nothing_goes(tmp_path: Path, hands: Hands) -> None:
    """What nobody asked to be forgotten stays."""
    with open_ledger(tmp_path, clock=hands) as registry:
        (event,) = happened(registry, tenant(registry), 1000)
        assert Retention(registry).sweep() == 0
        assert kept(registry) == {event.id: True}


def test_many_events_go_in_small_transactions(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction over a million rows would hold up every settlement; a stop is heeded between two."""
    monkeypatch.setattr(retention_module, "BATCH", 10)
    monkeypatch.setattr(retention_module, "PAGE", 35)
    happened(registry, tenant(registry), 40, count=100)
    sizes: list[int] = []
    empty, retention = retention_module._empty, Retention(registry)

    def counted(connection, ids) -> None:
        sizes.append(len(ids))
        empty(connection, ids)
        if len(sizes) == 4:
            retention.stop.set()

    monkeypatch.setattr(retention_module, "_empty", counted)
    assert retention.sweep() == sum(sizes) == 35
    retention.stop.clear()
    assert retention.sweep() == 65
    assert max(sizes) == 10
    assert set(kept(registry).values()) == {False}


def test_requests_settle_while_it_works(registry: Registry) -> None:
    """An event that is settled meanwhile is durable at once, not after everything is forgotten."""
    who = tenant(registry)
    happened(registry, who, 40, count=3000)
    sweeping = threading.Thread(target=Retention(registry).sweep)
    sweeping.start()
    for _ in range(20):
        happened(registry, who, 0)
    sweeping.join()
    assert sorted(kept(registry).values()) == [False] * 3000 + [True] * 20
    assert is_right(registry)


# --- erasure -----------------------------------------------------------------------------------------------------


def test_an_erased_project_keeps_its_sums_and_nothing_else(registry: Registry, tmp_path: Path) -> None:
    """Others keep theirs; the words are gone from the files too, not only from the tables."""
    gone, other = tenant(registry), tenant(registry)
    theirs, ours = happened(registry, gone, 3, count=700), happened(registry, other, 3)
    before = sums(registry)
    assert erase_project(registry, gone.project.id) == 700
    assert kept(registry) == {event.id: False for event in theirs} | {ours[0].id: True}
    assert sums(registry) == before
    assert registry.directory.projects[gone.project.id].erased_at == registry.clock.now()
    assert is_right(registry)
    erase_project(registry, other.project.id)
    registry.close()
    for file in tmp_path.glob("ledger.db*"):
        assert TAG.encode() not in file.read_bytes(), file


def test_a_request_that_ran_meanwhile_is_erased_later(registry: Registry, hands: Hands) -> None:
    """It began before the erasure and settled after it; the next sweep finds it. What begins later stays."""
    who = tenant(registry)
    began = registry.clock.now() - 60 * 10**6
    erase_project(registry, who.project.id)
    late = used(registry, who, started_us=began, tags=("t",))
    hands.micros += 10**6
    later = used(registry, who, tags=("t",))
    record(registry, late, later)
    assert not is_right(registry)
    assert Retention(registry).sweep() == 1
    assert kept(registry) == {late.id: False, later.id: True}
    assert is_right(registry)


def test_the_verb_says_what_it_did(registry: Registry) -> None:
    """Who erases wants to see how much, and that a second time there is nothing left."""
    who = tenant(registry)
    happened(registry, who, 1, count=3)
    operation = OPERATIONS["projects.erase"]
    given = ProjectNamed(project=who.project.id)
    first = operation.run(registry, given)
    assert first == Erasure(
        id=who.project.id, name="p", org=who.organisation.name, erased_at="2026-01-31T12:00:00Z", erased_events=3
    )
    assert operation.run(registry, given).erased_events == 0


# --- a running server --------------------------------------------------------------------------------------------


async def test_it_keeps_going_when_the_ledger_cannot_write(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk for an hour must not end retention for good; and being cancelled ends it at once."""
    from interlace.errors import LedgerUnavailable

    monkeypatch.setattr(retention_module, "EVERY_SECONDS", 0.01)
    happened(registry, tenant(registry), 40)
    write, refusals = registry.store.write, iter(range(2))

    def full(work):
        if next(refusals, None) is not None:
            raise LedgerUnavailable("The ledger cannot write now: database or disk is full.")
        return write(work)

    monkeypatch.setattr(registry.store, "write", full)
    task = asyncio.create_task(Retention(registry).keep())
    async with asyncio.timeout(10):
        while True in kept(registry).values():
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "database or disk is full" in caplog.text


def test_a_server_does_it_by_itself(tmp_path: Path) -> None:
    """`ledger.details_days` in interlace.yaml is enough."""

    class Earlier:
        def now(self) -> Micros:
            return Micros(NOON)

        def monotonic(self) -> float:
            return 0.0

    with open_ledger(tmp_path, clock=Earlier()) as registry:
        happened(registry, tenant(registry), 0)
    config = tmp_path / "interlace.yaml"
    far = {"name": "far", "engine": "openai", "base_url": "http://127.0.0.1:9", "model": "m"}
    config.write_text(
        yaml.safe_dump({"port": 0, "models": [far], "ledger": {"details_days": 7, "url": ledger_url(tmp_path)}})
    )
    command = [sys.executable, "-m", "interlace", "serve", "--config", str(config)]
    with subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if b"details of old usage events erased" in line)
            assert b'"events": 1' in line or b'"events":1' in line
        finally:
            process.terminate()
            assert process.wait(30) == 0
    with open_ledger(tmp_path) as registry:
        assert set(kept(registry).values()) == {False}
        wait_for(lambda: is_right(registry))
