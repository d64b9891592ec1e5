"""How well the held-out examples are known: loss and exact match, each with a 95 % interval.

Loss is the mean negative log-likelihood of an answer's token, in nats. Exact match is the share of the answers that
greedy decoding gives token by token: the likeliest token is the right one at every place, which one forward pass shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 2000
_Z = 1.959964


class Known(msgspec.Struct, frozen=True):
    """How well one example is known: the sum over its answer's tokens in nats, how many they are, and whether each is
    the likeliest."""

    nats: float
    tokens: int
    exact: bool


class Interval(msgspec.Struct, frozen=True):
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Score(msgspec.Struct, frozen=True):
    """A model on the held-out examples."""

    loss: Interval
    exact_match: Interval
    examples: int
    tokens: int


def mean_loss(known: Sequence[Known]) -> float:
    """Nats a token."""
    return sum(one.nats for one in known) / max(sum(one.tokens for one in known), 1)


def score(known: Sequence[Known], seed: int = 0) -> Score:
    """Both figures. The loss's interval comes from drawing examples anew, exact match's from Wilson's formula."""
    low, high = middle([loss for (loss,) in _losses((known,), seed)])
    return Score(
        Interval(mean_loss(known), low, high),
        wilson(sum(one.exact for one in known), len(known)),
        len(known),
        sum(one.tokens for one in known),
    )


def change(before: Sequence[Known], after: Sequence[Known], seed: int = 0) -> Interval:
    """How the loss changed on the same examples, drawn in pairs; below zero is better."""
    low, high = middle([then - one for one, then in _losses((before, after), seed)])
    return Interval(mean_loss(after) - mean_loss(before), low, high)


def out_of_patience(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether so many looks at the held-out examples came since the best one. Decided from the log alone, which a
    checkpoint keeps, so that a run that goes on decides as it would have."""
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def wilson(hits: int, of: int) -> Interval:
    """A share and its interval, which is sound for few examples and at the ends, too."""
    share, square = hits / of, _Z * _Z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def drawn(count: int, seed: int) -> Iterator[np.ndarray]:
    """[count] of examples' numbers for each resample, one after the other: of many examples, all at once would be
    gigabytes."""
    import numpy as np

    random = np.random.default_rng(seed)
    return (random.integers(0, count, count) for _ in range(_RESAMPLES))


def _losses(models: Sequence[Sequence[Known]], seed: int) -> Iterator[list[float]]:
    """The loss of each model, all on the same examples, for each resample."""
    import numpy as np

    sums = [(np.array([one.nats for one in known]), np.array([one.tokens for one in known])) for known in models]
    for draw in drawn(len(models[0]), seed):
        yield [float(nats[draw].sum() / tokens[draw].sum()) for nats, tokens in sums]


def middle(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Between which bounds 95 % of them lie."""
    import numpy as np

    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
