"""An installation that is kept running as a service manager would: what ends is started again at the same port.

The rest of what died is ended first and waited for, as systemd does with a unit's control group.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support.served import PATIENCE_SECONDS, Served, patiently
from tests.support.serving import COMMAND, environment, free_port
from tests.support.stores import ledger_url

RESTART_SECONDS = 0.1  # systemd's own RestartSec
LOOK_SECONDS = 0.1  # from one look for new children to the next: each reads all of the machine's processes


@dataclass
class Installation:
    """One `interlace serve`, whichever process that is just now."""

    folder: Path
    port: int
    command: tuple[str, ...]
    lives: int = 0
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    _family: dict[int, psutil.Process] = field(default_factory=dict)  # children seen so far, the gone ones too

    @property
    def url(self) -> str:
        """Where it listens, in every life."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """Its interlace.yaml."""
        return self.folder / "interlace.yaml"

    @property
    def served(self) -> Served:
        """What can be seen of it now."""
        assert self.process is not None
        return Served(self.process, self.folder, self.url, (self.folder / "home" / "key").read_text().strip())

    @property
    def log(self) -> str:
        """Standard error so far."""
        return (self.folder / "err").read_text(errors="replace")

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                [*self.command, "serve", "--config", str(self.config)],
                env=environment(self.folder / "home"), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def keep(self) -> None:
        """Start again what ends, until stopped; on a thread of its own."""
        looked_at = 0.0
        while not self.stopping:
            assert self.process is not None
            if self.process.poll() is None:
                if (now := time.monotonic()) - looked_at > LOOK_SECONDS:
                    self.family()
                    looked_at = now
            else:
                self.end_the_rest()
                time.sleep(RESTART_SECONDS)
                if not self.stopping:
                    self.start()
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        """All living processes of it."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(self.process.pid)
                self._family |= {one.pid: one for one in (first, *first.children(recursive=True))}
        self._family = {pid: one for pid, one in self._family.items() if _lives(one)}
        return list(self._family.values())

    def end_the_rest(self) -> None:
        """SIGTERM to whatever is left of a life, and wait for it; SIGKILL to what does not go."""
        left = self.family()
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.family():
            if time.monotonic() > deadline:
                for one in self.family():
                    one.kill()
            time.sleep(0.02)

    def kill_all(self) -> None:
        """Every process at once, as a power cut does."""
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()

    def ready(self) -> bool:
        """Whether it answers, and all its models and processes are there."""
        with contextlib.suppress(httpx.TransportError, FileNotFoundError):
            return self.served.ready()
        return False

    def memory(self) -> int:
        """Bytes that all its processes have in memory, what they share counted once for each."""
        total = 0
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def descriptors(self, *without: int) -> int:
        """Open files of all its processes, but for connections of callers, and for those to these ports and to the
        ledger, of which as many are kept as were needed at once."""
        total = 0
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                kept = [
                    c
                    for c in one.net_connections("tcp")
                    if c.raddr and {c.raddr.port, c.laddr.port} & {*without, self.port}
                ]
                opened = [file for file in one.open_files() if Path(file.path).name.startswith("ledger.db")]
                total += one.num_fds() - len(kept) - len(opened)
        return total

    def checked(self) -> subprocess.CompletedProcess[str]:
        """`interlace ledger check`, run beside it."""
        return subprocess.run(
            [*COMMAND, "ledger", "check", "--config", str(self.config)],
            env=environment(self.folder / "home"), cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def installation(
    folder: Path, models: list[dict[str, Any]], *, command: tuple[str, ...] = COMMAND, **settings: Any
) -> Iterator[Installation]:
    """One with its home in `folder/home`, ready, and kept; at the end it must leave within its draining time."""
    port = free_port()
    if url := ledger_url(folder / "home"):
        settings["ledger"] = {"url": url, **settings.get("ledger", {})}
    there = Installation(folder, port, command)
    there.config.write_text(yaml.safe_dump({"port": port, "models": models, **settings}))
    there.start()
    keeper = threading.Thread(target=there.keep, daemon=True)
    keeper.start()
    try:
        patiently(there.ready)
        yield there
    finally:
        there.stopping = True
        keeper.join(PATIENCE_SECONDS)
        assert there.process is not None
        there.process.terminate()
        try:
            code = there.process.wait(60)
        finally:
            there.kill_all()
            there.process.wait()
    assert code == 0, there.log
