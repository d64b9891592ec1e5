"""The auditor finds every way in which a record can be wrong, and nothing in one that is right."""

from __future__ import annotations

import ast
import tracemalloc
from collections.abc import Iterator
from datetime import date, timedelta
from fractions import Fraction
from math import ceil
from pathlib import Path

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, text

from interlace.ledger import Outcome, Registry, Tokens
from interlace.ledger import audit as audit_module
from interlace.ledger.audit import Finding, audit, audit_book
from interlace.ledger.audit_prices import Event, PriceRow
from interlace.ledger.book import Account
from interlace.ledger.schema import balances, usage_events
from interlace.ledger.store import _row
from tests.ledger.test_prices import counts, exact, prices, usages
from tests.support.ledgers import open_ledger, record, tamper, used
from tests.support.stores import only_sqlite, store_fixture
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")
store = store_fixture(pytest.mark.nightly)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A real ledger, in UTC."""
    with open_ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def who(registry: Registry) -> Tenant:
    """A tenant with three events of different ends."""
    there = tenant(registry)
    record(
        registry,
        used(registry, there, id="a" * 24, tags=("team:x",)),
        used(registry, there, id="b" * 24, tokens=Tokens(prompt=3, cached=2, completion=9, reasoning=4)),
        used(registry, there, id="c" * 24, outcome=Outcome.FAILED, cost_nanos=0),
    )
    return there


def findings(registry: Registry, time_zone: str = "UTC") -> list[Finding]:
    """What the auditor says."""
    return registry.store.read(lambda connection: list(audit(connection, time_zone)))


def test_a_record_that_is_right_has_no_findings(registry: Registry, who: Tenant) -> None:
    """An auditor that cries wolf is switched off."""
    assert findings(registry) == []


def test_an_empty_record_is_right(registry: Registry) -> None:
    """Nothing was used yet: nothing to find."""
    assert findings(registry) == []


EVENT = f"event {'a' * 24}"
BALANCE = "balance of "

TAMPERED = {
    "a cost": ("UPDATE usage_events SET cost_nanos = cost_nanos + 1 WHERE id LIKE 'a%'", EVENT, "its cost is not"),
    "a free cost": ("UPDATE usage_events SET cost_nanos = 1 WHERE id LIKE 'c%'", "event c", "failed costs nothing"),
    "tokens": ("UPDATE usage_events SET completion_tokens = 6 WHERE id LIKE 'a%'", EVENT, "its cost is not"),
    "parts": ("UPDATE usage_events SET cached_tokens = 11 WHERE id LIKE 'a%'", EVENT, "the parts of its tokens"),
    "less than none": ("UPDATE usage_events SET prompt_tokens = -1 WHERE id LIKE 'a%'", EVENT, "is negative"),
    "a price": ("UPDATE prices SET completion = 6000000 WHERE model = 'm'", EVENT, "its cost is not"),
    "no price": ("UPDATE usage_events SET price_id = 999 WHERE id LIKE 'a%'", EVENT, "its price is not there"),
    "another's price": ("UPDATE usage_events SET model = 'n' WHERE id LIKE 'a%'", EVENT, "of another model"),
    "no amount": ("UPDATE prices SET completion = NULL WHERE model = 'm'", EVENT, "has no amount for its completion"),
    "an overrun": ("UPDATE usage_events SET overrun_nanos = 999 WHERE id LIKE 'a%'", EVENT, "its overrun is no part"),
    "an outcome": ("UPDATE usage_events SET outcome = 'denied' WHERE id LIKE 'a%'", EVENT, "no event may end so"),
    "a day": ("UPDATE usage_events SET day = '2020-02-01' WHERE id LIKE 'a%'", EVENT, "its day is not"),
    "no day": ("UPDATE usage_events SET day = 'today' WHERE id LIKE 'a%'", EVENT, "its day is not"),
    "a start": ("UPDATE usage_events SET started_us = 9000000000000000000 WHERE id LIKE 'a%'", EVENT, "its day is not"),
    "a key": ("UPDATE usage_events SET key_id = 'key_x' WHERE id LIKE 'a%'", EVENT, "its key is not of its project"),
    "an org": ("UPDATE usage_events SET org_id = 'org_x' WHERE id LIKE 'a%'", EVENT, "its project is not of"),
    "no number": ("UPDATE usage_events SET cost_nanos = 'x' WHERE id LIKE 'a%'", EVENT, "cost_nanos is no integer"),
    "a fraction": ("UPDATE balances SET spent_nanos = spent_nanos + 0.5", BALANCE, "is not the sum of its events"),
    "an event gone": ("DELETE FROM usage_events WHERE id LIKE 'b%'", BALANCE, "is not the sum of its events"),
    "a free event gone": ("DELETE FROM usage_events WHERE id LIKE 'c%'", BALANCE, "does not count its events"),
    "all events gone": ("DELETE FROM usage_events", BALANCE, "no event adds to it"),
    "a balance": ("UPDATE balances SET spent_nanos = 1 WHERE scope = 'key'", BALANCE, "is not the sum of its events"),
    "a count": ("UPDATE balances SET requests = 4 WHERE scope = 'org'", BALANCE, "does not count its events"),
    "no balance": ("DELETE FROM balances WHERE scope = 'project'", BALANCE, "is missing"),
    "a balance too many": ("INSERT INTO balances VALUES ('org', 'o', '2020-01', 0, 0)", BALANCE, "no event adds to it"),
    "a tag of nothing": ("INSERT INTO event_tags VALUES ('x', 'y')", "event x", "has tags, but is not there"),
    "an older step": ("UPDATE alembic_version SET version_num = '0000'", "database", "is not at this version's step"),
    "no step": ("DROP TABLE alembic_version", "database", "is not at this version's step"),
    "no table": ("DROP TABLE balances", "database", "has no table balances"),
    "a stranger": ("UPDATE projects SET org_id = 'x' WHERE name = 'p'", "table projects", "names a row of organ"),
}  # fmt: skip


HELD_BY_TYPES = {"no number", "a stranger"}  # what PostgreSQL never lets happen


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_wrong_is_found(registry: Registry, who: Tenant, what: str, store: str) -> None:
    """Each of these would be money somebody is owed, or a record nobody can trust, and it says where."""
    statement, where, problem = TAMPERED[what]
    if what in HELD_BY_TYPES and store == "postgresql":
        with pytest.raises(psycopg.Error):
            tamper(registry, statement)
        return
    tamper(registry, statement)
    found = [finding for finding in findings(registry) if finding.severity == "wrong"]
    assert any(f.where.startswith(where) and problem in f.what for f in found), list(map(str, found))


def test_an_event_moved_with_its_balances_is_still_found(registry: Registry, who: Tenant) -> None:
    """A forger who mends the sums too is caught by the arithmetic of the event."""
    tamper(
        registry,
        "UPDATE usage_events SET cost_nanos = cost_nanos - 5 WHERE id LIKE 'a%'",
        "UPDATE balances SET spent_nanos = spent_nanos - 5",
    )
    assert [finding.what for finding in findings(registry)] == [
        f"its cost is not its tokens at price {_price(registry)}"
    ]


def _price(registry: Registry) -> int:
    return registry.directory.prices["m"][0].id


def test_a_request_that_is_there_twice_is_found(registry: Registry, who: Tenant) -> None:
    """Should the primary key be lost, a request billed twice must not pass."""
    columns = ", ".join(column.name for column in usage_events.columns)
    tamper(
        registry,
        f"CREATE TABLE copy AS SELECT {columns} FROM usage_events",
        "DROP TABLE usage_events",
        "ALTER TABLE copy RENAME TO usage_events",
        f"INSERT INTO usage_events SELECT {columns} FROM usage_events WHERE id LIKE 'a%'",
    )
    assert any(f.where == EVENT and f.what == "is there more than once" for f in findings(registry))


@only_sqlite
def test_a_damaged_file_is_found(registry: Registry, who: Tenant, tmp_path: Path) -> None:
    """Bytes that rot on a disk are named, not raised as an error of ours."""
    with registry.store.engine.connect() as connection:
        root = connection.scalar(text("SELECT rootpage FROM sqlite_master WHERE name = 'usage_events'"))
    registry.close()
    file = tmp_path / "ledger.db"
    content = bytearray(file.read_bytes())
    content[(root - 1) * 4096 : (root - 1) * 4096 + 40] = b"\xff" * 40
    file.write_bytes(content)
    with registry.store.engine.connect() as connection:
        found = list(audit(connection))
    assert found
    assert all(finding.where == "database" for finding in found)
    registry.store.engine.dispose()


def test_what_may_be_right_is_a_notice(registry: Registry) -> None:
    """A budget that was lowered, a price that did not hold, details that an erasure left: to be looked at."""
    now = registry.clock.now()
    rich, erased = tenant(registry, org_budget=20), tenant(registry)
    record(registry, used(registry, rich), used(registry, erased))
    tamper(
        registry,
        f"UPDATE projects SET erased_at = {now + 10**9} WHERE id = '{erased.project.id}'",
        f"UPDATE prices SET recorded_at = {now + 10**9} WHERE model = 'm'",
    )
    found = findings(registry)
    assert {finding.severity for finding in found} == {"notice"}
    assert sorted({finding.what.partition(";")[0] for finding in found}) == [
        "its project was erased, but its details are still there",
        f"price {_price(registry)} did not hold when it began",
        "spent beyond its budget",
    ]


def test_a_provider_that_overran_a_budget_is_said_to_have(registry: Registry) -> None:
    """Whoever reads the notice should know whom to ask."""
    who = tenant(registry, key_budget=40)
    record(registry, used(registry, who, overrun_nanos=15))
    (found,) = findings(registry)
    assert "providers used more than their limits" in found.what
    assert found.expected == "at most 0.00000004 dollars"


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns"])
def test_days_are_those_of_the_ledgers_zone(tmp_path: Path, zone: str) -> None:
    """A day that is tomorrow in Greenwich is no error; the day after is."""
    from interlace.config import LedgerSettings

    with open_ledger(tmp_path, ledger=LedgerSettings(time_zone=zone)) as registry:
        who = tenant(registry)
        record(registry, used(registry, who))
        assert findings(registry, zone) == []
        later = date.fromisoformat(registry.calendar.day(registry.clock.now())) + timedelta(days=2)
        tamper(registry, f"UPDATE usage_events SET day = '{later}'")
        assert any("its day is not" in finding.what for finding in findings(registry, zone))


def test_usage_that_prints_other_sums_is_found(
    registry: Registry, who: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `interlace usage` lost a row, people would pay another sum than the ledger's."""
    real = audit_module.usage_rows
    monkeypatch.setattr(audit_module, "usage_rows", lambda *arguments: real(*arguments)[1:])
    found = findings(registry)
    assert {finding.where.partition(":")[0] for finding in found} == {
        "usage by org,month",
        "usage by org,project,month",
        "usage by org,project,key,month",
    }


