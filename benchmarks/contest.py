"""The engine beside its peers in one run: tokens per second, first tokens, memory and exactness, with and without
adapters, and what share of the machine each uses."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress

from benchmarks import setup
from benchmarks.agreement import Agreement
from benchmarks.contestants import REFERENCE, Command, Contestant, adapted, commands, contestants
from benchmarks.limits import gflops, gigabytes_per_second
from benchmarks.lora import REGISTERED, RESIDENT, write_adapters
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.turns import Shape, gather
from benchmarks.verdicts import judge, shares
from benchmarks.worker import ROOT, ContestantFailed, Worker

WIDEST = RESIDENT
SHAPES = tuple(Shape("decode", streams, 40, 64) for streams in (1, 8, WIDEST))
QUICK_SHAPES = tuple(Shape("decode", streams, 40, 8) for streams in (1, WIDEST))
LOAD_SECONDS, JOB_SECONDS = 900.0, 420.0
FREE_BYTES = 9 << 30  # left beside the processes that are kept, which grow yet, for those that are not: else some die
VOCABULARY = 49152  # where none of ours is there to say it
FLOWING = 3 * WIDEST  # requests of a turn in which a thousand adapters take turns

Measured = tuple[Shape, str, float]


@dataclass
class _Contest:
    """Whoever is still in it, and what has been measured. `kept` are the processes that run all the while; the others,
    for which there is no memory beside those, are started for each of their turns."""

    alive: list[Contestant]
    commands: dict[str, list[str]] = field(default_factory=dict)  # of processes that could be loaded
    kept: dict[str, Worker] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)  # what each process said of itself
    peaks: dict[str, int] = field(default_factory=dict)
    flowed: dict[str, int] = field(default_factory=dict)  # how many of the thousand adapters have had their turn
    say: Callable[[str], object] = print  # what an unattended run leaves in its log

    def have(self, process: str, do: Callable[[Worker], None]) -> None:
        """Have that process, loaded, do something. Where either fails, all that run in it are out of the contest."""
        worker = self.kept.get(process)
        try:
            if worker is None:
                worker = Worker(process, self.commands[process], LOAD_SECONDS)
                worker.wait_until_loaded()
                worker.patience = JOB_SECONDS
            do(worker)
            self.peaks[process] = max(self.peaks.get(process, 0), worker.peak_bytes() or 0)
        except (ContestantFailed, ValueError, KeyError, TypeError, OSError) as error:
            self.drop(process, f"failed: {_short(error)}")
        finally:
            if worker is not None and self.kept.get(process) is not worker:
                worker.close()

    def drop(self, process: str, why: str) -> None:
        """Leave out everybody who runs in that process."""
        self.say(f"{process}: {why}")
        for one in [one for one in self.alive if one.process == process]:
            self.left_out[one.name] = why
            self.alive.remove(one)
        if (worker := self.kept.pop(process, None)) is not None:
            worker.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self.kept.values():
            worker.close()


def measure_contest(progress: Progress, rounds: int, threads: int, *, quick: bool, peers: bool,
                    among: Sequence[str], written: Callable[[Report], None]) -> Report:  # fmt: skip
    """Load all who can be loaded, `among` those whose names have one of these words, warm them up, and let them take
    turns. `written` gets what there is after each round, so that a run that is cut short leaves its rounds."""
    console = progress.console
    gguf = setup.gguf_checkpoint(console)
    f32 = setup.f32_checkpoint(gguf, console)
    adapters = write_adapters(f32, setup.CACHE / f"{setup.CHECKPOINT}-adapters")
    about = describe() | {"threads": threads}
    if not quick:
        about["limits"] = {f"GFLOP/s, {precision}": gflops(precision, threads) for precision in ("f32", "bf16")}
        about["limits"]["GB/s"] = gigabytes_per_second(threads)
    home = setup.CACHE / "home"
    about["adapters"] = _prepared(home)
    started = commands(gguf, f32, adapters, home, threads, console)
    entered = [
        one
        for one in contestants()
        if (peers or one.name.startswith("interlace")) and (not among or any(word in one.name for word in among))
    ]
    contest = _Contest(entered, say=console.print)
    try:
        _load(contest, started, progress)
        shapes = QUICK_SHAPES if quick else SHAPES
        known = (int(one["vocabulary"]) for one in contest.about.values() if "vocabulary" in one)
        vocabulary = next(known, VOCABULARY)
        _compare(contest, Agreement(f32, count=4 if quick else 32, tokens=4 if quick else 64), progress)
        about["versions"] |= {name: one["version"] for name, one in contest.about.items() if "version" in one}
        for turn in range(-1, rounds):  # the first warms up
            _round(contest, shapes, vocabulary, turn, progress)
            if turn >= 0:
                report = _report(contest, about)
                written(report)
    finally:
        contest.close()
    return report


def _prepared(home: Path) -> str:
    """Whatever makes our adapters faster on this machine, made once in that home; and what to say of it."""
    command = [sys.executable, "-m", "interlace", "adapters", "compile"]
    environment = os.environ | {"INTERLACE_HOME": str(home)}
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600, check=False)
    return "our adapters: by the compiled operation" if done.returncode == 0 else "our adapters: by the runtime's own"


def _load(contest: _Contest, started: dict[str, Command], progress: Progress) -> None:
    """Load each process once, and keep those that leave enough memory for the others."""
    processes = list(dict.fromkeys(one.process for one in contest.alive))
    task = progress.add_task("loading", total=len(processes))
    for name in processes:
        progress.update(task, description=f"loading {name}")
        began = time.monotonic()
        try:
            contest.commands[name] = started[name]()
        except setup.NotHere as error:
            contest.drop(name, f"not here: {_short(error)}")
        else:
            contest.have(name, functools.partial(_keep, contest, name, began))
        progress.advance(task)
    progress.remove_task(task)
    if not contest.alive:
        raise ContestantFailed("nobody could be loaded: " + "; ".join(contest.left_out.values()))


def _keep(contest: _Contest, name: str, began: float, worker: Worker) -> None:
    contest.about[name] = worker.about
    took = time.monotonic() - began
    _stretch(contest, worker, [[7 + n, *range(100, 139)] for n in range(WIDEST)])
    stays = psutil.virtual_memory().available > FREE_BYTES
    if stays:
        contest.kept[name] = worker
    how = "" if stays else "; there is no memory to keep it, so it is started for each of its turns"
    contest.say(f"{name}: loaded in {took:.0f} s{how}")


def _stretch(contest: _Contest, worker: Worker, prompts: list[list[int]]) -> None:
    """Have a process answer as many as it ever will at once, for whomever it runs: it grows, and compiles, by that."""
    for one in contest.alive:
        if one.process == worker.name:
            names = one.adapter_names(WIDEST)
            worker.ask({"prompts": prompts, "new_tokens": 4} | ({"adapters": names} if names else {}))


def _compare(contest: _Contest, agreement: Agreement, progress: Progress) -> None:
    """Ask everybody without adapters for the tokens that the reference writes."""
    asked = [one for one in contest.alive if not one.adapters and one.name != REFERENCE]
    if any(one.name == REFERENCE for one in contest.alive):
        contest.have(REFERENCE, agreement.learn)
    task = progress.add_task("exactness", total=len(asked))

    def compare(worker: Worker) -> None:
        percent = agreement.percent(worker)
        contest.measured.append((Shape("agreement", WIDEST, 40, 1), worker.name, percent))
        contest.say(f"{worker.name}: {percent:.1f} of 100 tokens are the reference's")

    for one in asked if agreement.known else []:
        progress.update(task, description=f"exactness of {one.name}")
        contest.have(one.process, compare)
        progress.advance(task)
    progress.remove_task(task)


def generator_of(turn: int) -> random.Random:
    """Of a round's prompts: each round has its own, the one that warms up (-1) too, or a prefix would be found."""
    return random.Random(f"round {turn}")  # of a whole number the sign is ignored


