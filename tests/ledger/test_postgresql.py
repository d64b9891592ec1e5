"""The ledger on PostgreSQL: commits nobody heard of, a server that stops and refuses, and one ledger at a time."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg
import pytest
from sqlalchemy import delete, insert, select, text

from interlace.config import LedgerSettings, Settings
from interlace.errors import ConfigError, InvalidRequest, LedgerUnavailable
from interlace.ledger import Registry, UsageEvent, read_events
from interlace.ledger import store as store_module
from interlace.ledger.audit import audit
from interlace.ledger.database import database_url
from interlace.ledger.export import Span, as_csv
from interlace.ledger.schema import organisations, prices
from interlace.ledger.usage import UsageFilter, usage_rows
from tests.support.cutting import cutting
from tests.support.gateway_thread import running_gateway, wait_for
from tests.support.ledgers import open_ledger, record, tamper, used
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.stores import PostgreSQL, ledger_url, on_both, store_fixture
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")
store = store_fixture(sqlite=False)


@pytest.fixture
def registry(tmp_path: Path, store: str) -> Iterator[Registry]:
    """A real ledger."""
    with open_ledger(tmp_path) as opened:
        yield opened


class Told:
    """Keeps usage events coming, and what was said to be durable."""

    def __init__(self, registry: Registry, who: Tenant) -> None:
        self.store, self._one = registry.store, used(registry, who, tags=("t",))
        self.given: list[str] = []
        self.ids: list[str] = []
        self.store.durable = lambda events: self.ids.extend(usage.id for usage in events)

    def give(self, count: int = 1) -> None:
        """So many more."""
        for _ in range(count):
            self.given.append(f"{len(self.given):024x}")
            self.store.record(msgspec.structs.replace(self._one, id=self.given[-1]))

    def all_are_there(self, registry: Registry) -> None:
        """Once each, and the sums are theirs."""
        wait_for(lambda: len(self.ids) == len(self.given), seconds=60)
        assert self.ids == self.given
        assert sorted(usage.id for usage in recorded(registry)) == sorted(self.given)
        assert registry.store.read(lambda connection: list(audit(connection))) == []
        assert registry.store.trouble is None


def recorded(registry: Registry) -> list[UsageEvent]:
    """What the database has."""
    return registry.store.read(lambda connection: list(read_events(connection)))


# --- commits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [True, False], ids=["took place", "did not"])
def test_a_commit_nobody_heard_of_is_looked_up(tmp_path: Path, postgresql: PostgreSQL, late: bool) -> None:
    """Written again without looking it would be billed twice; given up it would not be billed."""
    with cutting(postgresql.port) as cutter:
        url = ledger_url(tmp_path).replace(f":{postgresql.port}/", f":{cutter.port}/")
        with open_ledger(tmp_path, ledger=LedgerSettings(url=url)) as registry:
            told = Told(registry, tenant(registry))
            told.give(3)
            told.all_are_there(registry)
            for _ in range(3):
                cutter.word, cutter.late = b"COMMIT", late
                told.give(5)
                told.all_are_there(registry)
            assert cutter.cuts == 3


def test_a_commit_is_synced_whatever_the_role_says(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """With synchronous_commit off a crash of the server takes what callers were told is billed."""
    url = ledger_url(tmp_path)
    name = url.rpartition("/")[2]
    postgresql.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with open_ledger(tmp_path) as registry:
        shown = registry.store.read(lambda connection: connection.scalar(text("SHOW synchronous_commit")))
        assert shown == "on"
    postgresql.sql(f"ALTER DATABASE {name} SET synchronous_commit = local")
    with open_ledger(tmp_path) as registry:
        assert registry.store.read(lambda c: c.scalar(text("SHOW synchronous_commit"))) == "local"


def test_a_read_sees_one_moment_and_writes_nothing(registry: Registry) -> None:
    """A report must add up while requests settle, and must not be able to change them."""

    def look(connection: object) -> tuple[str, str]:
        return connection.scalar(text("SHOW transaction_isolation")), connection.scalar(
            text("SHOW transaction_read_only")
        )  # type: ignore[attr-defined]

    assert registry.store.read(look) == ("repeatable read", "on")
    with pytest.raises(LedgerUnavailable, match="read-only"):
        registry.store.read(lambda connection: connection.execute(delete(prices)))
    assert registry.store.write(lambda connection: connection.scalar(text("SHOW transaction_read_only"))) == "off"


# --- a server in trouble -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_was_away_gets_everything(
    registry: Registry, postgresql: PostgreSQL, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away `trouble` says so, and nothing is said to be durable; what waited is written in order."""
    monkeypatch.setattr(store_module, "WRITE_SECONDS", 0.2)
    told = Told(registry, tenant(registry))
    told.give(100)
    postgresql.stop(how)
    told.give(100)
    wait_for(lambda: registry.store.trouble)
    before = len(told.ids)
    with pytest.raises(LedgerUnavailable) as refused:
        registry.store.read(lambda connection: connection.scalar(text("SELECT 1")))
    assert str(postgresql.port) not in refused.value.message, "callers need not know where the database is"
    with pytest.raises(LedgerUnavailable):
        registry.store.write(lambda connection: connection.scalar(text("SELECT 1")))
    assert len(told.ids) == before
    postgresql.start()
    told.all_are_there(registry)
    told.give(10)
    told.all_are_there(registry)


