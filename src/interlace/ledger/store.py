"""The ledger's database: one writing thread, group commits, and reads beside it.

    record(event) ──┐
    record(event) ──┼── one transaction: events, tags, balances ── COMMIT (synced) ── durable(events)
    record(event) ──┘

What is queued is written in order, many events to a transaction. Events that cannot be written (a full disk) stay at
the head of the queue and are tried again until there is room; meanwhile `trouble` says why, and nothing is lost while
the process lives. SQLite by default (WAL, synced at every commit); every statement is plain SQLAlchemy, so PostgreSQL
is another URL.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, bindparam, create_engine, event, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)

from interlace.errors import LedgerUnavailable
from interlace.ledger.book import AccountKey
from interlace.ledger.events import UsageEvent
from interlace.ledger.schema import balances, event_tags, usage_events

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH = 512  # events to a transaction at most
RETRY_SECONDS = (0.05, 1.0)  # the first pause after a failed commit, and the longest

CLOSE_SECONDS = 5.0  # how long closing tries to write what is left
WRITE_SECONDS = 15.0  # how long other work waits for its turn, and so for a database in trouble

_NOT_THE_DATABASE = (DataError, IntegrityError, ProgrammingError, NotSupportedError)
"""What a statement's own values cause: trying again would not mend it. So with whatever is no error of SQLAlchemy's,
such as SQLite's `OverflowError` for a number beyond 64 bits."""


class Store:
    """An open database. `record` and `write` may be called from any thread; `read` runs on the caller's.

    `durable` is called on the writing thread with the events that a commit has just made last.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.trouble: str | None = None
        self.engine = _engine(url)
        self.durable: Callable[[Sequence[UsageEvent]], None] = lambda _: None
        self._upsert = _balance_upsert(self.engine.dialect.name)
        self._queue: queue.SimpleQueue[UsageEvent | _Job | _Stop] = queue.SimpleQueue()
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

    def record(self, usage: UsageEvent) -> None:
        """Queue a usage event; never raises, never waits. One whose id is there already changes nothing."""
        self._queue.put(usage)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own on the writing thread, and wait for it. What it raises undoes it.

        Raises `LedgerUnavailable` when the database cannot write, or its turn does not come within `WRITE_SECONDS`.
        """
        job = _Job(work)
        self._queue.put(job)
        try:
            result: T = job.future.result(WRITE_SECONDS)
        except TimeoutError:
            if job.future.cancel():
                raise _unavailable("write", self.trouble or "too much waits to be written") from None
            result = job.future.result()  # it has begun
        except DBAPIError as error:
            if isinstance(error, _NOT_THE_DATABASE):
                raise
            raise _unavailable("write", _cause(error)) from error
        return result

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection that sees one moment of the database and writes nothing.

        Raises `LedgerUnavailable` where the database cannot be read.
        """
        try:
            with self.engine.connect().execution_options(reads=True) as connection:
                return work(connection)
        except DBAPIError as error:
            raise _unavailable("be read", _cause(error)) from error

    # --- the writing thread ----------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            events, other = self._take()
            if events:
                self._persist(events)
            if isinstance(other, _Job):
                other.run(self.engine)
            elif isinstance(other, _Stop):
                return

    def _take(self) -> tuple[list[UsageEvent], _Job | _Stop | None]:
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
        look_first = False
        while True:
            try:
                with self.engine.begin() as connection:
                    self._insert(events, connection, look_first=look_first)
                break
            except Exception as error:  # noqa: BLE001 - without this thread nothing is written any more, for anybody
                if isinstance(error, _NOT_THE_DATABASE) or not isinstance(error, SQLAlchemyError):
                    if look_first:
                        return self._persist_singly(events, error)
                elif time.monotonic() > self._give_up_at:
                    return self._lost(events, error)
                else:
                    self._in_trouble(error)
                    time.sleep(pause)
                    pause = min(2 * pause, longest)
                look_first = True
        if self.trouble:
            log.warning("the ledger can write again")
            self.trouble = None
        return self.durable(events)

    def _persist_singly(self, events: list[UsageEvent], error: Exception) -> None:
        """One of several cannot be written, whatever we do: the others must not suffer for it."""
        if len(events) == 1:
            self._lost(events, error)
            return self.durable(events)  # its caller need not wait for ever
        for usage in events:
            self._persist([usage])
        return None

    def _lost(self, events: list[UsageEvent], error: Exception) -> None:
        fields = {"error": _cause(error), "usage": [msgspec.to_builtins(usage) for usage in events]}
        log.critical("usage events could not be written; this line is all there is of them", extra={"fields": fields})

    def _in_trouble(self, error: SQLAlchemyError) -> None:
        if self.trouble is None:
            log.error("the ledger cannot write", extra={"fields": {"error": _cause(error)}})
        self.trouble = _cause(error)

    def _insert(self, events: Sequence[UsageEvent], connection: Connection, *, look_first: bool) -> None:
        """Write events and what they add to balances, all or nothing.

        After a commit that failed it is not known whether it took place: then those that are there are left out.
        """
        new = {usage.id: usage for usage in events}
        if look_first:
            there = select(usage_events.c.id).where(usage_events.c.id.in_(list(new)))
            for id in list(connection.scalars(there)):
                del new[id]
        if not new:
            return
        connection.execute(insert(usage_events), [_row(usage) for usage in new.values()])
        if tags := [{"event_id": usage.id, "tag": tag} for usage in new.values() for tag in usage.tags]:
            connection.execute(insert(event_tags), tags)
        connection.execute(self._upsert, _balance_rows(new.values()))


class _Job:
    """Other work for the writing thread, in its turn."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def run(self, engine: Engine) -> None:
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


