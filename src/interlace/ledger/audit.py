"""The auditor: recomputes the record from its events and says what does not agree, and where.

It stands apart from the bookkeeper: it reads rows, multiplies and adds by code of its own, and shares no arithmetic
with `prices`, `book` or `store`. What it checks:

    the database     whole, at the newest step of its schema
    each event       whose it is, its day, its tokens, the price it names, and the cost that this makes; of one that
                     came by a route, each attempt at the price of its model, and their sum
    each balance     the sum of its events; none missing, none without events
    what is printed  the sums of `interlace usage` are these same sums
    each budget      not exceeded in the newest month
    each lease       of a worker that works, not below zero, and with what is spent within its budget

Events are read as a stream: memory grows with accounts, prices and days, not with events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from sqlalchemy import Boolean, Connection, Integer, Select, Table, cast, func, inspect, select, text, type_coerce
from sqlalchemy.exc import DBAPIError

from interlace.ledger.audit_attempts import problems_of_attempts
from interlace.ledger.audit_leases import beyond_budgets, problems_of_leases
from interlace.ledger.audit_prices import Event, PriceList, problem_of_tokens
from interlace.ledger.book import Account, AccountKey
from interlace.ledger.events import UsageEvent
from interlace.ledger.migrations import HEAD, too_old
from interlace.ledger.outcomes import RULES
from interlace.ledger.schema import api_keys, balances, event_tags, metadata, organisations, plans, projects
from interlace.ledger.schema import usage_events as events
from interlace.ledger.usage import UsageFilter, usage_rows
from interlace.money import show_usd

PAGE = 2000  # rows fetched at once
MOST_PROBLEMS = 20  # of the database's own check of itself

_RECORDED = {outcome.value: rule.charged for outcome, rule in RULES.items() if rule.recorded}
_SCOPES = ("org", "project", "key")
_EMPTY = Account()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not agree. `wrong`: the record contradicts itself; `notice`: it may be right, look at it."""

    severity: Literal["wrong", "notice"]
    where: str
    what: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        """One line for people."""
        compared = f": expected {self.expected}, found {self.found}" if self.expected or self.found else ""
        return f"{self.where}: {self.what}{compared}"


@dataclass(slots=True)
class Sum:
    """What the events of one account and month add up to."""

    nanos: int = 0
    requests: int = 0
    overrun: int = 0


Sums = dict[AccountKey, Sum]


def audit(connection: Connection, time_zone: str = "UTC") -> Iterator[Finding]:
    """Check the whole record, as one connection sees it in one transaction; finding by finding, nothing is written."""
    try:
        whole = True
        for finding in _database(connection):
            whole &= finding.severity != "wrong"
            yield finding
        if not set(metadata.tables) <= set(inspect(connection).get_table_names()):
            return
        people = People.read(connection)
        sums: Sums = defaultdict(Sum)
        yield from _events(connection, people, PriceList.read(connection), ZoneInfo(time_zone), sums)
        yield from _twice(connection)
        yield from _tags(connection)
        yield from _balances(connection, people, sums)
        yield from _budgets(people, sums)
        yield from _leases(connection, people, sums)
        if whole:  # else its sums are no better than what was found already
            yield from _printed(connection, people, sums)
    except DBAPIError as error:
        yield Finding("wrong", "database", "cannot be read to its end", found=str(error.orig))


# --- the database ------------------------------------------------------------------------------------------------


