"""Processes that are measured: started on cores of their own, their CPU and memory read with all their children's."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.worker import ROOT, ContestantFailed

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120.0
IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the gateway that is measured, the others for provider, load and this process."""

    gateway: frozenset[int]
    others: frozenset[int]

    def text(self) -> str:
        """For the report."""
        if self.gateway == self.others:
            return "one core for everything: the figures say little"
        return f"gateway on core {_list(self.gateway)}, all others on {_list(self.others)}"


def cores() -> Cores:
    """The last core this process may use is the gateway's, while there is more than one."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(usable[-1:]), frozenset(usable[:-1] or usable))


@contextmanager
def keeping_off(cores: Cores) -> Iterator[None]:
    """This process and its progress bar stay off the gateway's core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on(cores: frozenset[int], command: Sequence[str]) -> list[str]:
    """The command, pinned."""
    return ["taskset", "--cpu-list", _list(cores), *command]


def _list(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))


class Running:
    """A started command, leader of a session of its own, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `stop`)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=os.environ | dict(env or {}), start_new_session=True,
        )  # fmt: skip

    def members(self) -> dict[int, list[str]]:
        """Pid → the fields of /proc/PID/stat after the name, of the process and all that descend from it and live."""
        stats = _stats()
        root = self.process.pid
        found = {pid for pid, fields in stats.items() if pid == root or int(fields[3]) == root}
        while True:
            more = {pid for pid, fields in stats.items() if int(fields[1]) in found} - found
            if not more:
                return {pid: stats[pid] for pid in found}
            found |= more

    def cpu_seconds(self) -> float:
        """User and system time that they have used so far, and their ended children with them."""
        return sum(sum(map(int, fields[11:15])) for fields in self.members().values()) / TICKS

    def memory_bytes(self) -> int:
        """Their resident memory, shared pages shared out (PSS)."""
        total = 0
        for pid in self.members():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
        return total

    def wait_for(self, url: str, *, status: int = 200, pause: float = 0.05) -> float:
        """Wait until `url` is answered with `status`; seconds since the start. Raises `ContestantFailed`."""
        while time.monotonic() - self.began < START_SECONDS:
            if self.process.poll() is not None:
                raise ContestantFailed(f"{self.name} ended at its start:\n{self.last_words()}")
            if _status(url) == status:
                return time.monotonic() - self.began
            time.sleep(pause)
        raise ContestantFailed(f"{self.name} is not there after {START_SECONDS:.0f} s:\n{self.last_words()}")

    def wait_until_idle(self) -> None:
        """Wait while they work on, a minute at most: what they do now would be the next one's time."""
        deadline, used = time.monotonic() + IDLE_SECONDS, self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            before, used = used, self.cpu_seconds()
            if used - before < 0.025:
                return

    def last_words(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        return self._log.read()[-3000:].decode(errors="replace")

    def stop(self) -> None:
        """End it, the kind way first."""
        members = [one for pid in self.members() if (one := _process(pid)) is not None]
        try:
            self.process.terminate()
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        for one in members:  # whoever of them is left
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        self._log.close()


@contextmanager
def running(name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The command, for as long as the block lasts."""
    started = Running(name, command, env)
    try:
        yield started
    finally:
        started.stop()


def free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _stats() -> dict[int, list[str]]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                text = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            found[int(folder.name)] = text[text.rindex(")") + 2 :].split()
    return found


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError, OSError):
        return None
