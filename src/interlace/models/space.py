"""The staging folder of one pull: what is half there lies in `parts`, what is finished in `files`, both unseen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from interlace.errors import CheckpointError


class Unfinished(CheckpointError):
    """The pull could not end, but what it brought so far is good: the next try goes on from there."""


class SourceUnavailable(Unfinished):
    """A source cannot be reached, or does not have the checkpoint; the next one may."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where one pull works. `digests` (file name → SHA-256) is what the catalogue demands; empty: nothing known."""

    root: Path
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> Path:
        """Half-written downloads, kept for a resume."""
        return self.root / "parts"

    @property
    def ready(self) -> Path:
        """The folder that becomes the checkpoint by one rename."""
        return self.root / "ready"

    @property
    def files(self) -> Path:
        """The checkpoint's own files, each complete."""
        return self.ready / "files"

    def held_bytes(self) -> int:
        """How much earlier tries of this pull left in place."""
        return sum(file.stat().st_size for place in (self.files, self.parts) for file in place.rglob("*"))

    def begin(self, source: str) -> None:
        """Make the folders; finished files of an earlier try are kept only when they came from the same `source`."""
        marker = self.root / "source"
        if not marker.is_file() or marker.read_text(encoding="utf-8") != source:
            shutil.rmtree(self.ready, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        self.files.mkdir(parents=True, exist_ok=True)
        marker.write_text(source, encoding="utf-8")

    def keep_only(self, names: Collection[str]) -> None:
        """Remove files of an earlier try that the source no longer has: they would become part of the checkpoint."""
        for file in list(self.files.rglob("*")):
            if file.is_file() and file.relative_to(self.files).as_posix() not in names:
                file.unlink()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a source said of the checkpoint it gave: itself, with revision resolved, and the licence (SPDX)."""

    source: str
    licence: str | None = None


def make_durable(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk, so that a power cut cannot undo part of a rename."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush(Path(parent, name))
        flush_folder(Path(parent))


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries; a no-op where folders cannot be opened (Windows)."""
    if os.name == "posix":
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
