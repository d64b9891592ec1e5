"""`python -m benchmarks.peers.adapted_core CHECKPOINT PRECISION THREADS KINDS REGISTERED RESIDENT HOME`: our engine,
in process, with that many random adapters of rank 8 for layers of those kinds (`q_proj,v_proj`; `all`), so many of
which may be in memory at once. The home has the compiled operation that adapters run by, or has not.

A job may have `adapters`, one's number for each prompt, and `streams`: only so many run at once, spread over the time
that one takes, and `flow` is the rate from when so many run until none is left to begin.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.peers.lines import Run, Stopwatch, answer_jobs
from interlace.config import AdapterSettings, ModelSettings
from interlace.engines.core import Core
from interlace.engines.local import load_core
from interlace.engines.types import Delta, GenerateRequest, Sampling, Usage
from interlace.errors import InterlaceError

RANK = 8
FOLDERS = 48  # on disk: registered names share them, and each is read anew
HASTE = 1.25  # how much faster the first streams begin than they will end: else there would never be so many


def stored_shapes(checkpoint: Path) -> dict[str, list[int]]:
    """The shapes of the checkpoint's tensors."""
    with safe_open(checkpoint / "model.safetensors", "np") as stored:
        return {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 (no mapping)


def write_adapters(folder: Path, checkpoint: Path, kinds: str) -> tuple[list[Path], int]:
    """`FOLDERS` adapters in PEFT's format as new folders in `folder`, and how many numbers one of them has."""
    shapes = {name: shape for name, shape in stored_shapes(checkpoint).items() if "_proj." in name}
    if kinds != "all":
        shapes = {n: shape for n, shape in shapes.items() if n.split(".")[-2] in kinds.split(",")}
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    settings["target_modules"] = sorted({name.split(".")[-2] for name in shapes})
    random = np.random.default_rng(0)
    folders = [folder / str(number) for number in range(FOLDERS)]
    for one in folders:
        tensors = {}
        for name, (outputs, inputs) in shapes.items():
            at = f"base_model.model.{name.removesuffix('.weight')}"
            down, up = (random.standard_normal(shape, np.float32) for shape in ((RANK, inputs), (outputs, RANK)))
            tensors[f"{at}.lora_A.weight"] = down / np.float32(inputs**0.5)
            tensors[f"{at}.lora_B.weight"] = up / np.float32(50)
        one.mkdir()
        (one / "adapter_config.json").write_text(json.dumps(settings))
        save_file(tensors, one / "adapter_model.safetensors")
    return folders, sum(RANK * (outputs + inputs) for outputs, inputs in shapes.values())


def load(checkpoint: str, precision: str, threads: int, kinds: str, registered: int, resident: int,
         home: str, folder: Path) -> tuple[Run, dict[str, Any]]:  # fmt: skip
    """The engine, its adapters named 0, 1, ..."""
    folders, numbers = write_adapters(folder, Path(checkpoint), kinds)
    size = numbers * (2 if precision == "bf16" else 4)
    settings = ModelSettings(
        name="bench",
        checkpoint=checkpoint,
        precision=precision,
        threads=threads,
        adapters=tuple(AdapterSettings(str(n), str(folders[n % FOLDERS])) for n in range(registered)),
        adapter_bytes=resident * (size + (64 << 10)),  # and what lies between layers
    )
    core = load_core(settings, Path(home), lambda _: None)

    def run(
        prompts: list[list[int]], new_tokens: int, adapters: Sequence[int] = (), streams: int = 0
    ) -> dict[str, Any]:
        sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        requests = [
            GenerateRequest(
                id=str(number),
                prompt_ids=tuple(prompt),
                sampling=sampling,
                adapter=str(adapters[number]) if adapters else "",
            )
            for number, prompt in enumerate(prompts)
        ]
        return _flow(core, requests, streams, new_tokens) if streams else _together(core, requests, prompts, new_tokens)

    base = sum(math.prod(shape) for shape in stored_shapes(Path(checkpoint)).values())
    return run, {"vocabulary": core.capabilities().vocabulary, "adapter_bytes": size, "base_numbers": base}


def _together(core: Core, requests: list[GenerateRequest], prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    watch = Stopwatch(prompts, new_tokens)
    for request in requests:
        core.add(core.prepare(request))
    while core.has_work():
        watch.step(_step(core)[0])
    return watch.measured()


def _flow(core: Core, requests: list[GenerateRequest], streams: int, new_tokens: int) -> dict[str, Any]:
    waiting, running, steps, tokens = requests[::-1], 0, 0, 0
    pace, began = HASTE * streams / new_tokens, 0.0
    while waiting:
        while waiting and running < streams and len(requests) - len(waiting) <= steps * pace:
            core.add(core.prepare(waiting.pop()))
            running += 1
        if running == streams and not began:
            began = time.perf_counter()
        counts, ended = _step(core)
        steps += 1
        running -= ended
        tokens += sum(counts.values()) if began else 0
    rate = tokens / (time.perf_counter() - began)
    while core.has_work():
        core.step()
    return {"flow": rate}


def _step(core: Core) -> tuple[dict[int, int], int]:
    """The tokens that each stream gained, and how many streams ended."""
    outcomes = core.step()
    for _, outcome in outcomes:
        if isinstance(outcome, InterlaceError):
            raise outcome
    counts = {int(id): outcome.tokens for id, outcome in outcomes if isinstance(outcome, Delta)}
    return counts, sum(isinstance(outcome, Usage) for _, outcome in outcomes)


if __name__ == "__main__":
    _, checkpoint_, precision_, threads_, kinds_, registered_, resident_, home_ = sys.argv
    with tempfile.TemporaryDirectory() as folder_:
        counts_ = int(registered_), int(resident_)
        answer_jobs(lambda: load(checkpoint_, precision_, int(threads_), kinds_, *counts_, home_, Path(folder_)))