def test_connections_that_are_cut_again_and_again_lose_nothing(
    registry: Registry, postgresql: PostgreSQL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator, a proxy or a failover may end any session at any moment."""
    told = Told(registry, tenant(registry))
    for _ in range(20):
        told.give(40)
        postgresql.cut(ledger_url(tmp_path))
        threading.Event().wait(0.02)
    told.all_are_there(registry)
    assert not [line for line in caplog.records if line.levelname == "CRITICAL"]


def test_a_server_made_read_only_is_waited_for(
    registry: Registry, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is while an operator moves it, or its disk is nearly full."""
    monkeypatch.setattr(store_module, "WRITE_SECONDS", 0.2)
    told = Told(registry, tenant(registry))
    told.give()
    told.all_are_there(registry)
    registry.store.read(lambda connection: connection.scalar(text("SELECT 1")))
    postgresql.read_only(True)
    with pytest.raises(LedgerUnavailable, match="read-only"):
        registry.store.write(lambda connection: connection.execute(delete(prices)))
    told.give(5)
    wait_for(lambda: registry.store.trouble)
    assert "read-only" in (registry.store.trouble or "")
    assert len(told.ids) == 1
    postgresql.read_only(False)
    told.all_are_there(registry)


def test_a_right_that_is_taken_away_loses_nothing(registry: Registry, postgresql: PostgreSQL, tmp_path: Path) -> None:
    """The driver calls it a programming error, like a wrong statement; but it is the server's, and can be mended."""
    told, name = Told(registry, tenant(registry)), ledger_url(tmp_path).rpartition("/")[2]
    postgresql.sql("REVOKE INSERT ON usage_events FROM interlace", database=name)
    told.give(5)
    wait_for(lambda: registry.store.trouble)
    assert "permission denied" in (registry.store.trouble or "")
    assert told.ids == []
    postgresql.sql("GRANT INSERT ON usage_events TO interlace", database=name)
    told.all_are_there(registry)


def test_a_table_locked_by_another_is_waited_for(registry: Registry, tmp_path: Path) -> None:
    """A backup or a change of the schema delays events; it loses none."""
    told = Told(registry, tenant(registry))
    with psycopg.connect(ledger_url(tmp_path)) as other:
        other.execute("LOCK TABLE usage_events")
        told.give()
        threading.Event().wait(0.2)
        assert told.ids == []
    told.all_are_there(registry)


# --- values ------------------------------------------------------------------------------------------------------


def test_text_that_it_cannot_hold_is_the_callers_error(registry: Registry) -> None:
    """PostgreSQL's texts have no NUL; a caller who sends one must not see a failure of the server, nor cause one."""
    values = {"id": "org_x", "name": "a\0b", "created_at": 1}
    with pytest.raises(InvalidRequest, match="NUL"):
        registry.store.write(lambda connection: connection.execute(insert(organisations), values))
    with pytest.raises(InvalidRequest, match="NUL"):
        registry.store.read(
            lambda connection: connection.scalar(select(organisations.c.id).where(organisations.c.name == "\0"))
        )
    assert registry.store.trouble is None


PATHS = (
    "/v1/files/%00", "/v1/files/file-%00/content", "/v1/batches/%00", "/v1/responses/%00", "/v1/responses/resp_%00",
    "/v1/files?after=%00", "/v1/files?purpose=%00", "/v1/batches?after=%00", "/v1/responses/%00/input_items",
    "/v1/models/%00", "/admin/v1/orgs/%00", "/admin/v1/keys/%00", "/admin/v1/usage?model=%00",
    "/admin/v1/usage?tag=%00", "/admin/v1/usage?by=%00", "/admin/v1/usage?since=%00",
    "/admin/v1/prices?model=%00", "/admin/v1/plans/%00",
)  # fmt: skip


def test_nul_characters_in_requests_are_no_failures_of_the_server(tmp_path: Path) -> None:
    """Whoever puts one anywhere is told of what is wrong, or that there is no such thing."""
    import httpx

    with running_gateway(Settings(), {"m": ScriptedEngine()}) as gateway:
        with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=30) as client:
            answers = {path: client.get(path).status_code for path in PATHS}
            answers |= {f"DELETE {path}": client.delete(path).status_code for path in PATHS if "?" not in path}
            nul = {"name": "a\0b"}
            for path in ("/admin/v1/orgs", "/admin/v1/projects", "/admin/v1/keys", "/admin/v1/plans"):
                answers[f"POST {path}"] = client.post(path, json=nul).status_code
            batch = {"input_file_id": "\0", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            answers["batch"] = client.post("/v1/batches", json=batch).status_code
            said = {"model": "m", "input": "a\0b", "metadata": {"a\0": "\0"}, "previous_response_id": "\0"}
            answers["previous"] = client.post("/v1/responses", json=said).status_code
            stored = client.post("/v1/responses", json={**said, "previous_response_id": None})
            chat = {"model": "m", "messages": [{"role": "user", "content": "a\0b"}], "user": "\0"}
            answers["chat"] = client.post("/v1/chat/completions", json=chat).status_code
        assert {path: status for path, status in answers.items() if status >= 500} == {}
        good = {path: status for path, status in answers.items() if status < 400 and "?" not in path}
        assert good == {"chat": 200}
        assert stored.status_code in {200, 400}
        assert gateway.registry.store.trouble is None


@on_both
def test_rows_come_in_the_same_order_on_every_database(registry: Registry) -> None:
    """A report that is ordered by the language of the database could not be compared with yesterday's."""
    who = tenant(registry)
    for number, name in enumerate(("b", "B", "_", "é", "a-c", "ab", "e")):
        tamper(registry, f"INSERT INTO organisations (id, name, created_at) VALUES ('o{number}', '{name}', 1)")
        columns = "id, org_id, name, created_at"
        tamper(registry, f"INSERT INTO projects ({columns}) VALUES ('p{number}', 'o{number}', 'p', 1)")
        tags = (f"t-{name}",) if number else ()
        record(registry, used(registry, who, org_id=f"o{number}", project_id=f"p{number}", tags=tags))
    names = ["B", "_", "a-c", "ab", "b", "e", "é"]
    rows = registry.store.read(lambda connection: usage_rows(connection, ("org",), UsageFilter()))
    assert [row.group["org"] for row in rows] == names
    assert {type(row.cost_nanos) for row in rows} == {int}
    rows = registry.store.read(lambda connection: usage_rows(connection, ("tag",), UsageFilter()))
    assert [row.group["tag"] for row in rows] == [None, *(f"t-{name}" for name in names if name != "b")]
    lines = registry.store.read(lambda connection: list(as_csv(connection, Span())))
    assert [line.split(",")[1].strip("'") for line in lines[1:]] == names


# --- one at a time -----------------------------------------------------------------------------------------------


def opened_elsewhere(tmp_path: Path, url: str) -> Callable[[], Registry]:
    """Opens that database from another home."""
    settings = Settings(home=tmp_path / "elsewhere", ledger=LedgerSettings(url=url), prices=(costing("m", 2, 5),))
    return lambda: Registry.open(settings, {})


def test_two_homes_share_a_database_when_they_share_the_secret(tmp_path: Path) -> None:
    """With another secret every key of the other would be refused, which would look like revoked keys."""
    again = opened_elsewhere(tmp_path, ledger_url(tmp_path))
    with open_ledger(tmp_path) as registry:
        with pytest.raises(ConfigError, match="secret"):
            again()
        shutil.copy(tmp_path / "secret", tmp_path / "elsewhere" / "secret")
        with closing(again()) as other:
            who = tenant(other)
            registry.catch_up()
            assert registry.directory.keys[who.key.id].name == who.key.name


# --- what cannot be opened ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["postgresql+psycopg2://u:s3cret@h/d", "postgresql+asyncpg://u:s3cret@h/d"])
def test_another_driver_is_refused(tmp_path: Path, url: str) -> None:
    """It might be installed, and would keep other promises."""
    with pytest.raises(ConfigError, match="Begin it with postgresql://") as told:
        database_url(Settings(home=tmp_path, ledger=LedgerSettings(url=url)))
    assert "s3cret" not in told.value.message


def test_without_its_driver_the_mend_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain installation has none."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'interlace\[postgresql\]'"):
        database_url(Settings(home=tmp_path, ledger=LedgerSettings(url="postgresql://u:s3cret@h/d")))


def test_a_server_that_refuses_is_told_of(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """Whoever starts it needs the server's reason, and nobody needs the password."""
    for there in (f"127.0.0.1:{postgresql.port}/nowhere", "127.0.0.1:1/d"):
        settings = LedgerSettings(url=f"postgresql://interlace:s3cret@{there}")
        with (
            pytest.raises(ConfigError, match=r"ledger\.url names cannot be used") as told,
            open_ledger(tmp_path, ledger=settings),
        ):
            pass
        assert "s3cret" not in told.value.message
        assert "nowhere" in told.value.message or "refused" in told.value.message


def test_a_database_that_cannot_hold_every_name_is_refused(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """A name in another script would fail later, in the middle of a request."""
    options = "ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    postgresql.sql(f"CREATE DATABASE narrow OWNER interlace {options}")
    url = postgresql.url("narrow")
    try:
        with pytest.raises(ConfigError, match="UTF8"), open_ledger(tmp_path, ledger=LedgerSettings(url=url)):
            pass
    finally:
        postgresql.drop(url)
