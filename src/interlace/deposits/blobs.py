"""Contents on disk, each once, under its SHA-256: `files/ab/abcdef…` in the home folder, modes 0600 and 0700.

A content is written to `files/partial/…`, synced, and then renamed: whole or not there. No name that a caller chose is
ever part of a path. What nobody refers to is found by `sweep` at the next start, so a crash between disk and database
leaves nothing for long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Partial:
    """A content that is being written. Leaving `async with` or `with` without `kept` removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.kept = False
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=1 << 16)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append; waits for the disk."""
        for piece in pieces:
            self._file.write(piece)
            self._hash.update(piece)
            self.size += len(piece)

    def finish(self) -> str:
        """Everything is written and synced; its digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk takes the rest no better than what was before it
            self._file.close()
        if not self.kept:
            self.path.unlink(missing_ok=True)


class Blobs:
    """The folder. Whoever keeps or removes holds the lock of the room meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder / "partial"
        self._mine = secrets.token_hex(8)  # begins the names of what this process writes

    def begin(self) -> Partial:
        """A new content; raises `OSError`."""
        if not self._partial.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._partial.mkdir(mode=0o700, exist_ok=True)
            _sync(self._folder.parent)
        return Partial(self._partial / f"{self._mine}-{secrets.token_hex(8)}")

    def keep(self, partial: Partial, digest: str) -> None:
        """Give a finished content its place, durably; where the same one is, that one stays."""
        path = self.path(digest)
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            partial.path.replace(path)
            _sync(path.parent)
            _sync(self._folder)
            partial.kept = True

    def path(self, digest: str) -> Path:
        """Where a content lies."""
        assert _DIGEST.fullmatch(digest)
        return self._folder / digest[:2] / digest

    def remove(self, digest: str) -> None:
        """The content is gone; it may be already."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self, wanted: Callable[[str], bool]) -> int:
        """Remove what is not wanted, and the partial contents of processes that are no more; how many."""
        removed = 0
        for path in list(self._folder.glob("*/*")):
            partial = path.parent == self._partial
            if path.name.startswith(f"{self._mine}-") if partial else wanted(path.name):
                continue
            path.unlink()
            removed += 1
        return removed


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
