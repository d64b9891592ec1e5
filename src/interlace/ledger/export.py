"""The record for other programs: beancount for accountants, CSV for spreadsheets. Read as a stream, exact to the
nano-dollar, one row or transaction for each day, project and model, or for each event."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Select, cast, func, select

from interlace.ledger.postgresql import in_code_order
from interlace.ledger.schema import api_keys, event_tags, organisations, projects, usage_events
from interlace.money import show_moment, show_usd

PAGE = 1000
TOKENS = (
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "embedding_tokens",
)


@dataclass(frozen=True, slots=True)
class Span:
    """Days from `since` to `until`, both included (2026-01-31); None: no bound."""

    since: str | None = None
    until: str | None = None


def as_csv(connection: Connection, span: Span, *, per_event: bool = False) -> Iterator[str]:
    """Lines of CSV, the header first. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    columns = (_EVENT_COLUMNS if per_event else _SUM_COLUMNS) + TOKENS + ("cost_nanos", "cost_usd")
    yield _line((*columns, *(_EVENT_DETAILS if per_event else ())))
    for page in _pages(connection, _events(span) if per_event else _sums(connection, span)):
        tags = _tags(connection, page) if per_event else {}
        for row in page:
            values = [getattr(row, name) for name in columns[:-1]]
            cells = [*values, show_usd(row.cost_nanos)]
            if per_event:
                cells += [getattr(row, name) for name in _EVENT_DETAILS[:-2]]
                cells += [show_moment(row.started_us), " ".join(tags.get(row.id, ()))]
            yield _line(cells)


def as_beancount(connection: Connection, span: Span, *, per_event: bool = False) -> Iterator[str]:
    """Lines of a beancount file: what projects owe for usage, and what models earned, in dollars to nine decimals."""
    names = _Accounts.read(connection)
    yield 'option "title" "Interlace usage"\noption "operating_currency" "USD"\n\n'
    opened = select(usage_events.c.project_id, usage_events.c.model).where(*_days(span)).distinct()
    pairs = list(connection.execute(opened))
    for account in sorted({names.project(id) for id, _ in pairs} | {names.model(model) for _, model in pairs}):
        yield f"1970-01-01 open {account} USD\n"
    for page in _pages(connection, _events(span) if per_event else _sums(connection, span)):
        for row in page:
            yield _transaction(row, names, per_event=per_event)


# --- queries -----------------------------------------------------------------------------------------------------

_SUM_COLUMNS = ("day", "org", "project", "model", "requests")
_EVENT_COLUMNS = ("id", "day", "org", "project", "key", "model", "engine", "outcome")
_EVENT_DETAILS = (
    "overrun_nanos",
    "estimated",
    "disputed",
    "batch",
    "route",
    "attempts",
    "endpoint",
    "latency_us",
    "first_token_us",
    "started",
    "tags",
)


def _sums(connection: Connection, span: Span) -> Select[Any]:
    """Sums of each day, project and model, the days in order."""
    groups = (usage_events.c.day, usage_events.c.project_id, usage_events.c.model)
    names = (organisations.c.name.label("org"), projects.c.name.label("project"))
    counted = [cast(func.sum(usage_events.c[name]), BigInteger).label(name) for name in (*TOKENS, "cost_nanos")]
    query = select(*groups, *names, func.count().label("requests"), *counted).select_from(_owned())
    query = query.where(*_days(span)).group_by(*groups, *(label.element for label in names))
    by = (organisations.c.name, projects.c.name, usage_events.c.model)
    return query.order_by(usage_events.c.day, *(in_code_order(text, connection) for text in by))


def _events(span: Span) -> Select[Any]:
    """Every event, the days in order."""
    names = (organisations.c.name.label("org"), projects.c.name.label("project"), api_keys.c.name.label("key"))
    query = select(usage_events, *names).select_from(_owned().join(api_keys, api_keys.c.id == usage_events.c.key_id))
    return query.where(*_days(span)).order_by(usage_events.c.day, usage_events.c.started_us, usage_events.c.id)


