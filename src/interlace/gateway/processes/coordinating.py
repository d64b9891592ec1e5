"""The coordinator's process: from settings to the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from interlace.config import ModelSettings, Settings
from interlace.gateway.logs import set_up_logs
from interlace.gateway.processes.coordinator import Coordinator
from interlace.gateway.processes.counters import CounterFiles, Counters
from interlace.gateway.processes.places import RunFolder
from interlace.gateway.reloading import Source, StartingEngine
from interlace.gateway.serve import build_engine, calm_collector, greet, host_engine, loop_factory, open_registry
from interlace.ledger import Registry, installation_of


def coordinate(
    settings: Settings, source: Source, address: tuple[object, ...], counters: str, env: Mapping[str, str]
) -> int:
    """Coordinate until SIGTERM, or until the supervisor is gone; the exit code. `counters`: as `CounterFiles.word` has
    them. Raises `ConfigError`."""
    set_up_logs(settings.log)
    run = RunFolder.of(settings.home)
    run.make()
    with (
        contextlib.closing(open_registry(settings, env)) as registry,  # closed last: events are still being written
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        runner.run(_coordinate(registry, run, source, address, CounterFiles.of(counters).open(), env))
    return 0


async def _coordinate(
    registry: Registry,
    run: RunFolder,
    source: Source,
    address: tuple[object, ...],
    counters: Counters,
    env: Mapping[str, str],
) -> None:
    hosts = 0

    def build(model: ModelSettings, home: Path) -> StartingEngine:
        nonlocal hosts
        if not model.runs_here:
            return build_engine(model, home, env)
        hosts += 1
        return host_engine(model, home, run.place(f"engine-{hosts}"))

    coordinator = Coordinator(registry, run, source, build, installation_of(registry.settings.home), counters)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, ended.set)
    loop.add_signal_handler(signal.SIGHUP, coordinator.reload_soon)
    _when_supervisor_is_gone(loop, ended)
    calm_collector()
    keeping = asyncio.create_task(coordinator.keep())
    greeting = asyncio.create_task(_greet(coordinator, address))
    ending = asyncio.create_task(ended.wait())
    await asyncio.wait([keeping, ending], return_when=asyncio.FIRST_COMPLETED)
    for task in (keeping, greeting, ending):
        task.cancel()
    await asyncio.gather(greeting, ending, return_exceptions=True)
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


def _when_supervisor_is_gone(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Standard input is a pipe that nobody writes to: it ends when the supervisor does."""

    def look() -> None:
        if not os.read(0, 1):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, look)


async def _greet(coordinator: Coordinator, address: tuple[object, ...]) -> None:
    await coordinator.first.wait()
    await greet(coordinator.registry, address, coordinator.engines, functools.partial(print, flush=True))
