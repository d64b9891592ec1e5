"""Money and moments as integers: nano-dollars, and microseconds since 1970. No float comes near either.

Nine decimals of a dollar are kept exactly, and nothing finer can be written down.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import NewType

Nanos = NewType("Nanos", int)
"""Nano-dollars: 1 is a billionth of a dollar."""

Micros = NewType("Micros", int)
"""A moment: microseconds since 1970-01-01 UTC."""

DOLLAR = 10**9
SECOND = 10**6
MOST_NANOS = 10**18  # a billion dollars: any amount, price or budget stays below, so that sums of many fit 64 bits

_USD = re.compile(r"([0-9]{1,10})(?:\.([0-9]+))?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_usd(text: str) -> Nanos:
    """Dollars as people write them ("12", "0.000000001") → nano-dollars; raises `ValueError` with problem and mend."""
    found = _USD.fullmatch(text.strip())
    if found is None:
        raise ValueError("is not an amount of dollars; write digits, and at most nine decimals, such as 12.50")
    fraction = (found[2] or "").rstrip("0")
    if len(fraction) > 9:
        raise ValueError("has more than nine decimals; nothing finer than 0.000000001 dollars can be charged")
    nanos = int(found[1]) * DOLLAR + int(fraction.ljust(9, "0"))
    if nanos > MOST_NANOS:
        raise ValueError("is more than a billion dollars; write less")
    return Nanos(nanos)


def show_usd(nanos: int) -> str:
    """Nano-dollars → dollars in full, at least two decimals: 12.50, 0.000000001, -0.25."""
    whole, rest = divmod(abs(nanos), DOLLAR)
    fraction = f"{rest:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{fraction}"


def parse_moment(text: str) -> Micros:
    """A date, or a date and time with its offset (ISO 8601) → a moment; a date alone is its midnight in UTC.

    Raises `ValueError` with problem and mend.
    """
    mend = "write a date such as 2026-01-31, or a time with its offset such as 2026-01-31T12:00:00Z"
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"is not a date or time; {mend}") from None
    if moment.tzinfo is None:
        if not _DAY.fullmatch(text.strip()):
            raise ValueError(f"has no time zone; {mend}")
        moment = moment.replace(tzinfo=UTC)
    if (micros := micros_of(moment)) < 0:
        raise ValueError(f"lies before 1970; {mend}")
    return micros


def micros_of(moment: datetime) -> Micros:
    """A moment with a time zone → microseconds, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return Micros((since.days * 86_400 + since.seconds) * SECOND + since.microseconds)


def show_moment(micros: int) -> str:
    """A moment in UTC, to the second: 2026-01-31T12:00:00Z."""
    return f"{datetime.fromtimestamp(micros // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


def day_of(micros: int, zone: tzinfo = UTC) -> str:
    """The calendar day of a moment in `zone`: 2026-01-31. Its first seven characters are the month."""
    return f"{datetime.fromtimestamp(micros // SECOND, zone):%Y-%m-%d}"
