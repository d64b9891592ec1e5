"""A disk that runs full and a clock that is set: what surrounds a server, in the hands of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.serving import COMMAND


class FullDisk:
    """A file system of its own for the home that can be filled up; of four megabytes, unless more is asked for."""

    def __init__(self, home: Path, size: str = "4m") -> None:
        self.home = home
        home.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "interlace-test", str(home)]
        if os.geteuid() or subprocess.run(command, check=False).returncode:
            pytest.skip("only root can mount a small file system")

    def fill(self, _: Any = None) -> None:
        """Not a byte is left."""
        with (self.home / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        assert shutil.disk_usage(self.home).free == 0

    def free(self, _: Any = None) -> None:
        """There is room."""
        (self.home / "filler").unlink()

    def close(self) -> None:
        """As before."""
        subprocess.run(["umount", "--lazy", str(self.home)], check=True)


class FilesCannotGrow:
    """The process may not write files beyond 4096 bytes: what anybody can do to it without being root."""

    def __init__(self, _: Path) -> None:
        """Nothing is to be made."""

    def fill(self, there: Any) -> None:
        """Not a page of the ledger fits, but a few lines of the server's log."""
        _limit_files(there, 4096)

    def free(self, there: Any) -> None:
        """Files may be of any size."""
        _limit_files(there, psutil.RLIM_INFINITY)

    def close(self) -> None:
        """Nothing was changed."""


def _limit_files(there: Any, size: int) -> None:
    psutil.Process(there.process.pid).rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
"""The library that turns the hands; None where it is not installed."""


SLEEP = "import select, time; time.sleep = lambda seconds: select.select((), (), (), seconds)"
"""For every Python of the server: the library fails clock_nanosleep, which Python's own sleep asks."""


class Hands:
    """The hands of a server's clock. After `set` to a moment they stay there; after `turn` they go on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        (folder / "sleeping").mkdir()
        (folder / "sleeping" / "sitecustomize.py").write_text(SLEEP)
        path = f"{folder / 'sleeping'}:{os.environ.get('PYTHONPATH', '')}"
        self.command = (
            "env", f"PYTHONPATH={path}", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "TZ=UTC", *COMMAND,
        )  # fmt: skip

    def set(self, moment: str) -> None:
        """To a moment in UTC, such as `2026-01-31 23:59:58`."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(moment + "\n")
        fresh.rename(self._file)

    def turn(self, seconds: int) -> None:
        """So many seconds before (negative) or after the machine's own clock."""
        self.set(f"{seconds:+d}")