def _database(connection: Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        for (problem,) in connection.execute(text(f"PRAGMA integrity_check({MOST_PROBLEMS})")):
            if problem != "ok":
                yield Finding("wrong", "database", "SQLite's integrity check fails", "ok", problem)
        for table, row, parent, _ in connection.execute(text("PRAGMA foreign_key_check")):
            yield Finding("wrong", f"table {table}, row {row}", f"names a row of {parent} that is not there")
    tables = set(inspect(connection).get_table_names())
    for name in sorted(set(metadata.tables) - tables):
        yield Finding("wrong", "database", f"has no table {name}")
    steps: list[Any] = []
    if "alembic_version" in tables:
        steps = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    if steps != [HEAD]:
        beside = len(steps) == 1 and steps[0] > HEAD and too_old(connection) is None
        severity: Literal["wrong", "notice"] = "notice" if beside else "wrong"
        yield Finding(severity, "database", "is not at this version's step of the schema", HEAD, _listed(steps))


# --- who ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class People:
    """Names, owners and budgets by id. A key's budget is the smaller of its own and its plan's."""

    org_names: dict[str, str]
    project_names: dict[str, str]
    project_orgs: dict[str, str]
    key_names: dict[str, str]
    key_projects: dict[str, str]
    erased: dict[str, int]
    budgets: dict[tuple[str, str], int]

    @classmethod
    def read(cls, connection: Connection) -> People:
        """Those the database knows."""
        people = cls({}, {}, {}, {}, {}, {}, {})
        for id, name, budget in connection.execute(_columns(organisations, "id", "name", "budget_nanos")):
            people.org_names[id] = name
            people._bound("org", id, budget)
        columns = _columns(projects, "id", "org_id", "name", "budget_nanos", "erased_at")
        for id, org_id, name, budget, erased_at in connection.execute(columns):
            people.project_names[id], people.project_orgs[id] = name, org_id
            people._bound("project", id, budget)
            if erased_at is not None:
                people.erased[id] = erased_at
        planned = {row.id: row.budget_nanos for row in connection.execute(_columns(plans, "id", "budget_nanos"))}
        columns = _columns(api_keys, "id", "project_id", "plan_id", "name", "budget_nanos")
        for id, project_id, plan_id, name, budget in connection.execute(columns):
            people.key_names[id], people.key_projects[id] = name, project_id
            people._bound("key", id, budget)
            people._bound("key", id, planned.get(plan_id))
        return people

    def _bound(self, scope: str, id: str, budget: int | None) -> None:
        if budget is not None:
            self.budgets[scope, id] = min(budget, self.budgets.get((scope, id), budget))

    def name(self, scope: str, id: str) -> str:
        """What is shown of an account: its names from the organisation down, and its id."""
        if scope == "org":
            return f"organisation {self.org_names.get(id, '?')} ({id})"
        if scope == "project":
            org = self.org_names.get(self.project_orgs.get(id, ""), "?")
            return f"project {org}/{self.project_names.get(id, '?')} ({id})"
        project = self.key_projects.get(id, "")
        org = self.org_names.get(self.project_orgs.get(project, ""), "?")
        return f"key {org}/{self.project_names.get(project, '?')}/{self.key_names.get(id, '?')} ({id})"


# --- events ------------------------------------------------------------------------------------------------------

_TEXTS = 7  # that an event begins with; all that follows are integers, but for its attempts at the end
_INTEGER = {int}


def _events(connection: Connection, people: People, prices: PriceList, zone: ZoneInfo, sums: Sums) -> Iterator[Finding]:
    """Each event by itself; what they add up to goes into `sums`."""
    names = Event._fields[:-2]
    as_number = type_coerce if connection.dialect.name == "sqlite" else cast  # raw, where any column holds anything
    numbers = [
        (as_number if isinstance(events.c[name].type, Boolean) else type_coerce)(events.c[name], Integer).label(name)
        for name in names[_TEXTS:]
    ]
    bare = events.c.endpoint.is_(None) & events.c.latency_us.is_(None) & events.c.first_token_us.is_(None)
    bare &= events.c.attempt_us.is_(None)
    query: Select[Any] = select(
        *(events.c[name] for name in names[:_TEXTS]),
        *numbers,
        as_number(bare, Integer).label("bare"),
        events.c.attempts,
    )
    days = _Days(zone)
    for row in connection.execute(query, execution_options={"yield_per": PAGE}):
        event = Event._make(row)
        if set(map(type, event[_TEXTS:-1])) != _INTEGER:
            junk = next(name for name in Event._fields[_TEXTS:-1] if type(getattr(event, name)) is not int)
            yield Finding("wrong", f"event {event.id}", f"{junk} is no integer", found=repr(getattr(event, junk)))
            continue
        _add(event, sums)
        for finding in _event(event, people, prices, days):
            yield Finding(finding.severity, f"event {event.id}", finding.what, finding.expected, finding.found)


def _add(event: Event, sums: Sums) -> None:
    month = event.day[:7]
    for account in (("org", event.org_id, month), ("project", event.project_id, month), ("key", event.key_id, month)):
        total = sums[account]
        total.nanos += event.cost_nanos
        total.requests += 1
        total.overrun += event.overrun_nanos


def _event(event: Event, people: People, prices: PriceList, days: _Days) -> Iterator[Finding]:
    """What is wrong with one event; `where` is the caller's to fill in."""
    if people.key_projects.get(event.key_id) != event.project_id:
        yield _wrong("its key is not of its project", _known(people.key_projects, event.key_id), event.project_id)
    if people.project_orgs.get(event.project_id) != event.org_id:
        yield _wrong(
            "its project is not of its organisation", _known(people.project_orgs, event.project_id), event.org_id
        )
    if not days.near(event.day, event.started_us):
        yield _wrong("its day is not that of its start", days.of(event.started_us), event.day)
    if not event.bare and event.started_us < people.erased.get(event.project_id, 0):
        yield Finding("notice", "", "its project was erased, but its details are still there")
    charged = _RECORDED.get(event.outcome)
    if charged is None:
        yield _wrong("no event may end so", " or ".join(_RECORDED), repr(event.outcome))
    yield from _cost(event, prices, charged=charged is not False)


def _cost(event: Event, prices: PriceList, *, charged: bool) -> Iterator[Finding]:
    if not 0 <= event.overrun_nanos <= max(0, event.cost_nanos):
        yield _wrong("its overrun is no part of its cost", f"0 to {event.cost_nanos}", str(event.overrun_nanos))
    if problem := problem_of_tokens(event):
        yield _wrong(problem)
        return
    price = prices.by_id.get(event.price_id)
    if price is None:
        yield _wrong("its price is not there", found=f"price {event.price_id}")
        return
    if not price.may_be_of(event.model):
        yield _wrong("its price is of another model", event.model, f"{price.model} (price {price.id})")
    if not price.held(event.started_us):
        yield Finding(
            "notice", "", f"price {price.id} did not hold when it began; was the clock set, or a price added?"
        )
    if unpriced := price.unpriced(event):
        yield _wrong(f"price {price.id} has no amount for its {unpriced}")
    if event.attempts is not None:
        for what, expected, found in problems_of_attempts(event, prices, charged=charged):
            yield _wrong(what, expected, found)
        return
    cost = price.cost(event) if charged else 0
    if cost != event.cost_nanos:
        what = f"its cost is not its tokens at price {price.id}" if charged else f"{event.outcome} costs nothing"
        yield _wrong(what, f"{cost} nano-dollars", str(event.cost_nanos))


class _Days:
    """Calendar days of the ledger's time zone, each looked up once."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._ranges: dict[str, tuple[int, int]] = {}

    def of(self, micros: int) -> str:
        """The day of a moment."""
        try:
            return datetime.fromtimestamp(micros // 10**6, self._zone).date().isoformat()
        except (ValueError, OverflowError, OSError):
            return "no day at all"

    def near(self, day: str, micros: int) -> bool:
        """Whether a moment lies in that day or the ones beside it: the setting of the time zone may have changed."""
        found = self._ranges.get(day)
        if found is None:
            found = self._ranges[day] = self._range(day)
        return found[0] <= micros < found[1]

    def _range(self, day: str) -> tuple[int, int]:
        try:
            noon = datetime.combine(date.fromisoformat(day), datetime.min.time(), self._zone) + timedelta(hours=12)
            if len(day) != len("2026-01-31"):
                return 0, 0
        except ValueError:
            return 0, 0
        middle = round(noon.timestamp()) * 10**6
        return middle - 36 * 3_600_000_000, middle + 36 * 3_600_000_000


def _twice(connection: Connection) -> Iterator[Finding]:
    """The primary key forbids it; should that have failed, somebody was billed twice."""
    query = select(events.c.id, func.count()).group_by(events.c.id).having(func.count() > 1)
    for id, times in connection.execute(query):
        yield Finding("wrong", f"event {id}", "is there more than once", "1", str(times))


def _tags(connection: Connection) -> Iterator[Finding]:
    joined = event_tags.outerjoin(events, events.c.id == event_tags.c.event_id)
    query = select(event_tags.c.event_id).distinct().select_from(joined).where(events.c.id.is_(None))
    for (id,) in connection.execute(query):
        yield Finding("wrong", f"event {id}", "has tags, but is not there")


# --- sums --------------------------------------------------------------------------------------------------------


def _balances(connection: Connection, people: People, sums: Sums) -> Iterator[Finding]:
    """Both ways: each row is the sum of its events, and each sum has its row."""
    missing = set(sums)
    columns = _columns(balances, "scope", "scope_id", "month", "spent_nanos", "requests")
    for scope, id, month, nanos, requests in connection.execute(columns):
        where = f"balance of {people.name(scope, id)}, {month}"
        total = sums.get((scope, id, month))
        if total is None:
            yield Finding("wrong", where, "no event adds to it", "no row", f"{nanos} nano-dollars, {requests} requests")
            continue
        missing.discard((scope, id, month))
        if nanos != total.nanos or type(nanos) is not int:
            yield Finding("wrong", where, "is not the sum of its events, in nano-dollars", str(total.nanos), str(nanos))
        if requests != total.requests or type(requests) is not int:
            yield Finding("wrong", where, "does not count its events", str(total.requests), str(requests))
    for account in sorted(missing):
        where = f"balance of {people.name(*account[:2])}, {account[2]}"
        total = sums[account]
        yield Finding("wrong", where, "is missing", f"{total.nanos} nano-dollars, {total.requests} requests", "no row")


def _printed(connection: Connection, people: People, sums: Sums) -> Iterator[Finding]:
    """`interlace usage` groups by name, so accounts of one name are one row of it."""
    for scope in _SCOPES:
        expected: defaultdict[tuple[str | None, ...], list[int]] = defaultdict(lambda: [0, 0])
        for (of, id, month), total in sums.items():
            if of == scope and (names := _printed_as(people, scope, id)):
                line = expected[*names, month]
                line[0] += total.nanos
                line[1] += total.requests
        by = (*_SCOPES[: _SCOPES.index(scope) + 1], "month")
        printed = {
            tuple(row.group[name] for name in by): [row.cost_nanos, row.requests]
            for row in usage_rows(connection, by, UsageFilter())
        }
        for group in sorted({*expected, *printed}, key=str):
            if expected.get(group) != printed.get(group):
                where = f"usage by {','.join(by)}: {', '.join(map(str, group))}"
                what = "is not the sum of the events, in nano-dollars and requests"
                yield Finding("wrong", where, what, _pair(expected.get(group)), _pair(printed.get(group)))


def _printed_as(people: People, scope: str, id: str) -> tuple[str, ...]:
    """Names from the organisation down; none for whom the database does not know."""
    project = people.key_projects.get(id, "") if scope == "key" else id
    org = id if scope == "org" else people.project_orgs.get(project, "")
    names = [people.org_names.get(org)]
    if scope != "org":
        names.append(people.project_names.get(project))
    if scope == "key":
        names.append(people.key_names.get(id))
    return () if None in names else tuple(name for name in names if name is not None)


def _budgets(people: People, sums: Sums) -> Iterator[Finding]:
    """Budgets of earlier months are not kept, so only the newest is compared."""
    newest = max((month for _, _, month in sums), default="")
    for (scope, id, month), total in sorted(sums.items()):
        budget = people.budgets.get((scope, id))
        if month != newest or budget is None or total.nanos <= budget:
            continue
        why = "providers used more than their limits" if total.nanos - total.overrun <= budget else "was it lowered?"
        what = f"spent beyond its budget; {why}"
        where = f"{people.name(scope, id)}, {month}"
        yield Finding("notice", where, what, f"at most {show_usd(budget)} dollars", show_usd(total.nanos))


def _leases(connection: Connection, people: People, sums: Sums) -> Iterator[Finding]:
    for worker, account, what, expected, found in problems_of_leases(connection):
        where = f"lease of {people.name(*account[:2])}, {account[2]}, to worker {worker}"
        yield Finding("wrong", where, what, expected, found)
    newest = max((month for _, _, month in sums), default="")
    spent = {account: total.nanos for account, total in sums.items()}
    for _, account, what, expected, found in beyond_budgets(connection, people.budgets, spent):
        if account[2] >= newest:
            yield Finding("notice", f"{people.name(*account[:2])}, {account[2]}", what, expected, found)


# --- a running ledger --------------------------------------------------------------------------------------------


def audit_book(
    connection: Connection, accounts: Mapping[AccountKey, Account], settled: Iterable[UsageEvent]
) -> Iterator[Finding]:
    """Check a running bookkeeper's accounts against the record.

    `settled` are the events that it counts as spent and does not know to be durable: the record has them by now or has
    not. Whoever calls sees to it that nothing is settled meanwhile: it runs on the ledger's event loop.
    """
    people = People.read(connection)
    expected = _expected(connection, {month for _, _, month in accounts}, {event.id: event for event in settled})
    for key in sorted({*expected, *accounts}):
        scope, id, month = key
        where = f"{people.name(scope, id)}, {month}, now"
        account, budget = accounts.get(key, _EMPTY), people.budgets.get((scope, id))
        if account.spent != expected[key]:
            what = "what is spent is not what was recorded and is queued, in nano-dollars"
            yield Finding("wrong", where, what, str(expected[key]), str(account.spent))
        if account.reserved < 0:
            yield Finding("wrong", where, "more came back than was reserved", found=str(account.reserved))
        if budget is not None and account.spent + account.reserved > budget and account.spent <= budget:
            what = "spent and reserved together are beyond the budget; was it lowered?"
            yield Finding("notice", where, what, str(budget), f"{account.spent} + {account.reserved}")


def _expected(
    connection: Connection, months: set[str], settled: Mapping[str, UsageEvent]
) -> defaultdict[AccountKey, int]:
    """What should be spent of every account of those months."""
    expected: defaultdict[AccountKey, int] = defaultdict(int)
    columns = _columns(balances, "scope", "scope_id", "month", "spent_nanos").where(balances.c.month.in_(months))
    for scope, id, month, nanos in connection.execute(columns):
        expected[scope, id, month] = nanos
    ids = list(settled)
    there: set[str] = set()
    for start in range(0, len(ids), PAGE):
        there.update(connection.scalars(select(events.c.id).where(events.c.id.in_(ids[start : start + PAGE]))))
    for event in settled.values():
        if event.id not in there:
            month = event.day[:7]
            for account in (("org", event.org_id), ("project", event.project_id), ("key", event.key_id)):
                expected[*account, month] += event.cost_nanos
    return expected


# --- small things ------------------------------------------------------------------------------------------------


def _wrong(what: str, expected: str = "", found: str = "") -> Finding:
    return Finding("wrong", "", what, expected, found)


def _columns(table: Table, *names: str) -> Select[Any]:
    return select(*(table.c[name] for name in names))


def _known(ids: Mapping[str, str], id: str) -> str:
    return ids.get(id, "one that is there")


def _pair(values: list[int] | None) -> str:
    return "no row" if values is None else f"{values[0]} in {values[1]}"


def _listed(steps: list[Any]) -> str:
    return ", ".join(map(str, steps)) or "none"