def _owned() -> Any:
    joined = usage_events.join(projects, projects.c.id == usage_events.c.project_id)
    return joined.join(organisations, organisations.c.id == usage_events.c.org_id)


def _days(span: Span) -> list[Any]:
    bounds = []
    if span.since is not None:
        bounds.append(usage_events.c.day >= span.since)
    if span.until is not None:
        bounds.append(usage_events.c.day <= span.until)
    return bounds


def _pages(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    yield from connection.execute(query, execution_options={"yield_per": PAGE}).partitions()


def _tags(connection: Connection, page: Sequence[Row[Any]]) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    query = select(event_tags).where(event_tags.c.event_id.in_([row.id for row in page]))
    for event_id, tag in connection.execute(query.order_by(event_tags.c.event_id, event_tags.c.tag)):
        tags.setdefault(event_id, []).append(tag)
    return tags


# --- CSV ---------------------------------------------------------------------------------------------------------

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _line(cells: Iterable[Any]) -> str:
    """One line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(_harmless(cell) for cell in cells)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    if isinstance(cell, bool):
        return int(cell)
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


# --- beancount ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Accounts:
    """Accounts have names of ASCII letters, digits and dashes, so ours are spelled anew; where two would be spelled
    alike, each gets a mark of its own."""

    projects: dict[str, str]
    models: dict[str, str]

    @classmethod
    def read(cls, connection: Connection) -> _Accounts:
        orgs = _spelled({row.id: row.name for row in connection.execute(select(organisations))})
        rows = connection.execute(select(projects)).all()
        found = _spelled({row.id: row.name for row in rows}, {row.id: row.org_id for row in rows})
        models = connection.scalars(select(usage_events.c.model).distinct())
        return cls({row.id: f"{orgs[row.org_id]}:{found[row.id]}" for row in rows}, _spelled({m: m for m in models}))

    def project(self, id: str) -> str:
        return f"Assets:Receivable:{self.projects[id]}"

    def model(self, name: str) -> str:
        return f"Income:Usage:{self.models[name]}"


def _spelled(names: dict[str, str], within: dict[str, str] | None = None) -> dict[str, str]:
    """id → what to call it; unique among those of the same owner."""
    owner = within or {}
    plain = {id: _spell(name) for id, name in names.items()}
    times = Counter((owner.get(id), spelling) for id, spelling in plain.items())
    return {
        id: spelling if times[owner.get(id), spelling] == 1 else f"{spelling}-{_mark(id)}"
        for id, spelling in plain.items()
    }


def _spell(name: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    cleaned = re.sub(r"[^A-Za-z0-9]+", "-", ascii_only).strip("-")
    return cleaned[:1].upper() + cleaned[1:] or "X"


def _mark(id: str) -> str:
    return hashlib.blake2b(id.encode(), digest_size=4).hexdigest()


def _transaction(row: Row[Any], names: _Accounts, *, per_event: bool) -> str:
    said = f"{row.model}, {row.outcome}" if per_event else f"{row.model}, {row.requests} requests"
    lines = [f"\n{row.day} * {_quoted(f'{row.org}/{row.project}')} {_quoted(said)}"]
    if per_event:
        texts = {"id": row.id, "key": row.key, "engine": row.engine}
        lines += [f"  {name}: {_quoted(value)}" for name, value in texts.items()]
    lines += [f"  {name.replace('_', '-')}: {getattr(row, name)}" for name in TOKENS if getattr(row, name)]
    amount = show_usd(row.cost_nanos)
    lines.append(f"  {names.project(row.project_id)}  {amount} USD")
    lines.append(f"  {names.model(row.model)}  {'-' if row.cost_nanos else ''}{amount} USD")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of beancount: what is no printable character becomes a blank."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
