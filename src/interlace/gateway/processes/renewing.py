"""A version of the package that was installed in place takes over: same process, same port, nobody is turned away.

The supervisor ends its children in order, keeps the listening sockets, and becomes the new version (`exec`), which
finds them by the environment. Callers who come meanwhile wait in the port's queues.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import NoReturn

HELD = "INTERLACE_HELD_SOCKETS"
"""Of the environment: descriptors of listening sockets, with commas between them."""

CHECK_SECONDS = 60.0


def why_not(config: str | None) -> str | None:
    """Why what is installed now could not serve by that configuration; None: it should. A package that is half
    installed is found here, and a setting that the new version does not take."""
    command = [sys.executable, "-P", "-m", "interlace.gateway.processes", "check", *([config] if config else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()[-2000:]


def become_new(sockets: Iterable[socket.socket]) -> NoReturn:
    """The command that we were started with, again, with these sockets. Open files of ours are closed; the process, and
    so what keeps it running, stays."""
    numbers = sorted({bound.fileno() for bound in sockets})
    for number in numbers:
        os.set_inheritable(number, True)
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)  # until the new one listens to them
    env = {**os.environ, HELD: ",".join(map(str, numbers))}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)  # noqa: S606 - no shell is what we want


def held_sockets(host: str, port: int) -> list[socket.socket]:
    """What the version before us has left, if it is of this address; once. What is of another one is closed."""
    found = []
    for number in os.environ.pop(HELD, "").split(","):
        with contextlib.suppress(ValueError, OSError):
            bound = socket.socket(fileno=int(number))
            bound.set_inheritable(False)
            found.append(bound)
    if not found:
        return []
    with contextlib.suppress(OSError):
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
        if all(one.getsockname()[:2] == (address[0], port or one.getsockname()[1]) for one in found):
            return found
    for one in found:
        one.close()
    return []
