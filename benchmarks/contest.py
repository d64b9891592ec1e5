"""The engine beside its peers in one run: tokens per second, first tokens, memory and exactness, with and without
adapters, and what share of the machine each uses."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
from rich.progress import Progress

from benchmarks import setup
from benchmarks.agreement import Agreement
from benchmarks.contestants import REFERENCE, Command, Contestant, adapted, commands, contestants
from benchmarks.limits import limits
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
LEAST_BYTES = 3 << 30  # that a process finds free, or it is not started: a machine that swaps measures nothing
VOCABULARY = 49152  # where none of ours is there to say it
FLOWING = 3 * WIDEST  # requests of a turn in which a thousand adapters take turns

Measured = tuple[Shape, str, float]


@dataclass
class _Contest:
    """Whoever is still in it, and what has been measured."""

    alive: list[Contestant]
    workers: dict[str, Worker]
    left_out: dict[str, str]
    measured: list[Measured] = field(default_factory=list)
    say: Callable[[str], object] = print  # what an unattended run leaves in its log
    flowed: dict[str, int] = field(default_factory=dict)  # how many of the thousand adapters have had their turn

    def try_to(self, contestant: Contestant, what: Callable[[Worker], None]) -> None:
        """Do that with its process; where it fails, all that run in the process are out of the contest."""
        worker = self.workers[contestant.process]
        try:
            what(worker)
        except (ContestantFailed, ValueError, KeyError, TypeError, OSError) as error:
            worker.close()
            self.drop(contestant.process, f"failed: {_short(error)}")

    def drop(self, process: str, why: str) -> None:
        """Leave out everybody who runs in that process."""
        self.say(f"{process}: {why}")
        for one in [one for one in self.alive if one.process == process]:
            self.left_out[one.name] = why
            self.alive.remove(one)


def measure_contest(progress: Progress, rounds: int, threads: int, *, quick: bool, peers: bool,
                    among: Sequence[str], written: Callable[[Report], None]) -> Report:  # fmt: skip
    """Load all who can be loaded, `among` those whose names have one of these words, warm them up, and let them take
    turns. `written` gets what there is after each round,
    so that a run that is cut short leaves its rounds."""
    console = progress.console
    gguf = setup.gguf_checkpoint(console)
    f32 = setup.f32_checkpoint(gguf, console)
    adapters = write_adapters(f32, setup.CACHE / f"{setup.CHECKPOINT}-adapters")
    started = commands(gguf, f32, adapters, threads, console)
    about = describe() | {"threads": threads}
    if not quick:
        about["limits"] = limits(str(ROOT), threads)
    entered = [
        one
        for one in contestants()
        if (peers or one.name.startswith("interlace")) and (not among or any(word in one.name for word in among))
    ]
    with ExitStack() as stack:
        contest = _load(entered, started, stack, progress)
        shapes = QUICK_SHAPES if quick else SHAPES
        known = (int(w.about["vocabulary"]) for w in contest.workers.values() if "vocabulary" in w.about)
        vocabulary = next(known, VOCABULARY)
        agreement = Agreement(f32, count=4 if quick else 20, tokens=4 if quick else 32)
        _compare(contest, agreement, progress)
        _versions(about, contest)
        for turn in range(-1, rounds):  # the first warms up
            _round(contest, shapes, vocabulary, turn, progress)
            if turn >= 0:
                report = _report(contest, about)
                written(report)
    return report


def _load(entered: Sequence[Contestant], started: dict[str, Command], stack: ExitStack, progress: Progress) -> _Contest:
    contest = _Contest(list(entered), {}, {}, say=progress.console.print)
    processes = list(dict.fromkeys(one.process for one in entered))
    task = progress.add_task("loading", total=len(processes))
    for name in processes:
        progress.update(task, description=f"loading {name}")
        free = psutil.virtual_memory().available
        try:
            if free < LEAST_BYTES:
                raise setup.NotHere(f"{free / 2**30:.1f} GiB of memory were left for it")
            worker = stack.enter_context(Worker(name, started[name](), LOAD_SECONDS))
            worker.wait_until_loaded()
            worker.patience = JOB_SECONDS
            contest.workers[name] = worker
            contest.say(f"{name}: loaded in {worker.about.get('load_seconds', 0):.0f} s")
        except setup.NotHere as error:
            contest.drop(name, f"not here: {_short(error)}")
        except ContestantFailed as error:
            contest.drop(name, f"failed: {_short(error)}")
        progress.advance(task)
    progress.remove_task(task)
    if not contest.workers:
        raise ContestantFailed("nobody could be loaded: " + "; ".join(contest.left_out.values()))
    return contest


def _compare(contest: _Contest, agreement: Agreement, progress: Progress) -> None:
    """Ask everybody without adapters for the tokens that the reference writes."""
    asked = [one for one in contest.alive if not one.adapters]
    reference = contest.workers.get(REFERENCE)
    task = progress.add_task("exactness", total=len(asked))
    if reference is not None:
        contest.try_to(next(one for one in asked if one.name == REFERENCE), agreement.learn)
    for one in asked:
        progress.update(task, description=f"exactness of {one.name}")
        found: list[float] = []
        if agreement.known and one.name != REFERENCE:
            contest.try_to(one, lambda worker, found=found: found.append(agreement.percent(worker)))
        contest.measured += [(Shape("agreement", WIDEST, 40, 1), one.name, percent) for percent in found]
        if found:
            contest.say(f"{one.name}: {found[0]:.1f} of 100 tokens are the reference's")
        progress.advance(task)
    progress.remove_task(task)


def _round(contest: _Contest, shapes: Sequence[Shape], vocabulary: int, turn: int, progress: Progress) -> None:
    """Everybody at every shape, one right after another on the same prompts; each round begins with another one."""
    generator = random.Random(turn)
    task = progress.add_task("warming up" if turn < 0 else f"round {turn + 1}", total=len(shapes) * len(contest.alive))
    for shape in shapes:
        prompts = shape.prompts(generator, vocabulary)
        at = max(turn, 0) % max(1, len(contest.alive))
        for one in [*contest.alive[at:], *contest.alive[:at]]:
            if one in contest.alive and (shape.streams == WIDEST or not one.widest_only):
                found: list[Measured] = []
                what = functools.partial(_turn, contest, one=one, shape=shape, prompts=prompts)
                contest.try_to(one, lambda worker, what=what, found=found: found.extend(what(worker)))
                if turn >= 0:
                    contest.measured += found
                for which, _, value in found[:1]:
                    progress.update(task, description=f"{one.name}, {which.label}: {value:,.0f} tokens/s")
            progress.advance(task)
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
    if shape.streams == WIDEST and one.joins:
        others = [[*prompt[1:], prompt[0]] for prompt in prompts]
        answer = worker.ask({"prompts": others, "new_tokens": shape.new_tokens, "late": True, **named})
        yield replace(shape, phase="late"), one.name, 1000 * float(answer["late_seconds"])


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
    rates += shares(rates, about.get("limits"))
    return Report("contest", "The engine beside its peers", about, rates, judge(rates), left_out=dict(contest.left_out))


def _memory(contest: _Contest) -> Iterator[Measured]:
    """The most that each process has taken, and what each of the adapters that a process knows has added to it."""
    peaks = {name: worker.peak_bytes() for name, worker in contest.workers.items()}
    whole, each = Shape("peak", WIDEST, 40, 64), Shape("adapter_memory", WIDEST, 40, 64)
    for one in contest.alive:
        peak = peaks[one.process]
        if peak and one.name == one.process:
            yield whole, one.name, peak / 2**20
            base = peaks.get(one.name.partition(",")[0] if one.name != adapted("PEFT") else REFERENCE)
            if one.adapters and base:
                yield each, one.name, (peak - base) / RESIDENT / 2**20


def _versions(about: dict[str, Any], contest: _Contest) -> None:
    for name, worker in contest.workers.items():
        if "version" in worker.about:
            about["versions"][name] = worker.about["version"]


def _short(error: BaseException) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
