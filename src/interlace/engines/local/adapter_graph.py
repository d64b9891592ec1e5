"""Low-rank adapters in the graph: what `graph.build_decoder` calls for every linear layer.

The rows of a step are laid out as a grid, one line for each adapter, as long as the most rows one of them has:

| input | shape | meaning |
|---|---|---|
| adapter_grid | [2] i64 | lines G and columns t of the grid |
| adapter_rows | [G * t] i32 | which row of the step lies at each place; one past the last: none |
| adapter_places | [T] i32 | where in the grid each row of the step lies; G * t: nowhere, it has no adapter |
| LAYER.down | [G, rank, inputs] | A of each adapter, stacked |
| LAYER.up | [G, outputs, rank] f32, [G, rank, outputs] bf16 | B of each adapter, stacked, with the scale in it |

Both products are batched over G. A rank of 0 leaves a layer as it is. `Gather` gives zeros for an index past the end,
as its specification says and a test holds it to. How `up` lies decides how fast it is read: in float32 as PEFT stores
it, half again as fast as transposed; in bfloat16 transposed, ten times as fast as not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

Input = Callable[[str, list[int], Type], ov.Node]


def layer_of(name: str) -> str:
    """The layer that a weight belongs to, as adapters name it."""
    return name.removesuffix(".weight")


def kind_of(layer: str) -> str:
    """What layers in the same place of every block have in common: `q_proj`, `down_proj`, ..."""
    return layer.rpartition(".")[2]


@dataclass
class LinearLayers:
    """Adds nothing, and notes every linear layer: name → (outputs, inputs)."""

    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, _input: Input, x: ov.Node, ys: list[ov.Node], names: list[str]) -> list[ov.Node]:
        """Note the layers."""
        for y, name in zip(ys, names, strict=True):
            self.shapes[layer_of(name)] = (_width(y), _width(x))
        return ys


@dataclass
class AdapterLayers:
    """Adds the adapters' products to layers of `kinds`. `dtype` is that of the stacked matrices."""

    kinds: frozenset[str]
    dtype: Type
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the layers that were changed
    _grids: dict[int, tuple[ov.Node, ov.Node]] = field(default_factory=dict)  # by identity: x, and x in the grid

    def __call__(self, make_input: Input, x: ov.Node, ys: list[ov.Node], names: list[str]) -> list[ov.Node]:
        """Each `y` and, of every row that has an adapter, `up @ (down @ x)`."""
        return [self._changed(make_input, x, y, name) for y, name in zip(ys, names, strict=True)]

    def _changed(self, make_input: Input, x: ov.Node, y: ov.Node, name: str) -> ov.Node:
        layer = layer_of(name)
        if kind_of(layer) not in self.kinds:
            return y
        outputs, inputs = self.shapes[layer] = (_width(y), _width(x))
        down = self._matrix(make_input, f"{layer}.down", [-1, -1, inputs])
        full = self.dtype == Type.f32
        up = self._matrix(make_input, f"{layer}.up", [-1, outputs, -1] if full else [-1, -1, outputs])
        narrow = ops.matmul(self._in_grid(make_input, x), down, transpose_a=False, transpose_b=True)
        wide = ops.matmul(narrow, up, transpose_a=False, transpose_b=full)
        places = make_input("adapter_places", [-1], Type.i32)
        flat = ops.reshape(wide, _integers(-1, outputs), special_zero=False)
        return ops.add(y, ops.gather(flat, places, _axis()))

    def _in_grid(self, make_input: Input, x: ov.Node) -> ov.Node:
        """[T, inputs] → [G, t, inputs], once for all layers of the same `x`."""
        if id(x) not in self._grids:
            shape = ops.concat([make_input("adapter_grid", [2], Type.i64), _integers(_width(x))], 0)
            rows = ops.gather(x, make_input("adapter_rows", [-1], Type.i32), _axis())
            self._grids[id(x)] = x, ops.reshape(rows, shape, special_zero=False)
        return self._grids[id(x)][1]

    def _matrix(self, make_input: Input, name: str, shape: list[int]) -> ov.Node:
        node = make_input(name, shape, self.dtype)
        return node if self.dtype == Type.f32 else ops.convert(node, "f32")


def _width(node: ov.Node) -> int:
    """The length of the last dimension, which is fixed."""
    width: int = node.get_output_partial_shape(0)[-1].get_length()
    return width


def _axis() -> ov.Node:
    return ops.constant(np.int64(0))


def _integers(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))
