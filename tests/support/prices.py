"""Prices for tests: what is free, written down, and what costs a round sum."""

from __future__ import annotations

from collections.abc import Iterable

from interlace.config import PerMillion, PriceSettings
from interlace.money import Micros, Nanos


def free(models: Iterable[str]) -> tuple[PriceSettings, ...]:
    """A price of zero for each model."""
    return tuple(costing(model, 0, 0) for model in models)


def costing(model: str, prompt: int, completion: int) -> PriceSettings:
    """A price in whole nano-dollars for each token of prompt and completion."""
    per_million = PerMillion(prompt=Nanos(prompt * 10**6), completion=Nanos(completion * 10**6))
    return PriceSettings(model=model, since=Micros(0), usd_per_million=per_million)


def free_in_yaml(models: Iterable[str]) -> list[dict[str, object]]:
    """The same as `interlace.yaml` has it."""
    free_amounts = {"prompt": "0", "completion": "0"}
    return [{"model": model, "since": "2026-01-01", "usd_per_million": free_amounts} for model in models]
