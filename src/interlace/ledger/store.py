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

import contextlib
import logging
import math
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from sqlalchemy import URL, Connection, Dialect, Engine, PoolProxiedConnection, insert, select
from sqlalchemy.dialects import postgresql, sqlite
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
from interlace.ledger.bank import DRAW, DRAW_NAMES, mark_fenced
from interlace.ledger.book import AccountKey
from interlace.ledger.database import open_database
from interlace.ledger.escrow import Draws
from interlace.ledger.events import UsageEvent
from interlace.ledger.schema import balances, event_tags, usage_events

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH = 512  # events to a transaction at most
RETRY_SECONDS = (0.05, 1.0)  # the first pause after a failed commit, and the longest

CLOSE_SECONDS = 5.0  # how long closing tries to write what is left
WRITE_SECONDS = 15.0  # how long other work waits for its turn, and so for a database in trouble

_NOT_THE_DATABASE = (DataError, IntegrityError, ProgrammingError, NotSupportedError)
"""What a statement's own values cause: trying again would not mend it."""


@dataclass(frozen=True, slots=True)
class Write:
    """A statement, kept for the life of the process, and values for its parameters: to be done together with a usage
    event, in its transaction, or not at all."""

    statement: Any
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlainWrite:
    """The same, as the database's driver takes it: it may come from another process."""

    sql: str
    values: Any


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
        self._events = _EventWriter(self.engine)
        self._beside: dict[str, tuple[Write | PlainWrite, ...]] = {}  # by the id of an event that is queued
        self._draws: dict[str, Draws] = {}  # likewise
        self._queue: queue.SimpleQueue[UsageEvent | Job | _Stop] = queue.SimpleQueue()
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
            events, other = self._take()
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


# --- events ------------------------------------------------------------------------------------------------------


class _EventWriter:
    """Writes events, and what they add to balances, all or nothing, on a connection of its own.

    Statements are compiled once and run by the driver itself: this is the hot path, and SQLAlchemy's own way took
    twice the time. For the writing thread only.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        dialect = engine.dialect
        self._dbapi: Any = dialect.loaded_dbapi
        self._begin = "BEGIN IMMEDIATE" if dialect.name == "sqlite" else None  # others begin by themselves
        self._add_events = _Statement(insert(usage_events), _EVENT_COLUMNS, dialect)
        self._add_tags = _Statement(insert(event_tags), ("event_id", "tag"), dialect)
        self._add_to_balances = _Statement(_balance_upsert(dialect.name), _BALANCE_COLUMNS, dialect)
        self._draw = _Statement(DRAW, DRAW_NAMES, dialect, insert=False)
        self._others: dict[Any, Any] = {}  # statements of what is written beside, compiled
        self._connection: PoolProxiedConnection | None = None

    def is_our_fault(self, error: Exception) -> bool:
        """Whether a statement's own values cause it (an integer beyond 64 bits, text that is no text, an id that is
        there), so that trying again would not mend it."""
        if (ours := pg.caused_by_values(error)) is not None:
            return ours
        names = ("DataError", "IntegrityError", "ProgrammingError", "NotSupportedError")
        classes = tuple(getattr(self._dbapi, name) for name in names)
        return isinstance(error, (*classes, ArithmeticError, ValueError, TypeError))

    def write(
        self,
        events: list[UsageEvent],
        beside: Sequence[Write | PlainWrite] = (),
        draws: Mapping[str, Draws] | None = None,
    ) -> None:
        """One transaction; raises the driver's errors, and then nothing is known of the commit.

        What an event draws goes from its worker's leases to what is spent, so that their sum stays. Where the worker
        is closed, its leases are gone: what it did is recorded all the same, and what is then beyond a budget is marked
        as overrun.
        """
        if not events:
            return
        try:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            cursor = self._connection.cursor()
            if self._begin:
                cursor.execute(self._begin)
            self._add_to_balances.run(cursor, _balance_rows(events))
            if draws and self._draw.run(cursor, rows := _draw_rows(draws.values())) < len(rows):
                events = mark_fenced(self._joined(), events, draws)
            self._add_events.run(cursor, [_row(usage) for usage in events])
            if tags := [(usage.id, tag) for usage in events for tag in usage.tags]:
                self._add_tags.run(cursor, tags)
            for write in beside:
                one = plain(write, self._engine.dialect, self._others)
                cursor.execute(one.sql, one.values)
            self._connection.commit()
        except BaseException:
            self.close()
            raise

    def _joined(self) -> Connection:
        """The same connection and transaction, for what is rare: never to be closed."""
        return Connection(self._engine, connection=self._connection).execution_options(joins=True)

    def close(self) -> None:
        """Let go of the connection, and with it of what was not committed: it must not keep the database locked."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # one that is broken cannot be rolled back
                connection.rollback()
            connection.invalidate()