# --- rows --------------------------------------------------------------------------------------------------------


def _row(usage: UsageEvent) -> dict[str, Any]:
    tokens = usage.tokens
    return {
        "id": usage.id,
        "org_id": usage.org_id,
        "project_id": usage.project_id,
        "key_id": usage.key_id,
        "model": usage.model,
        "engine": usage.engine,
        "outcome": usage.outcome.value,
        "price_id": usage.price_id,
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "cache_write_tokens": tokens.cache_write,
        "completion_tokens": tokens.completion,
        "reasoning_tokens": tokens.reasoning,
        "embedding_tokens": tokens.embedding,
        "cost_nanos": usage.cost_nanos,
        "overrun_nanos": usage.overrun_nanos,
        "estimated": usage.estimated,
        "batch": usage.batch,
        "day": usage.day,
        "started_us": usage.started_us,
        "endpoint": usage.endpoint,
        "latency_us": usage.latency_us,
        "first_token_us": usage.first_token_us,
    }


def _balance_rows(events: Iterable[UsageEvent]) -> list[dict[str, Any]]:
    """What the events add to each account: one row an account, in a fixed order, so that writers never deadlock."""
    spent: defaultdict[AccountKey, int] = defaultdict(int)
    requests: defaultdict[AccountKey, int] = defaultdict(int)
    for usage in events:
        for key in (
            ("org", usage.org_id, usage.month),
            ("project", usage.project_id, usage.month),
            ("key", usage.key_id, usage.month),
        ):
            spent[key] += usage.cost_nanos
            requests[key] += 1
    return [
        {"scope": key[0], "scope_id": key[1], "month": key[2], "spent_nanos": spent[key], "requests": requests[key]}
        for key in sorted(spent)
    ]


def _balance_upsert(dialect: str) -> Any:
    """`INSERT ... ON CONFLICT DO UPDATE`, adding to what is there."""
    module: Any = postgresql if dialect == "postgresql" else sqlite
    statement = module.insert(balances).values({column.name: bindparam(column.name) for column in balances.columns})
    return statement.on_conflict_do_update(
        index_elements=[balances.c.scope, balances.c.scope_id, balances.c.month],
        set_={
            "spent_nanos": balances.c.spent_nanos + statement.excluded.spent_nanos,
            "requests": balances.c.requests + statement.excluded.requests,
        },
    )


# --- the engine --------------------------------------------------------------------------------------------------


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        if engine.url.database:  # SQLite would make it readable by all; its side files follow its mode
            os.close(os.open(engine.url.database, os.O_RDWR | os.O_CREAT, 0o600))
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    """WAL, synced at every commit: what is committed survives a power cut. We say BEGIN ourselves."""
    connection.isolation_level = None
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock first: a transaction that reads and then writes could otherwise fail half-way."""
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _unavailable(verb: str, cause: str) -> LedgerUnavailable:
    return LedgerUnavailable(f"The ledger cannot {verb} now: {cause}. Try again soon.", retry_after_seconds=5)


def _cause(error: Exception) -> str:
    """The driver's own words: SQLAlchemy's would quote statement and values."""
    return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
