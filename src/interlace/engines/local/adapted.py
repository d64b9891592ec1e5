"""The graph with adapters: runs of any mix of them, each row with its own, in as few passes as pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type

from interlace.engines.local.adapter_bank import Adapter, Bank, alone, split_by_rows
from interlace.engines.local.adapter_graph import AdapterLayers
from interlace.engines.local.compiled import Compiled, Run, offsets
from interlace.engines.local.constants import Array

_PASS_ROWS = 10  # a pass more costs about what so many rows of the base do: its weights are read once more


class Adapted:
    """A compiled graph whose layers of some kinds take adapters; `kinds` says which."""

    def __init__(self, model: ov.Model, layers: AdapterLayers, properties: dict[str, Any], buffers: list[Any]) -> None:
        self.kinds = layers.kinds
        self.compiled = Compiled(model, properties, buffers)
        self._shapes: Mapping[str, tuple[int, int]] = layers.shapes
        self._dtype: Type = layers.dtype
        self._base_size = sum(outputs * inputs for outputs, inputs in layers.shapes.values())
        self._banks: list[Bank] = []
        self._bound: tuple[object, ...] = ()  # whose matrices the inputs hold now

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """As `Compiled.forward`. The array may be a view that the next call overwrites."""
        passes = self._passes(runs)
        if len(passes) == 1:
            return self._pass(0, runs, wanted)
        begins = offsets(np.array([len(run.tokens) for run in runs]))
        run_of = np.searchsorted(begins, wanted, side="right") - 1
        logits: Array | None = None
        for number, members in enumerate(passes):
            own = [runs[at] for at in members]
            mine = np.flatnonzero(np.isin(run_of, members))
            shift = np.zeros(len(runs), np.int64)
            shift[members] = offsets(np.array([len(run.tokens) for run in own]))[:-1] - begins[members]
            part = self._pass(number, own, wanted[mine] + shift[run_of[mine]])
            if logits is None:
                logits = np.empty((len(wanted), part.shape[1]), part.dtype)
            logits[mine] = part
        assert logits is not None
        return logits

    def _passes(self, runs: Rows[Run]) -> list[list[int]]:
        """Which runs are computed together; those without an adapter go with the first that have one."""
        rows: dict[int, int] = {}
        members: dict[int, list[int]] = {}
        sizes = 1
        bare = []
        for at, run in enumerate(runs):
            if run.adapter is None:
                bare.append(at)
                continue
            serial = run.adapter.serial
            rows[serial] = rows.get(serial, 0) + len(run.tokens)
            members.setdefault(serial, []).append(at)
            sizes = max(sizes, sum(down.size + up.size for down, up in run.adapter.layers.values()))
        serials = list(rows)
        parts = split_by_rows(list(rows.values()), _PASS_ROWS * self._base_size / sizes)
        passes = [sorted(at for one in part for at in members[serials[one]]) for part in parts]
        passes[0] = sorted(passes[0] + bare)
        return passes

    def _pass(self, number: int, runs: Rows[Run], wanted: Array) -> Array:
        order = self._bind(number, {run.adapter.serial: run.adapter for run in runs if run.adapter is not None})
        self._lay_out(runs, order)
        return self.compiled.forward(runs, wanted)

    def _bind(self, number: int, adapters: Mapping[int, Adapter]) -> list[int]:
        """Have the inputs hold these adapters' matrices; returns their serials, line by line of the grid."""
        if len(adapters) == 1:
            (adapter,) = adapters.values()
            self._bind_matrices(("alone", adapter.serial), lambda: alone(adapter, self._shapes, self._dtype))
            return [adapter.serial]
        while len(self._banks) <= number:
            self._banks.append(Bank(self._shapes, self._dtype))
        bank = self._banks[number]
        order = bank.arrange(list(adapters.values()))
        self._bind_matrices(("bank", number, bank.generation), bank.tensors)
        return order

    def _bind_matrices(self, whose: tuple[object, ...], matrices: Callable[[], Mapping[str, ov.Tensor]]) -> None:
        if whose != self._bound:
            for name, tensor in matrices().items():
                self.compiled.bind(name, tensor)
            self._bound = whose

    def _lay_out(self, runs: Rows[Run], order: list[int]) -> None:
        """Say where each row lies in the grid, and which row lies at each place of it."""
        line = {serial: number for number, serial in enumerate(order)}
        lengths = np.array([len(run.tokens) for run in runs])
        lines = np.repeat([line[run.adapter.serial] if run.adapter else len(order) for run in runs], lengths)
        counts = np.bincount(lines, minlength=len(order) + 1)[: len(order)]
        width = int(counts.max())
        rows = np.argsort(lines, kind="stable")
        rows = rows[: counts.sum()]  # those without an adapter are last
        column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.full(len(lines), len(order) * width, np.int32)
        places[rows] = lines[rows] * width + column
        grid = np.full(len(order) * width, len(lines), np.int32)
        grid[places[rows]] = rows
        self.compiled.set("adapter_grid", np.array([len(order), width], np.int64))
        self.compiled.set("adapter_rows", grid)
        self.compiled.set("adapter_places", places)
