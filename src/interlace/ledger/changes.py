"""What changes in the directory, told to every installation that shares the database (PostgreSQL).

Each change names its entries in the table `changes`, in its own transaction; the others look there a few times a second
and read the entries anew. One change is made at a time, so that numbers become visible in their order.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func, insert, select, text

from interlace.errors import ConfigError
from interlace.ledger.directory import Key, KeyHasher, Organisation, Plan, Project, entry_of
from interlace.ledger.prices import Price
from interlace.ledger.schema import api_keys, changes, facts, organisations, plans, prices, projects

Entry = Organisation | Project | Plan | Key | Price

TURN = int.from_bytes(b"il-turn")  # of PostgreSQL's advisory locks, which are numbers that programs agree on
ALL = "all"  # more changed than is named

_TABLES = {table.name: table for table in (organisations, projects, plans, api_keys, prices)}  # owners first
_KINDS = {Organisation: "organisations", Project: "projects", Plan: "plans", Key: "api_keys", Price: "prices"}


def take_turn(connection: Connection) -> None:
    """Nobody else changes the directory until this transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": TURN})


def note(connection: Connection, entries: Iterable[Entry] | None) -> int:
    """Name what this transaction changes (None: perhaps everything); returns the number of the last change. In turn."""
    rows = [{"kind": ALL, "entry": ""}]
    if entries is not None:
        rows = [{"kind": _KINDS[type(entry)], "entry": str(entry.id)} for entry in entries]
    if rows:
        connection.execute(insert(changes), rows)
    return last(connection)


def last(connection: Connection) -> int:
    """The number of the last change."""
    return int(connection.execute(select(func.coalesce(func.max(changes.c.id), 0))).scalar_one())


def since(connection: Connection, seen: int) -> tuple[int, list[Entry]]:
    """The entries that changed after the change `seen`, as they are now, and the number of the last."""
    rows = connection.execute(select(changes).where(changes.c.id > seen).order_by(changes.c.id)).all()
    if not rows:
        return seen, []
    everything = any(row.kind == ALL for row in rows)
    found: list[Entry] = []
    for kind, table in _TABLES.items():
        query = select(table)
        if not everything:
            ids = {int(row.entry) if table is prices else row.entry for row in rows if row.kind == kind}
            if not ids:
                continue
            query = query.where(table.c.id.in_(ids))
        found += [entry_of(table, row) for row in connection.execute(query)]
    return rows[-1].id, found


def check_secret(connection: Connection, hasher: KeyHasher) -> None:
    """All machines must hash keys alike: one with another secret would refuse every key of the others. Raises
    `ConfigError`."""
    mine = hasher.digest("interlace").hex()
    there = connection.execute(select(facts.c.value).where(facts.c.name == "secret")).scalar()
    if there is None:
        connection.execute(insert(facts).values(name="secret", value=mine))
    elif there != mine:
        raise ConfigError(
            "The secret of this home is not the one that keys in this database were made with. Set INTERLACE_SECRET to "
            "the same text on every machine, or copy the file `secret` of the first home."
        )
