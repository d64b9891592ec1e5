"""The ledger with its time and its disk in a test's hands: a clock that is turned, a loop that waits for nobody, and a
database whose commits are made, fail, or are cut off as the test says."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, TypeVar
from unittest import mock

from sqlalchemy import Engine, PoolProxiedConnection

from interlace.config import Settings
from interlace.ledger import Ledger, Registry, UsageEvent
from interlace.ledger import store as store_module
from interlace.ledger.clock import Calendar
from interlace.ledger.directory import Directory, KeyHasher
from interlace.ledger.escrow import Draws
from interlace.ledger.migrations import migrate
from interlace.ledger.store import Store
from interlace.ledger.writing import EventWriter, Write
from interlace.money import Micros

T = TypeVar("T")


@dataclass
class Hands:
    """A clock that stands still until it is moved."""

    micros: int
    seconds: float = 1000.0

    def now(self) -> Micros:
        """The time of day."""
        return Micros(self.micros)

    def monotonic(self) -> float:
        """Seconds that never run back."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.seconds += seconds
        self.micros += round(seconds * 1e6)


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop in the time of `Hands`: it runs what is ready, and never waits."""

    def __init__(self, hands: Hands) -> None:
        super().__init__()
        self._hands = hands

    def time(self) -> float:
        """The simulated seconds."""
        return self._hands.monotonic()

    def once(self) -> None:
        """Run what is ready now, and timers that are due."""
        self.call_soon(self.stop)
        self.run_forever()

    def turn(self) -> None:
        """Run until everything waits."""
        self.once()
        while self._ready:  # type: ignore[attr-defined]
            self.once()

    def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end; whenever everything waits, time leaps to the next timer."""
        task = self.create_task(work)
        self.turn()
        while not task.done():
            timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            assert timers, "everything waits, and for nothing"
            self._hands.advance(max(0.0, min(timers) - self.time()) + 1e-6)
            self.turn()
        return task.result()


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What work gives that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


class Fate(Enum):
    """What becomes of one commit."""

    COMMITTED = "it took place"
    FAILED = "it did not take place, and said so"
    UNKNOWN = "it took place, and said that it did not"
    CUT_OFF = "the process died before it took place"
    CUT_OFF_LATE = "the process died after it took place"


class Died(BaseException):
    """The process is dead."""


class _Paused(BaseException):
    """The writing thread would sleep now."""


class ScriptedStore(Store):
    """A real store on a database in memory, without its thread: `pump` does what the thread would."""

    def __init__(self) -> None:
        with mock.patch.object(store_module, "open_database", return_value=_database()):
            super().__init__("sqlite://")
        self._stuck: list[UsageEvent] = []  # at the head of the queue, after a commit that failed
        self._fates: deque[Fate] = deque()
        self._events = _FatedWriter(self.engine, self._fates)

    @property
    def stuck(self) -> bool:
        """Whether the last commit failed, and has not been made since."""
        return bool(self._stuck)

    @property
    def queued(self) -> int:
        """How many events are not written."""
        return len(self._stuck) + self._queue.qsize()

    def write(self, work: Any) -> Any:
        """At once: nobody else writes meanwhile."""
        with self.engine.begin() as connection:
            return work(connection)

    def pump(self, most: int, *fates: Fate) -> None:
        """Write up to so many events in one transaction, tried again until the fates are used up, the last of them
        for good. Raises `Died`."""
        events, self._stuck = self._stuck, []
        while len(events) < most and not self._queue.empty():
            item = self._queue.get()
            assert isinstance(item, UsageEvent)
            events.append(item)
        if not events:
            return
        self._fates.clear()
        self._fates.extend(fates)
        try:
            with (
                mock.patch.object(store_module, "RETRY_SECONDS", (0, 0)),
                mock.patch.object(store_module.time, "sleep", self._sleep),
            ):
                self._persist(events)
        except _Paused:
            self._stuck = events
        finally:
            self._fates.clear()

    def _sleep(self, _: float) -> None:
        if not self._fates:
            raise _Paused


class _FatedWriter(EventWriter):
    """Writes events for good, or as its fates say; all on one connection, which is the database."""

    def __init__(self, engine: Engine, fates: deque[Fate]) -> None:
        super().__init__(engine)
        self._fates = fates

    def write(
        self, events: list[UsageEvent], beside: Sequence[Write] = (), draws: Mapping[str, Draws] | None = None
    ) -> None:
        """As the real one, up to the commit."""
        if self._connection is None:
            self._connection = _FatedConnection(self._engine.raw_connection(), self._fates)  # type: ignore[assignment]
        super().write(events, beside, draws)


@dataclass
class _FatedConnection:
    """What the writer uses of a connection."""

    inner: PoolProxiedConnection
    fates: deque[Fate]

    def cursor(self) -> Any:
        return self.inner.cursor()

    def rollback(self) -> None:
        self.inner.rollback()

    def invalidate(self) -> None:
        self.inner.close()  # back into the pool: a database in memory is gone with its connection

    def commit(self) -> None:
        fate = self.fates.popleft() if self.fates else Fate.COMMITTED
        if fate in {Fate.COMMITTED, Fate.UNKNOWN, Fate.CUT_OFF_LATE}:
            self.inner.commit()
        if fate in {Fate.CUT_OFF, Fate.CUT_OFF_LATE}:
            raise Died
        if fate is not Fate.COMMITTED:
            raise sqlite3.OperationalError("database or disk is full")


@dataclass
class World:
    """A ledger's process, which can die, and the database, which stays."""

    settings: Settings
    hands: Hands
    loop: TurnedLoop = field(init=False)
    store: ScriptedStore = field(init=False)
    registry: Registry = field(init=False)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        _empty_ledger().backup(_driver(_database()))
        self._live()

    def _live(self) -> None:
        self.store = ScriptedStore()
        self.loop = TurnedLoop(self.hands)
        self.registry = Registry(
            self.store,
            self.store.read(Directory.load),
            KeyHasher(b"s" * 32),
            self.hands,
            Calendar(self.settings.ledger.time_zone),
            self.settings,
        )
        self.ledger = Ledger(self.registry)

    def die(self) -> None:
        """Whatever was in memory is gone; a new process opens what was committed."""
        self.end()
        self._live()

    def end(self) -> None:
        """Stop everything that runs, without letting it write."""
        self.store.record = lambda *_: None  # type: ignore[method-assign]
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.turn()
        for task in tasks:
            if not task.cancelled():
                task.exception()
        self.loop.close()


@cache
def _database() -> Engine:
    """One database for all worlds, one after the other: statements are compiled once."""
    return store_module.open_database("sqlite://")


@cache
def _empty_ledger() -> sqlite3.Connection:
    """A database with the schema, made once."""
    engine = store_module.open_database("sqlite://")
    with engine.begin() as connection:
        migrate(connection)
    return _driver(engine)


def _driver(engine: Engine) -> sqlite3.Connection:
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        connection.rollback()
        return driver


@contextmanager
def world(settings: Settings, hands: Hands) -> Iterator[World]:
    """A world, ended."""
    made = World(settings, hands)
    try:
        yield made
    finally:
        made.end()
