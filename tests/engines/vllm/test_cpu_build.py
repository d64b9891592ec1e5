"""The real `vllm serve`, in its CPU build, where the benchmarks have installed it; and on a GPU, where there is one."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from interlace.config import ModelSettings
from interlace.engines.types import Sampling, Usage
from tests.support.adapters import lora_tensors, write_adapter
from tests.support.vllms import chat, ready, said

ROOT = Path(__file__).parents[3]
CPU = Path(os.environ.get("INTERLACE_TEST_VLLM", ROOT / ".cache" / "bench" / "peers" / "vllm" / "bin" / "vllm"))
GPU = os.environ.get("INTERLACE_TEST_VLLM_GPU", "")
START_SECONDS = 400.0

TARGETS = [
    pytest.param(
        str(CPU.absolute()),
        id="cpu",
        marks=pytest.mark.skipif(
            not CPU.exists(), reason=f"there is no {CPU}: `make bench-engine` installs it, or set INTERLACE_TEST_VLLM"
        ),
    ),
    pytest.param(
        GPU,
        id="gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not GPU or shutil.which("nvidia-smi") is None,
                reason="no GPU here, or INTERLACE_TEST_VLLM_GPU does not name a `vllm` command for it",
            ),
        ],
    ),
]


def _settings(command: str, checkpoint: Path) -> ModelSettings:
    return ModelSettings(
        "real",
        engine="vllm",
        model=str(checkpoint),
        executable=command,
        max_loras=2,
        context_length=256,
        start_seconds=START_SECONDS,
        arguments=("--max-num-seqs=8", "--enforce-eager", "--dtype=float32"),
    )


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", TARGETS)
async def test_the_real_one_chats_with_and_without_an_adapter(
    command: str, smollm2_f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Our command line starts it, our key opens it, an adapter that is loaded while it runs changes what it says, one
    that is removed is gone, and a death is got over."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    weights = load_file(smollm2_f32 / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", lora_tensors(weights, r"\.[qv]_proj", size=3.0))
    greedy = Sampling(max_tokens=12, temperature=0.0)
    async with ready(_settings(command, smollm2_f32), START_SECONDS) as engine:
        base = await said(engine, chat("Say hello.", sampling=greedy))
        assert base
        assert engine.capabilities().context_length == 256
        events = [event async for event in engine.generate(chat("Say hello.", sampling=greedy))]
        assert isinstance(events[-1], Usage)
        assert events[-1].completion_tokens > 0
        engine.register_adapter("mine", adapter)
        assert await said(engine, chat("Say hello.", sampling=greedy, adapter="mine")) != base
        both = [said(engine, chat("Say hello.", sampling=greedy, adapter=name)) for name in ("", "mine")]
        assert len(set(await asyncio.gather(*both))) == 2
