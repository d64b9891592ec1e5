"""Admission: so many requests run, so many wait in a fair order, the rest are told to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from interlace.errors import Overloaded
from interlace.gateway.places import Places, Who

BEYOND = 8  # of so many slots there may be one more, for an organisation of which nothing runs
_NOBODY = Who()


@dataclass(slots=True)
class Slot:
    """A place among the running requests."""

    admission: Admission
    priority: int
    who: Who = _NOBODY
    held: bool = True

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[None, None]:
        """Let others run meanwhile; at the end wait, in order, for a place again."""
        self.held = False
        self.admission.give_back(self.who)
        yield  # when what is inside fails, there is nothing to come back for
        await self.admission.take(self.priority, self.who, readmit=True)
        self.held = True


@dataclass(slots=True)
class Taking:
    """Inside, the slot is held."""

    slot: Slot

    async def __aenter__(self) -> Slot:
        slot = self.slot
        await slot.admission.take(slot.priority, slot.who)
        slot.held = True
        return slot

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if self.slot.held:
            self.slot.admission.give_back(self.slot.who)


class Admission:
    """`concurrency` slots with a queue of at most `queue` waiting requests, in the order that `places` tells.

    An organisation of which nothing runs does not wait for those of others to end, which may take as long as their
    callers like: while all slots are held it has one beside them, of which there are an eighth of `concurrency`."""

    def __init__(self, concurrency: int, queue: int) -> None:
        self._concurrency = concurrency
        self._free = concurrency  # negative, while more run than there are slots
        self._queue = queue
        self._places = Places()
        self.running = 0
        self.aside = 0  # running beside the slots

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return self._places.waiting

    def resize(self, concurrency: int, queue: int) -> None:
        """Other bounds, from now on; nobody who runs or waits is sent away."""
        self._free += concurrency - self._concurrency
        self._concurrency, self._queue = concurrency, queue
        self._hand_out()

    def slot(self, priority: int = 0, organisation: str = "", model: str = "") -> Taking:
        """Hold one slot. Waits in order for it; raises `Overloaded` when the queue is full: at once, or later, when
        another has more claim to the place in it."""
        return Taking(Slot(self, priority, Who(organisation, model), held=False))

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

    async def take(self, priority: int, who: Who = _NOBODY, *, readmit: bool = False) -> None:
        """Wait for a slot and have it. `readmit`: the queue's bound does not count for who was admitted before."""
        if self._free > 0 or (self._spares() and self._places.holds_none(who.organisation)):
            self._free -= 1
            self._places.give(who)
        else:
            await self._wait(priority, who, readmit=readmit)
        self.running += 1

    def give_back(self, who: Who = _NOBODY) -> None:
        """Have the slot no more."""
        self.running -= 1
        self._release(who)

    def _spares(self) -> bool:
        """Whether one may run beyond the slots."""
        return self._free > -(self._concurrency // BEYOND)

    async def _wait(self, priority: int, who: Who, *, readmit: bool) -> None:
        if not readmit and self.waiting >= self._queue:
            other = self._places.gives_way(who)
            if other is None:
                raise self._full()
            self._places.leave(other)
            if not other.told.done():  # done: its request has gone, and is about to leave
                other.told.set_result(False)
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        turn = self._places.join(who, priority, told, stays=readmit)
        try:
            given = await told
        except asyncio.CancelledError:
            if told.cancelled():  # whoever comes and goes while every slot is held must leave nothing behind
                self._places.leave(turn)
            elif told.result():
                self._release(who)  # the slot had been handed to us already
            raise
        if not given:
            raise self._full()

    def _full(self) -> Overloaded:
        return Overloaded(
            f"The server is at its limit: {self.running} requests run and {self.waiting} wait. Try again soon.",
            retry_after_seconds=1,
        )

    def _release(self, who: Who) -> None:
        self._free += 1
        self._places.take_back(who)
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand free slots to those whose turn it is, so that nobody who comes later overtakes."""
        while self.waiting and self._spares() and (turn := self._places.next(only_without=self._free <= 0)):
            self._places.leave(turn)
            if not turn.told.done():  # as above
                self._free -= 1
                self._places.give(turn.who)
                turn.told.set_result(True)
