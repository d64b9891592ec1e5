"""Prices: create, list, show, retire. A price is never changed: a later one takes its place, and the past stays."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import Connection

from interlace.errors import Conflict, InvalidRequest, NotFound
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.words import Input, Word, checked_model, moment_of, nanos_of, time, usd
from interlace.ledger.priced_as import LIKE
from interlace.ledger.prices import KINDS, Price
from interlace.ledger.registry import Entry, Registry, add, alter
from interlace.ledger.schema import prices
from interlace.money import show_usd

_NUMBER = re.compile(r"[0-9]+")

State = Literal["current", "future", "past", "retired"]


class Amounts(Input, frozen=True, kw_only=True):
    """Dollars per million tokens of each kind; one that is left out costs what its parent costs (cached, cache_write
    and embedding: prompt; cache_write_1h, written for an hour: cache_write; reasoning: completion)."""

    prompt: Word | None = None
    cached: Word | None = None
    cache_write: Word | None = None
    cache_write_1h: Word | None = None
    completion: Word | None = None
    reasoning: Word | None = None
    embedding: Word | None = None


class NewPrice(Input, frozen=True, kw_only=True):
    """A price to make. It holds from `since` on (left out: from now), until a later one does."""

    model: Word
    usd_per_million: Amounts
    since: Word | None = None
    usd_per_request: Word = "0"
    batch_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100


class PriceFilter(Input, frozen=True, kw_only=True):
    """Of which model, and in which state; left out: any."""

    model: Word | None = None
    state: State | None = None


class PriceNamed(Input, frozen=True, kw_only=True):
    """Which price, by its id, or the model whose current price it is."""

    price: Word


class PriceNumbered(Input, frozen=True, kw_only=True):
    """Which price, by its id, a number."""

    id: Word


class AmountsView(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars per million tokens as they were written; null: as the parent."""

    prompt: str | None
    cached: str | None
    cache_write: str | None
    cache_write_1h: str | None
    completion: str | None
    reasoning: str | None
    embedding: str | None


class NanosView(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-dollars per million tokens, by kind, as they are charged; null: has no price."""

    prompt: int | None
    cached: int | None
    cache_write: int | None
    cache_write_1h: int | None
    completion: int | None
    reasoning: int | None
    embedding: int | None


class PriceView(msgspec.Struct, frozen=True, kw_only=True):
    """A price. `source` is `file` for one that interlace.yaml names, `default` for one that ships with the product."""

    id: int
    model: str
    since: str
    state: State
    source: str
    usd_per_million: AmountsView
    nanos_per_million: NanosView
    usd_per_request: str
    nanos_per_request: int
    batch_percent: int
    recorded_at: str
    retired_at: str | None


def create_price(registry: Registry, given: NewPrice) -> PriceView:
    """Make a price; the requests that begin from now on, or from its `since` on, pay it."""
    model, now = checked_model(given.model), registry.clock.now()
    since = now if given.since is None else moment_of(given.since, "since")
    amounts: dict[str, int | None] = {
        kind: nanos_of(getattr(given.usd_per_million, kind), f"usd_per_million.{kind}") for kind in KINDS
    }
    values: dict[str, Any] = {
        "model": model,
        "since": since,
        **amounts,
        "request": nanos_of(given.usd_per_request, "usd_per_request"),
        "batch_percent": given.batch_percent,
    }
    if amounts["prompt"] is None and amounts["completion"] is None and amounts["embedding"] is None:
        raise InvalidRequest(
            "A price needs an amount for prompt, completion or embedding; zero for what is free.",
            param="usd_per_million",
            code="missing_required_parameter",
        )

    def work(connection: Connection) -> list[Entry]:
        _refuse_over_the_file(registry, model, since)
        made = add(connection, prices, source="db", recorded_at=now, **values)
        return [made, *registry.follow_likes(connection)]

    return _view(registry, registry.change(work)[0])


def list_prices(registry: Registry, given: PriceFilter) -> list[PriceView]:
    """All prices, by model and beginning."""
    lists = list(registry.directory.prices.values())
    views = [_view(registry, price) for prices in lists for price in prices]
    there = [view for view in views if given.model in (None, view.model) and given.state in (None, view.state)]
    return sorted(there, key=lambda view: (view.model, view.since, view.id))


def show_price(registry: Registry, given: PriceNamed) -> PriceView:
    """One price."""
    if given.price not in registry.directory.prices and _NUMBER.fullmatch(given.price):
        return _view(registry, _numbered(registry, given.price))
    current = registry.directory.price(given.price, registry.clock.now())
    if current is None:
        raise NotFound(
            f"The model {given.price!r} has no price now. `interlace prices list` shows all there are.",
            param="price",
            code="price_not_found",
        )
    return _view(registry, current)


def retire_price(registry: Registry, given: PriceNumbered) -> PriceView:
    """Take a price out: what it cost stays, and the one before it holds again."""
    now = registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        price = _numbered(registry, given.id)
        if price.source != "db":
            whose = {
                "file": "interlace.yaml's: remove it there",
                LIKE: f"another model's: change that, or give {price.model} a price of its own",
            }.get(price.source, "the product's own: make a later")
            raise Conflict(f"Price {price.id} is {whose}.", param="id", code="named_in_file")
        if price.retired_at is not None:
            return [price]
        retired = alter(connection, prices, price.id, retired_at=now)
        return [*registry.follow_likes(connection), retired]  # first what takes its place

    return _view(registry, registry.change(work)[-1])


def _refuse_over_the_file(registry: Registry, model: str, since: int) -> None:
    """A later price takes the place of one in the file; one for the same time or before would change the file's."""
    for price in registry.directory.prices.get(model, ()):
        if price.source == "file" and price.retired_at is None and price.since >= since:
            raise Conflict(
                f"interlace.yaml names a price of {model!r} since {time(price.since)}. Change it there, or name a "
                "later `since` here.",
                param="since",
                code="named_in_file",
            )


def _numbered(registry: Registry, id: str) -> Price:
    for there in list(registry.directory.prices.values()):
        for price in there:
            if str(price.id) == id:
                return price
    raise NotFound(f"There is no price {id!r}.", param="price", code="price_not_found")


def _view(registry: Registry, price: Entry) -> PriceView:
    assert isinstance(price, Price)
    return PriceView(
        id=price.id,
        model=price.model,
        since=time(price.since),
        state=_state(registry, price),
        source=price.source,
        usd_per_million=AmountsView(**{kind: usd(getattr(price, kind)) for kind in KINDS}),
        nanos_per_million=NanosView(**{kind: price.of(kind) for kind in KINDS}),
        usd_per_request=show_usd(price.request),
        nanos_per_request=price.request,
        batch_percent=price.batch_percent,
        recorded_at=time(price.recorded_at),
        retired_at=time(price.retired_at),
    )


def _state(registry: Registry, price: Price) -> State:
    now = registry.clock.now()
    if price.retired_at is not None:
        return "retired"
    if price.since > now:
        return "future"
    return "current" if registry.directory.price(price.model, now) is price else "past"


PRICES = (
    Operation("prices.create", "POST", "/prices", "Make a price.", NewPrice, PriceView, create_price),
    Operation("prices.list", "GET", "/prices", "All prices.", PriceFilter, list[PriceView], list_prices),
    Operation("prices.retire", "POST", "/prices/{id}/retire", "Take one out.", PriceNumbered, PriceView, retire_price),
    Operation("prices.show", "GET", "/prices/{price}", "One price.", PriceNamed, PriceView, show_price),
)
