"""A copy of the ledger that is whole, taken while a server writes; and the way back.

For SQLite: its own online backup, in one step, so that the copy is one moment of the database and no writer waits. A
database on a server has tools of its own, which do this better.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.ledger.health import database_file, ledger_url
from interlace.ledger.migrations import HEAD
from interlace.ledger.registry import lock_all, lock_files

_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and where what it replaced went, if it replaced anything."""

    events: int
    bytes: int
    aside: Path | None = None


def back_up(settings: Settings, target: Path) -> Copied:
    """Copy the ledger to a new file, private and whole or not there. Raises `ConfigError`."""
    source = _file(settings, "back it up with its own tools, such as pg_dump")
    if not source.is_file():
        raise ConfigError(f"There is no ledger at {source} to back up. Or set INTERLACE_HOME.")
    if target.exists():
        raise ConfigError(f"{target} exists already, and a backup replaces nothing. Name another file.")
    with _copied(source, target.parent, target.name) as partial:
        events = _examine(partial, source)
        try:
            os.link(partial, target)  # unlike rename, never replaces
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
        _sync(target.parent)
    return Copied(events, target.stat().st_size)


def restore(settings: Settings, source: Path) -> Copied:
    """Put a backup in the ledger's place; what was there stays beside it. What workers held of budgets when it was made
    is free again. Raises `ConfigError`, with everything as it
    was: while a server has the ledger, or for what is no ledger, or that of a newer version."""
    place = _file(settings, "restore it with its own tools, such as pg_restore")
    if not source.is_file():
        raise ConfigError(f"There is no backup at {source}.")
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        locks = lock_all(lock_files(settings.home, ledger_url(settings)))
    except OSError as error:
        raise ConfigError(f"The home folder {settings.home} cannot be used: {error}.") from error
    try:
        with _copied(source, place.parent, place.name) as partial:
            events = _examine(partial, source)
            _close_workers(partial)
            aside = _set_aside(place) if place.exists() else None
            partial.replace(place)
            _sync(place.parent)
    except OSError as error:
        raise ConfigError(f"{place} cannot be replaced: {error.strerror or error}.") from error
    finally:
        for lock in locks:
            lock.release()
    return Copied(events, place.stat().st_size, aside)


def _file(settings: Settings, mend: str) -> Path:
    file = database_file(settings)
    if file is None or str(file) in ("", ".", ":memory:"):
        raise ConfigError(f"The ledger is no file but a database on a server: {mend}.")
    return file


@contextmanager
def _copied(source: Path, folder: Path, name: str) -> Iterator[Path]:
    """A synced copy of a database in that folder, mode 0600; gone at the end, unless it was given another name."""
    partial = folder / f".{name}.{secrets.token_hex(8)}"
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(_open(source)) as there, closing(sqlite3.connect(partial)) as here:
            there.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        _sync(partial)
        yield partial
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be copied to {folder}: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
        partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    return sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS)


def _examine(copy: Path, source: Path) -> int:
    """How many events a copied ledger has; raises `ConfigError` for one that is damaged, or none of ours."""
    with closing(sqlite3.connect(copy)) as database:
        problems = [row[0] for row in database.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise ConfigError(f"{source} is damaged: {'; '.join(problems)}. Take an earlier backup.")
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"alembic_version", "usage_events"} <= tables:
            raise ConfigError(f"{source} is no ledger. Name a file that `interlace ledger backup` made.")
        (step,) = database.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        if step > HEAD and not (tables >= {"facts"} and _oldest(database) <= HEAD):
            raise ConfigError(f"{source} is of a newer Interlace (step {step}, this one knows {HEAD}). Install that.")
        (events,) = database.execute("SELECT COUNT(*) FROM usage_events").fetchone()
    return int(events)


def _close_workers(copy: Path) -> None:
    """Nobody is left who has what the backup says that workers hold: we have the lock of the home, and a worker that
    outlives its coordinator finds its epoch over."""
    with closing(sqlite3.connect(copy)) as database, database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'leases'").fetchone():
            database.execute("DELETE FROM leases")
            now, why = time.time_ns() // 1000, "a backup was restored"
            database.execute("UPDATE workers SET closed_at = ?, why = ? WHERE closed_at IS NULL", (now, why))
    _sync(copy)


def _oldest(database: sqlite3.Connection) -> str:
    """The oldest version, by its step, that may use it; one that nobody has where it does not say."""
    (oldest,) = database.execute("SELECT value FROM facts WHERE name = 'oldest'").fetchone() or ("~",)
    return str(oldest)


def _set_aside(place: Path) -> Path:
    """Another name for the ledger that is replaced, with all that its log holds; where it stays until the end.

    It keeps its old name too until the new one takes that, at once: there is no moment without a ledger, in which a
    start would make an empty one.
    """
    aside = place.with_name(f"{place.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    try:
        with closing(sqlite3.connect(place, timeout=_WAIT_SECONDS)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:
        pass  # it is damaged: that may be why it is replaced, and its log is kept with it
    os.link(place, aside)
    log = place.with_name(f"{place.name}-wal")
    if log.exists():
        log.rename(aside.with_name(f"{aside.name}-wal"))
    place.with_name(f"{place.name}-shm").unlink(missing_ok=True)
    return aside


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
