"""Learning: our trainer beside TRL's own; and learning and serving on one machine, each with and without the other.

Trainers are processes of their own that take turns, on the same rows of tokens. The server has the default checkpoint
as it comes, and as many threads as the machine has cores, as the training has; `BESIDE` is what `interlace tune` does,
with its lowest priority, and `RUDE` the same without standing back.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import Progress

from benchmarks import setup
from benchmarks.figures import AtMost, compare
from benchmarks.hop import gathered
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.server import serving
from benchmarks.turns import Shape
from benchmarks.worker import ROOT, Worker

DATA = ROOT / "examples" / "agri-advisor" / "train.jsonl"
OURS, TRL = "interlace tune", "TRL"
ALONE, BESIDE, RUDE = "alone", "beside the other", "beside the other, nice 0"
PRECISIONS = ("f32", "bf16")
ASKED = Shape("served", 4, 40, 64)
MOST_SLOWER = 1.25  # a request's first token, beside a training that stands back

Values = list[tuple[str, str, str, float]]


def measure_tuning(progress: Progress, rounds: int, threads: int, *, quick: bool) -> Report:
    """Steps of both trainers in turn, at each precision."""
    f32 = setup.f32_checkpoint(setup.gguf_checkpoint(progress.console), progress.console)
    about = _about(threads)
    steps = 1 if quick else 2
    values: Values = []
    task = progress.add_task("learning", total=2 * rounds * len(PRECISIONS))
    for precision in PRECISIONS:
        with _trainer("interlace", f32, precision, threads) as ours, _trainer("trl", f32, precision, threads) as theirs:
            pair = [(OURS, ours), (TRL, theirs)]
            for _, worker in pair:
                worker.wait_until_loaded()
            for turn in range(rounds):
                for name, worker in pair if turn % 2 == 0 else pair[::-1]:
                    answer = worker.ask({"steps": steps})
                    values.append(("train", precision, name, float(answer["rate"])))
                    values.append(("train_cpu", precision, name, float(answer["cpu_ms_per_token"])))
                    progress.update(task, advance=1, description=f"{name}, {precision}: {answer['rate']:,.0f} tokens/s")
    progress.remove_task(task)
    rates = gathered(values, ("train", "train_cpu"), (OURS, TRL))
    speed, cpu = ([rate for rate in rates if rate.phase == phase] for phase in ("train", "train_cpu"))
    compared = compare(speed, OURS, TRL, 1.0) + compare(cpu, OURS, TRL, AtMost(1.0))
    about["load_after"] = _load()
    return Report("tuning", "Learning", about, rates, compared)


def measure_yielding(progress: Progress, rounds: int, threads: int, *, quick: bool) -> Report:
    """Requests with nothing beside them, with a training that stands back, and with one that does not; and the training
    with requests beside it and without."""
    gguf = setup.gguf_checkpoint(progress.console)
    f32 = setup.f32_checkpoint(gguf, progress.console)
    about = _about(threads)
    seconds = 3.0 if quick else 30.0
    values: Values = []
    task = progress.add_task("learning and serving", total=4 * rounds)
    with serving(gguf, "file", threads) as server, _trainer("interlace", f32, "bf16", threads, nice=19) as kind, \
            _trainer("interlace", f32, "bf16", threads) as rude, \
            Worker("load client", [sys.executable, "-m", "benchmarks.peers.http_client", str(server.port), server.key,
                                   server.model]) as client:  # fmt: skip
        for worker in (kind, rude, client):
            worker.wait_until_loaded()
        generator = random.Random(0)
        _asked(client, generator, time.monotonic())  # warms up
        for turn in range(rounds):
            settings: list[tuple[str, Worker | None]] = [(ALONE, None), (BESIDE, kind), (RUDE, rude)]
            for name, worker in settings[turn % 3 :] + settings[: turn % 3]:
                values += _together(client, generator, name, worker, seconds)
                progress.update(task, advance=1, description=f"requests {name}")
            values.append(("learnt", "bf16", ALONE, float(kind.ask({"seconds": seconds})["rate"])))
            progress.advance(task)
    progress.remove_task(task)
    rates = gathered(values, ("served", "arrive", "learnt"), (ALONE, BESIDE, RUDE))
    by_phase = {phase: [rate for rate in rates if rate.phase == phase] for phase in ("served", "arrive", "learnt")}
    compared = [
        *compare(by_phase["served"], BESIDE, ALONE, 1 / MOST_SLOWER),
        *compare(by_phase["served"], RUDE, ALONE, None),
        *compare(by_phase["arrive"], BESIDE, ALONE, AtMost(MOST_SLOWER)),
        *compare(by_phase["arrive"], RUDE, ALONE, None),
        *compare(by_phase["learnt"], BESIDE, ALONE, None),
        *compare(by_phase["learnt"], RUDE, ALONE, None),
    ]
    about["load_after"] = _load()
    return Report("yielding", "Learning and serving on one machine", about, rates, compared)


def _together(client: Worker, generator: random.Random, name: str, learner: Worker | None, seconds: float) -> Values:
    """What the requests of some seconds got, and what was learnt meanwhile."""
    learnt: list[float] = []
    end = time.monotonic() + seconds
    if learner is None:
        answers = _asked(client, generator, end)
    else:
        thread = threading.Thread(target=lambda: learnt.append(float(learner.ask({"seconds": seconds})["rate"])))
        thread.start()
        time.sleep(0.1 * seconds)  # until it is at work
        answers = _asked(client, generator, end)
        thread.join()
    return [
        ("served", ASKED.label, name, mean(answer["whole"] for answer in answers)),
        ("arrive", ASKED.label, name, mean(1000 * answer["first_token_seconds"] for answer in answers)),
        *(("learnt", "bf16", name, rate) for rate in learnt),
    ]


def _asked(client: Worker, generator: random.Random, end: float) -> Sequence[dict[str, Any]]:
    answers = []
    while not answers or time.monotonic() < end:
        prompts = ASKED.prompts(generator, 49152)
        answers.append(client.ask({"prompts": prompts, "new_tokens": ASKED.new_tokens}))
    return answers


def _trainer(whose: str, checkpoint: Path, precision: str, threads: int, nice: int = 0) -> Worker:
    words = [whose, str(checkpoint), str(DATA), precision, str(threads), str(nice)]
    return Worker(f"{whose} {precision}", [sys.executable, "-m", "benchmarks.peers.sft", *words])


def _about(threads: int) -> dict[str, Any]:
    about = describe() | {"threads": threads}
    about["versions"] |= {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    return about


def _load() -> float:
    return round(os.getloadavg()[0], 2)
