"""How fast the engine is while every stream has an adapter of its own: beside its own base, and beside what the
machine can do at all."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import setup
from benchmarks.figures import Rate, compare
from benchmarks.limits import gflops, gigabytes_per_second
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.turns import Shape, gather
from benchmarks.worker import Worker
from interlace.engines.local.kernel import compile_kernel, find_kernel
from interlace.errors import ConfigError

STREAMS, REGISTERED, FLOWING = 32, 1000, 96
KINDS = {"q and v": "q_proj,v_proj", "all modules": "all"}
GOALS = {"q and v": 0.95, "all modules": 0.85}
FLOW_GOAL = 0.75
PRECISIONS = ("f32", "bf16")

Turn = tuple[Shape, str, float]


def measure_adapters(
    progress: Progress,
    rounds: int,
    threads: int,
    *,
    quick: bool = False,
    precisions: Sequence[str] = PRECISIONS,
    kinds: Sequence[str] = tuple(KINDS),
    compiled: bool = True,
) -> Report:
    """32 different adapters of rank 8 beside the base, and a thousand that take turns in memory. Each process measures
    its own base just before or after. `compiled`: by the compiled operation, where this machine has a compiler."""
    checkpoint = setup.f32_checkpoint(setup.gguf_checkpoint(progress.console), progress.console)
    about = describe() | {"threads": threads}
    home, about["adapters"] = _home(compiled=compiled)
    about["limits"] = {f"GFLOP/s, {precision}": gflops(precision, threads) for precision in precisions}
    about["limits"]["GB/s"] = gigabytes_per_second(threads)
    with ExitStack() as stack:
        workers: dict[tuple[str, str], Worker] = {}
        for precision in precisions:
            for kind in kinds:
                command = [sys.executable, "-m", "benchmarks.peers.adapted_core", str(checkpoint), precision]
                command += [str(threads), KINDS[kind], str(REGISTERED), str(STREAMS), str(home)]
                workers[precision, kind] = stack.enter_context(Worker(f"{precision}, {kind}", command))
                workers[precision, kind].wait_until_loaded()  # one after another: loading takes memory
        task = progress.add_task("measuring", total=None)
        measured = []
        for shape, name, value in _turns(workers, rounds, quick=quick):
            progress.update(task, description=f"{name}, {shape.phase}: {value:,.0f} tokens/s")
            measured.append((shape, name, value))
        progress.remove_task(task)
    rates = gather(measured)
    compared = []
    for precision, kind in workers:
        compared += compare(rates, f"{precision}, 32 of {kind}", _base(precision, kind), GOALS[kind])
        compared += compare(rates, f"{precision}, 1,000 of {kind}", _base(precision, kind), FLOW_GOAL)
    about["reached"] = list(_reached(rates, workers, about["limits"]))
    return Report("adapters", "Mixed adapters, the engine called directly", about, rates, compared)


def _home(*, compiled: bool) -> tuple[Path, str]:
    """A home with the compiled operation, or without; and what to say of it."""
    if not compiled:
        return setup.CACHE / "home-without-kernel", "adapters stacked, by the runtime's own operations"
    home = setup.CACHE / "home"
    try:
        if find_kernel(home) is None:
            compile_kernel(home)
    except ConfigError as error:
        return home, f"adapters stacked, by the runtime's own operations: {error}"
    return home, "adapters by the compiled operation"


def _base(precision: str, kind: str) -> str:
    return f"{precision}, base (beside {kind})"


def _turns(workers: Mapping[tuple[str, str], Worker], rounds: int, *, quick: bool) -> Iterator[Turn]:
    """Every worker's base and adapters one right after the other, in turn the one and the other first. A round before
    the first warms up."""
    generator = random.Random(0)
    together = Shape("decode", STREAMS, 40, 8 if quick else 64)
    flow = Shape("flow", 2 * STREAMS if quick else FLOWING, 40, 8 if quick else 64)
    for turn in range(-1, rounds):
        for (precision, kind), worker in workers.items():
            base, which = _base(precision, kind), f"{precision}, 32 of {kind}"
            for name in (base, which) if turn % 2 else (which, base):
                value = _ask(worker, together, generator, range(STREAMS) if name == which else None)
                if turn >= 0:
                    yield together, name, value
            if kind != "all modules" or turn < 0:
                continue
            first = generator.randrange(REGISTERED)
            cycle = [(first + number) % REGISTERED for number in range(flow.streams)]
            which = f"{precision}, 1,000 of {kind}"
            for name in (base, which) if turn % 2 else (which, base):
                value = _ask(worker, flow, generator, cycle if name == which else None)
                yield Shape("flow", STREAMS, flow.prompt_tokens, flow.new_tokens), name, value


def _ask(worker: Worker, shape: Shape, generator: random.Random, adapters: Sequence[int] | None) -> float:
    job: dict[str, Any] = {"prompts": shape.prompts(generator, int(worker.about["vocabulary"]))}
    job["new_tokens"] = shape.new_tokens
    if adapters is not None:
        job["adapters"] = list(adapters)
    if shape.phase == "flow":
        job["streams"] = STREAMS
    return float(worker.ask(job)[shape.phase])


def _reached(
    rates: Sequence[Rate], workers: Mapping[tuple[str, str], Worker], limits: Mapping[str, float]
) -> Iterator[str]:
    """What share of the machine's limits each contestant reaches in decoding, and what an adapter takes."""
    for (precision, kind), worker in workers.items():
        size, numbers = worker.about["adapter_bytes"], worker.about["base_numbers"]
        yield f"{precision}, {kind}: {size / 1e6:.2f} MB of memory an adapter, as much again while it is in a batch"
        for rate in rates:
            if rate.phase != "decode" or rate.contestant not in (_base(precision, kind), f"{precision}, 32 of {kind}"):
                continue
            adapters = 0 if rate.contestant == _base(precision, kind) else STREAMS
            read = numbers * (2 if precision == "bf16" else 4) + adapters * size
            computed = 2 * (STREAMS * numbers + adapters * size / (2 if precision == "bf16" else 4))
            steps = rate.spread.median / STREAMS
            yield (
                f"{rate.contestant}: {read / 1e6:.0f} MB of weights a step, {steps * read / 1e9:.1f} GB/s "
                f"({steps * read / 1e9 / limits['GB/s']:.0%} of the machine's), {steps * computed / 1e9:.0f} GFLOP/s "
                f"({steps * computed / 1e9 / limits[f'GFLOP/s, {precision}']:.0%})"
            )
