"""Which tokens of one row may still be drawn, and the draw.

The order is that of transformers: temperature, top_k, top_p over what top_k left, min_p. "The largest" always means:
by value, equals by lower token id, so the set is exact and the same everywhere. Nothing here sorts the vocabulary
with its indices: values alone are selected, which numpy does with SIMD, and only the largest of them sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Row = NDArray[np.float32]

BLOCK = 256
_TOP_P_TRIES = (1024, 8192)  # how many of the largest to look among first; a model's nucleus rarely has more than 1024
_INVERSE_TEMPERATURE_MIN = float(np.finfo(np.float32).tiny)  # 0 would turn an excluded token's -inf into NaN
_INVERSE_TEMPERATURE_MAX = float(np.finfo(np.float32).max)
_SHORTEST_TIME = 1e-100  # so that nobody wins, and no excluded token is nothing over nothing, by a time of 0


def scratch_for(vocabulary: int) -> Row:
    """A buffer of zeros for one row, padded to whole blocks; `fill_weights` and `draw` work on it."""
    return np.zeros(-(-vocabulary // BLOCK) * BLOCK, dtype=np.float32)


def fill_weights(
    scratch: Row, row: Row, peak: float, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Write the unnormalised probabilities of the survivors of `row` into `scratch`, and 0 for all others.

    `row` may hold -inf, `peak` is its largest value and finite; the largest weight is 1. `temperature` > 0.
    """
    weights = scratch[: row.size]
    np.subtract(row, np.float32(peak), out=weights)
    inverse = min(max(1.0 / temperature, _INVERSE_TEMPERATURE_MIN), _INVERSE_TEMPERATURE_MAX)
    np.multiply(weights, np.float32(inverse), out=weights)
    kept = keep_top_k(weights, top_k) if 0 < top_k < row.size else None
    np.exp(weights, out=weights)
    if kept is not None:
        np.multiply(weights, kept, out=weights)
    if top_p < 1.0:
        np.multiply(weights, keep_top_p(weights, top_p, total(scratch)), out=weights)
    if min_p > 0.0:
        np.multiply(weights, weights >= np.float32(min_p), out=weights)


def keep_top_k(values: Row, k: int) -> NDArray[np.bool_]:
    """The `k` largest values, 0 < k <= their number."""
    lowest = values.min()
    # Without the -inf of a mask: numpy selects slowly among thousands of equals (and indexes slowly by booleans).
    candidates = values.take(np.flatnonzero(values > lowest))
    threshold = _nth_largest(candidates, k) if candidates.size >= k else lowest
    return _keep_largest(values, threshold, k)


def _nth_largest(values: Row, n: int) -> np.float32:
    found: np.float32 = np.partition(values, values.size - n)[values.size - n]
    return found


def keep_top_p(weights: Row, top_p: float, mass: float) -> NDArray[np.bool_]:
    """The fewest largest weights that hold `top_p` of `mass`, their sum; at least one.

    Weights below half of (1 - top_p) x mass / number are out at once: even all together they could not be needed.
    """
    goal = top_p * mass
    candidates = np.flatnonzero(weights >= np.float32(0.5 * (mass - goal) / weights.size))
    descending = _descending(weights.take(candidates), goal)
    count = min(int(np.searchsorted(np.cumsum(descending, dtype=np.float64), goal)) + 1, descending.size)
    return _keep_largest(weights, descending[count - 1], count)


def _descending(weights: Row, goal: float) -> Row:
    """As many of the largest weights as sum to `goal` or more (all, where they don't), largest first."""
    for size in _TOP_P_TRIES:
        if weights.size > 2 * size:
            largest = np.partition(weights, weights.size - size)[weights.size - size :]
            if largest.sum(dtype=np.float64) > goal:
                return np.sort(largest)[::-1]
    return np.sort(weights)[::-1]


def _keep_largest(values: Row, threshold: np.float32, count: int) -> NDArray[np.bool_]:
    """The `count` largest values, where `threshold` is the smallest of them."""
    kept: NDArray[np.bool_] = values > threshold
    missing = count - int(np.count_nonzero(kept))
    kept[np.flatnonzero(values == threshold)[:missing]] = True
    return kept


def total(scratch: Row) -> float:
    """The sum of all weights, accumulated in float64."""
    return float(_block_sums(scratch).sum())


def _block_sums(scratch: Row) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = scratch.reshape(-1, BLOCK).sum(axis=1, dtype=np.float64)
    return sums


def draw(scratch: Row, generator: Generator) -> int:
    """A token by its weight: the winner of a race in which each finishes after an exponential time over its weight.
    First the blocks race with their sums, then the tokens of the block that won.

    The winner is stable as no border on a cumulative scale is. Logits that differ in their last bits, as between a
    single and a batched matrix product, change it only where two are that close at the finish; on the scale, they move
    the borders of all the thousands of tokens. Takes the same number of numbers from `generator` for any weights.
    """
    sums = _block_sums(scratch)
    block = _winner(sums, generator)
    return block * BLOCK + _winner(scratch[block * BLOCK : (block + 1) * BLOCK], generator)


def _winner(weights: NDArray[np.floating[Any]], generator: Generator) -> int:
    times = np.maximum(generator.standard_exponential(weights.size), _SHORTEST_TIME)
    return int((weights / times).argmax())