def _round(contest: _Contest, shapes: Sequence[Shape], vocabulary: int, turn: int, progress: Progress) -> None:
    """Everybody at every shape, one right after another on the same prompts; each round begins with another one. Those
    whose process is not kept come after the others, one after another, each at all shapes."""
    generator = generator_of(turn)
    prompts = {shape: shape.prompts(generator, vocabulary) for shape in shapes}
    others = {name: contest.commands[name] for name in dict.fromkeys(one.process for one in contest.alive)}
    others = {name: command for name, command in others.items() if name not in contest.kept}
    total = len(shapes) * len(contest.alive)
    task = progress.add_task("warming up" if turn < 0 else f"round {turn + 1}", total=total)

    def measure(one: Contestant, shape: Shape, worker: Worker) -> None:
        if shape.streams == WIDEST or not one.widest_only:
            found = list(_turn(contest, worker, one=one, shape=shape, prompts=prompts[shape]))
            contest.measured += found if turn >= 0 else []
            which, _, value = found[0]
            progress.update(task, description=f"{one.name}, {which.label}: {value:,.0f} tokens/s")
        progress.advance(task)

    at = max(turn, 0) % max(1, len(contest.alive))
    order = [*contest.alive[at:], *contest.alive[:at]]
    for shape in shapes:
        for one in order:
            if one in contest.alive and one.process not in others:
                contest.have(one.process, functools.partial(measure, one, shape))

    def whole_turn(worker: Worker) -> None:
        _stretch(contest, worker, [[7 + n, *prompt[1:]] for n, prompt in enumerate(prompts[shapes[-1]])])
        for shape in shapes:
            for one in [one for one in order if one.process == worker.name]:
                measure(one, shape, worker)

    for process in others if turn >= 0 else []:
        contest.have(process, whole_turn)
    progress.remove_task(task)
    contest.say(f"{'warmed up' if turn < 0 else f'round {turn + 1} done'} at {time.strftime('%H:%M:%S')}")


