"""`python -m benchmarks`: measure, print tables, write JSON, Markdown and plots into `docs/benchmarks/`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.adapters import measure_adapters
from benchmarks.contest import measure_contest
from benchmarks.endpoint import measure_endpoint
from benchmarks.engine import measure_engine
from benchmarks.growth import measure_growth
from benchmarks.hop import measure_hop
from benchmarks.ledger import measure_ledger
from benchmarks.profiling import profile
from benchmarks.report import Report
from benchmarks.setup import NotHere
from benchmarks.startup import measure_startup
from benchmarks.streaming import measure_streaming
from benchmarks.tuning import measure_tuning, measure_yielding
from benchmarks.worker import ContestantFailed
from interlace.errors import InterlaceError

RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks"  # the page there includes our tables and shows the plots
PARTS = ("engine", "adapters", "endpoint", "ledger", "hop", "streaming", "growth", "startup")
APART = ("contest", "tuning", "yielding")  # only where they are named


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when measured, whatever the figures; 1 when a contestant failed."""
    options = _options(arguments)
    piped = not (sys.stderr if options.json else sys.stdout).isatty()
    console = Console(stderr=options.json, width=140 if piped else None)  # a log is wide enough for every table
    reports = []
    try:
        if options.profile:
            with _progress(console) as progress:
                paths = profile(progress, options.seconds, options.results)
            console.print("Profile: " + ", ".join(map(str, paths)))
            return 0
        for report in _measure(options, console):
            report.write(options.results)  # each part at once: the next one may fail
            if not options.json:
                report.show(console)
            reports.append(report)
    except (ContestantFailed, NotHere, InterlaceError, subprocess.CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([report.json() for report in reports], ensure_ascii=False))
    else:
        console.print(f"JSON, tables and plots: {options.results}")
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Iterator[Report]:
    rounds = 1 if options.quick else options.rounds
    seconds = min(options.seconds, 1.0) if options.quick else options.seconds
    measures: dict[str, Callable[[Progress], Report]] = {
        "engine": lambda progress: measure_engine(
            progress,
            rounds,
            options.threads,
            quick=options.quick,
            peers=not (options.without_vllm or options.without_peers),
        ),
        "adapters": lambda progress: measure_adapters(progress, rounds, options.threads, quick=options.quick),
        "endpoint": lambda progress: measure_endpoint(progress, rounds, options.threads, quick=options.quick),
        "ledger": lambda progress: measure_ledger(progress, rounds, quick=options.quick),
        "hop": lambda progress: measure_hop(progress, rounds, seconds, peers=not options.without_peers),
        "streaming": lambda progress: measure_streaming(
            progress, rounds, quick=options.quick, peers=not options.without_peers
        ),
        "growth": lambda progress: measure_growth(progress, rounds, seconds, quick=options.quick),
        "contest": lambda progress: measure_contest(
            progress,
            rounds,
            options.threads,
            quick=options.quick,
            peers=not options.without_peers,
            among=options.among,
            written=lambda report: report.write(options.results),
        ),
        "startup": lambda progress: measure_startup(progress, rounds),
        "tuning": lambda progress: measure_tuning(progress, rounds, options.threads, quick=options.quick),
        "yielding": lambda progress: measure_yielding(progress, rounds, options.threads, quick=options.quick),
    }
    for part in options.only or PARTS:
        with _progress(console) as progress:
            report = measures[part](progress)
        yield report


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    from interlace.engines.local.load import physical_cores

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=PARTS + APART, action="append", help="measure this part alone (again: this one too)"
    )
    parser.add_argument("--rounds", type=_positive, default=5, help="turns of each contestant at each shape")
    parser.add_argument(
        "--without-peers", action="store_true", help="leave out all that need environments of their own"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a turn of hop and growth lasts")
    parser.add_argument("--threads", type=_positive, default=physical_cores(), help="of every engine")
    parser.add_argument("--quick", action="store_true", help="one round of small shapes: does it run at all?")
    parser.add_argument("--without-vllm", action="store_true", help="leave out vLLM and its environment of 3 GB")
    parser.add_argument(
        "--among", action="append", default=[], metavar="WORD", help="contest: whose name has it (again: this one too)"
    )
    parser.add_argument("--profile", action="store_true", help="no measurement: where Interlace's time goes in the hop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a number from 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
