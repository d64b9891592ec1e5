"""Time, passed in: a simulation turns the hands itself."""

from __future__ import annotations

import time
from datetime import tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from interlace.money import Micros, day_of


class Clock(Protocol):
    """The time of day, which may jump, and a count of seconds, which may not."""

    def now(self) -> Micros:
        """Microseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never runs back."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> Micros:
        """Microseconds since 1970."""
        return Micros(time.time_ns() // 1000)

    def monotonic(self) -> float:
        """Seconds since some moment; never runs back."""
        return time.monotonic()


class Calendar:
    """Which day a moment is in the ledger's time zone; asked at every request, so the last answer is kept."""

    def __init__(self, time_zone: str) -> None:
        self._zone: tzinfo = ZoneInfo(time_zone)
        self._quarter = -1
        self._day = ""

    def day(self, micros: int) -> str:
        """2026-01-31; its first seven characters are the month. No zone changes its day within a quarter of an hour."""
        quarter = micros // 900_000_000
        if quarter != self._quarter:
            self._quarter, self._day = quarter, day_of(micros, self._zone)
        return self._day
