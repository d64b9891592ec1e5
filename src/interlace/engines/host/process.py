"""Starting, watching and ending the process of an engine host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator

log = logging.getLogger("interlace.engines.host")

MAX_LINE_BYTES = 8192
LAST_LINES_SECONDS = 1.0
_LEVELS = {b"DEBUG": logging.DEBUG, b"WARNING": logging.WARNING, b"ERROR": logging.ERROR, b"Fatal": logging.ERROR}


class HostProcess:
    """A running host. `channel` is our end of its socket, the caller's to close; `exited` becomes its exit status.

    The channel is a `socketpair`: a Unix socket without a name. There is no path for another user to connect to, to
    leave behind, or to outgrow the 108 bytes an address may have, and when either side dies, however it dies, the
    other reads the end of the stream. It travels as standard input, so that nothing stands in argv or the
    environment. Windows has no such pair: the port will need a named pipe or loopback with a secret, here and in
    `server._take_standard_input`.
    """

    def __init__(self, name: str) -> None:
        """Start the host of the model `name`, from the event loop's own thread.

        The thread matters: Linux ends the host when the *thread* that started it ends (`server._die_with_gateway`).
        """
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.channel, theirs = socket.socketpair()
        self._reaping = threading.Lock()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    # -P: the working directory is no place to import from. -u: what libraries print comes at once.
                    [sys.executable, "-P", "-u", "-m", "interlace.engines.host", name],
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # its own group, to be ended whole; Ctrl-C in the terminal is not for it
                )
        except OSError:
            self.channel.close()
            raise
        self.pid = self._process.pid
        self._name = name
        threading.Thread(target=self._reap, name=f"reaper of {name}", daemon=True).start()

    @contextlib.asynccontextmanager
    async def output_logged(self) -> AsyncGenerator[None]:
        """Take what the host writes on stdout and stderr into our log, line by line; inside, stop the host."""
        transport, lines = await self._loop.connect_read_pipe(lambda: _Lines(self._name), self._process.stdout)
        try:
            yield
        finally:
            # What it wrote last is worth most. Anything still open after that is held by a stranger it started.
            await asyncio.wait([lines.ended], timeout=LAST_LINES_SECONDS)
            transport.close()

    async def stop(self, grace_seconds: float) -> int:
        """End the whole group, SIGTERM and, past the grace, SIGKILL; returns the exit status. Safe to call again."""
        if not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait([self.exited], timeout=grace_seconds)  # unlike `await`, leaves the future its own
            self._signal(signal.SIGKILL)
            await asyncio.wait([self.exited])
        return self.exited.result()

    def _signal(self, number: signal.Signals) -> None:
        with self._reaping:
            if self._process.returncode is None:  # not reaped: the number is still its own
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def _reap(self) -> None:
        """Wait for the end, take along what the host may have started, and tell the loop. Runs in a thread.

        A thread per host, rather than asyncio's child watchers: those differ between loops and Python versions.
        """
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self._signal(signal.SIGKILL)
            with self._reaping:
                status = self._process.wait()
        else:
            status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(self._set_exited, status)

    def _set_exited(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)


class _Lines(asyncio.Protocol):
    """Logs a host's output as it comes; a line over `MAX_LINE_BYTES` is cut into several."""

    def __init__(self, name: str) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._name = name
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._log(line)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._rest:
            self._log(self._rest)
        if not self.ended.done():
            self.ended.set_result(None)

    def _log(self, line: bytes) -> None:
        level = _LEVELS.get(line.split(b" ", 1)[0], logging.INFO)
        log.log(level, "%s", line.decode(errors="replace"), extra={"model": self._name})


def describe_exit(status: int) -> str:
    """An exit status as `Popen` gives it, in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
