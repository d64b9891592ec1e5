"""Prices of models that cost what another costs until they have a price of their own.

They are rows like any other, of source "like", so that the record alone says what was charged. A change of the other's
prices, or a price of their own, changes them in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from interlace.config import Settings, read_added_models
from interlace.ledger.directory import entry_of
from interlace.ledger.prices import KINDS, Price
from interlace.ledger.schema import prices

LIKE = "like"
_AMOUNTS = ("since", *KINDS, "request", "batch_percent")


def likes_of(settings: Settings) -> dict[str, str]:
    """Model → the one whose prices it has; of the home folder's added models too, where settings lack them. One that
    follows another which follows a third comes after it."""
    served = {model.name for model in settings.models}
    likes = {model.name: model.priced_as for model in settings.models}
    likes |= {one.name: one.like for one in read_added_models(settings.home) if one.name not in served}
    left = {name: other for name, other in likes.items() if other and other != name}
    ordered: dict[str, str] = {}
    while ready := {name: other for name, other in left.items() if other not in left}:
        ordered |= ready
        left = {name: other for name, other in left.items() if name not in ready}
    return ordered  # those that follow each other in a circle have no price


def follow_likes(
    connection: Connection, likes: Mapping[str, str], now: int, *, gone: Collection[str] = ()
) -> list[Price]:
    """Give every model of `likes` the prices that the other has, but none from when it has its own on, and take them
    from models that are `gone`; the rows that are new or retired."""
    left = [row for model in gone for row in _living(connection, model) if row.source == LIKE]
    changed = [*_retired(connection, left, now)]
    for model, other in likes.items():
        rows = _living(connection, model)
        own = min((row.since for row in rows if row.source != LIKE), default=None)
        wanted = [_amounts(row) for row in _living(connection, other) if own is None or row.since < own]
        old: list[Row[Any]] = []
        for row in rows:
            if row.source == LIKE and _amounts(row) in wanted:
                wanted.remove(_amounts(row))
            elif row.source == LIKE:
                old.append(row)
        for amounts in wanted:
            values = {**amounts, "model": model, "source": LIKE, "recorded_at": now}
            key = connection.execute(insert(prices).values(**values)).inserted_primary_key
            assert key is not None
            changed += _entries(connection, key[0])
        changed += _retired(connection, old, now)
    return changed


def all_likes(connection: Connection) -> set[str]:
    """Models that have such prices now."""
    there = select(prices.c.model).where(prices.c.source == LIKE, prices.c.retired_at.is_(None))
    return set(connection.execute(there).scalars())


def _living(connection: Connection, model: str) -> list[Row[Any]]:
    there = select(prices).where(prices.c.model == model, prices.c.retired_at.is_(None)).order_by(prices.c.id)
    return list(connection.execute(there))


def _amounts(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _AMOUNTS}


def _retired(connection: Connection, rows: Iterable[Row[Any]], now: int) -> Iterator[Price]:
    for row in rows:
        connection.execute(update(prices).where(prices.c.id == row.id).values(retired_at=now))
        yield from _entries(connection, row.id)


def _entries(connection: Connection, id: int) -> Iterator[Price]:
    for row in connection.execute(select(prices).where(prices.c.id == id)):
        entry = entry_of(prices, row)
        assert isinstance(entry, Price)
        yield entry
