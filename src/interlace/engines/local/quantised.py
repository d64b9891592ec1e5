"""GGUF's quantised kinds, taken apart into what a fused matrix product reads: small integers, scales, zero points.

Every kind here means `(quant - zero) * scale` for groups of 16 or 32 neighbours in a row, so nothing but the last
float rounding is lost. GGML's layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlace.models import StoredTensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A matrix in groups. `quants` [rows, groups, group] is uint8 or int8, `bits` are how many of each count;
    `scales`, and `zeros` where there are any, are [rows, groups, 1] float32."""

    quants: Array
    scales: Array
    zeros: Array | None
    bits: int

    @property
    def kept(self) -> str:
        """What the runtime calls it."""
        return f"{'i' if self.quants.dtype == np.int8 else 'u'}{self.bits}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.quants.shape[0], self.quants.shape[1] * self.quants.shape[2]

    def values(self) -> Array:
        """The matrix [rows, columns], float32."""
        centred = self.quants if self.zeros is None else self.quants - self.zeros
        return (centred * self.scales).reshape(self.shape)

    def like(self, other: Grouped) -> bool:
        """Whether the rows of both can lie in one."""
        return (self.quants.dtype, self.bits, self.quants.shape[1:], self.zeros is None) == (
            other.quants.dtype, other.bits, other.quants.shape[1:], other.zeros is None
        )  # fmt: skip

    def taken(self, rows: Array | None) -> Grouped:
        """The same with its rows re-ordered by `rows`."""
        if rows is None:
            return self
        zeros = None if self.zeros is None else self.zeros[rows]
        return Grouped(self.quants[rows], self.scales[rows], zeros, self.bits)


def grouped(stored: StoredTensor) -> Grouped:
    """The matrix in groups, for a kind in `GROUPED_KINDS`."""
    block_bytes, split = _KINDS[stored.kind]
    rows = stored.shape[0]
    part = split(stored.data.reshape(-1, block_bytes))

    def shaped(values: Array) -> Array:
        return np.ascontiguousarray(values.reshape(rows, -1, values.shape[-1]))

    return Grouped(
        shaped(part.quants), shaped(part.scales), None if part.zeros is None else shaped(part.zeros), part.bits
    )


def stacked(parts: Sequence[Grouped]) -> Grouped:
    """The rows of all, which are alike (`like`), one below the other."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Grouped(
        np.concatenate([part.quants for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        parts[0].bits,
    )


# --- one function a kind: blocks [n, bytes of one] → groups [n, groups, ...] ---------------------------------------


def _q4_0(blocks: Array) -> Grouped:
    scales = _half(blocks, 0)[:, None]
    return Grouped(_nibbles(blocks[:, 2:], 16), scales, np.full_like(scales, 8), 4)


def _q4_1(blocks: Array) -> Grouped:
    return _above_minimum(_nibbles(blocks[:, 4:], 16), _half(blocks, 0)[:, None], _half(blocks, 2)[:, None], 4)


def _q5_0(blocks: Array) -> Grouped:
    fifth = np.unpackbits(blocks[:, None, 2:6], axis=-1, bitorder="little")
    quants = (_nibbles(blocks[:, 6:], 16) | fifth << 4).astype(np.int8) - np.int8(16)
    return Grouped(quants, _half(blocks, 0)[:, None], None, 8)


def _q5_1(blocks: Array) -> Grouped:
    fifth = np.unpackbits(blocks[:, None, 4:8], axis=-1, bitorder="little")
    quants = _nibbles(blocks[:, 8:], 16) | fifth << 4
    return _above_minimum(quants, _half(blocks, 0)[:, None], _half(blocks, 2)[:, None], 8)


def _q8_0(blocks: Array) -> Grouped:
    return Grouped(blocks[:, None, 2:].view(np.int8), _half(blocks, 0)[:, None], None, 8)


def _q2_k(blocks: Array) -> Grouped:
    quants = _shifted(blocks[:, 16:80], 32, (0, 2, 4, 6), 3).reshape(len(blocks), 16, 16)
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minima = -_half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    return _above_minimum(quants, scales[..., None], minima[..., None], 4)


def _q3_k(blocks: Array) -> Grouped:
    low = _shifted(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).reshape(len(blocks), 16, 16)
    third = _shifted(blocks[:, :32], 32, range(8), 1).reshape(len(blocks), 16, 16)
    packed = blocks[:, 96:108]
    scales = _shifted(packed[:, :8], 8, (0, 4), 15).reshape(len(blocks), 16)
    scales = scales | _shifted(packed[:, 8:], 4, (0, 2, 4, 6), 3).reshape(len(blocks), 16) << 4
    wide = (_half(blocks, 108) * (scales.astype(np.float32) - 32))[..., None]
    return Grouped(low | third << 2, wide, np.full_like(wide, 4), 4)


def _q4_k(blocks: Array) -> Grouped:
    return _above_minimum(_nibbles(blocks[:, 16:], 32), *_six_bit_scales(blocks), 4)


def _q5_k(blocks: Array) -> Grouped:
    fifth = _shifted(blocks[:, 16:48], 32, range(8), 1).reshape(len(blocks), 8, 32)
    return _above_minimum(_nibbles(blocks[:, 48:], 32) | fifth << 4, *_six_bit_scales(blocks), 8)


def _q6_k(blocks: Array) -> Grouped:
    low = _shifted(blocks[:, :128], 64, (0, 4), 15).reshape(len(blocks), 16, 16)
    high = _shifted(blocks[:, 128:192], 32, (0, 2, 4, 6), 3).reshape(len(blocks), 16, 16)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return Grouped((low | high << 4).astype(np.int8) - np.int8(32), scales[..., None], None, 8)


_KINDS: Mapping[str, tuple[int, Callable[[Array], Grouped]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
GROUPED_KINDS = frozenset(_KINDS)


def _half(blocks: Array, at: int) -> Array:
    """The half-precision number at that byte of each block, [n, 1] float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Array, run: int) -> Array:
    """Bytes whose low halves are `run` elements and whose high halves the next `run`: [n, groups, 32] uint8."""
    return _shifted(packed, run, (0, 4), 15).reshape(len(packed), -1, 32)


def _shifted(packed: Array, run: int, shifts: Any, mask: int) -> Array:
    """The bits under `mask` of each run of bytes, once for each shift: [n, runs, shifts, run] uint8."""
    wide = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, run)
    parts: Array = (wide >> np.array(list(shifts), np.uint8)[:, None]) & np.uint8(mask)
    return parts


def _six_bit_scales(blocks: Array) -> tuple[Array, Array]:
    """Scales and minima [n, 8, 1] of Q4_K and Q5_K: six bits each, in twelve bytes after two half-precision factors."""
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 2) & 48], axis=1)
    minima = np.concatenate([second & 63, (last >> 4) | (second >> 2) & 48], axis=1)
    return (
        (_half(blocks, 0) * scales.astype(np.float32))[..., None],
        (-_half(blocks, 2) * minima.astype(np.float32))[..., None],
    )


def _above_minimum(quants: Array, scales: Array, minima: Array, bits: int) -> Grouped:
    """`quant * scale + minimum` as a scale and a float zero point `-minimum / scale`."""
    flat = scales == 0  # all elements equal the minimum: (0 - zero) * 1 with zero = -minimum
    safe = np.where(flat, np.float32(1), scales)
    return Grouped(np.where(flat, np.uint8(0), quants), safe, -minima / safe, bits)
