"""The database brought to the shape that `schema.py` declares, step by step (Alembic); run at every start."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from interlace.errors import ConfigError

HEAD = "0008"
"""The newest step; a test compares it with Alembic's own view."""


def migrate(connection: Connection) -> None:
    """Bring the database up to `HEAD`, in the transaction of `connection`.

    Alembic is loaded only when there is something to do. Raises `ConfigError` for a database that a newer Interlace
    has changed already: an older one must not write into it.
    """
    at = _revision(connection)
    if at == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            f"The ledger is at step {at!r}, which this version of Interlace does not know: a newer one has used it. "
            "Install that version, or restore a backup."
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
