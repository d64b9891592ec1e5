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

from benchmarks.figures import Bound, Rate, compare
from benchmarks.gateways import Home
from benchmarks.machine import describe
from benchmarks.processes import Cores, cores, free_port, keeping_off, on
from benchmarks.report import Report
from benchmarks.tenants import Amount
from benchmarks.worker import ROOT

STARLETTE, HELP, SERVE = "starlette imported", "interlace --help", "interlace serve"
SHAPE = "one start"
MOST_SECONDS = {HELP: 0.3, SERVE: 1.0}
STARTS = 5  # of each in a round; the median counts


def measure_startup(progress: Progress, rounds: int) -> Report:
    """Start each in turn, round by round."""
    placed = cores()
    about = describe() | {"cores_used": placed.text()}
    values: dict[str, list[float]] = {STARLETTE: [], HELP: [], SERVE: []}
    with TemporaryDirectory() as folder, keeping_off(placed):
        home = Home.make(Path(folder), free_port(), Amount())  # no provider: it is asked nothing at a start
        task = progress.add_task("starting", total=(rounds * STARTS + 1) * len(values))
        for turn in range(rounds * STARTS + 1):
            for name in values:
                seconds = _seconds(name, home, placed)
                progress.update(task, advance=1, description=f"{name}: {seconds:.2f} s")
                if turn:
                    values[name].append(seconds)
        progress.remove_task(task)
    rates = [Rate("start", SHAPE, name, tuple(measured)) for name, measured in values.items()]
    bounds = [Bound("start", SHAPE, rate.contestant, rate.spread, MOST_SECONDS.get(rate.contestant)) for rate in rates]
    compared = [one for name in MOST_SECONDS for one in compare(rates, name, STARLETTE, None)]
    return Report("startup", "Start-up", about, rates, compared, bounds=bounds)


def _seconds(name: str, home: Home, placed: Cores) -> float:
    if name == SERVE:
        with home.serving(placed) as gateway:
            return gateway.listening_seconds
    words = ["-c", "import starlette"] if name == STARLETTE else ["-m", "interlace", "--help"]
    began = time.monotonic()
    subprocess.run(on(placed.gateway, [sys.executable, *words]), cwd=ROOT, env=os.environ, capture_output=True, check=True)
    return time.monotonic() - began
