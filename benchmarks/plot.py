"""One picture per report: a panel per phase, a group of bars per shape, whiskers from the least to the greatest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from benchmarks.figures import Rate
    from benchmarks.report import Report

_COLOURS = {
    "interlace f32": "#0072b2",
    "bare loop f32": "#999999",
    "vLLM CPU fp32": "#d55e00",
    "vLLM CPU bf16": "#cc79a7",
    "interlace file": "#56b4e9",
    "interlace bf16": "#009e73",
    "interlace int8": "#e69f00",
    "called directly": "#999999",
    "through the endpoint": "#0072b2",
    "bare pipeline": "#999999",
    "whole pipeline": "#0072b2",
    "whole, 10,000 keys": "#56b4e9",
    "Interlace": "#0072b2",
    "bare proxy": "#999999",
    "LiteLLM": "#d55e00",
    "Portkey": "#cc79a7",
    "nginx": "#009e73",
    "direct": "#f0e442",
    "starlette imported": "#999999",
    "interlace --help": "#56b4e9",
    "interlace serve": "#0072b2",
    "small": "#999999",
    "10,000 keys": "#0072b2",
    "10,000 organisations": "#56b4e9",
    "a million events": "#e69f00",
    "4 processes": "#009e73",
    **{
        f"{precision}, {which}": colour
        for precision in ("f32", "bf16")
        for which, colour in {
            "base (beside q and v)": "#999999",
            "32 of q and v": "#56b4e9",
            "base (beside all modules)": "#666666",
            "32 of all modules": "#0072b2",
            "1,000 of all modules": "#e69f00",
        }.items()
    },
}  # fmt: skip  (Okabe and Ito's colours, told apart by the colour-blind too)
_TITLES = {
    "decode": "Decode",
    "prefill": "Prefill",
    "whole": "New tokens over the whole time",
    "beside_all": "Decode with adapters of all layers and without, in one process",
    "beside_qv": "Decode with adapters of q and v and without, in one process",
    "flow": "New tokens while streams come and go",
    "cpu": "CPU of the gateway",
    "p50": "Latency, median",
    "p99": "Latency, 99th percentile",
    "rate": "Requests",
    "first": "Time to first token, median",
    "first99": "Time to first token, 99th percentile",
    "delay": "Delay of a chunk, median",
    "delay99": "Delay of a chunk, 99th percentile",
    "gap99": "Between chunks, 99th percentile",
    "chunk": "CPU of the gateway",
    "arrived": "Chunks that arrived within the time",
    "start": "Start",
    "start_cpu": "CPU of a start",
    "memory": "Memory of the gateway",
    "per_thousand": "Memory of a thousand keys",
    "arrive": "Time to first token where all ask at once",
    "late": "Time to first token of one that comes while 31 others are answered",
    "agreement": "Next tokens that are those of fp32 transformers",
    "peak": "Peak memory",
    "adapter_memory": "Memory of an adapter",
    "share_arithmetic": "Share of the machine's multiply-adds while decoding",
    "share_bytes": "Share of the machine's bytes a second while decoding",
    "train": "Learning",
    "train_cpu": "CPU of learning",
    "served": "Requests: new tokens over the whole time",
    "learnt": "Learning meanwhile",
}
_UNITS = {
    "cpu": "µs a request", "p50": "ms", "p99": "ms", "rate": "requests/s", "first": "ms", "first99": "ms",
    "delay": "ms", "delay99": "ms", "gap99": "ms", "chunk": "µs a chunk", "arrived": "of 100", "start": "s",
    "start_cpu": "s", "memory": "MiB", "per_thousand": "MiB",
    "arrive": "ms", "late": "ms", "agreement": "of 100", "peak": "MiB", "adapter_memory": "MiB",
    "share_arithmetic": "%", "share_bytes": "%", "train_cpu": "ms a token",
}  # fmt: skip
_WIDE = 20  # where the greatest is so many times the least, a panel's scale is logarithmic


def plot(report: Report, path: Path) -> None:
    """Write the picture; its suffix says the format."""
    phases = list(dict.fromkeys(rate.phase for rate in report.rates))
    known = list(dict.fromkeys(rate.contestant for rate in report.rates))
    figure, axes = plt.subplots(len(phases), 1, figsize=(10, 3.8 * len(phases)), squeeze=False, layout="constrained")
    for axis, phase in zip(axes[:, 0], phases, strict=True):
        _panel(axis, [rate for rate in report.rates if rate.phase == phase], known)
        axis.set_title(_TITLES[phase], loc="left", fontweight="bold")
    figure.legend(
        [Rectangle((0, 0), 1, 1, color=_colour(name, known)) for name in known],
        known, loc="outside lower center", ncols=min(3, len(known)), frameon=False,
    )  # fmt: skip
    about = report.about
    on = f": SmolLM2-135M on {about['threads']} threads" if "threads" in about else ""
    on += f": {about['cores_used']}" if "cores_used" in about else ""
    figure.suptitle(
        f"{report.title}{on}\n{about['cpu']}, {about['date']}; "
        f"medians of {len(report.rates[0].values)}, whiskers from least to greatest",
        fontsize=10,
    )
    with mpl.rc_context({"svg.hashsalt": "interlace", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)


def _colour(name: str, known: list[str]) -> Any:
    """Its own, or one that is unlike its neighbours'."""
    return _COLOURS.get(name) or plt.get_cmap("tab20")(known.index(name) % 20)


def _panel(axis: Any, rates: list[Rate], known: list[str]) -> None:
    shapes = list(dict.fromkeys(rate.shape for rate in rates))
    names = list(dict.fromkeys(rate.contestant for rate in rates))
    width = 0.86 / len(names)
    crowded = len(rates) > 18  # then numbers stand upright, or they would cover each other
    for rate in rates:
        at = shapes.index(rate.shape) + (names.index(rate.contestant) - (len(names) - 1) / 2) * width
        spread = rate.spread
        whiskers = [[spread.median - spread.low], [spread.high - spread.median]]
        axis.bar(at, spread.median, 0.92 * width, yerr=whiskers, color=_colour(rate.contestant, known),
                 error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"})  # fmt: skip
        value = f"{spread.median:,.{1 if spread.median < 20 else 0}f}"
        axis.annotate(value, (at, spread.high), (0, 5), textcoords="offset points", ha="center",
                      fontsize=7, rotation=90 if crowded else 0)  # fmt: skip
    axis.set_xticks(range(len(shapes)), [shape.replace(", ", "\n") for shape in shapes])
    axis.set_ylabel(_UNITS.get(rates[0].phase, "tokens/s"))
    medians = [rate.spread.median for rate in rates]
    if min(medians) > 0 and max(medians) > _WIDE * min(medians):
        axis.set_yscale("log")
        axis.set_ylabel(f"{axis.get_ylabel()} (logarithmic)")
    axis.margins(y=0.16 if crowded else 0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
