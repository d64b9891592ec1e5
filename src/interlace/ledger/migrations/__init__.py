"""The database brought to the shape that `schema.py` declares, step by step (Alembic); run at every start.

Versions of Interlace that share a database need not be replaced all at once. A step only adds: what the version before
it reads and writes stays as it was, so that this one goes on beside the new one. What is not needed any more goes in a
later release, by a step that raises `OLDEST`; that step waits until nobody is left who needs it. See decision 0018.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from interlace.errors import ConfigError
from interlace.ledger.schema import facts, workers

log = logging.getLogger(__name__)

HEAD = "0009"
"""The newest step; a test compares it with Alembic's own view."""

OLDEST = "0008"
"""The oldest step whose version of Interlace may use a database at `HEAD`: the `HEAD` that it had. It stands in the
database too (`facts`, oldest), for that version to read."""


def migrate(connection: Connection, machine: str = "") -> None:
    """Bring the database up to `HEAD`, in the transaction of `connection`; leave it as it is where a newer version has
    brought it on and says that this one may go on. `machine`: our installation, where several may share the database.

    Alembic is loaded only when there is something to do. Raises `ConfigError` for a database that needs a newer
    Interlace, and where a machine lives that the next step would leave behind.
    """
    at = step_of(connection)
    if at is not None and at > HEAD:
        if why := too_old(connection):
            raise ConfigError(why)
        fields = {"step": at, "ours": HEAD}
        log.warning("a newer version has changed the ledger; this one goes on beside it", extra={"fields": fields})
    elif at != HEAD:
        _refuse_to_leave_behind(connection, at, machine)
        _upgrade(connection, at)
    _say_fact(connection, "oldest", OLDEST)
    if machine:
        _say_fact(connection, _of(machine), HEAD, always=True)


def step_of(connection: Connection) -> str | None:
    """The step that a database is at; None for one that is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def too_old(connection: Connection) -> str | None:
    """Why this version may not use the database, which a newer one has changed; None: it may."""
    there = inspect(connection).has_table("facts")
    oldest = connection.execute(select(facts.c.value).where(facts.c.name == "oldest")).scalar() if there else None
    at = step_of(connection) or ""
    if at <= HEAD or (oldest is not None and oldest <= HEAD):
        return None
    return (
        f"The ledger is at step {at!r}, and this version of Interlace knows it up to {HEAD!r}: a newer one has used "
        f"it. It can be used by versions from step {oldest or at!r} on. Install one, or restore a backup of before."
    )


def _upgrade(connection: Connection, at: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(f"The ledger is at step {at!r}, which no version has. Restore a backup.") from error


def _refuse_to_leave_behind(connection: Connection, at: str | None, machine: str) -> None:
    """Nothing is taken away that a worker which is not closed may need. Ours are gone: we hold the lock of the home."""
    if at is None or not {"workers", "facts"} <= set(inspect(connection).get_table_names()):
        return
    known = {row.name: row.value for row in connection.execute(select(facts))}
    if known.get("oldest", at) >= OLDEST:
        return  # whoever may use it as it is may use it afterwards
    living = select(workers.c.id, workers.c.machine).where(workers.c.closed_at.is_(None), workers.c.machine != machine)
    rows = connection.execute(living.order_by(workers.c.id)).all()
    left = [row.id for row in rows if known.get(_of(row.machine), "") < OLDEST]
    if left:
        raise ConfigError(
            f"This version changes the ledger so that versions before its step {OLDEST} cannot use it, and these of "
            f"their workers are not closed: {', '.join(left)}. Stop their machines, or bring them to "
            "a version between; one that is lost: with a server that runs, interlace workers close ID."
        )


def _of(machine: str) -> str:
    """The fact that says which step the version of an installation knows."""
    return f"code-{machine}"


def _say_fact(connection: Connection, name: str, value: str, *, always: bool = False) -> None:
    """Make a fact at least so new, or just so."""
    there = connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()
    if there is None:
        connection.execute(facts.insert().values(name=name, value=value))
    elif there < value or (always and there != value):
        connection.execute(facts.update().where(facts.c.name == name).values(value=value))
