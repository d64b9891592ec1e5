"""What a training will take, before it begins: parameters, arithmetic, memory, hours, money.

    shapes = expected_shapes(architecture)
    size = size_of(architecture)
    planned = plan(size, lora(size, shapes, rank=16), Job(tokens=epochs * tokens_of_the_data, row_tokens=512, rows=4))
    print(plan_table(planned))                    # in `plan_table.py`
    print(beside(planned, seconds=..., memory_bytes=..., flop_per_second=...))       # after the run

The arithmetic is that of the matrices, 2 FLOP for each parameter and token forward, 2 for the gradients of what went
in, 2 for those of the parameters (Kaplan et al., arXiv:2001.08361): 6ND for a full training. Frozen parameters need no
gradients of their own, so an adapter costs about 4ND; those below the lowest trained one need no way back at all. The
scores of attention are left out: they are little while rows are much shorter than six times the hidden size.

Memory is that of Adam. In mixed precision it follows the estimators of DeepSpeed (`deepspeed.readthedocs.io`, "Memory
Requirements"), in bytes for P parameters on n devices: 4P + 16P/n for ZeRO-1 and ZeRO-2, 18P/n + 4 × the largest layer
for ZeRO-3. That of the activations is after Korthikanti et al., arXiv:2205.05198, with the logits and their gradients
in float32. A run of `interlace tune` (`fused`) takes less: what it keeps for the way back is counted in `memory.py`,
and so is what scoring takes. docs/how-to/tune.md has it beside what was measured.

A GPU is not told its work at once: a processor starts it piece by piece. Small models and short passes take as long as
that takes, however fast the GPU is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from interlace.money import Nanos
from interlace.tuning.hardware import Hardware, Price
from interlace.tuning.memory import STAGES, Job, Stage, StageMemory, memory_of
from interlace.tuning.sizes import Learnt, ModelSize

LAYER_SECONDS = (0.003, 0.02)
"""What a processor needs to start the work of one layer on a GPU, there and back. The second is the slowest seen
(docs/benchmarks/gpu.md); the first is what a fast one is trusted with, not measured."""
START_SECONDS = (0.0, 5.0)
"""Of a run on a GPU, before its first step and after its last: to load what it computes with, and to score."""
SPARE = 0.9  # of a device's memory may be planned with: the rest goes to buffers, fragments and the driver


@dataclass(frozen=True, slots=True)
class Estimate:
    """The job on one kind of hardware. `stage`: the first that fits its memory, None where none does. Hours pass on
    the clock, the best case first; dollars are for all devices, in nano-dollars, None where there is no price."""

    hardware: Hardware
    stage: Stage | None
    hours_low: float
    hours_high: float
    nanos_low: Nanos | None
    nanos_high: Nanos | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it. `flop` is the whole arithmetic of the job, over all devices."""

    size: ModelSize
    learnt: Learnt
    job: Job
    flop: int
    memory: tuple[StageMemory, ...]
    estimates: tuple[Estimate, ...]
    gpu_rows: int = 0
    gpu_memory: tuple[StageMemory, ...] = ()  # where a GPU takes other memory than this machine


def plan(
    size: ModelSize, learnt: Learnt, job: Job, hardware: Iterable[Hardware] = (), on_gpus: Job | None = None
) -> Plan:
    """The plan of a job, with an estimate for each kind of hardware; `on_gpus` is how GPUs do it, if otherwise."""
    memory = tuple(memory_of(size, learnt, job, stage) for stage in STAGES)
    arithmetic = flop(size, learnt, job)
    other = on_gpus is not None and on_gpus != job
    gpu_memory = tuple(memory_of(size, learnt, on_gpus, stage) for stage in STAGES) if on_gpus and other else ()
    theirs = (on_gpus or job, gpu_memory or memory)
    estimates = tuple(_estimate(one, arithmetic, size, *(theirs if one.gpu else (job, memory))) for one in hardware)
    return Plan(size, learnt, job, arithmetic, memory, estimates, on_gpus.rows if on_gpus else 0, gpu_memory)


def flop(size: ModelSize, learnt: Learnt, job: Job) -> int:
    """Forward, back through what lies above the lowest trained parameter, and the gradients of the trained ones."""
    forward = size.parameters + learnt.added
    backward = learnt.passed + learnt.added
    again = forward if job.checkpointing else 0
    return 2 * job.tokens * (forward + again + backward + learnt.trained)


# --- hours and money ----------------------------------------------------------------------------------------------


def _estimate(
    hardware: Hardware, arithmetic: int, size: ModelSize, job: Job, memory: tuple[StageMemory, ...]
) -> Estimate:
    stages = [one for one in memory if job.devices > 1 or one.stage == 0]
    fitting = next((one.stage for one in stages if one.bytes <= SPARE * hardware.memory_bytes), None)
    passes = job.tokens / (job.devices * job.rows * job.row_tokens) if hardware.gpu and job.rows * job.row_tokens else 0
    speeds = (hardware.flop_per_second_high, hardware.flop_per_second_low)
    hours = [
        (max(arithmetic / (speed * job.devices), passes * size.layers * layer) + (start if passes else 0)) / 3600
        for speed, layer, start in zip(speeds, LAYER_SECONDS, START_SECONDS, strict=True)
    ]
    prices = sorted(price.nanos_per_device_hour for price in hardware.prices)
    low = _cost(hours[0], job.devices, prices[0]) if prices else None
    high = _cost(hours[1], job.devices, prices[-1]) if prices else None
    return Estimate(hardware, fitting, hours[0], hours[1], low, high)


def _cost(hours: float, devices: int, nanos_per_device_hour: int) -> Nanos:
    """Rounded up, in whole numbers from milliseconds on."""
    milliseconds = math.ceil(hours * 3_600_000)
    return Nanos(-(-milliseconds * devices * nanos_per_device_hour // 3_600_000))


def oldest(prices: Iterable[Price]) -> str:
    """The date of the oldest price that was used."""
    return min(price.date for price in prices).isoformat()
