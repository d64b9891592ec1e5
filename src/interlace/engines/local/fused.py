"""Adapters by the compiled operation (`kernel.py`): every row reads its own adapter where that lies in memory.

Nothing is stacked and nothing laid out. The graph has one node for all linear layers of one input, `LowRank`, with

| input | shape | meaning |
|---|---|---|
| x | [T, inputs] | what the layers were given |
| adapter_rows | [T] i32 | line of the table for each row of the step; -1: none |
| adapter_table | [D, 6 * layers] i32 | for each adapter and layer, of 64 bits each: address, rank, bytes of a number |
| y, ... | [T, outputs] | what the layers made of x |

and an output for each y. x, y and outputs are float32, or bfloat16 where the graph computes in that: it would re-order
them otherwise, and drops the conversions that say so. At an address lie A [rank, inputs] and, right behind it, B
transposed [rank, outputs], in float32, or in bfloat16 where all of the layer's numbers are exactly that: half the
bytes, and the same results. Sums of a row do not depend on what else is in the step.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.adapter_graph import Input, kind_of, layer_of
from interlace.engines.local.adapter_head import with_own_heads
from interlace.engines.local.compiled import Compiled, Run
from interlace.engines.local.constants import Array
from interlace.engines.local.kernel import node_factory, packer
from interlace.errors import CheckpointError
from interlace.models import Layers

_LINE = 64  # bytes: where a layer may begin
_PAGE = 2 << 20  # bytes of a large page
_MOST_KEPT = 64 << 20  # bytes of memory that no adapter lies in, and that is counted nowhere
MOST_RANK = 1024  # as in lowrank.cpp


@dataclass
class FusedLayers:
    """Adds the operation to layers of `kinds`; `columns` says where in the table each layer of the base stands, `dtype`
    in what the graph computes."""

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


def fused_adapter(
    name: str, serial: int, layers: Layers, columns: Mapping[str, int], kernel: Path, rooms: Rooms, *, short: bool
) -> Adapter:
    """An adapter as the operation reads it, in one piece of memory and in the order in which layers are computed.
    `short`: in bfloat16 whatever its numbers are. Raises `CheckpointError`."""
    order = sorted(layers, key=columns.__getitem__)
    held = [(np.ascontiguousarray(layers[at].down), np.ascontiguousarray(layers[at].up)) for at in order]
    if wide := [at for at in order if layers[at].rank > MOST_RANK]:
        raise CheckpointError(f"{wide[0]} has rank {layers[wide[0]].rank}. Ranks above {MOST_RANK} are not taken.")
    pieces = np.array(
        [(down.ctypes.data, up.ctypes.data, *down.shape, len(up), 2, 0) for down, up in held], np.int64
    ).reshape(-1, 7)
    functions = packer(kernel)
    if not short:
        functions.interlace_measure(pieces.ctypes.data, len(pieces))
    rank, inputs, outputs, number = pieces[:, 2:6].T
    ends = np.cumsum(-(-rank * (inputs + outputs) * number // _LINE) * _LINE)
    size = int(ends[-1]) if len(ends) else 0
    memory = rooms.take(size)
    pieces[1:, 6] = ends[:-1]
    pieces[:, 6] += memory.ctypes.data
    functions.interlace_lay_down(pieces.ctypes.data, len(pieces))
    entries = np.zeros((len(columns), 3), np.int64)
    entries[[columns[at] for at in order]] = pieces[:, [6, 2, 5]]
    size += 0 if layers.head is None else layers.head.nbytes
    return Adapter(name, serial, {}, {}, size, layers.head, entries, memory)


class Rooms:
    """Memory for adapters, as far as it goes in large pages: with small ones, finding where they lie takes as long as
    reading them. That of the adapter last let go is used again, since new memory takes the kernel five times as long as
    laying an adapter down. What is not written to takes none."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # one at most

    def take(self, size: int) -> Array:
        """So many bytes, one's own as long as the array lives."""
        area = self._free.pop() if self._free else None
        if area is None or not size <= len(area) - 2 * _PAGE <= 1.25 * size:
            area = mmap.mmap(-1, size + 2 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared: small pages
        whole = np.frombuffer(area, np.uint8)
        begin = -whole.ctypes.data % _PAGE
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= _PAGE:
            with contextlib.suppress(OSError):  # a kernel without large pages
                area.madvise(mmap.MADV_HUGEPAGE, begin, size // _PAGE * _PAGE)
        memory = whole[begin : begin + size]
        weakref.finalize(memory, self._give_back, area).atexit = False
        return memory

    def _give_back(self, area: mmap.mmap) -> None:
        self._free[:] = [area] if len(area) <= _MOST_KEPT else []
