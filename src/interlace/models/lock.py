"""One process at a time per name: an advisory file lock that the system frees when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.2

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class HeldLock:
    """A lock that this process has, until `release` or its death."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def try_lock(file: Path) -> HeldLock | None:
    """`file`'s lock; None while someone else has it. The folder must be there."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    if _try_lock(descriptor):
        return HeldLock(descriptor)
    os.close(descriptor)
    return None


@contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold `file`'s lock. When someone else has it, call `waiting` once and wait.

    The file stays behind, empty: removing it would let two processes lock two files of one name.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _try_lock(descriptor):
            waiting()
            while not _try_lock(descriptor):  # polled, so that Ctrl-C works on every platform
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)  # frees the lock too
