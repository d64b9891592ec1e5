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
in float32. Where attention keeps no scores and the head works in tiles, as in `interlace tune`, those two parts fall
away. All of it is an estimate: on processors, half as much again was measured (docs/tutorial/specialise.md).

A GPU is not told its work at once: a processor starts it piece by piece. Small models and short passes take as long as
that takes, however fast the GPU is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from interlace.money import Nanos
from interlace.tuning.hardware import Hardware, Price
from interlace.tuning.sizes import Learnt, ModelSize

Precision = Literal["mixed", "f32"]
Stage = Literal[0, 1, 2, 3]

STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
"""Of ZeRO: 0 keeps a whole copy on each device (plain data parallelism), 3 shares out everything."""
LAYER_SECONDS = (0.003, 0.02)
"""What a processor needs to start the work of one layer on a GPU, there and back. The second is the slowest seen
(docs/benchmarks/gpu.md); the first is what a fast one is trusted with, not measured."""
START_SECONDS = (0.0, 5.0)
"""Of a run on a GPU, before its first step and after its last: to load what it computes with, and to score."""
PROCESS_BYTES = 460 << 20
"""Of a training process on processors, beside what it learns: the interpreter, torch and the other libraries. Measured:
0.48 GiB at most in a run whose model has some thousand parameters (Linux, x86-64). On a GPU none of that is in the
device's memory."""
HEAD_BYTES = 1 << 30  # of the scores of a head that works in tiles, at most
SPARE = 0.9  # of a device's memory may be planned with: the rest goes to buffers, fragments and the driver


@dataclass(frozen=True, slots=True)
class Job:
    """One training: `tokens` in all, epochs included; on each device `rows` of `row_tokens` tokens at a time.

    `mixed`: 16-bit copies of the weights are computed with, beside those in float32. `f32`: there is one copy, in
    float32, also where a pass rounds to bfloat16 on the way."""

    tokens: int
    row_tokens: int = 0
    rows: int = 0
    devices: int = 1
    precision: Precision = "mixed"
    checkpointing: bool = False  # activations are computed twice instead of kept
    stage: Stage = 0  # how much the launcher shares out
    fused: bool = False  # attention keeps no scores, and the head works in tiles
    process_bytes: int = 0  # what a process takes of the device's memory before it has a model


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on each device: weights, gradients and the state of Adam; activations; and the process itself."""

    stage: Stage
    states_bytes: int
    activations_bytes: int
    process_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.states_bytes + self.activations_bytes + self.process_bytes


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


def memory_of(size: ModelSize, learnt: Learnt, job: Job, stage: Stage) -> StageMemory:
    """What one device must hold."""
    frozen = size.parameters + learnt.added - learnt.trained
    trained, devices = learnt.trained, job.devices
    weight = 2 if job.precision == "mixed" else 4
    whole, shared = _bytes_per_trained(job.precision, stage)
    if stage == 3:
        gathered = size.largest_layer * (weight if frozen else 2 * weight)
        states = -(-(frozen * weight + trained * shared) // devices) + gathered
    else:
        states = frozen * weight + trained * whole + -(-trained * shared // devices)
    return StageMemory(stage, states, _activations(size, job, weight), job.process_bytes)


def _bytes_per_trained(precision: Precision, stage: Stage) -> tuple[int, int]:
    """Bytes of each trained parameter on every device, and those that are shared out."""
    if precision == "mixed":
        return ((20, 0), (4, 16), (4, 16), (0, 18))[stage]  # 2 + 2 in 16 bits, and 16 of weight, gradient and Adam
    return ((16, 0), (8, 8), (4, 12), (0, 16))[stage]  # weight, gradient, two of Adam


def _activations(size: ModelSize, job: Job, weight: int) -> int:
    tokens = job.rows * job.row_tokens
    if not tokens or not size.hidden:
        return 0
    scores = 0.0 if job.fused else 5 * size.heads * job.row_tokens / size.hidden
    of_layer = tokens * size.hidden * (34 + scores) * weight / 2
    kept = tokens * size.hidden * weight * size.layers + of_layer if job.checkpointing else of_layer * size.layers
    logits = tokens * size.vocabulary * (weight + 4 + 4)
    return math.ceil(kept + (min(logits, HEAD_BYTES) if job.fused else logits))


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
