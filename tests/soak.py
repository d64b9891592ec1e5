"""`python -m tests.soak`: mixed traffic and random kills for a while; then the books, memory and a plot.

Exit code 1 where the books and the callers differ, where a budget was exceeded at any sampled instant, or where memory
or descriptors grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, lines
from tests.support.billing import ANSWER_NANOS, Books, tenants
from tests.support.installation import Installation, installation
from tests.support.provider import running_provider
from tests.support.served import patiently
from tests.support.soaking import ALLOWANCES, ENDS, PRICES, ROUTES, Reckoning, Soak, models, reckon, soak_of
from tests.support.storm import sampled, settled
from tests.support.tiny import tiny_llama_gguf

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks"
WARM = 0.4  # of the time is not looked at: caches fill, and pools open
GROWTH, MEMORY_MORE, FILES_MORE = 0.10, 24 << 20, 24
"""What a straight line through the rest may rise by: a tenth of the median, and so many bytes or descriptors."""


@dataclass(frozen=True)
class Line:
    """A straight line through what was sampled; `rise`: from its first sample to its last."""

    median: float
    rise: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it is one that does not grow."""
        return self.rise <= self.allowed


def line_through(times: Sequence[float], values: Sequence[float], more: float) -> Line:
    """By least squares, after the warm part."""
    first = times[0] + WARM * (times[-1] - times[0])
    kept = [(at, value) for at, value in zip(times, values, strict=True) if at >= first]
    fit = statistics.linear_regression(*zip(*kept, strict=True))
    median = statistics.median(value for _, value in kept)
    return Line(median, fit.slope * (kept[-1][0] - kept[0][0]), GROWTH * median + more)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="interlace-soak-") as text:
        about = describe()
        report = asyncio.run(_soaked(Path(text), options, about))
    wrong = report["wrong"]
    for name, value in report.items():
        if name not in {"about", "samples", "kills", "wrong"}:
            print(f"{name}: {value}")
    for each in wrong[:20]:
        print(f"wrong: {each}", file=sys.stderr)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "soak.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    print(f"JSON and plot: {options.results}")
    return 1 if wrong else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of who asks what, and who is killed when")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


async def _soaked(folder: Path, options: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    books = Books(folder)
    budgets = [{} if tokens is None else {"org_budget": tokens * ANSWER_NANOS} for tokens in ALLOWANCES]
    payers = tenants(folder, *budgets)
    with _installed(folder, options.workers) as (there, provider):
        patiently(there.ready)
        async with soak_of(there, provider, books, payers, options.seed) as soak:
            with sampled(books) as sampler:
                await soak.run(options.seconds)
            await settled(there, options.workers)
            found = await reckon(soak)
        checked = await asyncio.to_thread(there.checked)
    books.check()
    wrong = list(found.wrong)
    if checked.returncode:
        wrong.append(f"interlace ledger check: {checked.stdout}")
    flat = _lines(soak)
    wrong += [
        f"{name} rises by {one.rise:.0f}, allowed {one.allowed:.0f}" for name, one in flat.items() if not one.flat
    ]
    _plot(soak, found, about, options.results / "soak.svg")
    return {
        "about": about,
        "seed": options.seed,
        "seconds": options.seconds,
        "workers": options.workers,
        "calls": len(soak.calls),
        **{name: value for name, value in asdict(found).items() if name != "wrong"},
        "ledger check": "ok" if checked.returncode == 0 else "FAILED",
        "budget samples": sampler.samples,
        "killed": {what: sum(kind == what for _, kind in soak.kills) for _, what in soak.kills},
        "slopes": {name: asdict(one) for name, one in flat.items()},
        "kills": soak.kills,
        "samples": [asdict(one) for one in soak.samples],
        "wrong": wrong,
    }


@contextlib.contextmanager
def _installed(folder: Path, workers: int) -> Iterator[tuple[Installation, Any]]:
    with running_provider() as provider:
        local = {"name": "talker", "checkpoint": str(tiny_llama_gguf(folder / "tiny.gguf"))}
        settings = {"routes": ROUTES, "prices": PRICES, "workers": workers, "ledger": {"wait_seconds": 2}}
        with installation(folder, [*models(provider), local], **settings) as there:
            yield there, provider


def _lines(soak: Soak) -> dict[str, Line]:
    times = [one.at for one in soak.samples]
    memory = [float(sum(one.memory.values())) for one in soak.samples]
    files = [float(sum(one.descriptors.values())) for one in soak.samples]
    return {
        "memory": line_through(times, memory, MEMORY_MORE),
        "descriptors": line_through(times, files, FILES_MORE),
    }


# --- the plot ----------------------------------------------------------------------------------------------------

_COLOURS = ("#009e73", "#e69f00", "#d55e00", "#999999", "#0072b2")  # Okabe and Ito's


def _plot(soak: Soak, found: Reckoning, about: dict[str, Any], path: Path) -> None:
    """Requests a second by their end, latency, memory and descriptors by process; a line for each kill."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 1, figsize=(10, 12), sharex=True, layout="constrained")
    width = max(1.0, soak.samples[-1].at / 120)
    slots = [n * width for n in range(int(soak.samples[-1].at / width) + 1)]
    ended = [(int((one.began + one.seconds) / width), one) for one in soak.calls]
    heights = [
        [sum(1 for n, one in ended if n == at and one.end == end) / width for at in range(len(slots))] for end in ENDS
    ]
    axes[0].stackplot(slots, heights, labels=ENDS, colors=_COLOURS)
    axes[0].set_ylabel("requests/s")
    for share, colour in ((0.5, _COLOURS[4]), (0.99, _COLOURS[2])):
        at = [_quantile([one.seconds for n, one in ended if n == slot and one.end == "whole"], share)
              for slot in range(len(slots))]  # fmt: skip
        axes[1].plot(slots, at, color=colour, label=f"{share:.0%} of whole answers")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("seconds")
    times = [one.at for one in soak.samples]
    for axis, what, unit, scale in ((axes[2], "memory", "MiB", 2**20), (axes[3], "descriptors", "open files", 1)):
        roles = sorted({role for one in soak.samples for role in getattr(one, what)})
        for role, colour in zip(roles, _COLOURS[::-1], strict=False):
            axis.plot(
                times, [getattr(one, what).get(role, 0) / scale for one in soak.samples], color=colour, label=role
            )
        axis.set_ylabel(f"{what}, {unit}")
        axis.set_ylim(bottom=0)
    axes[3].set_xlabel("seconds; dashed: a process is killed")
    for axis in axes:
        for at, _ in soak.kills:
            axis.axvline(at, color="#bbbbbb", linewidth=0.6, linestyle="--", zorder=0)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False)
    whole = found.ends.get("whole", 0)
    figure.suptitle(f"{len(soak.calls)} requests, {whole} whole, {len(soak.kills)} kills\n{next(iter(lines(about)))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())
