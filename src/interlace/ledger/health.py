"""What can be seen of the ledger in a moment, beside a running server: its step, whether it takes writes, whether its
balances are those of its events, and which models have a price. Nothing is changed; `audit` looks deeper."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import date
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from interlace.config import Settings
from interlace.ledger.database import sqlite_url
from interlace.ledger.migrations import HEAD, step_of, too_old
from interlace.ledger.schema import balances, organisations, prices
from interlace.ledger.schema import usage_events as events

BUSY_SECONDS = 5.0  # how long the write lock of SQLite is waited for
_SCOPES = {"org": events.c.org_id, "project": events.c.project_id, "key": events.c.key_id}

__all__ = [
    "HEAD",
    "clock_of",
    "database_file",
    "drift",
    "ledger_url",
    "newest_event",
    "price_dates",
    "step_of",
    "too_old",
    "why_not_writable",
]


def ledger_url(settings: Settings) -> URL:
    """Where the ledger is."""
    return make_url(settings.ledger.url or sqlite_url(settings.home / "ledger.db"))


def database_file(settings: Settings) -> Path | None:
    """The file of a ledger on SQLite, whether it is there or not; None on a server."""
    url = ledger_url(settings)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def why_not_writable(settings: Settings) -> str | None:
    """Why nothing can be written now; None where it can. Takes the write lock for a moment, as every write does."""
    file = database_file(settings)
    if file is not None:
        try:
            address = f"file:{quote(str(file.absolute()))}?mode=rw"
            with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_SECONDS)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            return str(error)
        return None
    engine = create_engine(ledger_url(settings), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
                return "the server is read-only (a standby?)"
            may = text("SELECT has_table_privilege('usage_events', 'INSERT')")
            return None if connection.execute(may).scalar() else "this user may not insert into usage_events"
    except SQLAlchemyError as error:
        return str(getattr(error, "orig", None) or type(error).__name__)
    finally:
        engine.dispose()


def drift(connection: Connection, since: date) -> Iterator[tuple[str, int, int]]:
    """Balances from the month of `since` on that are not the sums of their events: whose and when, the sum of the
    events and the balance, both in nano-dollars."""
    month = since.isoformat()[:7]
    for scope, column in _SCOPES.items():
        of = func.substr(events.c.day, 1, 7)
        summed = select(column, of, func.sum(events.c.cost_nanos), func.count()).where(events.c.day >= f"{month}-01")
        sums = {(id, when): (int(cost), n) for id, when, cost, n in connection.execute(summed.group_by(column, of))}
        kept = select(balances.c.scope_id, balances.c.month, balances.c.spent_nanos, balances.c.requests)
        kept = kept.where(balances.c.scope == scope, balances.c.month >= month)
        there = {(id, when): (cost, n) for id, when, cost, n in connection.execute(kept)}
        for key in sorted({*sums, *there}):
            one, other = sums.get(key, (0, 0)), there.get(key, (0, 0))
            if one != other:
                yield f"{scope} {key[0]}, {key[1]}", one[0], other[0]


def newest_event(connection: Connection) -> int | None:
    """When the newest request began, in microseconds since 1970."""
    return connection.execute(select(func.max(events.c.started_us))).scalar()


def clock_of(connection: Connection) -> float | None:
    """What a database server takes for the time, in seconds since 1970; None for a file, which has no clock."""
    if connection.dialect.name == "sqlite":
        return None
    return float(connection.execute(text("SELECT EXTRACT(EPOCH FROM clock_timestamp())")).scalar() or 0)


def price_dates(connection: Connection, now: int) -> Mapping[str, int]:
    """Of each model with a price at `now`: when that price was recorded, in microseconds since 1970."""
    current = select(prices.c.model, func.max(prices.c.recorded_at))
    current = current.where(prices.c.since <= now, prices.c.retired_at.is_(None)).group_by(prices.c.model)
    return {row[0]: row[1] for row in connection.execute(current)}


def organisations_of(connection: Connection) -> frozenset[str]:
    """The names and the ids of all organisations."""
    return frozenset(
        said for row in connection.execute(select(organisations.c.id, organisations.c.name)) for said in row
    )
