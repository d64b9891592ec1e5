"""Stored tensors → OpenVINO constants, exact where the file's own format allows it.

A weight of a linear layer is a small subgraph `convert → subtract zero point → multiply scale` that the runtime
fuses into its matrix product, so that the bytes in memory stay as small as the file's. What each GGUF type becomes:

| stored | kept as | error |
|---|---|---|
| F32, F16, BF16 | the same | none |
| Q4_1 | u4, groups of 32, float scale and float zero point `-min/scale` | one float rounding |
| Q4_0 | u4, groups of 32, float scale, zero point 8 | none |
| Q8_0 | i8, groups of 32, float scale | none |
| all else (K-quants, ...) | f16 | half a unit in the eleventh bit; measured and reported |

The zero point of Q4_1 must stay a float: rounding it to an integer, as other loaders do, changed one greedy token
in four of SmolLM2's (see docs/explanation/decisions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from interlace.models import StoredTensor, Weights

Array = np.ndarray[Any, Any]
Precision = Literal["file", "f32", "bf16", "int8"]

GROUP = 32  # elements that share a scale in Q4_0, Q4_1 and Q8_0


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
        decode = self._decoder(name)
        return decode(rows)

    def table(self, name: str) -> Callable[[ov.Node], ov.Node]:
        """A function from ids [T] to rows [T, columns] of `name`: an embedding look-up that decodes only what it
        looks up."""
        stored = self.weights.stored(name)
        if self.precision == "file" and stored.kind == "Q8_0":
            quants, scales = split_q8_0(stored)
            return lambda ids: _decode_rows(ids, quants, scales)
        if self.precision == "file" and stored.kind in _FLOAT_TYPES:
            constant = self._float_constant(stored)
        elif self.precision == "file":
            constant = self._half(name)
        else:
            constant = ops.constant(self.weights.float32(name))
        return lambda ids: _to_f32(ops.gather(constant, ids, ops.constant(np.int64(0))))

    # --- one decoder per stored kind -------------------------------------------------------------------------

    def _decoder(self, name: str) -> Callable[[Array | None], ov.Node]:
        if self.precision in ("f32", "bf16"):
            return lambda rows: self._f32(name, rows)
        if self.precision == "int8":
            return lambda rows: self._int8(name, rows)
        stored = self.weights.stored(name)
        by_kind: dict[str, Callable[[Array | None], ov.Node]] = {
            "Q4_0": lambda rows: self._q4(stored, rows),
            "Q4_1": lambda rows: self._q4(stored, rows),
            "Q8_0": lambda rows: self._q8_0(stored, rows),
            **dict.fromkeys(_FLOAT_TYPES, lambda rows: _to_f32(self._float_constant(stored, rows))),
        }
        return by_kind.get(stored.kind, lambda rows: _to_f32(self._half(name, rows)))

    def _f32(self, name: str, rows: Array | None) -> ov.Node:
        self.report.count(self.precision)
        return ops.constant(_take(self.weights.float32(name), rows))

    def _half(self, name: str, rows: Array | None = None) -> ov.Node:
        exact = _take(self.weights.float32(name), rows)
        half = exact.astype(np.float16)
        largest = float(np.abs(exact).max(initial=0.0)) or 1.0
        self.report.count("f16", float(np.abs(half - exact).max(initial=0.0)) / largest)
        return ops.constant(half)

    def _float_constant(self, stored: StoredTensor, rows: Array | None = None) -> ov.Node:
        self.report.count(stored.kind.lower())
        data = np.ascontiguousarray(_take(stored.data, rows))
        if stored.kind != "BF16":
            return ops.constant(data)
        tensor = ov.Tensor(data, ov.Shape(list(data.shape)), Type.bf16)
        self.buffers += [data, tensor]
        return ov.op.Constant(tensor)

    def _int8(self, name: str, rows: Array | None) -> ov.Node:
        """Symmetric, one scale a row, as the processor's integer kernels want it."""
        exact = _take(self.weights.float32(name), rows)
        scale = np.abs(exact).max(axis=1, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        quants = np.clip(np.rint(exact / scale), -127, 127).astype(np.int8)
        largest = float(np.abs(exact).max(initial=0.0)) or 1.0
        self.report.count("int8", float(np.abs(quants * scale - exact).max(initial=0.0)) / largest)
        return ops.multiply(_to_f32(ops.constant(quants)), ops.constant(scale.astype(np.float32)))

    def _q4(self, stored: StoredTensor, rows: Array | None) -> ov.Node:
        split = split_q4_1 if stored.kind == "Q4_1" else split_q4_0
        packed, scales, zeros = split(stored)
        count, columns = stored.shape
        packed, scales, zeros = _take(packed, rows), _take(scales, rows), _take(zeros, rows)
        self.report.count(f"u4 ({stored.kind})")
        packed = np.ascontiguousarray(packed)
        tensor = ov.Tensor(packed, ov.Shape([count, columns // GROUP, GROUP]), Type.u4)
        self.buffers += [packed, tensor]
        centred = ops.subtract(_to_f32(ov.op.Constant(tensor)), ops.constant(np.ascontiguousarray(zeros)))
        return _flat(ops.multiply(centred, ops.constant(np.ascontiguousarray(scales))), stored.shape)

    def _q8_0(self, stored: StoredTensor, rows: Array | None) -> ov.Node:
        quants, scales = split_q8_0(stored)
        self.report.count("i8 (Q8_0)")
        grouped = ops.constant(np.ascontiguousarray(_take(quants, rows)))
        return _flat(
            ops.multiply(_to_f32(grouped), ops.constant(np.ascontiguousarray(_take(scales, rows)))), stored.shape
        )


_FLOAT_TYPES = ("F32", "F16", "BF16")
KEPT_AS_STORED = (*_FLOAT_TYPES, "Q4_0", "Q4_1", "Q8_0")


def split_q4_1(stored: StoredTensor) -> tuple[Array, Array, Array]:
    """Q4_1 bytes [rows, groups * 20] → packed u4 [rows, groups, 16], scale and zero point [rows, groups, 1] float32.

    A block is a half-precision scale and minimum, then 16 bytes: byte j holds element j in its low half and element
    j + 16 in its high half (GGML's layout); OpenVINO wants neighbours in one byte.
    """
    blocks = stored.data.reshape(stored.shape[0], -1, 20)
    scale = blocks[..., 0:2].copy().view(np.float16).astype(np.float32)
    minimum = blocks[..., 2:4].copy().view(np.float16).astype(np.float32)
    flat = scale == 0  # all elements equal the minimum: value = (q - z) * s with q = 0, s = 1, z = -minimum
    safe = np.where(flat, np.float32(1), scale)
    quants = np.where(flat, np.uint8(0), blocks[..., 4:])
    return _neighbours(quants), safe, -minimum / safe


def split_q4_0(stored: StoredTensor) -> tuple[Array, Array, Array]:
    """Q4_0 bytes [rows, groups * 18] → packed u4, scale, zero point 8, in the shapes of `split_q4_1`."""
    blocks = stored.data.reshape(stored.shape[0], -1, 18)
    scale = blocks[..., 0:2].copy().view(np.float16).astype(np.float32)
    return _neighbours(blocks[..., 2:]), scale, np.full_like(scale, 8)


def split_q8_0(stored: StoredTensor) -> tuple[Array, Array]:
    """Q8_0 bytes [rows, groups * 34] → int8 [rows, groups, 32] and scale [rows, groups, 1] float32."""
    blocks = stored.data.reshape(stored.shape[0], -1, 34)
    scale = blocks[..., 0:2].copy().view(np.float16).astype(np.float32)
    return blocks[..., 2:].copy().view(np.int8), scale


def _neighbours(halves: Array) -> Array:
    """Bytes holding elements (j, j + 16) → bytes holding elements (2j, 2j + 1), low half first."""
    elements = np.concatenate([halves & 15, halves >> 4], axis=-1)
    packed: Array = (elements[..., 0::2] | (elements[..., 1::2] << 4)).astype(np.uint8)
    return packed


def _take(data: Array, rows: Array | None) -> Array:
    return data if rows is None else data[rows]


def _to_f32(node: ov.Node) -> ov.Node:
    return node if node.get_element_type() == Type.f32 else ops.convert(node, "f32")


def _flat(node: ov.Node, shape: tuple[int, ...]) -> ov.Node:
    return ops.reshape(node, ops.constant(np.array(shape, np.int64)), special_zero=False)


def _decode_rows(ids: ov.Node, quants: Array, scales: Array) -> ov.Node:
    axis = ops.constant(np.int64(0))
    picked = _to_f32(ops.gather(ops.constant(np.ascontiguousarray(quants)), ids, axis))
    scaled = ops.multiply(picked, ops.gather(ops.constant(np.ascontiguousarray(scales)), ids, axis))
    columns = quants.shape[1] * quants.shape[2]
    return ops.reshape(scaled, ops.constant(np.array([-1, columns], np.int64)), special_zero=False)
