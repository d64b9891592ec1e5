"""Admission: so many requests run, so many wait in order, the rest are told to come back."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from interlace.errors import Overloaded


@dataclass(slots=True)
class Slot:
    """A place among the running requests."""

    admission: Admission
    priority: int
    held: bool = True

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[None, None]:
        """Let others run meanwhile; at the end wait, in order, for a place again."""
        self.held = False
        self.admission.give_back()
        yield  # when what is inside fails, there is nothing to come back for
        await self.admission.take(self.priority, readmit=True)
        self.held = True


@dataclass(slots=True)
class Taking:
    """Inside, the slot is held."""

    slot: Slot

    async def __aenter__(self) -> Slot:
        slot = self.slot
        await slot.admission.take(slot.priority)
        slot.held = True
        return slot

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if self.slot.held:
            self.slot.admission.give_back()


class Admission:
    """`concurrency` slots with a queue of at most `queue` waiting requests: the greater priority first, then whoever
    came first."""

    def __init__(self, concurrency: int, queue: int) -> None:
        self._concurrency = concurrency
        self._free = concurrency  # negative, while more run than there shall be from now on
        self._queue = queue
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap
        self._arrivals = itertools.count()
        self._concurrency = concurrency
        self.running = 0
        self.waiting = 0  # for a slot
        self.aside = 0  # running beside the slots

    def resize(self, concurrency: int, queue: int) -> None:
        """Other bounds, from now on; nobody who runs or waits is sent away."""
        self._free += concurrency - self._concurrency
        self._concurrency, self._queue = concurrency, queue
        self._hand_out()

    def slot(self, priority: int = 0) -> Taking:
        """Hold one slot. Waits in order for it; raises `Overloaded` at once when the queue is full."""
        return Taking(Slot(self, priority, held=False))

    @property
    def idle(self) -> bool:
        """Whether less than half of the slots are held, and so nobody waits."""
        return 2 * self.running < self._concurrency

    @asynccontextmanager
    async def place_aside(self) -> AsyncGenerator[Slot, None]:
        """Run beside the slots, while they are idle: what can wait takes no slot that a caller could have had. Raises
        `Overloaded` at once when they are not."""
        if not self.idle:
            raise Overloaded("Requests that cannot wait go first.", retry_after_seconds=1)
        self.aside += 1
        try:
            yield Slot(self, 0, held=False)
        finally:
            self.aside -= 1

    async def take(self, priority: int, *, readmit: bool = False) -> None:
        """Wait for a slot and have it. `readmit`: the queue's bound does not count for who was admitted before."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(priority, readmit=readmit)
        self.running += 1

    def give_back(self) -> None:
        """Have the slot no more."""
        self.running -= 1
        self._release()

    async def _wait(self, priority: int, *, readmit: bool) -> None:
        if not readmit and self.waiting >= self._queue:
            raise Overloaded(
                f"The server is at its limit: {self.running} requests run and {self.waiting} wait. Try again soon.",
                retry_after_seconds=1,
            )
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-priority, next(self._arrivals), turn))
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # the slot had been handed to us already
            else:  # whoever comes and goes while every slot is held must leave nothing behind
                self._waiting = [entry for entry in self._waiting if entry[2] is not turn]
                heapq.heapify(self._waiting)
            raise
        finally:
            self.waiting -= 1

    def _release(self) -> None:
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand free slots to the first in the queue, so that nobody who comes later overtakes."""
        while self._free > 0 and self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():  # done: its request has gone
                self._free -= 1
                turn.set_result(None)
