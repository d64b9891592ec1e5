"""The store on real SQLite: many events to a commit, none lost while a disk is full or a process is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select, text

from interlace.errors import LedgerUnavailable
from interlace.ledger import Registry, UsageEvent, read_events
from interlace.ledger import store as store_module
from interlace.ledger.audit import audit
from interlace.ledger.database import sqlite_url
from interlace.ledger.schema import usage_events
from interlace.ledger.store import BATCH, Store
from tests.conftest import ROOT
from tests.support.gateway_thread import wait_for
from tests.support.ledgers import open_ledger, record, used
from tests.support.stores import ledger_url, only_sqlite
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A real ledger."""
    with open_ledger(tmp_path) as opened:
        yield opened


@dataclass
class Told:
    """What the writing thread said is durable, and how many commits it took."""

    ids: list[str] = field(default_factory=list)
    commits: int = 0

    @classmethod
    def of(cls, store: Store) -> Told:
        """From now on."""
        told = cls()

        def durable(events: Sequence[UsageEvent]) -> None:
            told.commits += 1
            told.ids += [usage.id for usage in events]

        store.durable = durable
        return told


def recorded(registry: Registry) -> list[UsageEvent]:
    """What the database has."""
    return registry.store.read(lambda connection: list(read_events(connection)))


def is_right(registry: Registry) -> bool:
    """Whether the auditor finds nothing."""
    return registry.store.read(lambda connection: list(audit(connection))) == []


def fresh(registry: Registry, who: Tenant, count: int) -> list[UsageEvent]:
    """So many different events."""
    one = used(registry, who, tags=("a", "b"))
    return [msgspec.structs.replace(one, id=used(registry, who).id) for _ in range(count)]


# --- group commit ------------------------------------------------------------------------------------------------


def test_many_events_share_a_commit(registry: Registry) -> None:
    """A commit, and so an fsync, for each request would let a disk bound the traffic."""
    told, events = Told.of(registry.store), fresh(registry, tenant(registry), 3000)
    for usage in events:
        registry.store.record(usage)
    wait_for(lambda: len(told.ids) == len(events))
    assert told.ids == [usage.id for usage in events], "durable in the order of their settlement"
    assert len(events) / BATCH <= told.commits < len(events) / 10
    assert {usage.id for usage in recorded(registry)} == set(told.ids)
    assert is_right(registry)


@only_sqlite
def test_what_is_committed_is_synced(registry: Registry) -> None:
    """Without it a power cut takes what callers were told is billed."""
    with registry.store.engine.connect() as connection:
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_events_from_many_threads_all_arrive(registry: Registry) -> None:
    """`record` is called from wherever a request ends."""
    told, who = Told.of(registry.store), tenant(registry)
    shares = [fresh(registry, who, 200) for _ in range(4)]
    threads = [threading.Thread(target=lambda share=share: list(map(registry.store.record, share))) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: len(told.ids) == 800)
    assert is_right(registry)


