"""Which database the ledger is in, and how it is opened: SQLite unless `ledger.url` names PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from interlace.config import Settings
from interlace.errors import ConfigError, LedgerUnavailable
from interlace.ledger import postgresql as pg


def sqlite_url(path: Path) -> URL:
    """The URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def database_url(settings: Settings) -> URL:
    """The URL of the ledger; raises `ConfigError` for one that nothing here can open, without quoting a password."""
    try:
        url = make_url(settings.ledger.url or sqlite_url(settings.home / "ledger.db"))
        if url.get_backend_name() == "sqlite":
            url.get_dialect().import_dbapi()
            return url
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
        url = None
    if url is not None and url.get_backend_name() == "postgresql":
        return pg.driver_named(url)
    raise ConfigError(
        "ledger.url is not a database that can be used here. Leave it out, or write sqlite:////PATH or "
        "postgresql://USER@HOST/DATABASE."
    )


def open_database(url: str | URL) -> Engine:
    """The engine of a database: SQLite in WAL mode or PostgreSQL, each synced at every commit."""
    url = make_url(url)
    if url.get_backend_name() == "postgresql":
        return pg.open_engine(url)
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
        cursor.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock first: a transaction that reads and then writes could otherwise fail half-way."""
    if connection.get_execution_options().get("joins"):  # one that is under way
        return
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


# --- one process at a time ---------------------------------------------------------------------------------------

LOCK = int.from_bytes(b"interlac")  # of PostgreSQL's advisory locks, which are numbers that programs agree on
LOCK_SECONDS = 2.0
_BUSY = "Another Interlace has the ledger in that PostgreSQL database open. Stop it, or give this one another database."


class LedgerBusy(ConfigError):
    """Another process has the ledger open."""


def hold_database(engine: Engine) -> Callable[[], None]:
    """Be the only process that has the database, until what this returns is called: several would each keep their own
    reservations of the same budgets. Raises `LedgerBusy`.

    The lock is that of a session of its own, so it is gone when the process is, and when the server restarts. Then it
    is taken anew before anything is written: every new connection of `engine` sees to it first, and fails while another
    process has it.
    """
    sessions = pg.open_engine(engine.url, pooled=False).execution_options(isolation_level="AUTOCOMMIT")
    held: list[Connection] = []
    one_at_a_time = threading.Lock()

    def hold() -> None:
        with one_at_a_time:
            if held and _lives(held[0]):
                return
            release()
            connection = sessions.connect()
            deadline = time.monotonic() + LOCK_SECONDS  # one that was killed a moment ago may be there still
            while not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}):
                if time.monotonic() > deadline:
                    connection.close()
                    raise LedgerBusy(_BUSY)
                time.sleep(0.05)
            held.append(connection)

    def release() -> None:
        while held:
            with contextlib.suppress(DBAPIError):
                held.pop().close()

    def hold_again(*_: object) -> None:
        try:
            hold()
        except LedgerBusy as error:
            raise LedgerUnavailable(error.message) from None

    hold()
    event.listen(engine, "do_connect", hold_again)
    return release


def _lives(connection: Connection) -> bool:
    try:
        return bool(connection.scalar(text("SELECT true")))
    except DBAPIError:
        return False
