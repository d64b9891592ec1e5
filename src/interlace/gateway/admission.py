"""Admission: so many requests run, so many wait in order, the rest are told to come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from interlace.errors import Overloaded


class Admission:
    """`concurrency` slots with a first-in-first-out queue of at most `queue` waiting requests."""

    def __init__(self, concurrency: int, queue: int) -> None:
        self._free = concurrency
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None, None]:
        """Hold one slot. Waits in order for it; raises `Overloaded` at once when the queue is full."""
        await self._acquire()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._release()

    async def _acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._queue:
            raise Overloaded(
                f"The server is at its limit: {self.running} requests run and {self.waiting} wait. Try again soon.",
                retry_after_seconds=1,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # the slot had been handed to us already
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        """Hand the slot to the first in the queue, so that nobody who comes later overtakes."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # done: cancelled a moment ago
                turn.set_result(None)
                return
        self._free += 1
