"""Responses that run in the background: what is said of them so far, and who follows it.

They live as long as the process. One that a restart cuts off is told as failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from interlace.gateway.responses_rendering import ResponseRendering


@dataclass
class Background:
    """One response that runs. `accepted` is done once it is stored, or has failed before that."""

    project_id: str
    rendering: ResponseRendering
    accepted: asyncio.Future[None]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    over: bool = False
    _events: list[bytes] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Whoever follows hears what is new."""
        self._events += self.rendering.events()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """The events after that number as they come, up to the last."""
        at = after + 1
        while True:
            if at < len(self._events):
                news, at = self._events[at:], len(self._events)
                yield b"".join(news)
            elif self.over:
                return
            else:
                await self._changed.wait()

    async def cancel(self) -> None:
        """Stop it; what was generated is billed. Returns once it is over."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()
        await self.wait()

    async def wait(self) -> None:
        """Return once it is over, and what became of it durable."""
        if self.task is not None:
            await asyncio.wait([self.task])


@dataclass
class Running:
    """All of a process, by id."""

    _all: dict[str, Background] = field(default_factory=dict)

    def add(self, one: Background) -> None:
        """It runs."""
        self._all[one.rendering.id] = one

    def remove(self, one: Background) -> None:
        """It is over, and stored."""
        self._all.pop(one.rendering.id, None)

    def find(self, project_id: str, id: str) -> Background | None:
        """The one of that id, if it is the project's."""
        one = self._all.get(id)
        return one if one is not None and one.project_id == project_id else None

    async def close(self, seconds: float) -> None:
        """Wait so long for those that run, and then stop them."""
        tasks = [one.task for one in self._all.values() if one.task is not None]
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
