"""Natural-log probabilities of the raw distribution: before penalty, bias, mask and temperature."""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Top = tuple[tuple[int, float], ...]


def log_normaliser(row: Row, peak: float, scratch: Row) -> float:
    """log(sum(exp(row))), where `peak` is the largest of `row`; overwrites `scratch`, which is at least as long."""
    shifted = scratch[: row.size]
    np.subtract(row, np.float32(peak), out=shifted)
    np.exp(shifted, out=shifted)
    return peak + log(float(shifted.sum()))


def largest(row: Row, k: int) -> NDArray[np.int64]:
    """The ids of the `k` largest values (all, when there are fewer), largest first, equals by lower id."""
    k = min(k, row.size)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(row, row.size - k)[row.size - k]
    ids = np.flatnonzero(row >= threshold)
    return ids[np.argsort(-row[ids], kind="stable")[:k]]


def raw_logprobs(row: Row, peak: float, token: int, k: int, scratch: Row) -> tuple[float, Top]:
    """The logprob of `token` and the `k` most likely tokens with theirs, best first."""
    normaliser = log_normaliser(row, peak, scratch)
    ids = largest(row, k)
    top = tuple((int(i), float(value) - normaliser) for i, value in zip(ids, row[ids], strict=True))
    return float(row[token]) - normaliser, top
