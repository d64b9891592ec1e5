"""Lists of the home folder that commands change while a server runs: replaced whole, synced, one change at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from interlace.models.lock import locked

T = TypeVar("T")


def change_list(
    file: Path, read: Callable[[], tuple[T, ...]], change: Callable[[tuple[T, ...]], tuple[T, ...]]
) -> None:
    """Replace the entries of `file`, which `read` reads, by what `change` makes of them. A crash leaves the old ones or
    the new ones."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        entries = change(read())
        partial = file.parent / f".added-{secrets.token_hex(8)}"
        with partial.open("xb") as opened:
            opened.write(msgspec.json.format(msgspec.json.encode(entries)))
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
