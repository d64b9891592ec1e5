"""How long a start takes: `interlace --help`, and a gateway of remote models until it answers `/healthz`.

Beside them, as a measure of the machine, `python -c "import starlette"`. Files are in the page cache, byte code is
compiled, the ledger is there: the second start of a day, not the first of an installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import Progress

from benchmarks.figures import Bound, compare
from benchmarks.gateways import Home
from benchmarks.hop import gathered
from benchmarks.machine import describe
from benchmarks.processes import Cores, cores, free_port, keeping_off, on
from benchmarks.report import Report
from benchmarks.tenants import Amount
from benchmarks.worker import ROOT, ContestantFailed

STARLETTE, HELP, SERVE = "starlette imported", "interlace --help", "interlace serve"
NAMES = (STARLETTE, HELP, SERVE)
SHAPE = "one start"
MOST_SECONDS = {HELP: 0.3, SERVE: 1.0}
STARTS = 5  # of each in a round; the median counts


def measure_startup(progress: Progress, rounds: int) -> Report:
    """Start each in turn, round by round."""
    placed = cores()
    about = describe() | {"cores_used": placed.text()}
    values: list[tuple[str, str, str, float]] = []
    with TemporaryDirectory() as folder, keeping_off(placed):
        home = Home.make(Path(folder), free_port(), Amount())  # no provider: it is asked nothing at a start
        task = progress.add_task("starting", total=(rounds * STARTS + 1) * len(NAMES))
        for turn in range(rounds * STARTS + 1):
            for name in NAMES:
                seconds, cpu = _start(name, home, placed)
                progress.update(task, advance=1, description=f"{name}: {seconds:.2f} s")
                values += [("start", SHAPE, name, seconds), ("start_cpu", SHAPE, name, cpu)] if turn else []
        progress.remove_task(task)
    rates = gathered(values, ("start", "start_cpu"), NAMES)
    bounds = [
        Bound("start", SHAPE, rate.contestant, rate.spread, MOST_SECONDS[rate.contestant])
        for rate in rates
        if rate.phase == "start" and rate.contestant in MOST_SECONDS
    ]
    compared = [one for name in MOST_SECONDS for one in compare(rates, name, STARLETTE, None)]
    return Report("startup", "Start-up", about, rates, compared, bounds=bounds)


def _start(name: str, home: Home, placed: Cores) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    if name == SERVE:
        with home.serving(placed) as gateway:
            return gateway.listening_seconds, gateway.listening_cpu_seconds
    words = ["-c", "import starlette"] if name == STARLETTE else ["-m", "interlace", "--help"]
    command = on(placed.gateway, [sys.executable, *words])
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    with process.stderr as said:
        if process.returncode:
            raise ContestantFailed(f"{name} ended with status {process.returncode}:\n{said.read().decode()[-3000:]}")
    return seconds, used.ru_utime + used.ru_stime
