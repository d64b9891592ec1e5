"""Adapters by the compiled operation (`kernel.py`): every row reads its own adapter where that lies in memory.

Nothing is stacked and nothing laid out. The graph has one node for all linear layers of one input, `LowRank`, with

| input | shape | meaning |
|---|---|---|
| x | [T, inputs] f32 | what the layers were given |
| adapter_rows | [T] i32 | line of the table for each row of the step; -1: none |
| adapter_table | [D, 6 * layers] i32 | for each adapter and layer, of 64 bits each: address, rank, bytes of a number |
| y, ... | [T, outputs] f32 | what the layers made of x |

and an output for each y. At an address lie A [rank, inputs] and, right behind it, B transposed [rank, outputs], in
float32, or in bfloat16 where all of the layer's numbers are exactly that: half the bytes, and the same results. Sums
of a row do not depend on what else is in the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from interlace.engines.local.adapter_bank import Adapter, to_bf16
from interlace.engines.local.adapter_graph import Input, kind_of, layer_of
from interlace.engines.local.adapter_head import with_own_heads
from interlace.engines.local.compiled import Compiled, Run
from interlace.engines.local.constants import Array
from interlace.engines.local.kernel import node_factory
from interlace.errors import CheckpointError
from interlace.models import Layers

_LINE = 64  # bytes: where a layer may begin
MOST_RANK = 1024  # as in lowrank.cpp


@dataclass
class FusedLayers:
    """Adds the operation to layers of `kinds`; `columns` says where in the table each layer of the base stands."""

    kinds: frozenset[str]
    columns: dict[str, int]
    kernel: Path
    dtype: Type

    def __call__(self, make_input: Input, x: ov.Node, ys: list[ov.Node], names: list[str]) -> list[ov.Node]:
        """Each `y` and, of every row that has an adapter, `up @ (down @ x)`."""
        layers = [layer_of(name) for name in names]
        changed = [at for at, layer in enumerate(layers) if kind_of(layer) in self.kinds]
        if not changed:
            return ys
        rows = make_input("adapter_rows", [-1], Type.i32)
        table = make_input("adapter_table", [-1, 6 * len(self.columns)], Type.i32)
        columns = [self.columns[layers[at]] for at in changed]
        arguments = [self._narrowed(x), rows, table, *(self._narrowed(ys[at]) for at in changed)]
        node = node_factory(self.kernel).create("LowRank", arguments, {"layers": columns})
        made = {at: self._widened(y) for at, y in zip(changed, node.outputs(), strict=True)}
        return [made.get(at, y) for at, y in enumerate(ys)]

    def _narrowed(self, x: ov.Node) -> ov.Node:
        return x if self.dtype == Type.f32 else ops.convert(x, "bf16")

    def _widened(self, y: ov.Output) -> ov.Node:
        return y if self.dtype == Type.f32 else ops.convert(y, "f32")


class Fused:
    """A compiled graph whose layers of some kinds take adapters; `kinds` says which."""

    def __init__(self, model: ov.Model, layers: FusedLayers, properties: dict[str, Any], buffers: list[Any],
                 logit_cap: float) -> None:  # fmt: skip
        self.kinds = layers.kinds
        self.compiled = Compiled(model, properties, buffers)
        self._logit_cap = logit_cap

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """As `Compiled.forward`."""
        adapters = list({run.adapter.serial: run.adapter for run in runs if run.adapter is not None}.values())
        lines = {adapter.serial: line for line, adapter in enumerate(adapters)}
        line_of = [-1 if run.adapter is None else lines[run.adapter.serial] for run in runs]
        self.compiled.set("adapter_rows", np.repeat(np.array(line_of, np.int32), [len(run.tokens) for run in runs]))
        table = np.stack([adapter.entries for adapter in adapters if adapter.entries is not None])
        self.compiled.set("adapter_table", table.reshape(len(adapters), -1).view(np.int32))
        logits = self.compiled.forward(runs, wanted)
        if all(adapter.head is None for adapter in adapters):
            return logits
        return with_own_heads(logits, self.compiled.states(), runs, wanted, self._logit_cap)


def fused_adapter(name: str, serial: int, layers: Layers, columns: Mapping[str, int], *, short: bool) -> Adapter:
    """An adapter as the operation reads it, in one piece of memory and in the order in which layers are computed.
    `short`: in bfloat16 whatever its numbers are. Raises `CheckpointError`."""
    kept: dict[str, tuple[Array, Array]] = {}
    for layer in sorted(layers, key=columns.__getitem__):
        low = layers[layer]
        if low.rank > MOST_RANK:
            raise CheckpointError(f"{layer} has rank {low.rank}. Ranks above {MOST_RANK} are not taken.")
        down, up = np.ascontiguousarray(low.down), np.ascontiguousarray(low.up.T)
        kept[layer] = (to_bf16(down), to_bf16(up)) if short or (_is_bf16(down) and _is_bf16(up)) else (down, up)
    sizes = [-(-(down.nbytes + up.nbytes) // _LINE) * _LINE for down, up in kept.values()]
    memory = np.empty(sum(sizes) + _LINE, np.uint8)
    at = -memory.ctypes.data % _LINE
    entries = np.zeros((len(columns), 3), np.int64)
    placed = {}
    for (layer, (down, up)), size in zip(kept.items(), sizes, strict=True):
        entries[columns[layer]] = memory.ctypes.data + at, len(down), down.itemsize
        placed[layer] = _placed(memory, at, down), _placed(memory, at + down.nbytes, up)
        at += size
    ranks = {layer: low.rank for layer, low in layers.items()}
    size = memory.nbytes + (0 if layers.head is None else layers.head.nbytes)
    return Adapter(name, serial, placed, ranks, size, layers.head, entries)


def _placed(memory: Array, at: int, values: Array) -> Array:
    """A copy of these in `memory`, which stays as long as the copy does."""
    copy = memory[at : at + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[:] = values
    return copy


def _is_bf16(values: Array) -> bool:
    """Whether float32 numbers are bfloat16 numbers all."""
    return not (values.view(np.uint32) & 0xFFFF).any()
