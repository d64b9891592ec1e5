"""Processes that count in a mapped area, for tests of what they share: each runs some Python over the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlace.mapped import area_file

BEGINNING = """
import json, os, random, signal, sys, time
from interlace.gateway.routing.mapped_breakers import MappedBreakers
from interlace.ledger.limits import Exceeded, Rates
from interlace.ledger.mapped_limits import MappedLimits
from interlace.mapped import Area
fd, me = int(sys.argv[1]), int(sys.argv[2])
"""


@contextmanager
def counting(
    folder: Path, code: str, processes: int, fd: int | None = None
) -> Iterator[tuple[int, list[subprocess.Popen[str]]]]:
    """A file for an area, and so many processes that run the code, which knows `fd` and, of itself, `me`. Killed at
    the end."""
    fd = area_file(folder) if fd is None else fd
    children = [
        subprocess.Popen(
            [sys.executable, "-c", BEGINNING + code, str(fd), str(me)],
            pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for me in range(processes)
    ]  # fmt: skip
    try:
        yield fd, children
    finally:
        for child in children:
            child.kill()
            child.communicate()
