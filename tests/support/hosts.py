"""Helpers of the engine host's tests: engines over the toy core, and requests in one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from interlace.config import ModelSettings
from interlace.engines import Delta, GenerateRequest, HostedEngine, RestartPolicy

ROOT = Path(__file__).parents[2]
TOY = "tests.support.toy_core:load_toy_core"
QUICK = RestartPolicy(first_seconds=0.01, cap_seconds=0.05, healthy_seconds=0.0, stop_seconds=5.0)
PATIENCE_SECONDS = 30.0  # far beyond what anything here takes; only a hang meets it


def toy_engine(checkpoint: str = "toy", policy: RestartPolicy = QUICK) -> HostedEngine:
    """An engine over the toy core, not started."""
    return HostedEngine(ModelSettings("toy", checkpoint), Path(), core=TOY, policy=policy)


@asynccontextmanager
async def ready_engine(checkpoint: str = "toy", policy: RestartPolicy = QUICK) -> AsyncGenerator[HostedEngine]:
    """A toy engine that is ready, closed at the end."""
    engine = toy_engine(checkpoint, policy)
    try:
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), PATIENCE_SECONDS)
        yield engine
    finally:
        await engine.close()


def ask(prompt: str, id: str = "r") -> GenerateRequest:
    """A request for the toy core."""
    return GenerateRequest(id, prompt=prompt)


async def text_of(engine: HostedEngine, prompt: str, id: str = "r") -> str:
    """The whole answer to `prompt`."""
    return "".join([e.text async for e in engine.generate(ask(prompt, id)) if isinstance(e, Delta)])


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()`; a hang fails the test."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def host_processes(parent: int | None = None) -> list[psutil.Process]:
    """The engine hosts that this process (or `parent`) has started and that still run."""
    return [p for p in psutil.Process(parent).children() if _is_host(p)]


def _is_host(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "interlace.engines.host" in process.cmdline()
    except psutil.NoSuchProcess:
        return False