def test_an_event_that_is_there_changes_nothing(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A request billed twice: in one commit, in two, or before and after a restart."""
    who = tenant(registry)
    first, second = fresh(registry, who, 2)
    told = Told.of(registry.store)
    for usage in (first, first, second, first):
        registry.store.record(usage)
    wait_for(lambda: len(told.ids) == 4)
    record(registry, first, msgspec.structs.replace(second, cost_nanos=999))
    assert [usage.id for usage in recorded(registry)] == [first.id, second.id]
    assert [one for one in caplog.records if one.name.startswith("interlace")] == [], "told of as a loss"
    assert is_right(registry)


# --- trouble -----------------------------------------------------------------------------------------------------


POISON = {
    "beyond 64 bits": {"cost_nanos": 2**63},
    "nothing at all": {"engine": None},
    "a surrogate": {"model": "\ud800"},
}


@pytest.mark.parametrize("what", POISON)
def test_an_event_that_cannot_be_written_holds_no_other_up(
    registry: Registry, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad value must not end the billing of everybody, nor vanish without a line that has all of it."""
    told, events = Told.of(registry.store), fresh(registry, tenant(registry), 30)
    bad = msgspec.structs.replace(events[7], **POISON[what])
    events[7] = bad
    for usage in events:
        registry.store.record(usage)
    wait_for(lambda: len(told.ids) == 30)
    assert {usage.id for usage in recorded(registry)} == {usage.id for usage in events} - {bad.id}
    (line,) = [line for line in caplog.records if line.levelname == "CRITICAL"]
    assert line.fields["usage"][0]["id"] == bad.id  # type: ignore[attr-defined]
    record(registry, *fresh(registry, tenant(registry), 3))
    assert is_right(registry)


def test_who_is_told_and_fails_stops_no_writing(registry: Registry) -> None:
    """An event loop that closes just then must not take the writing thread with it."""
    who = tenant(registry)

    def fail(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    registry.store.durable = fail
    registry.store.record(used(registry, who))
    wait_for(lambda: len(recorded(registry)) == 1)
    record(registry, used(registry, who))
    assert len(recorded(registry)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass
    return filler


@only_sqlite
def test_a_full_disk_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is full nothing is said to be durable and `trouble` says why; once there is room, all of it is written,
    once, and in order."""
    monkeypatch.setattr(store_module, "WRITE_SECONDS", 0.2)
    with open_ledger(small_disk) as registry:
        store, who = registry.store, tenant(registry)
        told = Told.of(store)
        for _ in range(2):  # it may happen again
            filler, events = fill(small_disk), []
            told.ids.clear()
            while not store.trouble:  # the files have some room of their own
                events += fresh(registry, who, 200)
                for usage in events[-200:]:
                    store.record(usage)
                _until_told_or_in_trouble(store, told, len(events))
            assert "full" in store.trouble
            with pytest.raises(LedgerUnavailable) as refused:
                store.write(lambda connection: connection.execute(text("CREATE TABLE x (y)")))
            assert refused.value.retry_after_seconds
            assert len(told.ids) < len(events)
            assert set(told.ids) <= {usage.id for usage in recorded(registry)}, "said to be durable while it is not"
            filler.unlink()
            _until_told_or_in_trouble(store, told, len(events), patient=True)
            assert told.ids == [usage.id for usage in events]
            assert store.trouble is None
            assert is_right(registry)


def _until_told_or_in_trouble(store: Store, told: Told, count: int, *, patient: bool = False) -> None:
    wait_for(lambda: len(told.ids) == count or (store.trouble and not patient))


@only_sqlite
def test_a_database_locked_by_another_is_waited_for(registry: Registry, tmp_path: Path) -> None:
    """A backup that holds the lock for long delays events; it loses none."""
    told, who = Told.of(registry.store), tenant(registry)
    with sqlite3.connect(tmp_path / "ledger.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        registry.store.record(used(registry, who))
        threading.Event().wait(0.2)
        assert told.ids == []
        other.execute("COMMIT")
    other.close()
    wait_for(lambda: len(told.ids) == 1)


# --- the end -----------------------------------------------------------------------------------------------------


def test_closing_writes_the_rest(tmp_path: Path) -> None:
    """What was settled just before a server stops is in the bill."""
    with open_ledger(tmp_path) as registry:
        who = tenant(registry)
        events = fresh(registry, who, 2000)
        for usage in events:
            registry.store.record(usage)
    with open_ledger(tmp_path) as registry:
        assert {usage.id for usage in recorded(registry)} == {usage.id for usage in events}
        assert is_right(registry)


def test_closing_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A server on a dead disk can still be stopped; what it could not write is in its log, to the last token."""
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.3)
    with open_ledger(tmp_path) as registry:
        who = tenant(registry)
        registry.store.write(lambda connection: connection.execute(text("ALTER TABLE usage_events RENAME TO gone")))
        usage = used(registry, who)
        registry.store.record(usage)
        wait_for(lambda: registry.store.trouble)
    (line,) = [line for line in caplog.records if line.levelname == "CRITICAL"]
    assert line.fields["usage"] == [msgspec.to_builtins(usage)]  # type: ignore[attr-defined]


def test_work_that_fails_is_undone_and_told(registry: Registry) -> None:
    """An operation that raises half-way leaves nothing, and the next is not its victim."""

    def work(connection: Any) -> None:
        connection.execute(text("DELETE FROM prices"))
        raise LookupError("half-way")

    with pytest.raises(LookupError, match="half-way"):
        registry.store.write(work)
    assert registry.store.read(lambda connection: connection.scalar(text("SELECT count(*) FROM prices"))) > 0


def test_reading_sees_one_moment(registry: Registry) -> None:
    """A report made while requests settle must add up: rows and balances of one instant."""
    who = tenant(registry)
    record(registry, *fresh(registry, who, 10))

    def look(connection: Any) -> tuple[int, int]:
        count = select(func.count()).select_from(usage_events)
        first = connection.scalar(count)
        record(registry, *fresh(registry, who, 10))
        return first, connection.scalar(count)

    assert registry.store.read(look) == (10, 10)
    assert len(recorded(registry)) == 20


WRITER = """
import sys, itertools
from pathlib import Path
from interlace.config import LedgerSettings
from tests.support.ledgers import open_ledger, used
from tests.support import tenants


tenants._numbers = itertools.count(1000 * int(sys.argv[2]))
with open_ledger(Path(sys.argv[1]), ledger=LedgerSettings(url=sys.argv[3])) as registry:
    who = tenants.tenant(registry)
    registry.store.durable = lambda events: print(*(usage.id for usage in events), sep="\\n", flush=True)
    first = int(sys.argv[2])
    for number in itertools.count():
        registry.store.record(used(registry, who, id=f"{first}-{number}"))
"""


def test_killed_while_it_writes_it_loses_nothing_that_was_durable(tmp_path: Path) -> None:
    """kill -9 at any moment: what was reported durable is there, once, and the record is whole."""
    reported: set[str] = set()
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(life), ledger_url(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(100 * (life + 1))]
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        whole = {line.strip() for line in lines if line.endswith("\n")}
        assert len(whole) >= 100
        reported |= whole
        with open_ledger(tmp_path) as registry:
            ids = [usage.id for usage in recorded(registry)]
            assert len(ids) == len(set(ids))
            assert reported <= set(ids)
            assert is_right(registry)


@only_sqlite
def test_a_path_with_odd_characters_is_a_path(tmp_path: Path) -> None:
    """A home folder may be called anything."""
    place = tmp_path / "a b#c?d%20é"
    place.mkdir()
    with open_ledger(place) as registry:
        record(registry, used(registry, tenant(registry)))
        assert sqlite_url(place / "ledger.db") == registry.store.url
    assert (place / "ledger.db").exists()
