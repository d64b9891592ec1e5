"""Responses that run in the background: what is said of them so far, and who follows it.

They live as long as the process that runs them. One whose process ended is told as failed. Where there are several
processes, whoever is asked for one that runs elsewhere passes the request on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from interlace.engines.types import Delta
from interlace.errors import InterlaceError, InvalidRequest, RateLimited
from interlace.gateway.calls import Happening
from interlace.gateway.responses_rendering import ResponseRendering
from interlace.ledger import Limiter, Limits, Rates


@dataclass
class Background:
    """One response that runs. `accepted` is done once it is stored, or has failed before that. It may grow to
    `most_bytes`; `fault` says so where it did."""

    project_id: str
    key_id: str
    rendering: ResponseRendering
    accepted: asyncio.Future[None]
    most_bytes: int
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    over: bool = False
    fault: InterlaceError | None = None
    _bytes: int = 0
    _events: list[bytes] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, batch: Sequence[Happening]) -> None:
        """More of the answer. Raises what its caller is told where that is too much to hold."""
        self.rendering.take(batch)
        self._bytes += sum(map(_bytes_of, batch))
        self.tell()
        if self._bytes > self.most_bytes:
            self.fault = InvalidRequest(
                f"The response has grown beyond {self.most_bytes} bytes, the most that one may take in the background "
                "(limits.background_bytes). Ask for a shorter answer, or wait for it without `background`.",
                param="background",
            )
            raise self.fault

    def tell(self) -> None:
        """Whoever follows hears what is new."""
        news = self.rendering.events()
        self._bytes += sum(map(len, news))
        self._events += news
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


def _bytes_of(event: Happening) -> int:
    """About what is held of it."""
    if not isinstance(event, Delta):
        return 0
    said = len(event.text) + sum(len(call.arguments) for call in event.tool_calls)
    return said + (0 if event.thought is None else len(event.thought.text))


PassOn = Callable[[str, Scope, Receive, Send], Awaitable[bool]]
"""Has the process of that name answer a request; whether it could be reached."""


@dataclass
class Running:
    """All of a process, by id. `runner`: what the process is called, and `pass_on`: where there are others; `counts`
    how many a key has, in all of them together."""

    runner: str | None = None
    pass_on: PassOn | None = None
    counts: Limiter = field(default_factory=Limits)
    _all: dict[str, Background] = field(default_factory=dict)

    def add(self, one: Background, most: int) -> None:
        """It runs, among at most `most` of its key; raises `RateLimited`."""
        exceeded = self.counts.begin(_counted(one), Rates(concurrency=most), time.monotonic())
        if exceeded is not None:
            raise RateLimited(
                f"Rate limit reached on responses in the background: limit {most}, used {exceeded.used} "
                "(limits.background_responses). Wait for one of them to end or cancel it, or ask without `background`.",
                param="background",
                retry_after_seconds=1,
            )
        self._all[one.rendering.id] = one

    def remove(self, one: Background) -> None:
        """It is over, and stored."""
        if self._all.pop(one.rendering.id, None) is not None:
            self.counts.end(_counted(one))

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


def _counted(one: Background) -> str:
    """What a key's are counted under, beside its requests."""
    return f"background {one.key_id}"
