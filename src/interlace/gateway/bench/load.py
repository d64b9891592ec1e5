"""Chats that run at once: each stream asks its questions one after the other, and none waits for ever."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from interlace.gateway.bench.figures import Level, Sample
from interlace.gateway.bench.plan import WARM_TOKENS, Plan, Questions
from interlace.gateway.bench.stream import Connection, Target, connected

_TICK_SECONDS = 0.25  # often enough for an eye, seldom enough to cost nothing


class Progress(Protocol):
    """Whoever shows how far it is."""

    def warming(self, level: Level) -> None:
        """A level begins; what comes is not counted."""

    def measuring(self, level: Level) -> None:
        """The clock of that level runs."""

    def moved(self) -> None:
        """Now and then: there may be more to show."""


class Run:
    """One measurement; `levels` fills while it runs, and holds what there is when it is stopped."""

    def __init__(self, plan: Plan, target: Target, progress: Progress) -> None:
        self.plan, self.levels = plan, list[Level]()
        self.stopped = False
        self._target, self._progress, self._questions = target, progress, Questions(plan)

    async def go(self) -> None:
        """Measure level after level, until done, interrupted (SIGINT, SIGTERM), or all chats of a level have failed."""
        measuring = asyncio.ensure_future(self._all())
        ticking = asyncio.ensure_future(self._tick())
        with _signals(measuring.cancel):
            try:
                await measuring
            except asyncio.CancelledError:
                self.stopped = True
            finally:
                ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._progress.moved()

    async def _all(self) -> None:
        for streams in self.plan.streams:
            level = Level(streams)
            self.levels.append(level)
            await self._level(level)
            if not level.good:
                return

    async def _level(self, level: Level) -> None:
        stations = [_Station(self._target, self.plan.timeout) for _ in range(level.streams)]
        try:
            self._progress.warming(level)
            level.began = level.ended = time.perf_counter()
            await asyncio.gather(*(self._chats(station, level.warm, 1, WARM_TOKENS) for station in stations))
            if all(one.error for one in level.warm):
                return
            self._progress.measuring(level)
            level.began = time.perf_counter()
            await asyncio.gather(
                *(self._chats(station, level.samples, self.plan.rounds, self.plan.tokens) for station in stations)
            )
        except asyncio.CancelledError:
            level.stopped = True
            raise
        finally:
            level.ended = time.perf_counter()
            for station in stations:
                station.close()

    async def _chats(self, station: _Station, into: list[Sample], rounds: int, tokens: int) -> None:
        """The chats of one stream."""
        began = time.perf_counter()
        for _ in range(rounds):
            if self.plan.seconds is not None and time.perf_counter() - began >= self.plan.seconds:
                return
            sample = Sample(time.perf_counter())
            into.append(sample)
            body = self.plan.body(self._questions.next(), min(tokens, self.plan.tokens))
            await station.ask(self._target.request(body), sample)


class _Station:
    """A stream's connection, made anew where the last one ended."""

    def __init__(self, target: Target, timeout: float) -> None:
        self._target, self._timeout = target, timeout
        self._connection: Connection | None = None

    async def ask(self, request: bytes, sample: Sample) -> None:
        """One chat within its time."""
        try:
            async with asyncio.timeout(self._timeout):
                if self._connection is None or not self._connection.open:
                    self._connection = await connected(self._target)
                await self._connection.ask(request, sample)
        except TimeoutError:
            sample.error = f"no whole answer within {self._timeout:g} seconds"
            self.close()
        except OSError as error:
            sample.error, sample.refused = f"no connection: {error.strerror or error}", True
            self.close()
        except asyncio.CancelledError:
            sample.stopped = True
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    """Have ctrl-C and SIGTERM call `stop`, so that what was measured is still told."""
    loop, names = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    try:
        for name in names:
            loop.add_signal_handler(name, stop)
    except (NotImplementedError, RuntimeError, ValueError):
        yield  # Windows, or not the main thread: the interpreter's own way has to do
        return
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)
