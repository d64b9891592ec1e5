"""What PostgreSQL needs beyond plain SQLAlchemy: its driver, and sessions that keep what the ledger promises.

Its driver is psycopg 3, an extra of the installation: `pip install 'interlace[postgresql]'`.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, collate, create_engine, event
from sqlalchemy.pool import NullPool

from interlace.errors import ConfigError

DRIVER = "postgresql+psycopg"

READS: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""Of a connection that sees one moment and writes nothing."""

# Seconds, but for the last, until a connection counts as lost whose other end does not answer any more.
_CONNECTING = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "client_encoding": "utf8",
    "application_name": "interlace",
}

# One statement, so one round trip. A commit that the server answers must have reached its disk, whatever role or
# database say; other values, which promise as much or more, stay. A server that hears nothing from us any more lets go
# of our locks.
_SESSION = """
SELECT current_setting('server_encoding'),
  set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
    ELSE current_setting('synchronous_commit') END, false),
  set_config('lock_timeout', '10s', false),
  set_config('tcp_keepalives_idle', '30', false),
  set_config('tcp_keepalives_interval', '10', false),
  set_config('tcp_keepalives_count', '3', false)
"""


def driver_named(url: URL) -> URL:
    """A PostgreSQL URL with the driver in it; raises `ConfigError` for another driver, or where ours is missing."""
    if url.drivername not in ("postgresql", DRIVER):
        raise ConfigError(f"ledger.url names the driver {url.drivername!r}. Begin it with postgresql:// instead.")
    url = url.set(drivername=DRIVER)
    try:
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise ConfigError(
            f"ledger.url names a PostgreSQL database, and its driver cannot be loaded ({error}). "
            "Install it: pip install 'interlace[postgresql]'"
        ) from error
    return url


def open_engine(url: URL, *, pooled: bool = True) -> Engine:
    """An engine whose sessions sync every commit; connections that have died are replaced when they are asked for."""
    url = driver_named(url)
    given = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    pool: dict[str, Any] = {"pool_pre_ping": True} if pooled else {"poolclass": NullPool}
    engine = create_engine(url, connect_args=given, **pool)
    event.listen(engine, "connect", _set_up)
    return engine


def _set_up(connection: Any, _record: object) -> None:
    before, connection.autocommit = connection.autocommit, True
    with closing(connection.cursor()) as cursor:
        encoding = cursor.execute(_SESSION).fetchone()[0]
    connection.autocommit = before
    if encoding != "UTF8":
        connection.close()
        raise ConfigError(
            f"The PostgreSQL database that ledger.url names is encoded in {encoding}, which cannot hold every name. "
            "Make one with ENCODING 'UTF8'."
        )


def caused_by_values(error: BaseException | None) -> bool | None:
    """Whether an error of the driver comes from the values of a statement (data, integrity), so that trying again would
    not mend it, and not from what the server has or allows now; None: it does not come from the server."""
    state = getattr(error, "sqlstate", None)
    return None if state is None else str(state).startswith(("22", "23"))


def caused_by_server(error: BaseException | None) -> bool:
    """Whether an error tells of the server's state where its class tells of a wrong statement: a right or a table that
    is not there, a plan that a change of the schema has made stale."""
    return getattr(error, "sqlstate", None) in {"42501", "42P01", "0A000"}


def shown(error: BaseException | None) -> str | None:
    """What callers may be told of a driver's error: neither address nor user, database or values; None: it is no error
    of this driver."""
    diagnosis = getattr(error, "diag", None)
    if diagnosis is None:
        return None
    if caused_by_values(error) is None and str(error).startswith("PostgreSQL"):
        return str(error)  # it refused a value by itself, and says which kind
    return diagnosis.message_primary or "the database does not answer"


def in_code_order(column: ColumnElement[Any], connection: Connection) -> ColumnElement[Any]:
    """A text to order by, by its characters' codes as SQLite and Python do, whatever the database's language."""
    return collate(column, "C") if connection.dialect.name == "postgresql" else column
