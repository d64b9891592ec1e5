"""What tokens cost: a price of one model from one moment on, and the charge of one request by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal

import msgspec

from interlace.money import Nanos

MILLION = 10**6

Kind = Literal["prompt", "cached", "cache_write", "cache_write_1h", "completion", "reasoning", "embedding"]
KINDS: tuple[Kind, ...] = ("prompt", "cached", "cache_write", "cache_write_1h", "completion", "reasoning", "embedding")
PARENTS: Mapping[Kind, Kind] = {
    "cached": "prompt",
    "cache_write": "prompt",
    "cache_write_1h": "cache_write",
    "reasoning": "completion",
    "embedding": "prompt",
}
"""A kind without an amount of its own costs what its parent costs."""

_READ: tuple[Kind, ...] = (
    "prompt",
    "cached",
    "cache_write",
    "cache_write_1h",
)  # what a prompt token may turn out to be


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of one request by kind. `prompt` includes `cached` and `cache_write`, `cache_write` what is
    written for an hour, `cache_write_1h`; `completion` includes `reasoning`; `embedding` stands alone."""

    prompt: int = 0
    cached: int = 0
    cache_write: int = 0
    completion: int = 0
    reasoning: int = 0
    embedding: int = 0
    cache_write_1h: int = 0


class Price(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Nano-dollars per million tokens of each kind (None: the parent's), and per request.

    It holds for `model` from `since` (microseconds) on, until a later one does. `batch_percent` is what a request of
    a batch pays of it. Never changed once written: usage events name it by `id`.
    """

    id: int = 0
    model: str
    since: int
    prompt: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    embedding: int | None = None
    request: int = 0
    batch_percent: int = 100
    source: str = "db"
    recorded_at: int = 0
    retired_at: int | None = None

    def of(self, kind: Kind) -> int | None:
        """Nano-dollars per million tokens of `kind`; None where neither it nor its parent has an amount."""
        amount: int | None = getattr(self, kind)
        if amount is None and (parent := PARENTS.get(kind)) is not None:
            return self.of(parent)
        return amount

    def covers(self, *, embedding: bool) -> bool:
        """Whether every token of a request of that sort has an amount; without one it must not be served."""
        if embedding:
            return self.of("embedding") is not None
        return self.of("prompt") is not None and self.of("completion") is not None

    @property
    def free(self) -> bool:
        """Whether nothing costs anything."""
        if self.request or self.prompt or self.completion:
            return False
        return not any(self.of(kind) for kind in KINDS)

    @cached_property
    def dearest_read(self) -> int:
        """Of a prompt token, whatever it turns out to be."""
        return _dearest(self, *_READ)

    @cached_property
    def dearest_said(self) -> int:
        """Of a completion token, whatever it turns out to be."""
        return _dearest(self, "completion", "reasoning")


def charge(price: Price, tokens: Tokens, *, batch: bool = False, percent: int = 100) -> Nanos:
    """Nano-dollars for one request, rounded once, upwards. All that money arithmetic there is. `percent`: of the price,
    for what is not made anew."""
    plain = tokens.prompt - tokens.cached - tokens.cache_write
    written = tokens.cache_write - tokens.cache_write_1h
    spoken = tokens.completion - tokens.reasoning
    assert plain >= 0, "cached tokens are prompt tokens"
    assert written >= 0, "what is written for an hour is written"
    assert spoken >= 0, "reasoning tokens are completion tokens"
    millionths = plain * (price.prompt or 0) + spoken * (price.completion or 0)
    if tokens.cached or tokens.cache_write or tokens.reasoning or tokens.embedding:
        millionths += (
            tokens.cached * (price.of("cached") or 0)
            + written * (price.of("cache_write") or 0)
            + tokens.cache_write_1h * (price.of("cache_write_1h") or 0)
            + tokens.reasoning * (price.of("reasoning") or 0)
            + tokens.embedding * (price.of("embedding") or 0)
        )
    return _rounded(price, millionths, batch=batch, percent=percent)


def most(price: Price, prompt: int, completion: int, *, embedding: bool = False, batch: bool = False) -> Nanos:
    """The most that a request can cost: every prompt token at the dearest kind it may turn out to be, likewise every
    completion token. `charge` of the same or fewer tokens is never more."""
    if embedding:
        return _rounded(price, prompt * _dearest(price, "embedding"), batch=batch)
    return _rounded(price, prompt * price.dearest_read + completion * price.dearest_said, batch=batch)


def affordable(price: Price, prompt: int, nanos: int, *, batch: bool = False) -> int | None:
    """How many completion tokens fit into `nanos` beside the prompt (negative: not even it); None: any number."""
    each = price.dearest_said
    percent = price.batch_percent if batch else 100
    if each * percent == 0:
        return None if most(price, prompt, 0, batch=batch) <= nanos else -1
    millionths = nanos * 100 * MILLION // percent - price.request * MILLION
    return (millionths - prompt * price.dearest_read) // each


def price_at(prices: Iterable[Price], moment: int) -> Price | None:
    """The price that holds at a moment: of those begun, the one that began last; of two such, the one written last."""
    found: Price | None = None
    for price in prices:
        if price.since > moment or price.retired_at is not None:
            continue
        if found is None or (price.since, price.id) > (found.since, found.id):
            found = price
    return found


def _dearest(price: Price, *kinds: Kind) -> int:
    return max([price.of(kind) or 0 for kind in kinds])


def part_of(price: Price, percent: int) -> Price:
    """The price at so many per cent, each amount rounded upwards: to hold by, never to charge by."""
    amounts = {kind: amount for kind in KINDS if (amount := getattr(price, kind)) is not None}
    scaled = {kind: -(-amount * percent // 100) for kind, amount in amounts.items()}
    return msgspec.structs.replace(price, request=-(-price.request * percent // 100), **scaled)


def _rounded(price: Price, millionths: int, *, batch: bool, percent: int = 100) -> Nanos:
    millionths += price.request * MILLION
    if batch:
        percent *= price.batch_percent
        return Nanos(-(-millionths * percent // (10_000 * MILLION)))
    return Nanos(-(-millionths * percent // (100 * MILLION)))
