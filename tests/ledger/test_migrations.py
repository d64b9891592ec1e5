"""Migrations make what the schema declares, once, whoever runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from interlace.errors import ConfigError
from interlace.ledger import migrations
from interlace.ledger.database import sqlite_url
from interlace.ledger.migrations import HEAD, migrate
from interlace.ledger.schema import metadata
from interlace.ledger.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty database."""
    return Store(sqlite_url(tmp_path / "ledger.db"))


def test_migrations_arrive_at_the_declared_schema(store: Store) -> None:
    """A table or column that only one of the two knows would fail on a machine that was upgraded, or on a fresh one."""
    with store.engine.begin() as connection:
        migrate(connection)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_head_is_the_newest_step() -> None:
    """A start that takes an older step for the newest would skip a migration for ever."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_second_start_changes_nothing(store: Store) -> None:
    """Migrating twice is migrating once."""
    for _ in range(2):
        with store.engine.begin() as connection:
            migrate(connection)


def test_a_migration_that_is_cut_off_leaves_nothing(store: Store) -> None:
    """Half a schema could neither be used nor migrated again."""
    with store.engine.connect() as connection, connection.begin() as transaction:
        migrate(connection)
        transaction.rollback()
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0


def test_a_newer_database_is_refused(store: Store) -> None:
    """An older version must not write into what it does not understand."""
    with store.engine.begin() as connection:
        migrate(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with store.engine.begin() as connection, pytest.raises(ConfigError, match="a newer one has used it"):
        migrate(connection)
