"""`interlace serve` with one model, as its own processes, for the length of a measurement."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks.worker import ContestantFailed

START_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A running server; `processes` are the gateway first, then its engine hosts."""

    port: int
    key: str
    model: str
    process: psutil.Process

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time, user and system, that gateway and hosts have used so far."""
        hosts = sum(_cpu(child) for child in self.process.children(recursive=True))
        return {"gateway": _cpu(self.process), "host": hosts}


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def serving(checkpoint: Path, precision: str, threads: int) -> Iterator[Server]:
    """Start `interlace serve`, wait until its model is ready, stop it afterwards. Raises `ContestantFailed`."""
    key = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        port = _free_port()
        model = {"name": "bench", "checkpoint": str(checkpoint), "precision": precision, "threads": threads}
        config = Path(folder) / "interlace.yaml"
        free = {"model": "bench", "since": "2026-01-01", "usd_per_million": {"prompt": "0", "completion": "0"}}
        config.write_text(yaml.safe_dump({"home": folder, "port": port, "models": [model], "prices": [free]}))
        command = [sys.executable, "-m", "interlace", "serve", "--config", str(config)]
        environment = os.environ | {"INTERLACE_API_KEY": key}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            if not _ready(process, port):
                log.seek(0)
                raise ContestantFailed(f"interlace serve did not get ready:\n{log.read()[-3000:].decode()}")
            yield Server(port, key, "bench", psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    return False
