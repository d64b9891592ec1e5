"""Engines over a `vllm serve`, real or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings
from interlace.engines import GenerateRequest, HostedEngine
from interlace.engines.types import Delta, Message
from interlace.engines.vllm import VLLM_CORE, vllm_fields
from tests.support.adapters import lora_tensors, write_adapter
from tests.support.hosts import PATIENCE_SECONDS, QUICK
from tests.support.tiny import Tensors, tiny_weights

Make = Callable[..., ModelSettings]
Record = Callable[[], dict[str, Any]]


def adapter_tensors() -> Tensors:
    """Of an adapter of rank 4 on q and v of the tiny base."""
    return lora_tensors(tiny_weights(), r"\.[qv]_proj")


def sound_adapter(folder: Path) -> Path:
    """Such an adapter's folder."""
    return write_adapter(folder, adapter_tensors())


@asynccontextmanager
async def ready(settings: ModelSettings, seconds: float = PATIENCE_SECONDS) -> AsyncGenerator[HostedEngine]:
    """An engine over a `vllm serve` that is ready, closed at the end."""
    engine = hosted(settings)
    try:
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), seconds)
        yield engine
    finally:
        await engine.close()


def hosted(settings: ModelSettings) -> HostedEngine:
    """As the gateway makes it, but quick to start again."""
    fields = vllm_fields(settings)
    return HostedEngine(settings, Path(), core=VLLM_CORE, policy=QUICK, fields=fields, exact=False)


def chat(text: str = "hello", **fields: Any) -> GenerateRequest:
    """A conversation of one turn."""
    return GenerateRequest("r", messages=(Message(role="user", content=text),), **fields)


async def said(engine: HostedEngine, request: GenerateRequest) -> str:
    """The whole answer."""
    return "".join([event.text async for event in engine.generate(request) if isinstance(event, Delta)])


def alive(pid: int) -> bool:
    """Whether there is such a process, and not as a zombie only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
