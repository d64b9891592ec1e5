"""What leaves for accountants and spreadsheets is exact, is read by their programs, and starts none of them."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from interlace.ledger import Outcome, Registry, Tokens
from interlace.ledger.export import Span, as_beancount, as_csv
from interlace.ledger.registry import alter
from interlace.ledger.schema import api_keys, organisations, projects
from tests.support.ledgers import open_ledger, record, used
from tests.support.prices import costing
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")

EVIL = '=HYPERLINK("http://x","y")'
DAYS = 86_400 * 10**6
NAMES = ["acme", "Acme", "日本", "Ünïcode & Söhne", 'a "quoted" \\ back\nslash ; comment', "1st", "-dash-", EVIL]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A ledger with tenants of difficult names, over several days; one cost is a billionth of a dollar, one is huge."""
    prices = (costing("m", 2, 5), costing("org/model:7b", 0, 1), costing("dear", 10**9, 10**9), costing("free", 0, 0))
    with open_ledger(tmp_path, prices=prices) as opened:
        now = opened.clock.now()
        for number, name in enumerate(NAMES):
            who = called(opened, tenant(opened), name)
            record(
                opened,
                used(opened, who, started_us=now - number * DAYS, tags=("=1+1", "team:x")),
                used(opened, who, started_us=now - number * DAYS, outcome=Outcome.FAILED, cost_nanos=0),
                used(opened, who, model="org/model:7b", tokens=Tokens(completion=1)),
                used(opened, who, model="dear", tokens=Tokens(prompt=123_456_789, cached=5, completion=7)),
                used(opened, who, model="free"),
            )
        yield opened


def called(registry: Registry, who: Tenant, name: str) -> Tenant:
    """Organisation, project and key under that name."""
    for table, entry in ((organisations, who.organisation), (projects, who.project), (api_keys, who.key)):
        registry.change(lambda connection, table=table, row=entry.id: [alter(connection, table, row, name=name)])
    return who


def exported(registry: Registry, how, span: Span = Span(), *, per_event: bool = False) -> str:  # noqa: B008 - frozen
    """All of it."""
    return registry.store.read(lambda connection: "".join(how(connection, span, per_event=per_event)))


def spent(registry: Registry) -> int:
    """What all organisations spent, by the balances."""
    from sqlalchemy import func, select

    from interlace.ledger.schema import balances

    query = select(func.sum(balances.c.spent_nanos)).where(balances.c.scope == "org")
    return registry.store.read(lambda connection: int(connection.scalar(query)))


# --- beancount ---------------------------------------------------------------------------------------------------


def postings(text: str) -> dict[str, Decimal]:
    """A small reader of what we write: the sum of each account; checks that every transaction balances."""
    accounts: defaultdict[str, Decimal] = defaultdict(Decimal)
    opened = set(re.findall(r"^1970-01-01 open (\S+) USD$", text, re.MULTILINE))
    for block in re.split(r"\n(?=\d{4}-\d\d-\d\d \* )", text)[1:]:
        found = re.findall(r"^  ([A-Z]\S+)  (-?[\d.]+) USD$", block, re.MULTILINE)
        assert len(found) == 2
        assert sum(Decimal(amount) for _, amount in found) == 0
        for account, amount in found:
            assert account in opened
            assert re.fullmatch(r"(Assets|Income)(:[A-Z0-9][A-Za-z0-9-]*)+", account), account
            accounts[account] += Decimal(amount)
    return accounts


@pytest.mark.parametrize("per_event", [False, True])
def test_beancount_adds_up_to_the_nano_dollar(registry: Registry, per_event: bool) -> None:
    """An accountant's file and our balances are the same money; each tenant has an account of its own."""
    accounts = postings(exported(registry, as_beancount, per_event=per_event))
    owed = {account: sum_ for account, sum_ in accounts.items() if account.startswith("Assets:")}
    assert sum(owed.values()) * 10**9 == spent(registry)
    assert sum(accounts.values()) == 0
    assert len(owed) == len(NAMES)
    assert accounts["Income:Usage:Org-model-7b"] == Decimal(len(NAMES)) / -(10**9)
    assert accounts["Income:Usage:Free"] == 0


