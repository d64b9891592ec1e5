"""Trying the precisions of a checkpoint on this machine, one after the other, and keeping what was found."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from interlace.config import ModelSettings
from interlace.engines.local.choosing import choose
from interlace.engines.local.constants import Precision
from interlace.engines.local.kept import kept_precision
from interlace.engines.local.trial import STREAMS, Found, Report, Task, cache_bytes_of
from interlace.models import (
    METHOD,
    Checkpoint,
    DecoderArchitecture,
    Machine,
    Measurement,
    Trial,
    available_memory,
    count_attempt,
    gigabytes,
    keep_measurement,
    locked,
    memory_needed,
    read_measurement,
    this_machine,
    weights_of,
)

log = logging.getLogger(__name__)

CANDIDATES: tuple[Precision, ...] = ("f32", "file", "bf16", "int8")
EXACT = ("f32", "file")  # either may be what the others are compared with
LIMIT_SECONDS = 300.0  # of a whole measurement
ATTEMPTS = 2  # that came to no end, until no start tries again

Tell = Callable[[str, float], None]
"""(what is being done, how much of everything is done, from 0 to 1)"""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and where it is kept."""

    checkpoint: Checkpoint
    architecture: DecoderArchitecture
    home: Path
    threads: int


def settled(settings: ModelSettings, subject: Subject, progress: Callable[[str], None]) -> ModelSettings:
    """The settings with the precision that `auto` is on this machine, which is measured where it is not known.

    Whatever goes wrong, the file's own precision is taken, and the log says why.
    """
    if settings.precision != "auto":
        return settings
    try:
        measurement = _known(subject, lambda text, share: progress(f"{text} ({share:.0%})"))
    except Exception as error:
        log.exception("precisions could not be measured")
        measurement = f"precisions could not be measured: {type(error).__name__}: {error}"
    if isinstance(measurement, str):
        log.warning("%s: %s. It runs at the file's own precision", settings.name, measurement)
        return replace(settings, precision="file")

    def fits(precision: str) -> bool:
        return _lacking(subject.checkpoint, precision, settings.cache_bytes) == ""

    choice = choose(measurement, subject.checkpoint.manifest.gate, settings.expected_streams, fits)
    said = f"precision {choice.precision} is chosen for {settings.name}: {choice.why}"
    log.info("%s", said)
    progress(said)
    return replace(settings, precision=choice.precision)


def _known(subject: Subject, tell: Tell) -> Measurement | str:
    """The measurement that is kept, or a new one; or why there is none."""
    machine = this_machine(subject.threads)
    if kept := read_measurement(subject.checkpoint, subject.home, machine):
        return kept
    lock = subject.home / "measuring.lock"
    with locked(lock, lambda: tell("waiting for another measurement on this machine", 0.0)):
        if kept := read_measurement(subject.checkpoint, subject.home, machine):
            return kept
        if _attempted(subject, machine) >= ATTEMPTS:
            return (
                f"{ATTEMPTS} measurements of its precisions came to no end; try it by hand: "
                f"interlace checkpoints measure {subject.checkpoint.name}"
            )
        return measure_and_keep(subject, machine, tell)


def _attempted(subject: Subject, machine: Machine) -> int:
    try:
        return count_attempt(subject.checkpoint, subject.home, machine)
    except OSError as error:
        log.warning("the next start will measure again: %s: %s", error.filename, error.strerror)
        return 0


def measure_and_keep(
    subject: Subject,
    machine: Machine,
    tell: Tell,
    *,
    candidates: tuple[Precision, ...] = CANDIDATES,
    limit_seconds: float = LIMIT_SECONDS,
) -> Measurement | str:
    """Try all candidates; or why nothing can be said. What is kept, the next start finds."""
    began = time.monotonic()
    found = _try_all(subject, candidates, limit_seconds, tell)
    reference = next((trial.precision for trial in found if not trial.problem and trial.precision in EXACT), None)
    if reference is None:
        return "; ".join(f"{trial.precision}: {trial.problem}" for trial in found)
    measurement = Measurement(
        weights=weights_of(subject.checkpoint),
        method=METHOD,
        machine=machine,
        reference=reference,
        streams=STREAMS,
        trials=tuple(found),
        seconds=round(time.monotonic() - began, 1),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        keep_measurement(measurement, subject.checkpoint, subject.home)
    except OSError as error:
        log.warning("the measurement cannot be kept, the next start measures again: %s", error)
    return measurement


def _try_all(subject: Subject, candidates: tuple[Precision, ...], limit_seconds: float, tell: Tell) -> list[Trial]:
    trials: list[Trial] = []
    reference: list[list[int]] | None = None
    until = time.monotonic() + limit_seconds
    for number, precision in enumerate(candidates):

        def told(share: float, precision: str = precision, number: int = number) -> None:
            said = f"measuring precisions on this machine, once: {precision}, {number + 1} of {len(candidates)}"
            tell(said, (number + share) / len(candidates))

        told(0.0)
        if precision not in EXACT and reference is None:
            trials.append(Trial(precision, problem="there is nothing to compare it with"))
            continue
        outcome = _try(subject, precision, reference, until - time.monotonic(), told)
        if isinstance(outcome, str):
            trials.append(Trial(precision, problem=outcome))
            log.warning("precision %s of %s is left out: %s", precision, subject.checkpoint.name, outcome)
            continue
        reference = reference or outcome.chosen
        trials.append(Trial(precision, outcome.agreed, outcome.tokens, outcome.one, outcome.many, outcome.bytes))
    return trials


def _try(
    subject: Subject,
    precision: Precision,
    reference: list[list[int]] | None,
    seconds: float,
    told: Callable[[float], None],
) -> Found | str:
    """What a process of its own found; or why it found nothing."""
    tokens = subject.checkpoint.manifest.gate.tokens
    if lacking := _lacking(subject.checkpoint, precision, cache_bytes_of(subject.architecture, tokens)):
        return lacking
    if seconds <= 0:
        return "no time was left for it"
    task = Task(str(subject.checkpoint.path), precision, subject.threads, tokens, reference)
    # -P: the working directory is no place to import from.
    command = [sys.executable, "-P", "-u", "-m", "interlace.engines.local.trial"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            last = _converse(process, task, told)
        finally:
            timer.cancel()
            process.kill()
    if late.is_set():
        return f"it took longer than the {seconds:.0f} s that were left"
    if last.found is not None:
        return last.found
    return last.problem or f"its process ended with status {process.returncode}" + (
        " (out of memory?)" if process.returncode == -9 else ""
    )


def _converse(process: subprocess.Popen[bytes], task: Task, told: Callable[[float], None]) -> Report:
    """Hand over the task and hear it to its end; the last report, which has nothing where the process just ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    last = Report(0.0)
    with suppress(BrokenPipeError):  # it is gone already, and its status says more
        process.stdin.write(msgspec.json.encode(task))
        process.stdin.close()
    for line in process.stdout:
        last = msgspec.json.decode(line, type=Report)
        told(last.share)
    process.wait()
    return last


def _lacking(checkpoint: Checkpoint, precision: str, cache_bytes: int) -> str:
    """What is wrong with the memory for it; nothing where it suffices."""
    needed = memory_needed(checkpoint.manifest, kept_precision(precision, checkpoint), cache_bytes)
    available = available_memory()
    if needed <= available:
        return ""
    return f"it needs about {gigabytes(needed)} of memory, {gigabytes(available)} is available"
