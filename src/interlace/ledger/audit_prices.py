"""Prices as the auditor reads them: its own multiplication, and its own view of when a price held."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from interlace.ledger.schema import prices

COUNTS = (
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "embedding_tokens",
    "cache_write_1h_tokens",
)

# A request may wait for a budget between choosing its price and its start.
_SLACK_US = 3_600_000_000
_EVER = 2**63
LARGEST = 10**18  # what a request is charged at most, whatever a provider claims
_HUNDRED_MILLION = 10**8  # tokens are priced by the million, batches by the hundredth


class Event(NamedTuple):
    """What is checked of one row of events. `bare`: its details are gone. `attempts`: JSON, of one that came by a
    route."""

    id: str
    org_id: str
    project_id: str
    key_id: str
    model: str
    outcome: str
    day: str
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    embedding_tokens: int
    cache_write_1h_tokens: int
    price_id: int
    cost_nanos: int
    overrun_nanos: int
    batch: int
    started_us: int
    bare: int
    attempts: str | None = None


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row, each kind with the amount it takes from its parent; None where neither has one."""

    id: int
    model: str
    since: int
    recorded_at: int
    retired_at: int | None
    amounts: tuple[
        int | None, ...
    ]  # plain prompt, cached, cache_write, plain completion, reasoning, embedding, an hour's
    request: int
    batch_percent: int
    spans: list[tuple[int, int]] = field(default_factory=list)  # when it was the price of its model

    def cost(self, event: Event, percent: int = 100) -> int:
        """Nano-dollars of an event, or so many per cent of them: every kind exactly, the sum rounded up."""
        exact = self.request * 10**6
        for count, amount in zip(_shares(event), self.amounts, strict=True):
            exact += count * (amount or 0)
        exact *= self.batch_percent if event.batch else 100
        whole, rest = divmod(exact * percent, 100 * _HUNDRED_MILLION)
        return min(whole + 1 if rest else whole, LARGEST)

    def unpriced(self, event: Event) -> str | None:
        """A kind of token that an event has and this price has no amount for."""
        for name, count, amount in zip(COUNTS, _shares(event), self.amounts, strict=True):
            if count and amount is None:
                return name
        return None

    def may_be_of(self, model: str) -> bool:
        """Whether it is the model's price, or that of the base whose adapter (`base:adapter`) the model is."""
        return self.model in (model, model.rpartition(":")[0])

    def held(self, moment: int) -> bool:
        """Whether it was its model's price at a moment, or so shortly before that a request may have waited since."""
        return any(begin <= moment < end + _SLACK_US for begin, end in self.spans)


def problem_of_tokens(event: Event) -> str | None:
    """Why the counts of an event cannot be; None when they can."""
    if min(_shares(event)) >= 0:
        return None
    negative = [name for name in COUNTS if getattr(event, name) < 0]
    return f"{negative[0]} is negative" if negative else "the parts of its tokens are more than their whole"


@dataclass(frozen=True, slots=True)
class PriceList:
    """All prices there ever were."""

    by_id: dict[int, PriceRow]

    @classmethod
    def read(cls, connection: Connection) -> PriceList:
        """Those the database has."""
        by_id = {row.id: _price(row) for row in connection.execute(select(prices))}
        by_model: defaultdict[str, list[PriceRow]] = defaultdict(list)
        for price in by_id.values():
            by_model[price.model].append(price)
        for rivals in by_model.values():
            _find_spans(rivals)
        return cls(by_id)


def _shares(event: Event) -> tuple[int, ...]:
    """Tokens that are charged as each kind."""
    return (
        event.prompt_tokens - event.cached_tokens - event.cache_write_tokens,
        event.cached_tokens,
        event.cache_write_tokens - event.cache_write_1h_tokens,
        event.completion_tokens - event.reasoning_tokens,
        event.reasoning_tokens,
        event.embedding_tokens,
        event.cache_write_1h_tokens,
    )


def _price(row: Row[Any]) -> PriceRow:
    def or_parent(amount: int | None, parent: int | None) -> int | None:
        return parent if amount is None else amount

    written = or_parent(row.cache_write, row.prompt)
    amounts = (
        row.prompt,
        or_parent(row.cached, row.prompt),
        written,
        row.completion,
        or_parent(row.reasoning, row.completion),
        or_parent(row.embedding, row.prompt),
        or_parent(row.cache_write_1h, written),
    )
    return PriceRow(
        row.id, row.model, row.since, row.recorded_at, row.retired_at, amounts, row.request, row.batch_percent
    )


def _find_spans(rivals: list[PriceRow]) -> None:
    """At each moment, of the prices of one model that were written down and had begun, the last begun held."""

    def begin(price: PriceRow) -> int:
        return max(price.since, price.recorded_at)

    def end(price: PriceRow) -> int:
        return _EVER if price.retired_at is None else price.retired_at

    moments = sorted({moment for price in rivals for moment in (begin(price), end(price))} | {_EVER})
    for moment, following in pairwise(moments):
        there = [price for price in rivals if begin(price) <= moment < end(price)]
        if there:
            holder = max(there, key=lambda price: (price.since, price.id))
            holder.spans.append((moment, following))
