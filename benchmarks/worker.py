"""A contestant's process, as its parent sees it."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent


class ContestantFailed(Exception):
    """A contestant ended before its answer; the message has the end of what it printed."""


class Worker:
    """Runs `command` in the project's root and exchanges JSON lines with it. `about` is the first, sent once loaded.

    One that does not answer within `patience` seconds (None: however long it takes) is killed.
    """

    def __init__(self, name: str, command: Sequence[str], patience: float | None = None) -> None:
        self.name = name
        self.patience = patience
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.about: dict[str, Any] = {}

    def wait_until_loaded(self) -> None:
        """Block until it has said what it loaded. Raises `ContestantFailed`."""
        self.about = self._read()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send one job, wait for its measurement. Raises `ContestantFailed`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: reading says so, with its last words
        return self._read()

    def peak_bytes(self) -> int | None:
        """The most memory it has had so far; None where the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def close(self) -> None:
        """End it, the kind way first."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(self.patience or 0, lambda: (late.set(), self.process.kill()))
        if self.patience is not None:
            timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.process.wait()
        if late.is_set():
            raise ContestantFailed(f"{self.name} did not answer within {self.patience:.0f} s")
        self._log.seek(0)
        last_words = self._log.read()[-3000:].decode(errors="replace")
        raise ContestantFailed(f"{self.name} ended with status {self.process.returncode}:\n{last_words}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
