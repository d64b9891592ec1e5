"""The plan of a run: what the settings and the tokens of the data come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from interlace.errors import ConfigError
from interlace.models import EncoderArchitecture, expected_shapes, locate, read_architecture
from interlace.tuning.hardware import Hardware
from interlace.tuning.launch import stage_of
from interlace.tuning.memory import PROCESS_BYTES, Job
from interlace.tuning.plan import Plan, plan
from interlace.tuning.settings import TuneSettings, blocks_of, rows_together
from interlace.tuning.sizes import ALL_LINEAR, Learnt, ModelSize, blocks, full, lora, no_such_blocks, size_of


def plan_of(
    base: Path, settings: TuneSettings, tokens: int, hardware: Iterable[Hardware], answers: int | None = None,
    *, rented_in: str = "",
) -> Plan:  # fmt: skip
    """The plan over a base at that path; `tokens` are the data's, seen once, `answers` of which are learnt (None: all).
    What is first in `hardware` is this machine (one with processors alone, where nothing is): its memory is told, and
    that of GPUs where it is another. `rented_in`: the precision of GPUs, where it is another than the settings'."""
    hardware = list(hardware)
    gpu = bool(hardware) and hardware[0].gpu
    architecture = read_architecture(base)
    reads = architecture.max_tokens if isinstance(architecture, EncoderArchitecture) else settings.max_tokens
    drops = settings.method == "lora" and settings.dropout > 0
    number = 4 if settings.precision == "f32" else 0  # that is kept twice: as it was, and with a share left out
    mine = Job(
        tokens=round(tokens * settings.epochs),
        row_tokens=min(settings.max_tokens, reads),  # a classifier's texts may all be so long, and are taken together
        rows=rows_together(settings, gpu=True),
        devices=settings.processes * settings.machines,
        rounds=settings.method == "lora" and not settings.classifies and settings.processes * settings.machines == 1,
        fused=True,
        stage=stage_of(settings.launcher, settings.zero_stage),
        answers=1.0 if answers is None or not tokens else answers / tokens,
        dropout_bytes=int(drops),
        scored=True,
    )
    mine = _in_precision(mine, settings, settings.precision)
    there = _in_precision(mine, settings, rented_in or settings.precision)
    here = dataclasses.replace(
        mine,
        rows=rows_together(settings, gpu=False),
        mapped=locate(base).format != "gguf",
        dropout_bytes=4 + number if drops else 0,
        process_bytes=PROCESS_BYTES,
        on_processors=True,
    )
    size = size_of(architecture)
    return plan(size, _learnt(base, size, settings), mine if gpu else here, hardware, there)


def _in_precision(job: Job, settings: TuneSettings, precision: str) -> Job:
    halves = settings.launcher == "deepspeed" and precision == "bf16"  # which keeps weights of 16 bits, too
    return dataclasses.replace(
        job, precision="mixed" if halves else "f32", autocast=precision == "bf16" and not halves,
        dropout_bytes=0 if not job.dropout_bytes else 1 if precision == "bf16" else 5,  # a mask of bytes; and inputs
    )  # fmt: skip


def share_of(machine: Hardware, processes: int) -> Hardware:
    """What each of several processes has of a machine."""
    return dataclasses.replace(
        machine,
        memory_bytes=machine.memory_bytes // processes,
        flop_per_second_low=machine.flop_per_second_low / processes,
        flop_per_second_high=machine.flop_per_second_high / processes,
    )


def _learnt(base: Path, size: ModelSize, settings: TuneSettings) -> Learnt:
    shapes = expected_shapes(read_architecture(base))
    if settings.private:
        first, last, head = blocks_of(settings.private)
        if not first <= last < size.layers:
            raise ConfigError(f"private: {no_such_blocks(settings.private, size.layers)}")
        return blocks(size, shapes, first, last, head=head)
    if settings.method == "full":
        return full(size)
    targets = [each.strip() for each in settings.targets.split(",")]
    try:
        return lora(size, shapes, settings.rank, ALL_LINEAR if targets == [ALL_LINEAR] else targets)
    except ValueError as error:
        raise ConfigError(f"targets: {error}") from error
