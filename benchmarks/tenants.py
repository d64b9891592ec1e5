"""Organisations, projects, keys and past usage events, put into a ledger in bulk: what a gateway has after some years.

Rows are inserted as the schema declares them, in one transaction, while no server runs; balances are the sums of the
events, so that `interlace ledger check` agrees.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from interlace.ledger import Registry, new_key
from interlace.ledger.directory import hint_of
from interlace.ledger.registry import Entry, new_id
from interlace.ledger.schema import api_keys, balances, organisations, plans, prices, projects, usage_events

BUDGET_NANOS = 10**17
LIMITS = {"rpm": 10**9, "tpm": 10**12, "concurrency": 10**6}  # looked at by every request, reached by none
_COST_NANOS = 12_000
_CHUNK = 20_000
_DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is. Keys are dealt out to organisations in turn, one project each."""

    keys: int = 1
    organisations: int = 1
    events: int = 0


def fill(registry: Registry, amount: Amount, model: str) -> list[str]:
    """Insert so many of each, all with limits and budgets that are never reached; the texts of the keys.

    The model must have a price already where there are events.
    """
    texts = [new_key() for _ in range(amount.keys)]
    now = int(registry.clock.now())

    def work(connection: Connection) -> list[Entry]:
        plan = {"id": new_id("plan"), "name": "bench", "priority": 0, "source": "db", "created_at": now}
        connection.execute(insert(plans), [plan | LIMITS | {"budget_nanos": BUDGET_NANOS}])
        owners = _owners(connection, amount.organisations, now)
        rows = [
            {
                "id": new_id("key"), "project_id": owners[n % len(owners)][1], "plan_id": plan["id"],
                "name": f"key-{n}", "hint": hint_of(text), "digest": registry.hasher.digest(text),
                "scopes": '["inference"]', "budget_nanos": BUDGET_NANOS, "created_at": now,
            }
            for n, text in enumerate(texts)
        ]  # fmt: skip
        _insert(connection, api_keys, rows)
        if amount.events:
            keys = [(*owners[n % len(owners)], row["id"]) for n, row in enumerate(rows)]
            _events(connection, amount.events, keys, model, now)
        return []

    registry.store.write(work)
    return texts


def _owners(connection: Connection, count: int, now: int) -> list[tuple[str, str]]:
    """Ids of organisations and their projects."""
    owners = [(new_id("org"), new_id("proj")) for _ in range(count)]
    common = {"budget_nanos": BUDGET_NANOS, "created_at": now}
    _insert(connection, organisations, [{"id": org, "name": f"org-{n}"} | common for n, (org, _) in enumerate(owners)])
    _insert(connection, projects, [{"id": own, "org_id": org, "name": "p"} | common for org, own in owners])
    return owners


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), _CHUNK):
        connection.execute(insert(table), rows[start : start + _CHUNK])


def _events(connection: Connection, count: int, keys: list[tuple[str, str, str]], model: str, now: int) -> None:
    """Events of the last twelve months, evenly, dealt out to the keys in turn."""
    price = connection.execute(select(prices.c.id).where(prices.c.model == model)).scalars().first()
    connection.execute(update(prices).where(prices.c.id == price).values(recorded_at=now - 366 * _DAY_US))
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    rows = []
    for row in _rows(count, keys, model, now, price):
        for scope, id in (("org", row["org_id"]), ("project", row["project_id"]), ("key", row["key_id"])):
            total = sums[scope, id, row["day"][:7]]
            total[0] += _COST_NANOS
            total[1] += 1
        rows.append(row)
        if len(rows) == _CHUNK:
            connection.execute(insert(usage_events), rows)
            rows = []
    if rows:
        connection.execute(insert(usage_events), rows)
    names = ("scope", "scope_id", "month", "spent_nanos", "requests")
    _insert(connection, balances, [dict(zip(names, (*key, *total), strict=True)) for key, total in sums.items()])


def _rows(
    count: int, keys: list[tuple[str, str, str]], model: str, now: int, price: int | None
) -> Iterator[dict[str, Any]]:
    none = dict.fromkeys(("cached_tokens", "cache_write_tokens", "reasoning_tokens", "embedding_tokens"), 0)
    step = 365 * _DAY_US // count
    for n in range(count):
        started = now - (count - n) * step
        org, project, key = keys[n % len(keys)]
        yield {
            "id": f"{started // 1000:012x}{n:012x}", "org_id": org, "project_id": project, "key_id": key,
            "model": model, "engine": "openai", "outcome": "finished", "price_id": price, "prompt_tokens": 32,
            "completion_tokens": 12, "cost_nanos": _COST_NANOS, "overrun_nanos": 0, "estimated": False,
            "disputed": False, "batch": False,
            "day": dt.datetime.fromtimestamp(started / 1e6, dt.UTC).date().isoformat(), "started_us": started,
            "endpoint": "chat", "latency_us": 400_000, "first_token_us": None, "route": None, "attempts": None,
            "attempt_us": None, **none,
        }  # fmt: skip
