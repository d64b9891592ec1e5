"""Prices that `genai-prices` lists for the remote models of a configuration, said in our kinds or not at all.

The package (MIT) carries the list with it: nothing is fetched. It knows decimals; each becomes an integer of
nano-dollars before anything is compared or written. What our kinds cannot say exactly (tiers, hours of the day,
pictures at another price) is no proposal but a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.errors import ConfigError
from interlace.ledger.prices import KINDS, PARENTS, Kind, Price
from interlace.money import MOST_NANOS, Micros, micros_of

_PROVIDERS = {
    "anthropic": "anthropic",
    "azure": "azure",
    "bedrock": "aws",
    "groq": "groq",
    "mistral": "mistral",
    "openai": "openai",
    "together": "together",
    "vertex": "google",
}
"""Engine → what the package calls who sells there, where no `base_url` says it."""

_TOKENS: Mapping[str, Kind] = {
    "input_mtok": "prompt",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_mtok": "completion",
    "output_reasoning_mtok": "reasoning",
}
_UNUSED = ("audio", "video", "searches", "executions", "document", "gpixels", "mchars", "tool", "citation")
"""Parts of names of what nobody can ask for through Interlace: it is told, and changes no price."""

_SAME = {  # ours has one kind for both: good where the amounts are the same
    "input_text_mtok": "prompt",
    "output_text_mtok": "completion",
    "input_image_mtok": "prompt",
    "cache_text_read_mtok": "cached",
    "cache_image_read_mtok": "cached",
}
_NINE = Decimal("0.000000001")


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A price that a model should have from `since` on (None: from when it is applied), beside the one it has."""

    model: str
    listed: str  # provider and model, as the package calls them
    since: Micros | None
    now: Price | None
    price: Price
    notes: tuple[str, ...] = ()


class NotSaid(msgspec.Struct, frozen=True, kw_only=True):
    """A model without a proposal, and why; `known` when the package lists it."""

    model: str
    known: bool
    reason: str


