"""What a training process computes on, as it is found and measured there."""

from __future__ import annotations

import os
import time

import torch

from interlace.tuning.endings import Ending
from interlace.tuning.hardware import Device

_SIDE, _TIMES = 4096, 30  # of the product that is timed: a hundred megabytes, a few milliseconds


def this_device(precision: str) -> Device | None:
    """The GPU, with the speed of large products of matrices in the precision of the run (a few milliseconds); None
    where this process computes on processors."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return Device(found.name, int(found.total_memory), _flop_per_second(kind))


def _flop_per_second(kind: torch.dtype) -> float:
    left = torch.randn(_SIDE, _SIDE, device="cuda", dtype=kind)
    torch.matmul(left, left)  # the first one loads the library
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_TIMES):
        torch.matmul(left, left)
    end.record()
    end.synchronize()
    return _TIMES * 2 * _SIDE**3 / (float(start.elapsed_time(end)) / 1e3)


_ROWS, _WIDTH, _SECONDS = 256, 1024, 0.5  # of the products that are timed on a processor: a small model's
_WORTH = 1.15  # so much quicker products must be, as what lies between them takes longer in two precisions than in one


def quicker_precision() -> str:
    """bf16 where products of matrices, forward and back, are quicker in it than in float32, else f32; as measured for
    half a second, on one core: several wait for each other where anything else runs. A processor may have instructions
    for bfloat16 and be slower with them: those of some Intel ones are good for half as much as their float32's where a
    virtual machine hides the matrix unit (AMX)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    torch.set_num_threads(1)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    operands = {kind: (torch.randn(_ROWS, _WIDTH).to(kind), torch.randn(_WIDTH, _WIDTH).to(kind)) for kind in best}
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or float("inf") in best.values():
        for kind, (rows, weights) in operands.items():
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weights) @ weights
            best[kind] = min(best[kind], time.perf_counter() - start)
    return "bf16" if best[torch.float32] > _WORTH * best[torch.bfloat16] else "f32"


def names_of_gpus(processes: int) -> list[str]:
    """The GPUs that so many processes of this machine compute on, as the driver names them."""
    if not torch.cuda.is_available():
        return []
    count = min(processes, torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]


def check_gpus(processes: int) -> None:
    """Raise `Ending` where fewer GPUs are there than processes that learn on them: two of them cannot share one."""
    if torch.cuda.is_available() and (found := torch.cuda.device_count()) < processes:
        raise Ending(
            "wrong",
            f"processes: is {processes}, but there {'is 1 GPU' if found == 1 else f'are {found} GPUs'} here, and each "
            f"process needs one of its own. Write {found}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to learn on "
            "processors.",
        )


def same_sums() -> None:
    """Have a GPU add up in one and the same order each time, from here on: a run that goes on after a crash has the
    losses that it would have had. PyTorch promises that in no other mode."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
