"""A credential that ages: fetched ahead of its end, by one at a time."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from interlace.errors import EngineUnavailable, InterlaceError

_log = logging.getLogger(__name__)

T = TypeVar("T")

AHEAD_SECONDS = 300.0  # before its end a new one is fetched, while the old one is still used
LAST_SECONDS = 10.0  # before its end it is not used any more: it must outlive the way to the server
AGAIN_SECONDS = 5.0  # after one that could not be fetched ahead
WAIT_SECONDS = 30.0  # for one to be fetched


class Refreshing(Generic[T]):
    """What `fetch` returns, with the time (of `time.time`) at which it ends; None: it never does.

    `fetch` may wait for a network: it is a coroutine, or runs on a thread, never twice at once, and never holds up the
    event loop. It raises `InterlaceError`s only.
    """

    def __init__(self, fetch: Callable[[], tuple[T, float | None] | Awaitable[tuple[T, float | None]]]) -> None:
        self._fetch = fetch
        self._held: T | None = None
        self._ahead = 0.0
        self._last = 0.0
        self._task: asyncio.Task[T] | None = None

    @property
    def held(self) -> T | None:
        """The one that was fetched last."""
        return self._held

    async def get(self) -> T:
        """One that is good now. Waits only where there is none; raises what `fetch` raises."""
        now = time.time()
        if self._held is None or now >= self._last:
            return await self._waited()
        if now >= self._ahead:
            self._renewing()
        return self._held

    def forget(self) -> None:
        """The server does not take it: the next one who asks waits for another."""
        self._held = None

    async def _waited(self) -> T:
        """The next one. Whoever goes away, or gives up, takes nothing from those who wait too."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._renewing()), WAIT_SECONDS)
        except TimeoutError:
            pass
        raise EngineUnavailable("The server that vouches for this gateway does not answer.", retry_after_seconds=5)

    def _renewing(self) -> asyncio.Task[T]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._renew())
            self._task.add_done_callback(_told)
        return self._task

    async def _renew(self) -> T:
        self._ahead = time.time() + AGAIN_SECONDS
        fetched = self._fetch() if inspect.iscoroutinefunction(self._fetch) else await asyncio.to_thread(self._fetch)
        value, end = fetched if isinstance(fetched, tuple) else await fetched
        now = time.time()
        life = math.inf if end is None else max(0.0, end - now)
        self._held = value
        self._ahead = now + max(life - AHEAD_SECONDS, life / 2)
        self._last = now + max(life - LAST_SECONDS, life / 2)
        return value


def _told(task: asyncio.Task[T]) -> None:
    """Nobody may be waiting for it: then only the log hears of it."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    message = error.message if isinstance(error, InterlaceError) else type(error).__name__
    _log.warning("a credential could not be fetched", extra={"fields": {"error": message}})
