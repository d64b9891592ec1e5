"""Events of an engine in lists of what came together: one wake-up for each, where the engine can."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from interlace.engines.types import Engine, Event, GenerateRequest


def bursts_of(engine: Engine, request: GenerateRequest) -> AsyncGenerator[list[Event], None]:
    """The events of `Engine.generate`, in lists of what came together: of engines that have a method `bursts`, which
    saves them a turn for each event."""
    bursts: Callable[[GenerateRequest], AsyncGenerator[list[Event], None]] | None = getattr(engine, "bursts", None)
    return _single(engine.generate(request)) if bursts is None else bursts(request)


async def _single(events: AsyncGenerator[Event, None]) -> AsyncGenerator[list[Event], None]:
    try:
        async for event in events:
            yield [event]
    finally:
        await events.aclose()
