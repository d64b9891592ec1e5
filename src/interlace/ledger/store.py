"""The ledger's database: one writing thread, group commits, and reads beside it.

    record(event) ──┐
    record(event) ──┼── one transaction: events, tags, balances ── COMMIT (synced) ── durable(events)
    record(event) ──┘

What is queued is written in order, many events to a transaction. Events that cannot be written (a full disk) stay at
the head of the queue and are tried again until there is room; meanwhile `trouble` says why, and nothing is lost while
the process lives. SQLite by default (WAL, synced at every commit); every statement is plain SQLAlchemy, so PostgreSQL
is another URL; what it needs beyond is in `postgresql`.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from sqlalchemy import URL, Connection, Engine, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)

from interlace.errors import InvalidRequest, LedgerUnavailable
from interlace.ledger import postgresql as pg
from interlace.ledger.database import open_database
from interlace.ledger.escrow import Draws
from interlace.ledger.events import UsageEvent
from interlace.ledger.schema import usage_events
from interlace.ledger.writing import EventWriter, PlainWrite, Write

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH = 512  # events to a transaction at most
BUSY_SECONDS = 0.005  # from one commit to the next: then others are likely to come at once
GATHER_SECONDS = 0.001  # that a commit waits for them
GATHER_FROM = 4  # requests that may settle meanwhile
RETRY_SECONDS = (0.05, 1.0)  # the first pause after a failed commit, and the longest

CLOSE_SECONDS = 5.0  # how long closing tries to write what is left
SILENT_SECONDS = 5.0  # how long one commit may take before nothing new is taken on
WRITE_SECONDS = 15.0  # how long other work waits for its turn, and so for a database in trouble

_NOT_THE_DATABASE = (DataError, IntegrityError, ProgrammingError, NotSupportedError)
"""What a statement's own values cause: trying again would not mend it."""


