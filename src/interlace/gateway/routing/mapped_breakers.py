"""Breakers that the workers of one machine share: a model that one of them takes for broken is so for all, and of all
their requests one probes it.

    opened    microseconds of the machine's monotonic clock; 0: closed
    prober    the worker whose request probes, from 1; 0: none. What a dead worker probed, another may
    failures  how many there were since the last success, and the moments of the last ones, in a ring
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from interlace.config import BreakerSettings, ModelSettings
from interlace.errors import LedgerUnavailable
from interlace.gateway.routing.facts import BreakerState
from interlace.gateway.routing.live import Clock
from interlace.mapped import Area, Slot

log = logging.getLogger(__name__)

OPENED, PROBER, FAILURES, RING = 0, 1, 2, 3
MOST_FAILURES = 1000  # as `BreakerSettings.failures`
MICROS = 1_000_000


class MappedBreakers:
    """Those of all models. `worker`: which of them this is, from 0; None: one that only looks."""

    def __init__(self, fd: int, worker: int | None = None, clock: Clock = time.monotonic) -> None:
        self._area, self._worker, self._clock = Area(fd, RING + MOST_FAILURES), worker, clock
        if worker is not None:
            self.clear(worker)

    def clear(self, worker: int) -> None:
        """No request of that worker probes a model: it is dead, or has just begun."""
        for slot in self._area.all():
            with slot:
                if slot.view[slot.at + PROBER] == worker + 1:
                    slot.view[slot.at + PROBER] = 0

    def breaker(self, model: ModelSettings) -> MappedBreaker:
        """That of a model. One whose settings are changed is another model, of which nothing is known yet."""
        assert self._worker is not None
        name = msgspec.json.encode(model, enc_hook=str, order="deterministic").decode()
        return MappedBreaker(model.breaker, self._area.slot(name), self._worker + 1, self._clock)


@dataclass(slots=True)
class MappedBreaker:
    """As `live.Breaker`."""

    settings: BreakerSettings
    slot: Slot
    me: int
    clock: Clock

    @property
    def state(self) -> BreakerState:
        """How it is now; `enter` looks again, alone."""
        view, at = self.slot.view, self.slot.at
        if not (opened := view[at + OPENED]):
            return "closed"
        if view[at + PROBER]:
            return "probing"
        return "half_open" if self._now() >= opened + self.settings.open_seconds * MICROS else "open"

    async def claim(self) -> bool:
        """There are no others."""
        return True

    def enter(self) -> bool:
        """An attempt begins; whether it is the probe. Whoever probes must say how it ended, or `leave`."""
        return self.state == "half_open" and self._alone(self._probe)

    def succeeded(self) -> None:
        """The model has answered."""
        view, at = self.slot.view, self.slot.at
        if view[at + OPENED] or view[at + PROBER] or view[at + FAILURES]:
            self._alone(self._close)

    def failed(self, *, probe: bool = False) -> None:
        """The model failed."""
        self._alone(self._open if probe else self._count)

    def leave(self) -> None:
        """The probe ended without a word on the model: the next request probes."""
        self._alone(self._leave)

    def _alone(self, work: Callable[[memoryview, int], bool]) -> bool:
        """A breaker only says whom to ask first: where it cannot be told now, the request goes on without."""
        try:
            with self.slot:
                return work(self.slot.view, self.slot.at)
        except LedgerUnavailable:
            log.warning("a breaker could not be told: a process that has it too is stopped")
            return False

    def _probe(self, view: memoryview, at: int) -> bool:
        if self.state != "half_open":
            return False
        view[at + PROBER] = self.me
        return True

    def _close(self, view: memoryview, at: int) -> bool:
        view[at + OPENED] = view[at + PROBER] = view[at + FAILURES] = 0
        return True

    def _open(self, view: memoryview, at: int) -> bool:
        view[at + OPENED], view[at + PROBER] = self._now(), 0
        return True

    def _count(self, view: memoryview, at: int) -> bool:
        if not (most := self.settings.failures):
            return False
        now, count = self._now(), view[at + FAILURES]
        view[at + RING + count % most] = now
        view[at + FAILURES] = count = count + 1
        oldest = view[at + RING + count % most]  # of as many as it takes
        recent = count >= most and oldest > now - self.settings.window_seconds * MICROS
        if recent and not view[at + OPENED]:
            view[at + OPENED] = now
        return recent

    def _leave(self, view: memoryview, at: int) -> bool:
        if view[at + PROBER] == self.me:
            view[at + PROBER] = 0
        return True

    def _now(self) -> int:
        return max(1, round(self.clock() * MICROS))
