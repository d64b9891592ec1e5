"""How usage events, and what is written beside them, get into the database: statements compiled once, and run by the
driver itself."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Connection, Dialect, Engine, PoolProxiedConnection, insert
from sqlalchemy.dialects import postgresql, sqlite

from interlace.ledger import postgresql as pg
from interlace.ledger.bank import DRAW, DRAW_NAMES, mark_fenced
from interlace.ledger.book import AccountKey
from interlace.ledger.escrow import Draws
from interlace.ledger.events import UsageEvent
from interlace.ledger.schema import balances, event_tags, usage_events

ROWS_AT_ONCE = (32, 16, 8, 4, 2, 1)  # rows to a statement; of 27 columns, they stay below 999 values


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


class EventWriter:
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
        self._row = f"({', '.join('?' * len(names))})"
        self._insert = insert
        assert not (insert and self._positional) or self._sql.count(self._row) == 1, "one row"
        self._several = {1: self._sql}  # rows → the statement for so many at once

    def run(self, cursor: Any, rows: list[tuple[Any, ...]]) -> int:
        """Run it for each row; returns how many rows that made or changed. Several at once where the driver takes
        values in order: SQLite's gives up the interpreter's lock, and has to get it back, for each statement."""
        if not self._positional:
            cursor.executemany(self._sql, [dict(zip(self._names, row, strict=True)) for row in rows])
            return int(cursor.rowcount)
        if not self._insert:
            cursor.executemany(self._sql, rows)
            return int(cursor.rowcount)
        at = changed = 0
        while at < len(rows):
            many = next(size for size in ROWS_AT_ONCE if size <= len(rows) - at)
            sql = self._several.get(many)
            if sql is None:
                sql = self._several[many] = self._sql.replace(self._row, ", ".join([self._row] * many), 1)
            cursor.execute(sql, list(chain.from_iterable(rows[at : at + many])))
            changed += cursor.rowcount
            at += many
        return changed


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
