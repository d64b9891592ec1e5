"""The graph with adapters: runs of any mix of them, each row with its own, in as few passes as pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type

from interlace.engines.local.adapter_bank import Adapter, Bank, alone
from interlace.engines.local.adapter_graph import AdapterLayers
from interlace.engines.local.adapter_head import with_own_heads
from interlace.engines.local.adapter_plan import Pass, lay_out, plan_passes
from interlace.engines.local.compiled import Compiled, Run, offsets
from interlace.engines.local.constants import Array


class Adapted:
    """A compiled graph whose layers of some kinds take adapters; `kinds` says which."""

    def __init__(self, model: ov.Model, layers: AdapterLayers, properties: dict[str, Any], buffers: list[Any],
                 logit_cap: float) -> None:  # fmt: skip
        self.kinds = layers.kinds
        self.compiled = Compiled(model, properties, buffers)
        self._logit_cap = logit_cap
        self._shapes: Mapping[str, tuple[int, int]] = layers.shapes
        self._dtype: Type = layers.dtype
        numbers = sum(outputs * inputs for outputs, inputs in layers.shapes.values())
        self._base_bytes = numbers * layers.dtype.size
        self._banks: list[Bank] = []
        self._bound: tuple[object, ...] = ()  # whose matrices the inputs hold now

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """As `Compiled.forward`. The array may be a view that the next call overwrites."""
        passes = plan_passes(runs, self._base_bytes)
        if len(passes) == 1:
            return self._pass(0, passes[0], runs, wanted)
        begins = offsets(np.array([len(run.tokens) for run in runs]))
        run_of = np.searchsorted(begins, wanted, side="right") - 1
        logits: Array | None = None
        for number, one in enumerate(passes):
            own = [runs[at] for at in one.members]
            mine = np.flatnonzero(np.isin(run_of, one.members))
            shift = np.zeros(len(runs), np.int64)
            shift[one.members] = offsets(np.array([len(run.tokens) for run in own]))[:-1] - begins[one.members]
            part = self._pass(number, one, own, wanted[mine] + shift[run_of[mine]])
            if logits is None:
                logits = np.empty((len(wanted), part.shape[1]), part.dtype)
            logits[mine] = part
        assert logits is not None
        return logits

    def _pass(self, number: int, one: Pass, runs: Rows[Run], wanted: Array) -> Array:
        adapters = [run.adapter for run in runs if run.adapter is not None]
        order = self._bind(number, adapters if one.spread else list({a.serial: a for a in adapters}.values()))
        for name, values in lay_out(runs, order).items():
            self.compiled.set(name, values)
        logits = self.compiled.forward(runs, wanted)
        if all(adapter.head is None for adapter in adapters):
            return logits
        return with_own_heads(logits, self.compiled.states(), runs, wanted, self._logit_cap)

    def _bind(self, number: int, adapters: Rows[Adapter]) -> list[int]:
        """Have the inputs hold these adapters' matrices; returns their serials, line by line of the grid."""
        if len(adapters) == 1:
            (adapter,) = adapters
            self._bind_matrices(("alone", adapter.serial), lambda: alone(adapter, self._shapes, self._dtype))
            return [adapter.serial]
        while len(self._banks) <= number:
            self._banks.append(Bank(self._shapes, self._dtype))
        bank = self._banks[number]
        order = bank.arrange(adapters)
        self._bind_matrices(("bank", number, bank.generation), bank.tensors)
        return order

    def _bind_matrices(self, whose: tuple[object, ...], matrices: Callable[[], Mapping[str, ov.Tensor]]) -> None:
        if whose != self._bound:
            for name, tensor in matrices().items():
                self.compiled.bind(name, tensor)
            self._bound = whose
