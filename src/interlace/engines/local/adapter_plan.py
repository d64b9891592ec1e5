"""How the rows of a step and their adapters are computed: in which passes, and where each row lies in the grid.

A line of the grid that has one row is cheap: its adapter is read, and that is all. Longer lines cost several times as
much before they pay, and all lines of a pass are as long as its longest. So sequences that decode get a line each,
also where they share an adapter, and prompts are laid out apart from them: in a pass of their own, where the time that
saves is worth reading the base's weights once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from interlace.engines.local.compiled import Run
from interlace.engines.local.constants import Array

# In units of a line with one row, as measured on two cores with AVX-512 at hidden sizes of 576 to 1536.
_LONG_LINE = 5.0
_LONG_PLACE = 0.125


@dataclass(frozen=True, slots=True)
class Pass:
    """Runs that are computed together, as indices in rising order. `spread`: each with an adapter has its own line."""

    members: list[int]
    spread: bool


def plan_passes(runs: Rows[Run], base_bytes: int) -> list[Pass]:
    """The passes of a step in which some run has an adapter. `base_bytes`: what the adapted layers take in the base."""
    bare = [at for at, run in enumerate(runs) if run.adapter is None]
    single = [at for at, run in enumerate(runs) if run.adapter is not None and len(run.tokens) == 1]
    long = [at for at, run in enumerate(runs) if run.adapter is not None and len(run.tokens) > 1]
    largest = max((run.adapter.bytes for run in runs if run.adapter is not None), default=1)
    again = base_bytes / max(largest, 1)  # what a pass more costs: the base is read once more
    parts = _cut(runs, long, again) if long else []
    if single:
        apart = _cost(runs, single) + sum(_cost(runs, part) + again for part in parts)
        together = _grouped(runs, [*single, *long])
        parts = [[*single, *long]] if long and together <= apart else [single, *parts]
    parts[0] = [*parts[0], *bare]
    return [Pass(sorted(part), _spreads(runs, part)) for part in parts]


def _cut(runs: Rows[Run], members: list[int], again: float) -> list[list[int]]:
    """Prompts in as many passes as pay; those with the same adapter stay together."""
    rows = _rows(runs, members)
    serials = sorted(rows, key=rows.__getitem__)
    best, cut = _grouped(runs, members) - again, 0
    for number in range(1, len(serials)):
        short, long = serials[:number], serials[number:]
        cost = len(short) * _line(rows[short[-1]]) + len(long) * _line(rows[long[-1]])
        if cost < best:
            best, cut = cost, number
    if not cut:
        return [members]
    short_ones = set(serials[:cut])
    short_runs = [at for at in members if _serial(runs[at]) in short_ones]
    return [
        *_cut(runs, short_runs, again),
        *_cut(runs, [at for at in members if _serial(runs[at]) not in short_ones], again),
    ]


def _spreads(runs: Rows[Run], members: Rows[int]) -> bool:
    adapted = [at for at in members if runs[at].adapter is not None]
    rows = _rows(runs, adapted)
    if len(rows) < 2 or any(len(runs[at].tokens) > 1 for at in adapted):
        return False
    return len(adapted) <= _grouped(runs, adapted)


def _cost(runs: Rows[Run], members: Rows[int]) -> float:
    return len(members) if _spreads(runs, members) else _grouped(runs, members)


def _grouped(runs: Rows[Run], members: Rows[int]) -> float:
    rows = _rows(runs, members)
    return len(rows) * _line(max(rows.values()))


def _line(rows: int) -> float:
    return 1.0 if rows == 1 else _LONG_LINE + _LONG_PLACE * rows


def _rows(runs: Rows[Run], members: Rows[int]) -> Counter[int]:
    """How many rows each adapter has."""
    rows: Counter[int] = Counter()
    for at in members:
        rows[_serial(runs[at])] += len(runs[at].tokens)
    return rows


def _serial(run: Run) -> int:
    return -1 if run.adapter is None else run.adapter.serial


def _next(lines: list[int]) -> int:
    """A line of an adapter: each once, the last one for all that are left."""
    return lines.pop() if len(lines) > 1 else lines[0]


def lay_out(runs: Rows[Run], order: Rows[int]) -> dict[str, Array]:
    """The graph's inputs that say where each row lies in a grid whose lines belong to the adapters `order`. One that
    has several lines has as many rows."""
    lengths = np.array([len(run.tokens) for run in runs])
    free: dict[int, list[int]] = {}
    for line in range(len(order) - 1, -1, -1):
        free.setdefault(order[line], []).append(line)
    line_of = [len(order) if run.adapter is None else _next(free[run.adapter.serial]) for run in runs]
    lines = np.repeat(line_of, lengths)
    counts = np.bincount(lines, minlength=len(order) + 1)[: len(order)]
    width = int(counts.max())
    rows = np.argsort(lines, kind="stable")[: counts.sum()]  # those without an adapter are last
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.full(len(lines), len(order) * width, np.int32)
    places[rows] = lines[rows] * width + column
    grid = np.full(len(order) * width, len(lines), np.int32)
    grid[places[rows]] = rows
    return {
        "adapter_grid": np.array([len(order), width], np.int64),
        "adapter_rows": grid,
        "adapter_places": places,
    }
