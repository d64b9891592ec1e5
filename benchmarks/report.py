"""What a measurement leaves behind: JSON for programs, a Markdown table for the docs, a table at the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.figures import Added, Bound, Comparison, Rate
from benchmarks.machine import lines

_PHASES = {
    "decode": "Decode, tokens/s",
    "prefill": "Prefill, tokens/s",
    "whole": "All new tokens over the whole time, tokens/s",
    "beside_all": "Decode with adapters of all layers and without, in one process, tokens/s",
    "beside_qv": "Decode with adapters of q and v and without, in one process, tokens/s",
    "flow": "New tokens while streams come and go, tokens/s",
    "cpu": "CPU of the gateway, µs a request",
    "p50": "Latency, median, ms",
    "p99": "Latency, 99th percentile, ms",
    "rate": "Requests/s",
    "first": "Time to first token, median, ms",
    "first99": "Time to first token, 99th percentile, ms",
    "delay": "From the provider's sending of a chunk to its arrival, median, ms",
    "delay99": "From the provider's sending of a chunk to its arrival, 99th percentile, ms",
    "gap99": "Between one chunk and the next, 99th percentile, ms",
    "chunk": "CPU of the gateway, µs a chunk",
    "arrived": "Chunks that arrived within the time, of 100",
    "start": "Start, s",
    "start_cpu": "CPU of a start, s",
    "memory": "Memory of the gateway, MiB",
    "per_thousand": "Memory of a thousand keys, MiB",
    "arrive": "Time to first token where all ask at once, mean, ms",
    "late": "Time to first token of one that comes while 31 others are answered, ms",
    "agreement": "Next tokens that are those of fp32 transformers, of 100",
    "peak": "Peak memory, MiB",
    "adapter_memory": "Peak memory beyond the base's, for each of 32 adapters, MiB",
    "share_arithmetic": "Share of the machine's multiply-adds while decoding, %",
    "share_bytes": "Share of the machine's bytes a second while decoding, %",
    "train": "Learning, tokens/s",
    "train_cpu": "CPU of learning, ms a token",
    "served": "Requests: new tokens over the whole time, tokens/s",
    "learnt": "Learning meanwhile, tokens/s",
}
_DIGITS = {
    "p50": 2, "p99": 1, "first": 1, "first99": 1, "delay": 2, "delay99": 2, "gap99": 1, "chunk": 1, "start": 2,
    "start_cpu": 2, "per_thousand": 2, "agreement": 1, "adapter_memory": 1, "share_arithmetic": 1, "share_bytes": 1,
    "train": 1, "train_cpu": 2, "served": 1, "learnt": 1,
}  # fmt: skip
_UNITS = {
    "cpu": "CPU, µs a request",
    "p50": "median latency, ms",
    "first": "time to first token, ms",
    "first99": "time to first token, 99th percentile, ms",
    "delay": "delay of a chunk, ms",
    "delay99": "delay of a chunk, 99th percentile, ms",
    "gap99": "between chunks, 99th percentile, ms",
    "chunk": "CPU, µs a chunk",
    "start": "start, s",
    "memory": "memory, MiB",
    "per_thousand": "memory of a thousand keys, MiB",
}
_VERDICTS = {True: "met", False: "**missed**", None: ""}


@dataclass(frozen=True)
class Report:
    """One part of the benchmarks: where it ran, all values, what they say, and what was measured beside."""

    name: str
    title: str
    about: dict[str, Any]
    rates: Sequence[Rate]
    compared: Sequence[Comparison]
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    added: Sequence[Added] = ()
    bounds: Sequence[Bound] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)  # who could not be measured, and why

    def json(self) -> dict[str, Any]:
        """Everything, single values included, so that others can compute anew."""
        return {
            "name": self.name,
            "about": self.about,
            "rates": [asdict(rate) | {"spread": asdict(rate.spread)} for rate in self.rates],
            "compared": [comparison.json() for comparison in self.compared],
            "beside": self.beside,
            "added": [one.json() for one in self.added],
            "bounds": [one.json() for one in self.bounds],
            "left_out": dict(self.left_out),
        }

    def markdown(self) -> str:
        """Tables with the machine and date above; headings start at the second level."""
        blocks = [f"## {self.title}", "  \n".join(lines(self.about))]
        if self.left_out:
            blocks.append("\n".join(f"- Not measured: {name}: {why}" for name, why in self.left_out.items()))
        for phase in dict.fromkeys(rate.phase for rate in self.rates):
            blocks += [f"### {_PHASES[phase]}", self._rates(phase)]
        if self.compared:
            blocks += ["### Ratios, pair by pair within a round", self._ratios()]
        if self.added:
            blocks += ["### Added, round by round", self._added()]
        if self.bounds:
            blocks += ["### Goals", self._bounds()]
        if self.beside:
            blocks += ["### CPU time of each part", self._beside()]
        return "\n\n".join(blocks) + "\n"

    def _rates(self, phase: str) -> str:
        rates = [rate for rate in self.rates if rate.phase == phase]
        shapes = list(dict.fromkeys(rate.shape for rate in rates))
        found = {(rate.contestant, rate.shape): rate.spread.text(_DIGITS.get(phase, 0)) for rate in rates}
        contestants = dict.fromkeys(rate.contestant for rate in rates)
        rows = ([name, *(found.get((name, shape), "–") for shape in shapes)] for name in contestants)
        return _table(["median (min–max)", *shapes], rows)

    def _ratios(self) -> str:
        rows = (
            [
                c.phase if c.phase != "whole" else "all",
                c.shape,
                f"{c.contestant} / {c.against}",
                c.ratio.text(2),
                c.promise,
                _VERDICTS[c.met],
            ]
            for c in self.compared
        )
        return _table(["phase", "shape", "ratio of", "median (min–max)", "goal", ""], rows)

    def _added(self) -> str:
        rows = (
            [
                _UNITS[one.phase],
                one.shape,
                f"{one.contestant} beyond {one.against}",
                one.amount.text(_DIGITS.get(one.phase, 0)),
                "" if one.most is None else f"≤ {one.most:g}",
                _VERDICTS[one.met],
            ]
            for one in self.added
        )
        return _table(["of", "shape", "added", "median (min–max)", "goal", ""], rows)

    def _bounds(self) -> str:
        rows = (
            [
                _UNITS[one.phase],
                one.shape,
                one.contestant,
                one.amount.text(_DIGITS.get(one.phase, 0)),
                "" if one.most is None else f"≤ {one.most:g}",
                _VERDICTS[one.met],
            ]
            for one in self.bounds
        )
        return _table(["of", "shape", "who", "median (min–max)", "goal", ""], rows)

    def _beside(self) -> str:
        parts = ("client", "gateway", "host")
        rows = (
            [
                shape,
                *(f"{row[f'{part}_cpu_share']:.2f} ({row[f'{part}_us_per_token']:,.0f} µs)" for part in parts),
            ]
            for shape, row in self.beside.items()
        )
        heads = [f"{'load client' if part == 'client' else part}: cores (per token)" for part in parts]
        return _table(["shape", *heads], rows)

    def write(self, folder: Path) -> None:
        """`NAME.json`, `NAME.md` and `NAME.svg`."""
        from benchmarks.plot import plot

        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.json(), indent=2, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        plot(self, folder / f"{self.name}.svg")

    def show(self, console: Console) -> None:
        """Print the tables."""
        console.print(Markdown(self.markdown()))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right of the first column."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
