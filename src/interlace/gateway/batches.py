"""Several engine streams into one: everything that is waiting comes out as one batch.

The engine's streams are read at their own pace by a task each, whatever the reader does, so that a slow reader never
holds the engine. What waits here is bounded by what the request may produce: its prompts, `n` and `max_tokens`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """Iterate inside `async with`; leaving it stops every stream and waits until each has cleaned up after itself.

    An error of a stream comes out after what was delivered before it. At most one task switch per batch.
    """

    def __init__(self, streams: Sequence[AsyncGenerator[T, None]]) -> None:
        self._streams = streams
        self._open = len(streams)
        self._ready: list[T] = []
        self._error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Batches[T]:
        self._tasks = [asyncio.create_task(self._pump(stream)) for stream in self._streams]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __aiter__(self) -> Batches[T]:
        return self

    async def __anext__(self) -> list[T]:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        batch, self._ready = self._ready, []
        return batch

    async def _pump(self, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    self._ready.append(event)
                    self._notify()
        except Exception as error:  # noqa: BLE001 - carried over to the reader's task, which raises it
            self._error = self._error or error
        finally:
            self._open -= 1
            self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
