"""Adapters through a real engine host: added and removed while it runs, and there again after it died."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from interlace.config import AdapterSettings, ModelSettings
from interlace.engines import Delta, GenerateRequest, HostedEngine, Sampling
from interlace.errors import NotFound
from tests.support.adapters import random_adapter
from tests.support.hosts import PATIENCE_SECONDS, QUICK, host_processes, ready_engine, text_of, until
from tests.support.tiny import tiny_llama_safetensors


async def _answer(engine: HostedEngine, adapter: str = "") -> list[int]:
    sampling = Sampling(max_tokens=20, temperature=0, ignore_eos=True, logprobs=0)
    request = GenerateRequest("r", prompt_ids=(5, 17, 60, 3, 99), sampling=sampling, adapter=adapter)
    events = [event async for event in engine.generate(request) if isinstance(event, Delta)]
    return [entry.id for event in events for entry in event.logprobs]


async def test_added_removed_and_there_after_a_crash(tmp_path: Path) -> None:
    """An adapter is served from the moment it is added, without a restart, and still after one; removed, it is not,
    and neither is one of the settings that was removed since."""
    base = tiny_llama_safetensors(tmp_path / "base")
    for number in (1, 5):
        random_adapter(tmp_path / str(number), number)
    settings = ModelSettings(
        "tiny", str(base), threads=1, cache_bytes=1 << 20, adapters=(AdapterSettings("one", str(tmp_path / "1")),)
    )
    engine = HostedEngine(settings, tmp_path, policy=QUICK)
    try:
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), PATIENCE_SECONDS)
        plain, one = await _answer(engine), await _answer(engine, "one")
        with pytest.raises(NotFound):
            await _answer(engine, "five")
        engine.register_adapter("five", tmp_path / "5")
        five = await _answer(engine, "five")
        assert len({tuple(answer) for answer in (plain, one, five)}) == 3
        engine.remove_adapter("one")
        with pytest.raises(NotFound):
            await _answer(engine, "one")
        (process,) = host_processes()
        process.send_signal(signal.SIGKILL)
        await until(lambda: engine.health().restarts == 1 and engine.health().state == "ready")
        assert await _answer(engine, "five") == five
        assert await _answer(engine) == plain
        with pytest.raises(NotFound):
            await _answer(engine, "one")
    finally:
        await engine.close()


async def test_a_core_without_adapters_goes_on(tmp_path: Path) -> None:
    """A core that takes no adapters is not ended by one."""
    async with ready_engine() as engine:
        engine.register_adapter("one", tmp_path)
        engine.remove_adapter("one")
        assert await text_of(engine, "count 2") == "0 1 "
        assert engine.health().restarts == 0
