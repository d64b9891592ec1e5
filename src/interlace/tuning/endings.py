"""Why training ends early, in words that say what to change."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

MARGIN_BYTES = 64 << 20
LOST, HALTED = "peer_lost", "halted"  # kinds: another process has gone; asked to stop before anything was learnt
_FULL = ("no space left", "file write failed", "failed writing file", "unexpected pos")
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


@dataclass
class Ending(Exception):
    """The run ends; `kind` is for programs."""

    kind: str
    message: str


def diverged(step: int, what: str) -> Ending:
    """Numbers that are none."""
    return Ending(
        "diverged",
        f"Step {step}: the {what} is not a finite number, so the run has diverged. The last good checkpoint is kept. "
        "Begin anew with --fresh and a lower learning_rate (a fifth of it, say), or a longer warmup.",
    )


def disk_full(folder: Path, needed_bytes: int | None = None) -> Ending:
    """No room for a checkpoint."""
    free = shutil.disk_usage(folder).free
    needs = "" if needed_bytes is None else f" needs {needed_bytes / 1e6:,.0f} MB and"
    return Ending(
        "disk_full",
        f"A checkpoint{needs} has {free / 1e6:,.0f} MB of disk left in {folder}. The last good checkpoint is kept: "
        "make room, and give the same command again.",
    )


def out_of_memory(max_tokens: int, rank: int, rows: int = 1) -> Ending:
    """The system or the device gave no more, with so many rows computed at once."""
    fewer = f"a smaller rows_at_once (now {rows}; what is learnt stays the same), " if rows > 1 else ""
    return Ending(
        "out_of_memory",
        "The memory is used up. The last good checkpoint is kept, but a run with other settings begins anew: give "
        f"--fresh and {fewer}a smaller max_tokens (now {max_tokens}) or rank (now {rank}), or a smaller base; or stop "
        "other programs, and give the same command again.",
    )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise `Ending` unless the disk has room for so many bytes and a margin."""
    if shutil.disk_usage(folder).free < needed_bytes + MARGIN_BYTES:
        raise disk_full(folder, needed_bytes + MARGIN_BYTES)


def ending_of(error: BaseException, folder: Path, max_tokens: int, rank: int, rows: int = 1) -> Ending | None:
    """What an error of the libraries means, where it is one that people can mend; else None."""
    if isinstance(error, Ending):
        return error
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
        return out_of_memory(max_tokens, rank, rows)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return disk_full(folder)
    if any(words in text for words in _FULL):
        return disk_full(folder)
    return None
