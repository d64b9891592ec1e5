"""Matrices as eight-bit integers without zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interlace.engines.local.eight_bits import eight_bits, regrouped
from interlace.engines.local.quantised import Grouped, stacked

Array = np.ndarray[Any, Any]


def four_bits(quants: Array, zeros: Array, scales: Array) -> Grouped:
    """Rows of one group each."""
    return Grouped(quants[:, None].astype(np.uint8), scales[:, None, None], zeros[:, None, None], 4)


def drawn(rows: int, zeros: Array) -> Grouped:
    """Rows of one group of 32 four-bit numbers drawn at random."""
    random = np.random.default_rng(3)
    quants = random.integers(0, 16, (rows, 32))
    quants[:, 0], quants[:, 1] = 0, 15  # as where a group's least and largest value set its scale
    return four_bits(quants, zeros.astype(np.float32), random.uniform(0.001, 0.1, rows).astype(np.float32))


def worst_in_steps(kept: Grouped, exact: Array) -> float:
    """The largest error, in units of a 127th of its group's largest value."""
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    return float((np.abs(kept.values() - exact) / np.where(step == 0, 1, step)).max())


@pytest.mark.parametrize("zero", [0, 7, 8, 15])
def test_whole_zero_points_lose_nothing(zero: int) -> None:
    """Q4_0's zero point is 8: its values are whole steps, and stay what they are."""
    parts = drawn(50, np.full(50, zero))
    kept = regrouped(parts)
    assert kept.zeros is None
    assert kept.quants.dtype == np.int8
    np.testing.assert_allclose(kept.values(), parts.values(), rtol=2e-7)


def test_what_has_no_zero_points_is_left_alone() -> None:
    """The integers of Q8_0 are used as they are."""
    parts = Grouped(np.ones((2, 1, 32), np.int8), np.ones((2, 1, 1), np.float32), None, 8)
    assert regrouped(parts) is parts


def test_places_are_met_better_than_values() -> None:
    """Of groups whose values lie on sixteen places, a quarter of the squared error is left that mapping the largest to
    127 has; the exactness of the precision `int8` rests on it."""
    parts = drawn(4000, np.random.default_rng(4).uniform(5, 10, 4000))
    exact = parts.values()

    def squared(kept: Grouped) -> float:
        return float(((kept.values() - exact) ** 2).sum())

    assert squared(regrouped(parts)) < squared(eight_bits(exact)) / 4


@given(
    arrays(np.uint8, (4, 32), elements=st.integers(0, 15)),
    arrays(np.float32, 4, elements=st.floats(-1e4, 1e4, width=32)),
    arrays(np.float32, 4, elements=st.floats(2**-20, 1e4, width=32)),
)
@settings(deadline=None)
def test_any_group_is_met(quants: Array, zeros: Array, scales: Array) -> None:
    """Whatever the group (far from zero, all alike, all zero), no value is off by more than a few steps, and none
    overflows."""
    parts = four_bits(quants, zeros, scales)
    kept = regrouped(parts)
    assert np.abs(kept.quants.astype(int)).max() <= 127
    assert worst_in_steps(kept, parts.values()) < 3
    assert np.isfinite(kept.scales).all()


@pytest.mark.parametrize("columns", [64, 40])
def test_floats(columns: int) -> None:
    """Floats are off by half a step of their group; rows that 32 does not divide are one group."""
    values = np.random.default_rng(6).normal(size=(5, columns)).astype(np.float32)
    values[2] = 0
    kept = eight_bits(values)
    assert kept.quants.shape == ((5, 2, 32) if columns == 64 else (5, 1, 40))
    groups = values.reshape(-1, kept.quants.shape[-1])
    errors = np.abs(kept.values() - values).reshape(groups.shape).max(axis=1)
    np.testing.assert_array_less(errors, np.abs(groups).max(axis=1) / 253 + 1e-12)
    assert not kept.values()[2].any()


def test_matrices_below_each_other() -> None:
    """Matrices that are alike are one with the rows of all; those of other groups or without zero points are not."""
    one, other = drawn(3, np.full(3, 7.5)), drawn(2, np.full(2, 8.25))
    assert one.like(other)
    np.testing.assert_array_equal(stacked([one, other]).values(), np.concatenate([one.values(), other.values()]))
    assert not one.like(regrouped(other))
    assert not one.like(Grouped(other.quants.reshape(2, 2, 16), other.scales.repeat(2, 1), other.zeros, 4))
