"""A real ledger in a folder, and usage events put into it as a gateway would."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from interlace.config import PriceSettings, Settings
from interlace.ledger import Outcome, Registry, Tokens, UsageEvent
from interlace.ledger.clock import Clock
from interlace.ledger.prices import charge
from tests.support.gateway_thread import wait_for
from tests.support.prices import costing
from tests.support.stores import placed
from tests.support.tenants import Tenant

_ids = itertools.count()


@contextmanager
def open_ledger(
    home: Path,
    *,
    prices: tuple[PriceSettings, ...] = (costing("m", 2, 5),),
    clock: Clock | None = None,
    **settings: Any,
) -> Iterator[Registry]:
    """The ledger of a home, on the database of the test that runs, closed at the end."""
    registry = Registry.open(placed(Settings(home=home, prices=prices, **settings)), {}, clock)
    try:
        yield registry
    finally:
        registry.close()


def used(registry: Registry, who: Tenant, *, model: str = "m", **values: Any) -> UsageEvent:
    """A finished request of that tenant, charged as the ledger charges; `values` override what it says."""
    now = registry.clock.now()
    price = registry.directory.price(model, now)
    assert price is not None
    made: dict[str, Any] = {
        "id": f"{next(_ids):024x}",
        "org_id": who.organisation.id,
        "project_id": who.project.id,
        "key_id": who.key.id,
        "model": model,
        "engine": "local",
        "endpoint": "chat",
        "outcome": Outcome.FINISHED,
        "price_id": price.id,
        "tokens": Tokens(prompt=10, completion=7),
        "day": registry.calendar.day(values.get("started_us", now)),
        "started_us": now,
        "latency_us": 1000,
        "first_token_us": 100,
        **values,
    }
    made.setdefault("cost_nanos", int(charge(price, made["tokens"], batch=made.get("batch", False))))
    return msgspec.convert(made, UsageEvent)


def record(registry: Registry, *events: UsageEvent) -> None:
    """Write events and wait until they are durable."""
    there: list[UsageEvent] = []
    registry.store.durable = there.extend
    for event in events:
        registry.store.record(event)
    wait_for(lambda: len(there) == len(events))


def tamper(registry: Registry, *statements: str) -> None:
    """Change the record behind everybody's back, whatever SQLite's foreign keys say."""
    url = registry.store.engine.url
    opened: Any
    if url.get_backend_name() == "sqlite":
        opened = sqlite3.connect(str(url.database), isolation_level=None)
    else:
        opened = psycopg.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
        )
    with closing(opened) as connection:
        for statement in statements:
            connection.execute(statement)