def test_accounts_of_one_name_are_one_row_of_usage(registry: Registry, who: Tenant) -> None:
    """Two keys of a project may be called alike; their rows are one, and no finding."""
    second = tenant(registry)
    tamper(registry, f"UPDATE api_keys SET project_id = '{who.project.id}' WHERE id = '{second.key.id}'")
    record(registry, used(registry, who, key_id=second.key.id))
    assert findings(registry) == []


# --- beside the bookkeeper ---------------------------------------------------------------------------------------


@only_sqlite
@given(prices, usages(), counts, st.booleans())
def test_its_arithmetic_is_exact(price, tokens: Tokens, embedding: int, batch: bool) -> None:
    """The auditor's own multiplication against fractions: it must not need the bookkeeper's to be right."""
    amounts = tuple(
        price.of(kind)
        for kind in ("prompt", "cached", "cache_write", "completion", "reasoning", "embedding", "cache_write_1h")
    )
    row = PriceRow(1, "m", 0, 0, None, amounts, price.request, price.batch_percent)
    tokens = msgspec.structs.replace(tokens, embedding=embedding)
    percent = price.batch_percent if batch else 100
    assert row.cost(_event_of(tokens, batch)) == min(ceil(Fraction(exact(price, tokens, percent))), 10**18)


def _event_of(tokens: Tokens, batch: bool) -> Event:
    return Event("", "", "", "", "m", "", "", *msgspec.structs.astuple(tokens), 0, 0, 0, int(batch), 0, 0)