def plain(write: Write | PlainWrite, dialect: Dialect, compiled: dict[Any, Any]) -> PlainWrite:
    """The write as the driver takes it; `compiled` keeps what was compiled before."""
    if isinstance(write, PlainWrite):
        return write
    statement = compiled.get(write.statement)
    if statement is None:
        statement = compiled[write.statement] = write.statement.compile(dialect=dialect)
    values = statement.construct_params(write.values)
    order = statement.positiontup
    return PlainWrite(str(statement), values if order is None else tuple(values[name] for name in order))


class _Statement:
    """A statement compiled once, for many rows at a time, in the driver's own style."""

    def __init__(self, statement: Any, names: tuple[str, ...], dialect: Dialect, *, insert: bool = True) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=names if insert else None)
        self._sql = str(compiled)
        self._names = names
        order = compiled.positiontup
        assert order is None or tuple(order) == names, "values are given in the order of the columns"
        self._positional = order is not None

    def run(self, cursor: Any, rows: list[tuple[Any, ...]]) -> int:
        """Run it for each row; returns how many rows that made or changed."""
        if self._positional:
            cursor.executemany(self._sql, rows)
        else:
            cursor.executemany(self._sql, [dict(zip(self._names, row, strict=True)) for row in rows])
        return int(cursor.rowcount)


_EVENT_COLUMNS = tuple(usage_events.columns.keys())
_BALANCE_COLUMNS = tuple(balances.columns.keys())


def _row(usage: UsageEvent) -> tuple[Any, ...]:
    """In the order of the table's columns, which a test compares by reading events back."""
    tokens = usage.tokens
    return (
        usage.id,
        usage.org_id,
        usage.project_id,
        usage.key_id,
        usage.model,
        usage.engine,
        usage.outcome.value,
        usage.price_id,
        tokens.prompt,
        tokens.cached,
        tokens.cache_write,
        tokens.completion,
        tokens.reasoning,
        tokens.embedding,
        tokens.cache_write_1h,
        usage.cost_nanos,
        usage.overrun_nanos,
        usage.estimated,
        usage.disputed,
        usage.batch,
        usage.day,
        usage.started_us,
        usage.route,
        msgspec.json.encode(usage.attempts).decode() if usage.attempts else None,
        usage.endpoint,
        usage.latency_us,
        usage.first_token_us,
        None if usage.attempt_us is None else msgspec.json.encode(usage.attempt_us).decode(),
    )


def _balance_rows(events: Iterable[UsageEvent]) -> list[tuple[Any, ...]]:
    """What the events add to each account: one row an account, in a fixed order, so that writers never deadlock."""
    sums: defaultdict[AccountKey, list[int]] = defaultdict(lambda: [0, 0])
    for usage in events:
        month, cost = usage.month, usage.cost_nanos
        payers = ("org", usage.org_id, month), ("project", usage.project_id, month), ("key", usage.key_id, month)
        for account in payers:
            both = sums[account]
            both[0] += cost
            both[1] += 1
    return [(*account, *both) for account, both in sorted(sums.items())]


def _draw_rows(draws: Iterable[Draws]) -> list[tuple[Any, ...]]:
    """What the events take from each lease: one row a lease, in a fixed order."""
    sums: defaultdict[tuple[str, int, str, str, str], int] = defaultdict(int)
    for one in draws:
        for account, nanos in one.nanos:
            sums[(one.worker.id, one.worker.epoch, *account)] += nanos
    return [(nanos, *lease) for lease, nanos in sorted(sums.items())]


def _balance_upsert(dialect: str) -> Any:
    """`INSERT ... ON CONFLICT DO UPDATE`, adding to what is there."""
    module: Any = postgresql if dialect == "postgresql" else sqlite
    statement = module.insert(balances)
    return statement.on_conflict_do_update(
        index_elements=[balances.c.scope, balances.c.scope_id, balances.c.month],
        set_={
            "spent_nanos": balances.c.spent_nanos + statement.excluded.spent_nanos,
            "requests": balances.c.requests + statement.excluded.requests,
        },
    )


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
