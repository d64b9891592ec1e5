"""Reading the ledger from a process of its own, beside a running server or without one: nothing is written, no lock is
taken, and everything seen is of one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.ledger import postgresql as pg
from interlace.ledger.database import database_url


@contextmanager
def reading(settings: Settings) -> Iterator[Connection]:
    """A connection in one transaction that only reads; raises `ConfigError` where there is no ledger to read."""
    url = database_url(settings)
    engine = _read_only(url)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise ConfigError(f"The ledger {url.render_as_string()} cannot be read: {error.orig}.") from error
    finally:
        engine.dispose()


def _read_only(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return pg.open_engine(url, pooled=False).execution_options(**pg.READS)
    path = Path(url.database or "")
    if not path.is_file():
        raise ConfigError(f"There is no ledger at {path} yet: `interlace serve` makes one. Or set INTERLACE_HOME.")

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=10
        )

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
