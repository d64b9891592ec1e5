"""Amounts and moments as integers."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.money import DOLLAR, MOST_NANOS, day_of, parse_moment, parse_usd, show_moment, show_usd


@given(st.integers(0, MOST_NANOS))
def test_every_amount_is_read_as_it_was_shown(nanos: int) -> None:
    """A float on the way would lose the last digits of large amounts."""
    assert parse_usd(show_usd(nanos)) == nanos


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("12", 12 * DOLLAR),
        ("0.000000001", 1),
        ("9007199.254740993", 2**53 + 1),
        ("0.1000000000", 10**8),
    ],
)
def test_amounts(text: str, nanos: int) -> None:
    """Edges: nothing, one nano-dollar, beyond what a float holds, and zeros that mean nothing."""
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-1", "not an amount"),
        ("1e-9", "not an amount"),
        ("", "not an amount"),
        ("1,5", "not an amount"),
        ("NaN", "not an amount"),
        ("٣", "not an amount"),
        ("0.0000000001", "nine decimals"),
        ("1000000001", "billion"),
    ],
)
def test_what_is_no_amount(text: str, problem: str) -> None:
    """A wrong amount is refused in words, never rounded or guessed."""
    with pytest.raises(ValueError, match=problem):
        parse_usd(text)


def test_moments() -> None:
    """Days are midnights in UTC, times need an offset, and a day depends on where one is."""
    assert show_moment(parse_moment("2026-01-31")) == "2026-01-31T00:00:00Z"
    assert show_moment(parse_moment("2026-01-31T12:00:00+02:00")) == "2026-01-31T10:00:00Z"
    late = parse_moment("2026-01-31T23:30:00Z")
    assert (day_of(late), day_of(late, ZoneInfo("Africa/Nairobi"))) == ("2026-01-31", "2026-02-01")
    assert datetime.fromtimestamp(late / 1e6, UTC).day == 31
    for wrong in ("2026-01-31T12:00:00", "soon", "2026-02-30", "", "0001-01-01T00:00:00+23:59"):
        with pytest.raises(ValueError, match="write a date"):
            parse_moment(wrong)
