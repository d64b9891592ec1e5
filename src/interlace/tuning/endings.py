"""Why training ends early, in words that say what to change."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interlace.tuning.settings import TuneSettings

MARGIN_BYTES = 64 << 20
# Kinds: another process has gone; asked to stop before anything was learnt; asked to stop; another machine's is unsound
LOST, HALTED, STOPPED, UNSOUND = "peer_lost", "halted", "stopped", "unsound"
GOES_ON = frozenset(
    {LOST, HALTED, STOPPED, UNSOUND, "unmet", "died", "disk_full", "out_of_memory", "killed", "not_deterministic"}
)
"""Kinds after which the same command goes on, as their messages say."""
_FULL = ("no space left", "file write failed", "failed writing file", "unexpected pos")
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")
_NO_ORDER = ("does not have a deterministic implementation", "this operation is not deterministic because")


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


def out_of_memory(settings: TuneSettings, rows: int = 1) -> Ending:
    """The system or the device gave no more, with so many rows computed at once."""
    return Ending(
        "out_of_memory",
        "The memory is used up. The last good checkpoint is kept, but a run with other settings begins anew: give "
        f"--fresh and {', '.join(_smaller(settings, rows))}, or a smaller base; or stop other programs, and give the "
        "same command again.",
    )


def _smaller(settings: TuneSettings, rows: int) -> Iterator[str]:
    """What makes such a run take less memory."""
    if settings.classifies:
        yield f"a smaller batch (now {settings.batch}; each process computes its whole share at once)"
    elif rows > 1:
        yield f"a smaller rows_at_once (now {rows}; what is learnt stays the same)"
    yield f"a smaller max_tokens (now {settings.max_tokens})"
    if settings.method == "lora":
        yield f"a smaller rank (now {settings.rank})"
    elif settings.private:
        yield f"fewer blocks (now {settings.private}) or --method lora, which learn less"
    else:
        yield "--method lora or --private BLOCKS, which learn less"


def no_one_order(error: BaseException) -> Ending:
    """The GPU has no form of an operation that adds up in one order each time."""
    operation, found, _ = str(error).partition(" does not have a deterministic")
    operation = operation[:80] if found else "this operation"
    return Ending(
        "not_deterministic",
        f"On this GPU, {operation} cannot be computed in one and the same order each time, which a run needs to go on "
        "to the same losses after a crash. The last good checkpoint is kept: give the same command again with another "
        "release of torch, or with CUDA_VISIBLE_DEVICES= before it, to learn on processors; or choose another base.",
    )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise `Ending` unless the disk has room for so many bytes and a margin."""
    if shutil.disk_usage(folder).free < needed_bytes + MARGIN_BYTES:
        raise disk_full(folder, needed_bytes + MARGIN_BYTES)


def ending_of(error: BaseException, folder: Path, settings: TuneSettings, rows: int = 1) -> Ending | None:
    """What an error of the libraries means, where it is one that people can mend; else None."""
    if isinstance(error, Ending):
        return error
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
        return out_of_memory(settings, rows)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return disk_full(folder)
    if any(words in text for words in _FULL):
        return disk_full(folder)
    if any(words in text for words in _NO_ORDER):
        return no_one_order(error)
    return None
