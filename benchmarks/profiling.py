"""Where Interlace's time goes in the hop: py-spy beside it while wrk asks, as a flame graph and as a table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import Progress

from benchmarks import gateways, wrk
from benchmarks.hop import providing
from benchmarks.machine import describe, lines
from benchmarks.processes import Cores, cores, keeping_off, on
from benchmarks.setup import NotHere

SAMPLES_A_SECOND = 400
_ROWS = 60
_LINE = re.compile(r":\d+\)$")


def profile(progress: Progress, seconds: float, folder: Path) -> list[Path]:
    """Write `profile.svg` and `profile.md`; their paths. The load runs twice, once for each. Raises `NotHere`."""
    spy = Path(sys.executable).parent / "py-spy"
    program = str(spy) if spy.exists() else shutil.which("py-spy")
    if program is None:
        raise NotHere("py-spy is not installed (pip install -e '.[bench]')")
    placed, console = cores(), progress.console
    about = describe() | {"cores_used": placed.text(), "seconds": seconds}
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = folder / "profile.svg", folder / "profile.md"
    with ExitStack() as stack:
        stack.enter_context(keeping_off(placed))
        provider = stack.enter_context(providing(placed, console))
        gateway = stack.enter_context(gateways.interlace()(provider, placed, console))
        raw = Path(stack.enter_context(TemporaryDirectory())) / "stacks"
        task = progress.add_task("warming up", total=3)
        wrk.load(gateway, min(seconds, 2.0), placed, console)
        measured = {}
        for kind, path in (("raw", raw), ("flamegraph", picture)):
            progress.update(task, advance=1, description=f"profiling: {path.name}")
            with subprocess.Popen(_spy(program, gateway.running.process.pid, seconds, kind, path, placed)) as spying:
                measured = wrk.load(gateway, seconds + 1, placed, console)
                if spying.wait():
                    raise NotHere(f"py-spy failed with status {spying.returncode}; it needs root, or ptrace allowed")
        progress.remove_task(task)
        text = ["## Profile of the hop", "  \n".join(lines(about))]
        text.append(f"Under the profiler: {measured['rate']:,.0f} requests/s, {measured['cpu']:,.0f} µs CPU a request.")
        table.write_text("\n\n".join([*text, top(raw.read_text().splitlines())]) + "\n", encoding="utf-8")
    return [picture, table]


def top(stacks: Iterable[str]) -> str:
    """A Markdown table of functions by their own share of the samples, from lines `frame;frame;frame count`."""
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks:
        names, _, count = line.rpartition(" ")
        frames = [_LINE.sub(")", frame) for frame in names.split(";") if not frame.startswith("process ")]
        if not frames:
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    total = sum(own.values()) or 1
    rows = [
        f"| {100 * count / total:.1f} | {100 * within[frame] / total:.1f} | `{frame}` |"
        for frame, count in own.most_common(_ROWS)
    ]
    return "\n".join(["| own % | with callees % | function |", "| ---: | ---: | --- |", *rows])


def _spy(program: str, pid: int, seconds: float, kind: str, path: Path, placed: Cores) -> list[str]:
    command = [program, "record", "--pid", str(pid), "--subprocesses", "--nonblocking", "--duration"]
    command += [str(max(1, int(seconds))), "--rate", str(SAMPLES_A_SECOND), "--format", kind, "--output", str(path)]
    return on(placed.others, command)
