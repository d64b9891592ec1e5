"""What was spent this month, as the balances have it: what is settled and durable, without what is reserved now."""

from __future__ import annotations

from sqlalchemy import Connection, select

from interlace.ledger.registry import Registry
from interlace.ledger.schema import balances


def this_month(registry: Registry) -> str:
    """The calendar month now, in the ledger's time zone: 2026-01."""
    return registry.calendar.day(registry.clock.now())[:7]


def spent_this_month(registry: Registry, scope: str, id: str | None = None) -> dict[str, int]:
    """Nano-dollars by id, of every organisation, project or key (`scope`), or of one of them."""
    query = select(balances.c.scope_id, balances.c.spent_nanos).where(
        balances.c.scope == scope, balances.c.month == this_month(registry)
    )
    if id is not None:
        query = query.where(balances.c.scope_id == id)

    def work(connection: Connection) -> dict[str, int]:
        return {row.scope_id: row.spent_nanos for row in connection.execute(query)}

    return registry.store.read(work)