class Proposals(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to say about the models."""

    proposed: tuple[Proposal, ...]
    unchanged: tuple[str, ...]
    not_said: tuple[NotSaid, ...]


class _Odd(Exception):
    """The list says what our kinds cannot."""


def package() -> tuple[Any, str]:
    """The package's list, and its name with its version; raises `ConfigError` where it is not installed."""
    try:
        from genai_prices import __version__
        from genai_prices.data_snapshot import get_snapshot
    except ImportError as error:
        raise ConfigError(
            f"The list of prices is not installed ({error}). Install it: pip install 'interlace[prices]'"
        ) from error
    return get_snapshot(), f"genai-prices {__version__}"


def propose(models: Iterable[ModelSettings], prices: Mapping[str, list[Price]], listed: Any, at: datetime) -> Proposals:
    """What is listed at `at` and from later days on for each remote model, beside its `prices`, none of them
    retired."""
    proposed: list[Proposal] = []
    unchanged: list[str] = []
    not_said: list[NotSaid] = []
    for model in models:
        if model.engine == "local":
            continue
        try:
            provider, found = _found(model, listed)
        except LookupError as error:
            not_said.append(NotSaid(model=model.name, known=False, reason=str(error)))
            continue
        name = f"{provider.id}/{found.id}"
        try:
            new = list(_changes(model, name, found, prices.get(model.name, []), at))
        except _Odd as odd:
            not_said.append(NotSaid(model=model.name, known=True, reason=f"{name}: {odd}"))
            continue
        proposed += new
        if not new:
            unchanged.append(model.name)
    return Proposals(proposed=tuple(proposed), unchanged=tuple(unchanged), not_said=tuple(not_said))


def _found(model: ModelSettings, listed: Any) -> tuple[Any, Any]:
    """The package's provider and model; raises `LookupError` that says what is not there."""
    url: str = model.base_url
    seller = None if url else _PROVIDERS.get(model.engine)
    if not url and seller is None:
        raise LookupError(f"nobody is known to sell what engine {model.engine} serves")
    try:
        provider = listed.find_provider(None, seller, url or None)
    except LookupError:
        raise LookupError(f"nobody is known to sell at {url}") from None
    try:
        _, found = listed.find_provider_model(model.model, provider, None, None)
    except LookupError:
        raise LookupError(f"{provider.id} is not known to sell {model.model!r}") from None
    return provider, found


def _changes(model: ModelSettings, name: str, found: Any, prices: list[Price], at: datetime) -> Iterator[Proposal]:
    """The price at `at` and each that begins later, where it is another than ours at that time."""
    now = _at(prices, micros_of(at))
    for moment, since in _moments(found, at):
        there = _at(prices, micros_of(moment))
        price, notes = _price(model, found, moment, there or now)
        if not _alike(there, price):
            yield Proposal(model=model.name, listed=name, since=since, now=there, price=price, notes=notes)
            prices = [*prices, msgspec.structs.replace(price, since=micros_of(moment), id=1 << 62)]


def _moments(found: Any, at: datetime) -> Iterator[tuple[datetime, Micros | None]]:
    """From when on there is a price: now, and the later days that are listed."""
    yield at, None
    if not isinstance(found.prices, list):
        return
    days = set()
    for one in found.prices:
        if one.constraint is None:
            continue
        day = getattr(one.constraint, "start_date", None)
        if day is None:
            raise _Odd("it depends on the hour of the day")
        days.add(day)
    for day in sorted(days):
        begin = datetime.combine(day, time(), UTC)
        if begin > at:
            yield begin, micros_of(begin)


def _price(model: ModelSettings, found: Any, moment: datetime, now: Price | None) -> tuple[Price, tuple[str, ...]]:
    """What is listed at a moment, as a price of ours, and what else there is to know. Of what the list does not say
    (an amount for each request, the batch's share) the price keeps what it has `now`."""
    notes: list[str] = []
    listed = _listed(found.get_prices(moment), notes)
    if model.embeds:
        if "prompt" not in listed:
            raise _Odd("it has no price for what goes in")
        amounts: dict[str, Any] = {"embedding": listed["prompt"]}
    else:
        if "prompt" not in listed or "completion" not in listed:
            raise _Odd("it has no price for what goes in, or none for what comes out")
        amounts = {kind: amount for kind, amount in listed.items() if kind != "request"}
    price = Price(
        model=model.name,
        since=micros_of(moment),
        **amounts,
        request=listed.get("request", now.request if now else 0),
        batch_percent=now.batch_percent if now else 100,
    )
    percent = _batch_percent(found, moment, listed, notes)
    return (price if percent is None else msgspec.structs.replace(price, batch_percent=percent)), tuple(notes)


def _listed(prices: Any, notes: list[str]) -> dict[str, int]:
    """Nano-dollars by our kinds, and by "request"; raises `_Odd` for what they cannot say."""
    found: dict[str, int] = {}
    given = {key: value for key, value in vars(prices).items() if value is not None}
    for key, value in given.items():
        if (kind := _TOKENS.get(key)) is not None:
            found[kind] = _nanos(key, value, notes)
        elif key == "requests_kcount":
            found["request"] = _of_thousand(_nanos(key, value, notes))
    for key, value in given.items():
        if key in _TOKENS or key == "requests_kcount":
            continue
        if any(part in key for part in _UNUSED):
            notes.append(f"without {key.rsplit('_', 1)[0].replace('_', ' ')}")
        elif key not in _SAME or found.get(_SAME[key]) != _nanos(key, value, []):
            raise _Odd(f"{key} has a price of its own, {value}")
    return found


def _nanos(key: str, value: Any, notes: list[str]) -> int:
    """Dollars as the package has them → whole nano-dollars."""
    if hasattr(value, "tiers"):
        steps = ", ".join(f"{tier.price} from {tier.start:,} tokens on" for tier in value.tiers)
        raise _Odd(f"{key} depends on the length of the prompt: {value.base}, {steps}")
    if not isinstance(value, Decimal) or not value.is_finite() or value < 0:
        raise _Odd(f"{key} is no amount: {value!r}")
    rounded = value.quantize(_NINE, ROUND_HALF_EVEN)
    if rounded != value:
        notes.append(f"{key} {value} rounded to nine decimals")
    nanos = int(rounded / _NINE)
    if nanos > MOST_NANOS:
        raise _Odd(f"{key} is more than a billion dollars")
    return nanos


def _of_thousand(nanos: int) -> int:
    if nanos % 1000:
        raise _Odd("the price of a request is finer than a nano-dollar")
    return nanos // 1000


def _batch_percent(found: Any, moment: datetime, listed: Mapping[str, int], notes: list[str]) -> int | None:
    """What a batch pays, in per cent, where one number says it for every kind; None where nothing is listed."""
    for variant in found.price_variants or ():
        active = variant.constraint is None or variant.constraint.active(moment)
        if variant.when != {"processing": "batch"} or not active:
            continue
        try:
            batch = {**listed, **_listed(variant.prices, [])}
        except _Odd as odd:
            notes.append(f"batch price not taken: {odd}")
            return None
        shares = {
            kind: _share(amount, listed.get(kind, 0)) for kind, amount in batch.items() if amount or listed.get(kind)
        }
        percents = set(shares.values())
        if len(percents) == 1 and (percent := percents.pop()) in range(101):
            return int(percent)
        parts = ", ".join(f"{kind} {share:.4g} %" for kind, share in sorted(shares.items()))
        notes.append(f"batch price not taken, one number cannot say it: {parts}")
        return None
    return None


def _share(batch: int, listed: int) -> Decimal:
    """In per cent; no number where there is nothing to compare with."""
    return Decimal(100 * batch) / listed if listed else Decimal("Infinity")


def _at(prices: Iterable[Price], moment: int) -> Price | None:
    begun = [price for price in prices if price.since <= moment]
    return max(begun, key=lambda price: (price.since, price.id), default=None)


def _alike(now: Price | None, price: Price) -> bool:
    """Whether both charge the same for everything."""
    if now is None:
        return False
    rest = (now.request, now.batch_percent) == (price.request, price.batch_percent)
    return rest and all(now.of(kind) == price.of(kind) for kind in kinds_of(price))


def kinds_of(price: Price) -> tuple[Kind, ...]:
    """The kinds that a model with this price is charged: embeddings, or all the others."""
    if price.prompt is None:
        return ("embedding",)
    return tuple(kind for kind in KINDS if kind != "embedding" and (kind in PARENTS or price.of(kind) is not None))
