"""The databases that tests start for themselves are real ones, and there where CI says they must be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.stores import PostgreSQL, Redis


def test_postgresql_is_a_synced_server_of_ours(postgresql: PostgreSQL) -> None:
    """What is said of commits and crashes would be worth nothing on one that does not sync."""
    shown = [postgresql.sql(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")]
    assert shown == [[("on",)]] * 3
    assert postgresql.sql("SELECT 'a' < 'B' AND 'B' < 'c'") == [(True,)], "ordered by a language, not by codes"


def test_a_fresh_database_is_empty_and_the_roles_own(postgresql: PostgreSQL) -> None:
    """Tests that shared one would see each other's rows."""
    first, second = postgresql.fresh(), postgresql.fresh()
    assert first != second
    name = first.rpartition("/")[2]
    assert postgresql.sql("SELECT count(*) FROM organisations", database=name) == [(0,)]
    assert postgresql.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'interlace'") == [(False,)]
    for url in (first, second):
        postgresql.drop(url)


def test_redis_answers_and_forgets(redis_server: Redis) -> None:
    """One that kept its data would hand one run's counters to the next."""
    with redis_server.client() as client:
        client.set("a", "1")
        assert client.get("a") == b"1"
    redis_server.stop()
    redis_server.start()
    with redis_server.client() as client:
        assert client.get("a") is None


def test_ci_requires_them() -> None:
    """Skipped where nobody looks, they would rot; and what cannot be had must end the run there."""
    assert "INTERLACE_TEST_STORES=required" in (ROOT / ".ci" / "run").read_text()
    script = ROOT / "tests" / "support" / "install-stores"
    nowhere = {"PATH": str(Path("/nonexistent"))}
    for wanted, code in (("required", 1), ("", 0)):
        done = subprocess.run(
            ["/bin/bash", str(script)], env={**nowhere, "INTERLACE_TEST_STORES": wanted},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert "apt-get install" in done.stderr


@pytest.mark.skipif(os.environ.get("INTERLACE_TEST_STORES") != "required", reason="not in CI")
def test_they_are_here(postgresql: PostgreSQL, redis_server: Redis) -> None:
    """As CI says."""
    assert postgresql.process is not None
    assert redis_server.process is not None