@pytest.mark.parametrize("per_event", [False, True])
def test_beancount_itself_reads_it(registry: Registry, per_event: bool, tmp_path: Path) -> None:
    """The real program finds no error, and the same sums."""
    check = shutil.which("bean-check", path=str(Path(sys.executable).parent)) or shutil.which("bean-check")
    if check is None:
        pytest.skip("beancount is not installed")
    text = exported(registry, as_beancount, per_event=per_event)
    file = tmp_path / "usage.beancount"
    text += "\n1970-01-01 open Assets:Receivable USD\n"  # whose balance is that of all below it
    total = sum((sum_ for account, sum_ in postings(text).items() if account.startswith("Assets:")), Decimal())
    file.write_text(f"{text}\n2999-01-01 balance Assets:Receivable  {total} ~ 0 USD\n")
    done = subprocess.run([check, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file.write_text(f"{text}\n2999-01-01 balance Assets:Receivable  {total + Decimal('1e-9')} ~ 0 USD\n")
    assert subprocess.run([check, str(file)], capture_output=True, check=False).returncode == 1


# --- CSV ---------------------------------------------------------------------------------------------------------


def rows(text: str) -> list[dict[str, str]]:
    """As a program reads it."""
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("per_event", [False, True])
def test_csv_adds_up(registry: Registry, per_event: bool) -> None:
    """Rows of sums and rows of events are the same money."""
    read = rows(exported(registry, as_csv, per_event=per_event))
    assert sum(int(row["cost_nanos"]) for row in read) == spent(registry)
    assert sum(Decimal(row["cost_usd"]) for row in read) * 10**9 == spent(registry)
    assert sum(int(row.get("requests", 1)) for row in read) == 5 * len(NAMES)


@pytest.mark.parametrize("per_event", [False, True])
def test_no_cell_is_a_formula(registry: Registry, per_event: bool) -> None:
    """A project called `=HYPERLINK(…)` must not run in the accountant's spreadsheet."""
    text = exported(registry, as_csv, per_event=per_event)
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert f"'{EVIL}" in cells
    if per_event:
        assert "'=1+1 team:x" in cells


def test_an_event_has_all_that_is_known_of_it(registry: Registry) -> None:
    """Two who compare bills need the same facts."""
    with_tags = [row for row in rows(exported(registry, as_csv, per_event=True)) if row["tags"]]
    (one,) = [row for row in with_tags if row["org"] == "acme"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["started"])
    del one["id"], one["day"], one["started"]
    assert one == {
        "org": "acme", "project": "acme", "key": "acme", "model": "m", "engine": "local", "outcome": "finished",
        "prompt_tokens": "10", "cached_tokens": "0", "cache_write_tokens": "0", "cache_write_1h_tokens": "0",
        "completion_tokens": "7", "reasoning_tokens": "0", "embedding_tokens": "0",
        "cost_nanos": "55", "cost_usd": "0.000000055",
        "overrun_nanos": "0", "estimated": "0", "disputed": "0", "batch": "0", "route": "", "attempts": "",
        "endpoint": "chat", "latency_us": "1000", "first_token_us": "100", "tags": "'=1+1 team:x",
    }  # fmt: skip


@pytest.mark.parametrize("how", [as_csv, as_beancount])
@pytest.mark.parametrize("per_event", [False, True])
def test_days_bound_it_on_both_sides(registry: Registry, how, per_event: bool) -> None:
    """A month's bill has the month's first and last day, and no other."""
    day = registry.calendar.day(registry.clock.now() - 3 * DAYS)
    text = exported(registry, how, Span(since=day, until=day), per_event=per_event)
    days = re.findall(r"\d{4}-\d\d-\d\d(?= \*|,)", text)
    assert set(days) == {day}
    assert "\n" in exported(registry, how, Span(until="1999-12-31"))
