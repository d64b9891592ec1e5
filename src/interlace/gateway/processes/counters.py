"""What the processes of one installation count in memory that all of them map: the limits of plans, and breakers.

The supervisor makes it, afresh at each start, and hands it on as open files without a name: it is gone with the last of
them, and no process of another installation, or of a start before, ever sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interlace.gateway.routing import MappedBreakers
from interlace.ledger import MappedLimits
from interlace.mapped import area_file


def place_of(worker: str) -> int:
    """The place of worker `w1` is 0, that of `w1b`, which may replace it and live beside it for a while, 1."""
    number = int(worker.removeprefix("w").removesuffix("b")) - 1
    return 2 * number + worker.endswith("b")


@dataclass(frozen=True, slots=True)
class CounterFiles:
    """Descriptors of the files, the same in every process, and how many places for workers they have."""

    limits: int
    breakers: int
    workers: int

    @classmethod
    def make(cls, folder: Path, workers: int) -> CounterFiles:
        """New ones. In `folder` where the system has no files in memory."""
        files = cls(area_file(folder), area_file(folder), 2 * workers)
        files.open()  # laid out before anybody else looks
        return files

    @classmethod
    def of(cls, word: str) -> CounterFiles:
        """Those that a child was told of."""
        return cls(*map(int, word.split(",")))

    @property
    def word(self) -> str:
        """To tell a child."""
        return f"{self.limits},{self.breakers},{self.workers}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        """To hand to a child."""
        return self.limits, self.breakers

    def open(self, worker: str | None = None) -> Counters:
        """The counters; of a worker, or of one that only looks and buries."""
        place = None if worker is None else place_of(worker)
        return Counters(MappedLimits(self.limits, self.workers, place), MappedBreakers(self.breakers, place))


@dataclass(frozen=True, slots=True)
class Counters:
    """What is counted."""

    limits: MappedLimits
    breakers: MappedBreakers

    def clear(self, worker: str) -> None:
        """It is dead: nothing runs there, and it probes no model."""
        self.limits.clear(place_of(worker))
        self.breakers.clear(place_of(worker))
