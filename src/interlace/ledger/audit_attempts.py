"""The attempts of an event as the auditor reads them: each at the price of its model, and all of them its cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from interlace.ledger.audit_prices import COUNTS, LARGEST, Event, PriceList, problem_of_tokens

_FREE = {"failed"}
_ENDS = {"served", "failed", "cancelled", "rejected", "reused"}

Problem = tuple[str, str, str]
"""What is wrong, what was expected, what was found."""


def problems_of_attempts(event: Event, prices: PriceList, *, charged: bool) -> Iterator[Problem]:
    """Everything about the attempts of an event that does not agree."""
    attempts = _read(event)
    if attempts is None:
        yield "its attempts cannot be read", "", repr(event.attempts)[:200]
        return
    served = [number for number, one in enumerate(attempts) if one["end"] == "served"]
    if len(served) > 1:
        yield "more than one of its attempts served", "1", str(len(served))
    told = attempts[served[0] if served else -1]
    if (told["model"], told["price_id"], _counts(told)) != (event.model, event.price_id, _counts_of(event)):
        yield "it does not say what its attempt that served says", _shown(told), _shown_event(event)
    for number, one in enumerate(attempts, 1):
        for what, expected, found in _one(event, one, prices, charged=charged):
            yield f"attempt {number}: {what}", expected, found
    total = min(sum(one["cost_nanos"] for one in attempts), LARGEST)
    if total != event.cost_nanos:
        yield "its cost is not the sum of its attempts", f"{total} nano-dollars", str(event.cost_nanos)


def _one(event: Event, one: dict[str, Any], prices: PriceList, *, charged: bool) -> Iterator[Problem]:
    counts: dict[str, Any] = _counts(one)
    alone = event._replace(model=one["model"], price_id=one["price_id"], **counts)
    if one["end"] not in _ENDS:
        yield "may not end so", " or ".join(sorted(_ENDS)), repr(one["end"])
    if problem := problem_of_tokens(alone):
        yield problem, "", ""
        return
    price = prices.by_id.get(one["price_id"])
    if price is None or not price.may_be_of(one["model"]):
        yield "its price is not one of its model", one["model"], f"price {one['price_id']}"
        return
    if not 0 <= one["percent"] <= 100 or (one["percent"] != 100 and one["end"] != "reused"):
        yield "only what is reused costs a part of its price, and no more than all", "100", str(one["percent"])
    cost = price.cost(alone, one["percent"]) if charged and one["end"] not in _FREE else 0
    if cost != one["cost_nanos"]:
        yield f"its cost is not its tokens at price {price.id}", f"{cost} nano-dollars", str(one["cost_nanos"])


def _read(event: Event) -> list[dict[str, Any]] | None:
    """The attempts with every field there is; None where they are none."""
    try:
        attempts = json.loads(event.attempts or "")
        whole = [{"cost_nanos": 0, "tokens": {}, "percent": 100, **one} for one in attempts]
        good = all(
            isinstance(one["model"], str) and type(one["price_id"]) is int and type(one["cost_nanos"]) is int
            and type(one["percent"]) is int
            and all(type(count) is int for count in _counts(one).values()) and isinstance(one["end"], str)
            for one in whole
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return whole if good and whole else None


def _counts(one: dict[str, Any]) -> dict[str, int]:
    return {name: one["tokens"].get(name.removesuffix("_tokens"), 0) for name in COUNTS}


def _counts_of(event: Event) -> dict[str, int]:
    return {name: getattr(event, name) for name in COUNTS}


def _shown(one: dict[str, Any]) -> str:
    return _line(one["model"], one["price_id"], list(_counts(one).values()))


def _shown_event(event: Event) -> str:
    return _line(event.model, event.price_id, list(_counts_of(event).values()))


def _line(model: str, price_id: int, counts: Sequence[int]) -> str:
    return f"{model}, price {price_id}, tokens {', '.join(map(str, counts))}"
