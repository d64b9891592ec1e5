"""Migrations make what the schema declares, once, whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from interlace.errors import ConfigError
from interlace.ledger import migrations
from interlace.ledger.database import sqlite_url
from interlace.ledger.migrations import HEAD, OLDEST, migrate, step_of, too_old
from interlace.ledger.schema import metadata
from interlace.ledger.store import Store
from tests.support.stores import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    if request.param == "sqlite":
        yield Store(sqlite_url(tmp_path / "ledger.db"))
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.fresh(migrated=False)
    with closing(Store(url)) as opened:
        yield opened
    server.drop(url)


def test_migrations_arrive_at_the_declared_schema(empty: Store) -> None:
    """A table or column that only one of the two knows would fail on a machine that was upgraded, or on a fresh one."""
    with empty.engine.begin() as connection:
        migrate(connection)
    with empty.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_head_is_the_newest_step() -> None:
    """A start that takes an older step for the newest would skip a migration for ever."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_second_start_changes_nothing(empty: Store) -> None:
    """Migrating twice is migrating once."""
    for _ in range(2):
        with empty.engine.begin() as connection:
            migrate(connection)


def test_a_migration_that_is_cut_off_leaves_nothing(empty: Store) -> None:
    """Half a schema could neither be used nor migrated again."""
    with empty.engine.connect() as connection, connection.begin() as transaction:
        migrate(connection)
        transaction.rollback()
    with empty.engine.connect() as connection:
        assert inspect(connection).get_table_names() == []


def test_a_newer_database_is_refused(empty: Store) -> None:
    """An older version must not write into what it does not understand."""
    with empty.engine.begin() as connection:
        migrate(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE facts SET value = '9998' WHERE name = 'oldest'"))
    with empty.engine.begin() as connection, pytest.raises(ConfigError, match=r"a newer one has used it.*'9998'"):
        migrate(connection)


def test_a_newer_database_that_says_so_is_used(empty: Store) -> None:
    """Otherwise no machine could be restarted while another one has the new version, and there were no way back."""
    with empty.engine.begin() as connection:
        migrate(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with empty.engine.begin() as connection:
        migrate(connection)
        assert too_old(connection) is None
        assert connection.execute(text("SELECT value FROM facts WHERE name = 'oldest'")).scalar() == OLDEST
        assert step_of(connection) == "9999"
