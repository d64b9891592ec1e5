"""What was measured of a checkpoint's precisions on this kind of machine, kept beside the checkpoint.

A record is of no use where the weights, the machine or the way of measuring are others: then it is not found.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from interlace.models.checkpoint import Checkpoint
from interlace.models.layout import locate

log = logging.getLogger(__name__)

METHOD = 3  # grows when precisions are computed or measured in another way
CPUINFO = Path("/proc/cpuinfo")
RECORD_LIMIT_BYTES = 1 << 20


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides how fast a precision is: machines that are equal in this share a measurement."""

    processor: str
    flags: str  # a digest of what the processor can do
    cores: int  # that this process may use
    threads: int  # that the engine uses
    openvino: str


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One precision: of `tokens` greedy tokens after the same text it chose `agreed` as the reference did; tokens a
    second of one stream and of many; the process's memory at its peak. With a `problem`, none of that is known."""

    precision: str
    agreed: int = 0
    tokens: int = 0
    one: float = 0.0
    many: float = 0.0
    bytes: int = 0
    problem: str = ""

    @property
    def percent(self) -> float:
        """How often it agreed."""
        return 100 * self.agreed / self.tokens if self.tokens else 0.0


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them. `reference` is the precision that the others were compared with, `streams` how many are many."""

    weights: str  # what the checkpoint's weights were
    method: int
    machine: Machine
    reference: str
    streams: int
    trials: tuple[Trial, ...]
    seconds: float
    measured: str  # date and time, ISO 8601, UTC


def this_machine(threads: int, cpuinfo: Path = CPUINFO) -> Machine:
    """The machine this process runs on, with an engine of so many threads."""
    said = _first_processor(cpuinfo)
    flags = " ".join(sorted((said.get("flags") or said.get("features") or "").split()))
    try:
        openvino = version("openvino")
    except PackageNotFoundError:
        openvino = "none"
    return Machine(
        processor=said.get("model name") or platform.processor() or platform.machine(),
        flags=hashlib.sha256(flags.encode()).hexdigest()[:16],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        openvino=openvino,
    )


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:  # not Linux
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def read_measurement(checkpoint: Checkpoint, home: Path, machine: Machine) -> Measurement | None:
    """The one of these weights on such a machine; None where there is none, or none that can be read."""
    found = _read(_record(checkpoint, home, machine))
    if found is None or (found.weights, found.method, found.machine) != (weights_of(checkpoint), METHOD, machine):
        return None
    return found


def measurements(checkpoint: Checkpoint, home: Path) -> list[Measurement]:
    """Those of these weights, on whatever machines."""
    found = [_read(file) for file in sorted(_folder(checkpoint, home).glob("*.json"))]
    return [one for one in found if one is not None and one.weights == weights_of(checkpoint)]


def keep_measurement(measurement: Measurement, checkpoint: Checkpoint, home: Path) -> None:
    """Write it down, and forget the attempts before it; OSError where that cannot be."""
    file = _record(checkpoint, home, measurement.machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(measurement), indent=2) + b"\n")
    partial.replace(file)
    _attempts(file).unlink(missing_ok=True)


def count_attempt(checkpoint: Checkpoint, home: Path, machine: Machine) -> int:
    """Note that a measurement begins; how many began before and came to no end. OSError where it cannot be noted."""
    file = _attempts(_record(checkpoint, home, machine))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as noted:
        before = noted.tell()
        noted.write(b".")
    return before


def weights_of(checkpoint: Checkpoint) -> str:
    """What stands for the weights: their digests where they are in the store, else sizes and times of the files."""
    if checkpoint.manifest.files:
        facts: object = sorted(checkpoint.manifest.files.items())
    else:
        stats = [(file.name, file.stat()) for file in locate(checkpoint.path).weights]
        facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


def _read(file: Path) -> Measurement | None:
    try:
        if file.stat().st_size > RECORD_LIMIT_BYTES:
            raise ValueError("it is larger than any real one")
        return msgspec.json.decode(file.read_bytes(), type=Measurement)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        log.warning("%s is no measurement (%s); precisions are measured anew", file, error)
        return None


def _record(checkpoint: Checkpoint, home: Path, machine: Machine) -> Path:
    kind = hashlib.sha256(msgspec.json.encode(machine)).hexdigest()[:16]
    return _folder(checkpoint, home) / f"{kind}.json"


def _folder(checkpoint: Checkpoint, home: Path) -> Path:
    """Beside the manifest of one in the store; what lies elsewhere is not ours to write to."""
    if checkpoint.manifest.files:
        return checkpoint.path.parent / "measured"
    return home / "measured" / hashlib.sha256(str(checkpoint.path).encode()).hexdigest()[:16]


def _attempts(record: Path) -> Path:
    return record.with_suffix(".begun")
