"""`python -m interlace.gateway.processes coordinator OPTIONS`, or `worker NAME FOLDER SOCKET COUNTERS`."""

from __future__ import annotations

import asyncio
import os
import sys


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


def main() -> int:
    """The process that the first word names."""
    role, *words = sys.argv[1:]
    return _coordinator(*words) if role == "coordinator" else _worker(*words)


sys.exit(main())
