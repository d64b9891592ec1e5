"""What a process knows of its models from the requests it has sent them: whether they are broken, and how quick they
are. Shared by all routes and callers; for the event loop only. Of several processes of one machine, each knows how
quick they are, and all together whether they are broken (`mapped_breakers.py`), and
so may several machines (`redis_breakers.py`)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from interlace.config import BreakerSettings
from interlace.errors import EngineFailed, EngineUnavailable
from interlace.gateway.routing.facts import BreakerState

KEPT = 256  # first tokens of a model that are remembered,
KEPT_SECONDS = 300.0  # and for how long: one that was slow once is tried again

Clock = Callable[[], float]


def is_the_models_fault(error: BaseException) -> bool:
    """Whether an error says that the model is broken, for anybody: nothing that one caller did, and no full queue."""
    return isinstance(error, EngineFailed | EngineUnavailable)


class AnyBreaker(Protocol):
    """What is asked of a breaker, whoever shares it; all of it as `Breaker` has it."""

    @property
    def settings(self) -> BreakerSettings:
        """When it opens, and for how long."""
        ...

    @property
    def state(self) -> BreakerState:
        """How it is now."""
        ...

    async def claim(self) -> bool:
        """Before an attempt while it is half open: whether there may be one, as far as others than this machine are
        concerned. Where there may, `enter` follows before anything else is waited for."""
        ...

    def enter(self) -> bool:
        """An attempt begins; whether it is the probe."""
        ...

    def succeeded(self) -> None:
        """The model has answered."""
        ...

    def failed(self, *, probe: bool = False) -> None:
        """The model failed."""
        ...

    def leave(self) -> None:
        """The probe ended without a word on the model."""
        ...


@dataclass
class Breaker:
    """Closed until `failures` fall into `window_seconds`; open for `open_seconds`; then half open: one request may
    probe, and its end decides. A success closes it at any time. `clock` gives monotonic seconds."""

    settings: BreakerSettings
    clock: Clock = time.monotonic
    _failures: deque[float] = field(default_factory=deque)
    _opened: float | None = None
    _probing: bool = False

    @property
    def state(self) -> BreakerState:
        """How it is now."""
        if self._opened is None:
            return "closed"
        if self._probing:
            return "probing"
        return "half_open" if self.clock() >= self._opened + self.settings.open_seconds else "open"

    async def claim(self) -> bool:
        """There are no others."""
        return True

    def enter(self) -> bool:
        """An attempt begins; whether it is the probe. Whoever probes must say how it ended, or `leave`."""
        if self.state != "half_open":
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The model has answered."""
        self._failures.clear()
        self._opened, self._probing = None, False

    def failed(self, *, probe: bool = False) -> None:
        """The model failed."""
        now = self.clock()
        if probe:
            self._opened, self._probing = now, False
            return
        self._failures.append(now)
        while self._failures[0] <= now - self.settings.window_seconds:
            self._failures.popleft()
        if self._opened is None and 0 < self.settings.failures <= len(self._failures):
            self._opened = now

    def leave(self) -> None:
        """The probe ended without a word on the model: the next request probes."""
        self._probing = False


@dataclass
class FirstTokens:
    """How long a model took to its first token, lately."""

    clock: Clock = time.monotonic
    _seen: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, seconds: float) -> None:
        """One more."""
        self._seen.append((self.clock(), seconds))

    def known(self) -> list[float]:
        """Those not forgotten, in order of size."""
        since = self.clock() - KEPT_SECONDS
        while self._seen and self._seen[0][0] < since:
            self._seen.popleft()
        return sorted(seconds for _, seconds in self._seen)

    def percentile(self, percent: int, at_least: int = 1) -> float | None:
        """So many per cent took no longer (nearest rank); None while fewer than `at_least` are known."""
        known = self.known()
        return None if len(known) < at_least else known[max(0, math.ceil(len(known) * percent / 100) - 1)]


@dataclass
class Live:
    """All that is known of one model."""

    breaker: AnyBreaker
    first_tokens: FirstTokens

    @classmethod
    def of(cls, settings: BreakerSettings, clock: Clock = time.monotonic) -> Live:
        """Nothing yet."""
        return cls(Breaker(settings, clock), FirstTokens(clock))
