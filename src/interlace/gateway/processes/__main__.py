"""`python -m interlace.gateway.processes coordinator OPTIONS`, or `worker NAME FOLDER SOCKET COUNTERS`, of the
supervisor; or `check [CONFIG]`, before a version that is installed now takes over.

The supervisor that asks may be of the version before."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def _coordinator(said: str) -> int:
    from interlace.gateway.commands import coordinate_command

    return coordinate_command(said, os.environ)


def _worker(name: str, folder: str, fileno: str, counters: str) -> int:
    from interlace.gateway.processes.counters import CounterFiles
    from interlace.gateway.processes.supervisor import folder_of, hold_worker_lock, listening
    from interlace.gateway.processes.worker import Worker
    from interlace.gateway.serve import loop_factory

    run = folder_of(folder)
    lock = hold_worker_lock(run, name)
    counting = CounterFiles.of(counters).open(name)
    worker = Worker(run, name, listening(int(fileno)), os.environ, counting)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(worker.serve())
    del lock
    return 0


def _check(config: str | None = None) -> int:
    """Whether all that would run can be loaded, and the configuration is good."""
    from interlace.gateway.commands import config_check_command
    from interlace.gateway.processes import coordinating, worker

    del coordinating, worker
    return config_check_command(None if config is None else Path(config))


def main() -> int:
    """The process that the first word names."""
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)  # they are for the supervisor
    role, *words = sys.argv[1:]
    return _ROLES[role](*words)


_ROLES: dict[str, Callable[..., int]] = {"coordinator": _coordinator, "worker": _worker, "check": _check}


sys.exit(main())
