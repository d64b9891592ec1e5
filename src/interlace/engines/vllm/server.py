"""The process of `vllm serve`, from its start to its end."""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings
from interlace.engines.vllm import launch
from interlace.engines.vllm.command import arguments_of, environment_of

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOOK_SECONDS = 0.2  # between two looks while it starts
ASK_SECONDS = 5.0  # of a look, and between two looks once it is ready
MISSED = 6  # looks in a row that fail, and it is given up
MOST_BYTES = 1 << 20  # of an answer to a look
STOP_SECONDS = 2.0


class NotStarted(Exception):
    """It ended, or said nothing, before it was ready."""


class Server:
    """`vllm serve` on a port of this machine that only its own key opens. Make it in a thread that lives as long as it
    does: the kernel ends it with that thread (Linux)."""

    def __init__(self, settings: ModelSettings, path: Path) -> None:
        self.key = secrets.token_urlsafe(32)
        self.port = _free_port()
        self._seconds = settings.start_seconds
        command = arguments_of(settings, path, self.port)
        # Its output is the host's, and so in the gateway's log; its group is the host's, which is ended whole.
        self.process = subprocess.Popen(
            [sys.executable, "-I", launch.__file__, str(os.getpid()), *command],
            env=environment_of(os.environ, self.key),
            stdin=subprocess.DEVNULL,
        )

    @property
    def base_url(self) -> str:
        """Where its API begins."""
        return f"http://{HOST}:{self.port}/v1"

    def wait_ready(self, progress: Callable[[str], None]) -> dict[str, Any]:
        """What it says of its first model, once it is healthy. Raises `NotStarted`."""
        began = time.monotonic()
        told = 0.0
        while not self.healthy():
            status = self.process.poll()
            if status is not None:
                raise NotStarted(f"vllm serve exited with status {status}; the log has its last words")
            waited = time.monotonic() - began
            if waited > self._seconds:
                self.stop()
                raise NotStarted(f"vllm serve was not ready after {self._seconds:g} seconds (start_seconds)")
            if waited - told >= 1:
                told = waited
                progress(f"vllm serve has been starting for {waited:.0f} s")
            time.sleep(LOOK_SECONDS)
        status, body = self._ask("/v1/models")
        if status != http.client.OK:
            self.stop()
            raise NotStarted(f"vllm serve answered {status} when asked for its models")
        (first, *_) = json.loads(body)["data"]
        found: dict[str, Any] = first
        return found

    def healthy(self) -> bool:
        """Whether it says so, soon."""
        try:
            return self._ask("/health")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def watch(self, ended: Callable[[str], object]) -> None:
        """From a thread of its own: tell `ended` why, once it has ended or been unwell for long."""
        threading.Thread(target=self._watch, args=(ended,), name="watcher of vllm", daemon=True).start()

    def stop(self) -> None:
        """End it; what it has started ends with our group."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _watch(self, ended: Callable[[str], object]) -> None:
        missed = 0
        while missed < MISSED:
            try:
                status = self.process.wait(ASK_SECONDS)
            except subprocess.TimeoutExpired:
                missed = 0 if self.healthy() else missed + 1
            else:
                ended(f"vllm serve exited with status {status}")
                return
        ended(f"vllm serve has not been healthy for {MISSED} looks in a row")

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ASK_SECONDS)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            return answer.status, answer.read(MOST_BYTES)
        finally:
            connection.close()


def _free_port() -> int:
    """One that nobody listens on now. Should somebody take it before the server does, the server ends, and its next
    start has another."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
