"""Several engine streams into one: everything that is waiting comes out as one batch.

A stream that is alone is read by whoever iterates, as long as that one keeps up: no task, and no switch between tasks,
for each batch. Several streams, and one whose reader has fallen behind, are read at their own pace by a task each, so
that a slow reader never holds the engine. What waits here is bounded by what the request may produce: its prompts, `n`
and `max_tokens`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Pace:
    """Whether the reader of an answer keeps up. Whoever writes to a caller that reads slowly calls `fall_behind`."""

    __slots__ = ("batches", "behind")

    def __init__(self) -> None:
        self.behind = False
        self.batches: Batches[object] | None = None

    def fall_behind(self) -> None:
        """From now on the stream is read without the reader."""
        if not self.behind:
            self.behind = True
            if self.batches is not None:
                self.batches.pump()


class Batches(Generic[T]):
    """Iterate inside `async with`; leaving it stops every stream and waits until each has cleaned up after itself.

    An error of a stream comes out after what was delivered before it. Streams give lists: what came together stays
    together. With a `pace` a single stream is read directly until its reader falls behind.
    """

    def __init__(self, streams: Sequence[AsyncGenerator[list[T], None]], pace: Pace | None = None) -> None:
        self._streams = streams
        self._open = len(streams)
        self._ready: list[T] = []
        self._error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._alone = streams[0] if pace is not None and not pace.behind and len(streams) == 1 else None
        if pace is not None:
            pace.batches = self  # type: ignore[assignment] # whatever it batches, it can be pumped

    def pump(self) -> None:
        """Read every stream by a task of its own; not while the iterator is being awaited."""
        self._alone = None
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._pump(stream)) for stream in self._streams]

    async def __aenter__(self) -> Batches[T]:
        if self._alone is None:
            self.pump()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._alone is not None:
            await self._alone.aclose()
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __aiter__(self) -> Batches[T]:
        return self

    def __anext__(self) -> Awaitable[list[T]]:
        return self._next() if self._alone is None else anext(self._alone)

    async def _next(self) -> list[T]:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        batch, self._ready = self._ready, []
        return batch

    async def _pump(self, stream: AsyncGenerator[list[T], None]) -> None:
        try:
            async for burst in stream:
                self._ready += burst
                self._notify()
        except Exception as error:  # noqa: BLE001 - carried over to the reader's task, which raises it
            self._error = self._error or error
        finally:
            try:
                await stream.aclose()
            finally:
                self._open -= 1
                self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