@only_sqlite
def test_it_shares_no_arithmetic_with_the_bookkeeper() -> None:
    """One mistake in both would never be found."""
    forbidden = {"interlace.ledger.prices", "interlace.ledger.store", "interlace.ledger.ledger"}
    for name in ("audit", "audit_prices"):
        tree = ast.parse(Path(audit_module.__file__).with_name(f"{name}.py").read_text())
        imported = {
            node.module: {n.name for n in node.names} for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        assert forbidden.isdisjoint(imported)
        assert imported.get("interlace.ledger.book", set()) <= {"Account", "AccountKey"}


def test_a_running_book_is_compared_with_the_record(registry: Registry, who: Tenant) -> None:
    """Spent must be what is recorded and what is queued; reserved never less than nothing, nor beyond a budget."""
    month = registry.calendar.day(registry.clock.now())[:7]
    cost = 10 * 2 + 7 * 5 + 3 * 2 + 9 * 5
    scopes = {"org": who.organisation.id, "project": who.project.id, "key": who.key.id}
    queued = used(registry, who)
    there = used(registry, who, id="a" * 24)  # its commit is not known of yet

    def check(spent: int, reserved: int, *settled) -> list[tuple[str, str]]:
        accounts = {(scope, id, month): Account(spent, reserved) for scope, id in scopes.items()}
        found = registry.store.read(lambda connection: list(audit_book(connection, accounts, settled)))
        return sorted({(finding.severity, finding.what.partition(",")[0]) for finding in found})

    assert check(cost, 5) == []
    assert check(cost + queued.cost_nanos, 0, queued, there) == []
    assert check(cost, 0, queued) == [("wrong", "what is spent is not what was recorded and is queued")]
    assert check(cost, -1) == [("wrong", "more came back than was reserved")]
    tamper(registry, f"UPDATE organisations SET budget_nanos = {cost + 4} WHERE id = '{who.organisation.id}'")
    assert check(cost, 4) == []
    assert check(cost, 5) == [("notice", "spent and reserved together are beyond the budget; was it lowered?")]


# --- size --------------------------------------------------------------------------------------------------------


def fill(registry: Registry, who: Tenant, count: int) -> None:
    """So many events at once, with their balances."""
    one = used(registry, who)
    row = dict(zip(usage_events.columns.keys(), _row(one), strict=True))
    total = count * one.cost_nanos
    scopes = (("org", one.org_id), ("project", one.project_id), ("key", one.key_id))
    with registry.store.engine.begin() as connection:
        for start in range(0, count, 10_000):
            rows = [row | {"id": f"{number:024x}"} for number in range(start, min(count, start + 10_000))]
            connection.execute(insert(usage_events), rows)
        for scope, id in scopes:
            values = {"scope": scope, "scope_id": id, "month": one.month, "spent_nanos": total, "requests": count}
            connection.execute(insert(balances), values)


def test_memory_does_not_grow_with_events(registry: Registry) -> None:
    """An auditor that reads everything into memory could not check the ledger of a large organisation."""
    fill(registry, tenant(registry), 8_000)
    findings(registry)  # what is made once is there
    tracemalloc.start()
    try:
        assert findings(registry) == []
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
