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
        self._last = (-1, "")  # a quarter of an hour and its day; replaced whole, as several threads ask

    def day(self, micros: int) -> str:
        """2026-01-31; its first seven characters are the month. No zone changes its day within a quarter of an hour."""
        quarter = micros // 900_000_000
        last = self._last
        if quarter != last[0]:
            last = self._last = (quarter, day_of(micros, self._zone))
        return last[1]