class Store:
    """An open database. `record` and `write` may be called from any thread; `read` runs on the caller's.

    `durable` is called on the writing thread with the events that a commit has just made last.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = url
        self.trouble: str | None = None
        self.engine = open_database(url)
        self._reads: dict[str, Any] = pg.READS if self.engine.dialect.name == "postgresql" else {"reads": True}
        self.durable: Callable[[Sequence[UsageEvent]], None] = lambda _: None
        self._events = EventWriter(self.engine)
        self._beside: dict[str, tuple[Write | PlainWrite, ...]] = {}  # by the id of an event that is queued
        self._draws: dict[str, Draws] = {}  # likewise
        self._queue: queue.SimpleQueue[UsageEvent | Job | _Stop] = queue.SimpleQueue()
        self.soon: Callable[[], int] = lambda: 0  # how many events may come soon
        self._committed_at = -math.inf  # monotonic seconds
        self._busy_since: float | None = None  # monotonic seconds: with what the writing thread does now
        self._give_up_at = math.inf  # monotonic seconds; once closed, writing has an end
        self._writer = threading.Thread(target=self._write_all, name="ledger-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def close(self) -> None:
        """Write what is queued, as far as that is possible within `CLOSE_SECONDS`, and close."""
        self._give_up_at = time.monotonic() + CLOSE_SECONDS
        self._queue.put(_Stop())
        if self._writer.is_alive():
            self._writer.join(timeout=2 * CLOSE_SECONDS)
        self.engine.dispose()

    # --- writing -------------------------------------------------------------------------------------------------

    def record(
        self, usage: UsageEvent, beside: tuple[Write | PlainWrite, ...] = (), draws: Draws | None = None
    ) -> None:
        """Queue a usage event; never raises, never waits. One whose id is there already changes nothing, and what is
        to be written `beside` it, or it `draws` from leases, was written with it then."""
        if beside:
            self._beside[usage.id] = beside
        if draws is not None and draws.nanos:
            self._draws[usage.id] = draws
        self._queue.put(usage)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own on the writing thread, and wait for it. What it raises undoes it.

        Raises `LedgerUnavailable` when the database cannot write, or its turn does not come within `WRITE_SECONDS`, and
        `InvalidRequest` for a value that it cannot hold.
        """
        job = Job(work)
        self._submit(job)
        try:
            result: T = job.future.result(WRITE_SECONDS)
        except TimeoutError:
            if job.future.cancel():
                raise _unavailable("write", self.trouble or "too much waits to be written") from None
            result = job.future.result()  # it has begun
        except DBAPIError as error:
            raise _told("write", error) from error
        return result

    def _submit(self, job: Job) -> None:
        self._queue.put(job)

    @property
    def unable(self) -> str | None:
        """Why nothing can be recorded now: the last try failed, or the database has not answered for long."""
        since = self._busy_since
        if self.trouble is None and since is not None and time.monotonic() - since > SILENT_SECONDS:
            return "the database does not answer"
        return self.trouble

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection that sees one moment of the database and writes nothing.

        Raises `LedgerUnavailable` where the database cannot be read, and `InvalidRequest` for a value it cannot hold.
        """
        try:
            with self._reading() as connection:
                return work(connection)
        except DBAPIError as error:
            raise _told("be read", error) from error

    def _reading(self) -> Connection:
        return self.engine.connect().execution_options(**self._reads)

    # --- the writing thread ----------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            self._busy_since = None
            events, other = self._take()
            self._busy_since = time.monotonic()
            if events:
                self._persist(events)
            if isinstance(other, Job):
                other.run(self.engine)
            elif isinstance(other, _Stop):
                self._events.close()
                return

    def _take(self) -> tuple[list[UsageEvent], Job | _Stop | None]:
        """What is queued, in order: events up to the first other thing, and that. Waits for something to come."""
        events: list[UsageEvent] = []
        item = self._queue.get()
        if time.monotonic() - self._committed_at < BUSY_SECONDS and self.soon() >= GATHER_FROM:
            time.sleep(GATHER_SECONDS)  # a commit costs as much as a dozen events in it
        while isinstance(item, UsageEvent):
            events.append(item)
            if len(events) == BATCH or self._queue.empty():
                return events, None
            item = self._queue.get()
        return events, item

    def _persist(self, events: list[UsageEvent]) -> None:
        """Commit events, however long that takes; gives up only when closed."""
        pause, longest = RETRY_SECONDS
        new = {usage.id: usage for usage in events}
        looked = False
        while True:
            try:
                if looked:  # whether the commit that failed took place is not known
                    self._leave_out_what_is_there(new)
                self._events.write(list(new.values()), self._beside_of(new), self._draws_of(new))
                break
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody would be billed without this thread
                if self._events.is_our_fault(error):
                    if looked:
                        return self._persist_singly(events, error)
                elif time.monotonic() > self._give_up_at:
                    return self._lost(events, error)
                else:
                    self._in_trouble(error)
                    time.sleep(pause)
                    pause = min(2 * pause, longest)
                looked = True
        self._committed_at = time.monotonic()
        if self.trouble:
            log.warning("the ledger can write again")
            self.trouble = None
        return self._tell(events)

    def _beside_of(self, ids: Iterable[str]) -> list[Write | PlainWrite]:
        return [write for id in ids for write in self._beside.get(id, ())] if self._beside else []

    def _draws_of(self, ids: Iterable[str]) -> dict[str, Draws]:
        return {id: draws for id in ids if (draws := self._draws.get(id))} if self._draws else {}

    def _tell(self, events: list[UsageEvent]) -> None:
        for kept in (self._beside, self._draws):
            if kept:
                for usage in events:
                    kept.pop(usage.id, None)
        try:
            self.durable(events)
        except Exception:
            log.exception("whoever waits for usage events could not be told that they are durable")

    def _leave_out_what_is_there(self, new: dict[str, UsageEvent]) -> None:
        there = select(usage_events.c.id).where(usage_events.c.id.in_(list(new)))
        with self._reading() as connection:
            for id in connection.scalars(there).all():
                del new[id]

    def _persist_singly(self, events: list[UsageEvent], error: Exception) -> None:
        """One of several cannot be written, whatever we do: the others must not suffer for it."""
        if len(events) == 1:
            self._lost(events, error)
            return self._tell(events)  # its caller need not wait for ever
        for usage in events:
            self._persist([usage])
        return None

    def _lost(self, events: list[UsageEvent], error: Exception) -> None:
        fields = {"error": _cause(error), "usage": [msgspec.to_builtins(usage) for usage in events]}
        log.critical("usage events could not be written; this line is all there is of them", extra={"fields": fields})

    def _in_trouble(self, error: Exception) -> None:
        if self.trouble is None:
            log.error("the ledger cannot write", extra={"fields": {"error": _cause(error)}})
        self.trouble = _shown(error)


class Job:
    """Other work for the writing thread, in its turn."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def run(self, engine: Engine) -> None:
        """Do it, in a transaction of its own."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            with engine.begin() as connection:
                result = self.work(connection)
        except Exception as error:  # noqa: BLE001 - belongs to whoever asked
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Stop:
    """The last thing in the queue."""


# --- errors -----------------------------------------------------------------------------------------------------------


def _told(verb: str, error: DBAPIError) -> Exception:
    """What a failed statement is to whoever asked for it: the error itself where the statement is wrong."""
    if isinstance(error, DataError):
        return InvalidRequest(
            f"The database cannot hold a value of this request: {_shown(error)}", code="invalid_value"
        )
    if isinstance(error, _NOT_THE_DATABASE) and not pg.caused_by_server(error.orig):
        return error
    return _unavailable(verb, _shown(error))


def _unavailable(verb: str, cause: str) -> LedgerUnavailable:
    return LedgerUnavailable(f"The ledger cannot {verb} now: {cause}. Try again soon.", retry_after_seconds=5)


def _shown(error: Exception) -> str:
    """What callers are told of it: no address and no name of a database of its own."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    return pg.shown(driver) or _cause(error)


def _cause(error: Exception) -> str:
    """The driver's own words: SQLAlchemy's would quote statement and values."""
    if isinstance(error, SQLAlchemyError):
        return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
    return str(error)
