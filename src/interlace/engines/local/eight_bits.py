"""Matrices as eight-bit integers in groups, without zero points: what the processor's integer products want.

Integers that a checkpoint holds already are used as they are. Where they come with a zero point (Q4_1: `(quant - zero)
* scale`, zero any number), the values of a group lie on evenly spaced places that seldom meet zero, and a scale that
maps the largest to 127 meets hardly any of them. So the places are mapped, not the values: `a * quant - b` for whole
`a` and `b` with `b / a` near the zero point. Some `a` up to 16 comes near for any zero point (Dirichlet's approximation
theorem), and the scale follows by least squares. What it gains is in decision 0005.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interlace.engines.local.quantised import Grouped

Array = np.ndarray[Any, Any]

GROUP = 32  # neighbours in a row that share a scale
_LARGEST = 127
_AT_ONCE = 1 << 16  # groups looked at together: what is computed of them stays in the processor's cache


def eight_bits(values: Array) -> Grouped:
    """The float32 matrix [rows, columns] in groups of 32, or of a whole row where 32 does not divide it; the largest of
    a group becomes 127 or -127."""
    rows, columns = values.shape
    shape = (rows, -1, GROUP if columns % GROUP == 0 else columns)
    quants, scales = _by_the_largest(values.reshape(shape))
    return Grouped(quants, scales, None, 8)


def regrouped(parts: Grouped) -> Grouped:
    """The same matrix without zero points, in its own groups: exact where each is a whole number that leaves the quants
    within eight bits, near otherwise."""
    if parts.zeros is None:
        return parts
    quants = np.empty(parts.quants.shape, np.int8).reshape(-1, parts.quants.shape[-1])
    scales = np.empty((len(quants), 1), np.float32)
    flat = [part.reshape(len(quants), -1) for part in (parts.quants, parts.zeros, parts.scales)]
    for start in range(0, len(quants), _AT_ONCE):
        chunk = slice(start, start + _AT_ONCE)
        quants[chunk], scales[chunk] = _without_zeros(*(part[chunk] for part in flat))
    return Grouped(quants.reshape(parts.quants.shape), scales.reshape(parts.scales.shape), None, 8)


def _without_zeros(quants: Array, zeros: Array, scales: Array) -> tuple[Array, Array]:
    """Quants [n, group] and zeros and scales [n, 1] as int8 quants and scales."""
    zero = zeros[:, 0].astype(np.float64)
    low, high = quants.min(axis=1).astype(np.float64), quants.max(axis=1).astype(np.float64)
    floats = quants.astype(np.float32)
    size, total = quants.shape[1], floats.sum(axis=1).astype(np.float64)
    squares = np.einsum("ni,ni->n", floats, floats).astype(np.float64)
    # With v = quant - zero, w = a * quant - b and the best scale the squared error is sum(vv) - sum(vw)^2 / sum(ww).
    best, step, offset, factor = (np.zeros(len(quants)) for _ in range(4))
    for a in range(1, 2 * _LARGEST // max(int(high.max(initial=1)), 1) + 1):
        b = np.rint(a * zero)
        along = a * squares - (b + a * zero) * total + zero * b * size
        length = a * a * squares - 2 * a * b * total + b * b * size
        fits = (a * high - b <= _LARGEST) & (b - a * low <= _LARGEST) & (length > 0)
        length = np.where(fits, length, 1)
        better = fits & (along * along / length > best)
        best[better] = (along * along / length)[better]
        step[better], offset[better], factor[better] = a, b[better], (along / length)[better]
    mapped = (step[:, None] * floats - offset[:, None]).astype(np.int8)
    rescaled = (factor[:, None] * scales).astype(np.float32)
    left = squares - 2 * zero * total + zero * zero * size - best
    largest = np.maximum(np.abs(low - zero), np.abs(high - zero))
    lost = (step == 0) | (left > size * (largest / _LARGEST) ** 2 / 12)  # what plain rounding would leave, on average
    if lost.any():
        mapped[lost], rescaled[lost] = _by_the_largest((floats[lost] - zeros[lost]) * scales[lost])
    return mapped, rescaled


def _by_the_largest(groups: Array) -> tuple[Array, Array]:
    """Groups [..., group] as int8 and their scales [..., 1]."""
    scales = np.abs(groups).max(axis=-1, keepdims=True, initial=0.0) / np.float32(_LARGEST)
    scales[scales == 0] = 1
    return np.rint(groups / scales).astype(np.int8), scales.astype(np.float32)
