"""`interlace checkpoints measure`: how fast and how exact each precision is on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from interlace.engines.local.choosing import choose
from interlace.engines.local.load import physical_cores
from interlace.engines.local.measuring import Subject, measure_and_keep
from interlace.errors import CheckpointError
from interlace.models import DecoderArchitecture, locked, read_architecture, resolve, this_machine

STREAMS_ASKED = 32  # as a model is served that says nothing of `expected_streams`


def measure_command(name: str, home: Path, *, threads: int, seconds: float, as_json: bool) -> int:
    """Measure, keep and tell. Exit codes: 0 done, 1 nothing could be measured, 130 ctrl-C, and nothing is kept."""
    from interlace.models.bars import share_for_people
    from interlace.models.commands import print_measurement

    try:
        checkpoint = resolve(name, home)
        architecture = read_architecture(checkpoint.path)
        if not isinstance(architecture, DecoderArchitecture):
            raise CheckpointError(f"{name} is a {architecture.family} model, which has one precision only.")
        subject = Subject(checkpoint, architecture, home, threads or physical_cores())
        with share_for_people() as bar:
            waiting = "another measurement is running on this machine; waiting for it"
            with locked(home / "measuring.lock", lambda: bar.tell(waiting, 0.0)):
                found = measure_and_keep(subject, this_machine(subject.threads), bar.tell, limit_seconds=seconds)
    except CheckpointError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; what was known before is kept.", file=sys.stderr)
        return 130
    if isinstance(found, str):
        print(f"Error: nothing could be measured: {found}.", file=sys.stderr)
        return 1
    gate = checkpoint.manifest.gate
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    print_measurement(found, gate)
    for streams in (1, STREAMS_ASKED):
        choice = choose(found, gate, streams)
        print(f"`precision: auto` with `expected_streams: {streams}` is {choice.precision}: {choice.why}")
    return 0
