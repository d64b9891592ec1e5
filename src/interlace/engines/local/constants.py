"""Stored tensors → OpenVINO constants, exact where the file's own format allows it.

A weight of a linear layer is a small subgraph `convert → subtract zero point → multiply scale` that the runtime
fuses into its matrix product, so that the bytes in memory stay as small as the file's. What each GGUF type becomes:

| stored | kept as | error |
|---|---|---|
| F32, F16, BF16 | the same | none |
| Q4_0 | u4, groups of 32, float scale, zero point 8 | none |
| Q4_1, Q4_K | u4, groups of 32, float scale and float zero point `-min/scale` | one float rounding |
| Q2_K | u4 (its two bits in four), groups of 16, float scale and float zero point | one float rounding |
| Q3_K | u4 (its three bits in four), groups of 16, float scale, zero point 4 | one float rounding |
| Q8_0 | i8, groups of 32, float scale | none |
| Q5_0, Q6_K | i8 (their five and six bits in eight), groups of 32 and 16, float scale | one float rounding |
| Q5_1, Q5_K | u8 (their five bits in eight), groups of 32, float scale and float zero point | one float rounding |
| all else (IQ kinds, ...) | f16 | half a unit in the eleventh bit; measured and reported |

At precision `int8` all matrices are kept as i8 without zero points (`eight_bits.py`); embedding tables as above.

An embedding table, which is looked up row by row, is kept so too where its kind takes eight bits; else as f16.

The zero point of Q4_1 must stay a float: rounding it to an integer, as other loaders do, changed one greedy token
in four of SmolLM2's (see docs/explanation/decisions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from interlace.engines.local.eight_bits import GROUP, eight_bits, regrouped
from interlace.engines.local.quantised import GROUPED_KINDS, Grouped, grouped, stacked
from interlace.models import StoredTensor, Weights

Array = np.ndarray[Any, Any]
Precision = Literal["file", "f32", "bf16", "int8"]


@dataclass
class Report:
    """What became of the weights: tensors by kept format, and the largest relative error of a re-coded one."""

    formats: dict[str, int] = field(default_factory=dict)
    worst_error: float = 0.0

    def count(self, kept: str, error: float = 0.0) -> None:
        """Note one tensor kept as `kept` with that error (relative to the tensor's largest magnitude)."""
        self.formats[kept] = self.formats.get(kept, 0) + 1
        self.worst_error = max(self.worst_error, error)


@dataclass
class ConstantMaker:
    """Turns a checkpoint's tensors into graph nodes at one precision.

    `buffers` is the memory of packed tensors: the runtime reads it without copying, even after compilation (it packs
    weights at the first inference), so it must live as long as the compiled model. Freed early, the model speaks
    gibberish.
    """

    weights: Weights
    precision: Precision
    report: Report = field(default_factory=Report)
    buffers: list[Any] = field(default_factory=list)

    def vector(self, name: str) -> Array:
        """A small tensor (a norm's weight) as float32."""
        return self.weights.float32(name)

    def matrix(self, name: str, rows: Array | None = None) -> ov.Node:
        """The weight `name` as a float32-valued node of shape [rows, columns], its rows re-ordered by `rows`."""
        (node,) = self.matrices([name], [rows])
        return node

    def matrices(self, names: Sequence[str], orders: Sequence[Array | None]) -> list[ov.Node]:
        """The weights `names`, which have the same inputs, each as `matrix`; where they are kept alike, one node for
        all, one below the other: one large product is quicker than several small ones."""
        if self.precision in ("f32", "bf16"):
            return [self._f32(names, orders)]
        parts = [self._grouped(name, rows) for name, rows in zip(names, orders, strict=True)]
        whole = [part for part in parts if part]
        if len(whole) == len(parts) and all(part.like(whole[0]) for part in whole):
            return [self._of_groups(stacked(whole))]
        floats = [self.weights.stored(name) for name in names]
        if len({stored.kind for stored in floats}) == 1 and floats[0].kind in _FLOAT_TYPES:
            return [_to_f32(self._float_constant(floats, orders))]
        return [
            self._of_groups(part) if part else self._of_floats(name, rows)
            for part, name, rows in zip(parts, names, orders, strict=True)
        ]

    def table(self, name: str) -> Callable[[ov.Node], ov.Node]:
        """A function from ids [T] to rows [T, columns] of `name`: an embedding look-up that decodes only what it
        looks up."""
        stored = self.weights.stored(name)
        if self.precision in ("f32", "bf16"):
            constant = ops.constant(self.weights.float32(name))
        elif stored.kind in GROUPED_KINDS and (parts := grouped(stored)).bits == 8:
            return lambda ids: _decode_rows(ids, parts)
        elif stored.kind in _FLOAT_TYPES:
            constant = self._float_constant([stored], [None])
        else:
            constant = self._half(name)
        return lambda ids: _to_f32(ops.gather(constant, ids, ops.constant(np.int64(0))))

    # --- one way per stored kind -----------------------------------------------------------------------------

    def _f32(self, names: Sequence[str], orders: Sequence[Array | None]) -> ov.Node:
        for _ in names:
            self.report.count(self.precision)
        exact = [_take(self.weights.float32(name), rows) for name, rows in zip(names, orders, strict=True)]
        return ops.constant(_below_each_other(exact))

    def _of_floats(self, name: str, rows: Array | None) -> ov.Node:
        stored = self.weights.stored(name)
        kept = stored.kind in _FLOAT_TYPES
        return _to_f32(self._float_constant([stored], [rows]) if kept else self._half(name, rows))

    def _half(self, name: str, rows: Array | None = None) -> ov.Node:
        exact = _take(self.weights.float32(name), rows)
        half = exact.astype(np.float16)
        self.report.count("f16", _error(half, exact))
        return ops.constant(half)

    def _float_constant(self, tensors: Sequence[StoredTensor], orders: Sequence[Array | None]) -> ov.Node:
        for stored in tensors:
            self.report.count(stored.kind.lower())
        data = _below_each_other([_take(stored.data, rows) for stored, rows in zip(tensors, orders, strict=True)])
        if tensors[0].kind != "BF16":
            return ops.constant(data)
        tensor = ov.Tensor(data, ov.Shape(list(data.shape)), Type.bf16)
        self.buffers += [data, tensor]
        return ov.op.Constant(tensor)

    def _grouped(self, name: str, rows: Array | None) -> Grouped | None:
        """The weight in groups, as the precision has it; None: the file has no groups, and they are not asked for."""
        stored = self.weights.stored(name)
        parts = grouped(stored).taken(rows) if stored.kind in GROUPED_KINDS else None
        if self.precision == "file":
            if parts:
                self.report.count(f"{parts.kept} ({stored.kind})")
            return parts
        exact = _take(self.weights.float32(name), rows)
        near = regrouped(parts) if parts and parts.quants.shape[-1] == GROUP else eight_bits(exact)
        self.report.count("int8", _error(near.values(), exact))
        return near

    def _of_groups(self, parts: Grouped) -> ov.Node:
        values = _to_f32(ops.constant(parts.quants) if parts.bits == 8 else self._packed(parts.quants))
        if parts.zeros is not None:
            values = ops.subtract(values, ops.constant(parts.zeros))
        return _flat(ops.multiply(values, ops.constant(parts.scales)), parts.shape)

    def _packed(self, quants: Array) -> ov.Node:
        """Elements of four bits, two neighbours in a byte, low half first."""
        packed = np.ascontiguousarray(quants[..., 0::2] | (quants[..., 1::2] << 4))
        tensor = ov.Tensor(packed, ov.Shape(list(quants.shape)), Type.u4)
        self.buffers += [packed, tensor]
        return ov.op.Constant(tensor)


_FLOAT_TYPES = ("F32", "F16", "BF16")
KEPT_AS_STORED = frozenset((*_FLOAT_TYPES, "Q4_0", "Q4_1", "Q4_K", "Q8_0"))  # of about the file's own size
KEPT_IN_EIGHT_BITS = GROUPED_KINDS - KEPT_AS_STORED


def _error(kept: Array, exact: Array) -> float:
    """The largest difference, as a part of the largest number."""
    largest = float(np.abs(exact).max(initial=0.0)) or 1.0
    return float(np.abs(kept - exact).max(initial=0.0)) / largest


def _below_each_other(matrices: Sequence[Array]) -> Array:
    return np.ascontiguousarray(matrices[0] if len(matrices) == 1 else np.concatenate(matrices))


def _take(data: Array, rows: Array | None) -> Array:
    return data if rows is None else data[rows]


def _to_f32(node: ov.Node) -> ov.Node:
    return node if node.get_element_type() == Type.f32 else ops.convert(node, "f32")


def _flat(node: ov.Node, shape: tuple[int, ...]) -> ov.Node:
    return ops.reshape(node, ops.constant(np.array(shape, np.int64)), special_zero=False)


def _decode_rows(ids: ov.Node, parts: Grouped) -> ov.Node:
    def picked(values: Array) -> ov.Node:
        return _to_f32(ops.gather(ops.constant(values), ids, ops.constant(np.int64(0))))

    rows = picked(parts.quants)
    if parts.zeros is not None:
        rows = ops.subtract(rows, picked(parts.zeros))
    columns = parts.quants.shape[1] * parts.quants.shape[2]
    scaled = ops.multiply(rows, picked(parts.scales))
    return ops.reshape(scaled, ops.constant(np.array([-1, columns], np.int64)), special_zero=False)