def _turn(
    contest: _Contest, worker: Worker, *, one: Contestant, shape: Shape, prompts: list[list[int]]
) -> Iterator[Measured]:
    """What one contestant does at one shape. No prompt of a process begins as another does: a prefix that is found
    would be measured instead."""
    if one.adapters == "many":
        flow, base = replace(shape, phase="flow"), one.process.partition(",")[0]
        yield flow, one.name, _flow(contest, worker, one, shape, prompts, many=True)
        yield flow, base, _flow(contest, worker, one, shape, prompts, many=False)
        return
    names = one.adapter_names(shape.streams)
    named = {"adapters": names} if names else {}
    if names:  # loading them is not what is measured here
        worker.ask({"prompts": [prompt[::-1] for prompt in prompts], "new_tokens": 2, **named})
    answer = worker.ask({"prompts": prompts, "new_tokens": shape.new_tokens, **named})
    yield shape, one.name, float(answer["decode"])
    yield replace(shape, phase="prefill"), one.name, float(answer["prefill"])
    yield replace(shape, phase="arrive"), one.name, 1000 * float(answer["first_token_seconds"])
    if names and shape.streams == WIDEST and one.name.startswith("interlace"):
        yield from _beside(contest, worker, one, shape, prompts, named)
    if shape.streams == WIDEST and one.joins:
        others = [[*prompt[1:], prompt[0]] for prompt in prompts]
        answer = worker.ask({"prompts": others, "new_tokens": shape.new_tokens, "late": True, **named})
        yield replace(shape, phase="late"), one.name, 1000 * float(answer["late_seconds"])


def _beside(
    contest: _Contest, worker: Worker, one: Contestant, shape: Shape, prompts: list[list[int]], named: dict[str, Any]
) -> Iterator[Measured]:
    """With and without adapters in one process, one right after the other: what they cost, and nothing else. Which of
    both is first changes from round to round."""
    beside = replace(shape, phase=f"beside_{one.adapters}")
    both = [(named, one.name), ({}, one.name.partition(",")[0])]
    before = sum((at, name) == (beside, one.name) for at, name, _ in contest.measured)
    for turned, (names, who) in zip((5, 9), reversed(both) if before % 2 else both, strict=True):
        moved = [[*prompt[turned:], *prompt[:turned]] for prompt in prompts]
        yield beside, who, float(worker.ask({"prompts": moved, "new_tokens": shape.new_tokens, **names})["decode"])


def _flow(contest: _Contest, worker: Worker, one: Contestant, shape: Shape, prompts: list[list[int]], *,
          many: bool) -> float:  # fmt: skip
    """Tokens per second while a stream that ends is replaced by another, which has the next of a thousand adapters, or
    none."""
    begin = contest.flowed.get(one.name, 0)
    count = FLOWING if shape.new_tokens > 8 else WIDEST + 8
    asked = [[100 + n, *prompts[n % len(prompts)][1:]] for n in range(count)]
    streams = min(shape.streams, shape.new_tokens // 2)  # one joins every other step
    job: dict[str, Any] = {"prompts": asked, "new_tokens": shape.new_tokens, "streams": streams}
    if many:
        job["adapters"] = [f"many/{(begin + n) % REGISTERED}" for n in range(count)]
        contest.flowed[one.name] = begin + count
    rate = float(worker.ask(job)["flow"])
    if not rate:
        raise ValueError("too few requests for so many streams")
    return rate


def _report(contest: _Contest, about: dict[str, Any]) -> Report:
    measured = contest.measured + list(_memory(contest))
    rates = gather(measured)
    if not rates:
        raise ContestantFailed("nobody was measured: " + "; ".join(contest.left_out.values()))
    rates += shares(rates, about.get("limits"))
    return Report("contest", "The engine beside its peers", about, rates, judge(rates), left_out=dict(contest.left_out))


def _memory(contest: _Contest) -> Iterator[Measured]:
    """The most that each process has taken, and what each of the adapters that a process knows has added to it."""
    whole, each = Shape("peak", WIDEST, 40, 64), Shape("adapter_memory", WIDEST, 40, 64)
    for one in contest.alive:
        peak = contest.peaks.get(one.process)
        if peak and one.name == one.process:
            yield whole, one.name, peak / 2**20
            base = contest.peaks.get(REFERENCE if one.name == adapted("PEFT") else one.name.partition(",")[0])
            if one.adapters and base:
                yield each, one.name, (peak - base) / RESIDENT / 2**20


def _short(error: BaseException) -> str:
    """The first line, which says how it ended, and the last one that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " … ".join(line[:200] for line in dict.fromkeys((lines[0], lines[-1])))
