"""What was used, by whom: sums of usage events, for tables, bills and what a key sees of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, case, func, select

from interlace.ledger.book import AccountKey
from interlace.ledger.events import Attempt, UsageEvent
from interlace.ledger.outcomes import Outcome
from interlace.ledger.prices import KINDS, Tokens
from interlace.ledger.schema import (
    api_keys,
    balances,
    event_tags,
    organisations,
    projects,
    usage_events,
)

GROUPS = ("org", "project", "key", "model", "route", "tag", "day", "month", "outcome", "engine")
"""What usage can be grouped by. A request with two tags counts under both, so tags do not add up to the whole."""

_attempts = msgspec.json.Decoder(tuple[Attempt, ...])
_numbers = msgspec.json.Decoder(tuple[int, ...])


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. `group` has a value for each thing grouped by, in that order; None: no tag, or no
    route. `ids` has those of organisation, project and key, where they were asked for."""

    group: dict[str, str | None]
    ids: dict[str, str] = {}
    requests: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    embedding_tokens: int
    cost_nanos: int
    overrun_nanos: int
    estimated_requests: int
    disputed_requests: int


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events count; None: all. Days from `since` to `until` inclusive (2026-01-31), moments in microseconds from
    `since_us` up to, but without, `until_us`, and of these ids, model, tag and outcome."""

    since: str | None = None
    until: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    org_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    outcome: str | None = None
    tag: str | None = None


def usage_rows(connection: Connection, by: Sequence[str], which: UsageFilter, *, ids: bool = False) -> list[UsageRow]:
    """Sums of the events that `which` takes, one row for each group there is, in the groups' order.

    With `ids`, organisations, projects or keys of one name are rows of their own.
    """
    groups = [_group(name).label(f"by_{name}") for name in by]
    known = [name for name in by if name in _IDS] if ids else []
    groups += [usage_events.c[_IDS[name]].label(f"id_{name}") for name in known]
    sums = [func.count().label("requests")]
    sums += [func.coalesce(func.sum(usage_events.c[name]), 0).label(name) for name in _SUMMED]
    for flag in ("estimated", "disputed"):
        sums.append(func.coalesce(func.sum(_as_number(usage_events.c[flag])), 0).label(f"{flag}_requests"))
    query = _joined(select(*groups, *sums), by).where(*_conditions(which))
    if groups:
        query = query.group_by(*groups)
    rows = []
    for row in connection.execute(query):
        values = dict(row._mapping)
        group = {name: values.pop(f"by_{name}") for name in by}
        found = {name: values.pop(f"id_{name}") for name in known}
        rows.append(UsageRow(group=group, ids=found, **{name: int(value) for name, value in values.items()}))
    return sorted(rows, key=_place)


def read_events(connection: Connection, *, id: str | None = None) -> Iterator[UsageEvent]:
    """Every usage event as it was recorded, in the order of its start; or the one with that id."""
    query = select(usage_events).order_by(usage_events.c.started_us, usage_events.c.id)
    tagged = select(event_tags).order_by(event_tags.c.event_id, event_tags.c.tag)
    if id is not None:
        query, tagged = query.where(usage_events.c.id == id), tagged.where(event_tags.c.event_id == id)
    tags: dict[str, list[str]] = {}
    for event_id, tag in connection.execute(tagged):
        tags.setdefault(event_id, []).append(tag)
    for row in connection.execute(query):
        values = dict(row._mapping)
        tokens = Tokens(**{kind: values.pop(f"{kind}_tokens") for kind in KINDS})
        values["outcome"] = Outcome(values["outcome"])
        values["attempts"] = _attempts.decode(values["attempts"]) if values["attempts"] else ()
        if values["attempt_us"] is not None:
            values["attempt_us"] = _numbers.decode(values["attempt_us"])
        yield UsageEvent(tokens=tokens, tags=tuple(tags.get(row.id, ())), **values)


def balances_of_month(connection: Connection, month: str) -> dict[AccountKey, int]:
    """What is spent of every account in a month, in nano-dollars."""
    query = select(balances).where(balances.c.month == month)
    return {(row.scope, row.scope_id, row.month): row.spent_nanos for row in connection.execute(query)}


def _place(row: UsageRow) -> tuple[tuple[bool, str], ...]:
    """Where a row stands: databases differ in how they order texts of any language, and what is none."""
    return tuple((text is not None, text or "") for text in (*row.group.values(), *row.ids.values()))


_IDS = {"org": "org_id", "project": "project_id", "key": "key_id"}

_SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "embedding_tokens",
    "cost_nanos",
    "overrun_nanos",
)


def _group(name: str) -> ColumnElement[Any]:
    columns: dict[str, ColumnElement[Any]] = {
        "org": organisations.c.name,
        "project": projects.c.name,
        "key": api_keys.c.name,
        "tag": event_tags.c.tag,
        "month": func.substr(usage_events.c.day, 1, 7),
    }
    return columns[name] if name in columns else usage_events.c[name]


def _joined(query: Select[Any], by: Sequence[str]) -> Select[Any]:
    query = query.select_from(usage_events)
    if "org" in by:
        query = query.join(organisations, organisations.c.id == usage_events.c.org_id)
    if "project" in by:
        query = query.join(projects, projects.c.id == usage_events.c.project_id)
    if "key" in by:
        query = query.join(api_keys, api_keys.c.id == usage_events.c.key_id)
    if "tag" in by:
        query = query.outerjoin(event_tags, event_tags.c.event_id == usage_events.c.id)
    return query


def _conditions(which: UsageFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if which.since is not None:
        conditions.append(usage_events.c.day >= which.since)
    if which.until is not None:
        conditions.append(usage_events.c.day <= which.until)
    if which.since_us is not None:
        conditions.append(usage_events.c.started_us >= which.since_us)
    if which.until_us is not None:
        conditions.append(usage_events.c.started_us < which.until_us)
    if which.tag is not None:
        tagged = select(event_tags.c.event_id).where(event_tags.c.tag == which.tag)
        conditions.append(usage_events.c.id.in_(tagged))
    same = {name: getattr(which, name) for name in ("org_id", "project_id", "key_id", "model", "outcome")}
    return conditions + [usage_events.c[name] == value for name, value in same.items() if value is not None]


def _as_number(flag: ColumnElement[bool]) -> ColumnElement[int]:
    return case((flag, 1), else_=0)
