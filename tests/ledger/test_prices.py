"""Prices: what a request costs, at most and exactly."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from math import ceil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.config import ModelSettings, Settings
from interlace.ledger import Registry
from interlace.ledger.prices import KINDS, Price, Tokens, affordable, charge, most, price_at
from interlace.money import MOST_NANOS

amounts = st.one_of(st.none(), st.just(0), st.integers(0, 10**6), st.integers(0, MOST_NANOS))
prices = st.builds(
    Price,
    model=st.just("m"),
    since=st.just(0),
    request=st.integers(0, 10**12),
    batch_percent=st.integers(0, 100),
    **dict.fromkeys(KINDS, amounts),
)
counts = st.integers(0, 10**7)


@st.composite
def usages(draw: st.DrawFn) -> Tokens:
    """Tokens of one generation, whole kinds at least their parts."""
    cached, hour, reasoning = draw(counts), draw(counts), draw(counts)
    cache_write = hour + draw(counts)
    prompt, completion = cached + cache_write + draw(counts), reasoning + draw(counts)
    return Tokens(prompt, cached, cache_write, completion, reasoning, cache_write_1h=hour)


def exact(price: Price, tokens: Tokens, percent: int) -> Fraction:
    """The same by fractions, kind by kind, unrounded."""
    shares = {
        "prompt": tokens.prompt - tokens.cached - tokens.cache_write,
        "cached": tokens.cached,
        "cache_write": tokens.cache_write - tokens.cache_write_1h,
        "cache_write_1h": tokens.cache_write_1h,
        "completion": tokens.completion - tokens.reasoning,
        "reasoning": tokens.reasoning,
        "embedding": tokens.embedding,
    }
    parents = {
        "cached": "prompt", "cache_write": "prompt", "cache_write_1h": "cache_write", "reasoning": "completion",
        "embedding": "prompt",
    }  # fmt: skip
    total = Fraction(price.request)
    for kind, count in shares.items():
        payer = kind
        while (amount := getattr(price, payer)) is None and payer in parents:
            payer = parents[payer]
        total += Fraction(count * (amount or 0), 10**6)
    return total * percent / 100


@given(prices, usages(), st.booleans())
def test_a_charge_is_the_exact_sum_rounded_up_once(price: Price, tokens: Tokens, batch: bool) -> None:
    """Rounding kind by kind, or with floats, would drift from the exact sum."""
    assert charge(price, tokens, batch=batch) == ceil(exact(price, tokens, price.batch_percent if batch else 100))


@given(prices, usages(), st.booleans())
def test_the_most_is_never_less_than_the_charge(price: Price, tokens: Tokens, batch: bool) -> None:
    """A reservation that is smaller than the charge would let a budget be overspent."""
    assert charge(price, tokens, batch=batch) <= most(price, tokens.prompt, tokens.completion, batch=batch)


@given(prices, counts, st.integers(0, 10**20), st.booleans())
def test_what_is_affordable_fits_and_one_more_does_not(price: Price, prompt: int, nanos: int, batch: bool) -> None:
    """One token too many overspends, one too few refuses what would have fitted."""
    tokens = affordable(price, prompt, nanos, batch=batch)
    if tokens is None:
        assert most(price, prompt, 10**12, batch=batch) <= nanos
        return
    if tokens >= 0:
        assert most(price, prompt, tokens, batch=batch) <= nanos
    assert most(price, prompt, max(0, tokens + 1), batch=batch) > nanos


@pytest.mark.parametrize(
    ("per_million", "tokens", "cost"),
    [(0, 10**9, 0), (1, 1, 1), (1, 10**6, 1), (1, 10**6 + 1, 2), (10**6, 3, 3), (2**53, 10**6, 2**53), (1, 0, 0)],
)
def test_edges(per_million: int, tokens: int, cost: int) -> None:
    """A billionth of a dollar per million tokens is the least price there is; beyond 2^53 a float would be off."""
    price = Price(model="m", since=0, prompt=per_million, completion=0)
    assert charge(price, Tokens(prompt=tokens)) == cost


def test_a_kind_without_an_amount_takes_its_parents() -> None:
    """A provider that has no price of its own for cached or reasoning tokens bills them as prompt and completion."""
    price = Price(model="m", since=0, prompt=3, completion=5)
    assert [price.of(kind) for kind in KINDS] == [3, 3, 3, 3, 5, 5, 3]
    assert msgspec.structs.replace(price, cache_write=4).of("cache_write_1h") == 4
    assert price.covers(embedding=False)
    assert price.covers(embedding=True)
    only_embeds = Price(model="m", since=0, embedding=1)
    assert only_embeds.covers(embedding=True)
    assert not only_embeds.covers(embedding=False)


def test_the_latest_that_has_begun_holds() -> None:
    """A price of tomorrow does not count today; of two with the same beginning the later written one counts."""
    old, new, corrected = (Price(id=i, model="m", since=s) for i, s in ((1, 10), (2, 20), (3, 20)))
    gone = Price(id=4, model="m", since=21, retired_at=22)
    everything = [corrected, old, gone, new]
    assert price_at(everything, 9) is None
    assert price_at(everything, 19) is old
    assert price_at(everything, 99) is corrected


def test_a_catalogue_checkpoint_is_free_under_any_name(tmp_path: Path) -> None:
    """The page that serves `all-minilm-l6-v2` as `minilm` works as it stands; somebody's own weights and other people's
    servers have no price until one is written down."""
    models = (
        ModelSettings(name="minilm", checkpoint="all-minilm-l6-v2"),
        ModelSettings(name="mine", checkpoint="./mine"),
        ModelSettings(name="far", engine="openai", base_url="http://127.0.0.1:9/v1", model="all-minilm-l6-v2"),
    )
    with contextlib.closing(Registry.open(Settings(home=tmp_path, models=models), {})) as registry:
        found = {name: registry.directory.price(name, registry.clock.now()) for name in ("minilm", "mine", "far")}
    assert found["minilm"] is not None
    assert found["minilm"].free
    assert (found["mine"], found["far"]) == (None, None)
