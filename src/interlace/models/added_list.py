"""Lists of the home folder that commands change while a server runs: replaced whole, synced, one change at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from interlace.models.lock import locked
from interlace.models.space import flush_folder

T = TypeVar("T")

_PARTIAL = ".added-"


def change_list(
    file: Path, read: Callable[[], tuple[T, ...]], change: Callable[[tuple[T, ...]], tuple[T, ...]]
) -> None:
    """Replace the entries of `file`, which `read` reads, by what `change` makes of them. A crash leaves the old ones or
    the new ones, and what it leaves beside them goes with the next change."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        before = read()
        entries = change(before)
        for left in file.parent.glob(f"{_PARTIAL}*"):  # by who was killed: nobody else writes while we have the lock
            left.unlink(missing_ok=True)
        if entries == before:
            return
        partial = file.parent / f"{_PARTIAL}{secrets.token_hex(8)}"
        with partial.open("xb") as opened:
            opened.write(msgspec.json.format(msgspec.json.encode(entries)))
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
        flush_folder(file.parent)
