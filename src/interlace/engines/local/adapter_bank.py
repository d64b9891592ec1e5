"""Adapters of a batch, stacked for the graph: re-stacked only where the batch changes, a slot at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import Type

from interlace.engines.local.constants import Array

_WIDE_STEPS = 16  # how long a stack may be wider than its adapters before it is made anew
_ALIGN = 16  # elements: where in the buffer a matrix may begin


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter. `serial` is never used twice, whatever its name; `layers` holds (down, up) of each layer it
    changes: float32, or bfloat16 as uint16 and `up` transposed; `ranks` their rank. `head`, [vocabulary, hidden]
    float32, takes the place of the base's output layer. For the compiled operation (`fused.py`) the layers lie in
    `memory` instead, and `entries` says where."""

    name: str
    serial: int
    layers: Mapping[str, tuple[Array, Array]]
    ranks: Mapping[str, int]
    bytes: int
    head: Array | None = None
    entries: Array | None = None
    memory: Array | None = None


class Bank:
    """Stacks the adapters of one batch. `shapes`: the graph's layers, (outputs, inputs) of each."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dtype: Type) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._numpy: type[np.generic] = np.float32 if dtype == Type.f32 else np.uint16
        self._slots: list[int] = []  # serial of the adapter in each, also of one that is not wanted any more; -1: none
        self._ranks: dict[str, int] = dict.fromkeys(shapes, 0)
        self._stacks: dict[str, tuple[Array, Array]] = {}
        self._order: list[int] = []
        self._narrower = False
        self._wide_steps = 0
        self.copied = 0  # slots written so far
        self.generation = 0  # grows whenever `tensors` gives others than before

    def arrange(self, adapters: Sequence[Adapter]) -> list[int]:
        """Stack these, one as often as it is there; returns their serials in the order they lie. `tensors` are theirs
        until the next call. What lies already where it may is not copied."""
        wanted = Counter(adapter.serial for adapter in adapters)
        self._wide_steps = self._wide_steps + 1 if self._narrower else 0
        if wanted == Counter(self._order) and self._wide_steps < _WIDE_STEPS:
            return self._order
        ranks = {layer: max(adapter.ranks.get(layer, 0) for adapter in adapters) for layer in self._shapes}
        grown = any(rank > self._ranks[layer] for layer, rank in ranks.items())
        if grown or len(adapters) > len(self._slots) or self._wide_steps >= _WIDE_STEPS:
            self._allocate(len(adapters), ranks)
        self._narrower = ranks != self._ranks
        self._fill(adapters, wanted)
        self._order = self._slots[: len(adapters)]
        self.generation += 1
        return self._order

    def tensors(self) -> dict[str, ov.Tensor]:
        """The graph's inputs for the adapters last arranged; they share the bank's memory."""
        count = len(self._order)
        made = {}
        for layer, (down, up) in self._stacks.items():
            made[f"{layer}.down"] = tensor(down[:count], self._dtype)
            made[f"{layer}.up"] = tensor(up[:count], self._dtype)
        return made

    def _allocate(self, count: int, ranks: Mapping[str, int]) -> None:
        """Room for `count` adapters of those ranks, and some more, in one piece: large pages need it."""
        capacity = 1 << (count - 1).bit_length()
        sizes = [
            -(-capacity * ranks[layer] * width // _ALIGN) * _ALIGN
            for layer, shape in self._shapes.items()
            for width in reversed(shape)
        ]
        buffer = np.empty(sum(sizes), self._numpy)
        begins = iter(np.cumsum([0, *sizes[:-1]]).tolist())
        for layer, (outputs, inputs) in self._shapes.items():
            rank = ranks[layer]
            down, up = (
                buffer[begin : begin + capacity * rank * width]
                for begin, width in ((next(begins), inputs), (next(begins), outputs))
            )
            wide = (outputs, rank) if self._dtype == Type.f32 else (rank, outputs)
            self._stacks[layer] = down.reshape(capacity, rank, inputs), up.reshape(capacity, *wide)
        self._ranks = dict(ranks)
        self._slots = [-1] * capacity
        self._wide_steps = 0

    def _fill(self, adapters: Sequence[Adapter], wanted: Counter[int]) -> None:
        """Let the first slots hold exactly the wanted ones."""
        missing = Counter(wanted)
        free = []
        for slot, serial in enumerate(self._slots[: len(adapters)]):
            if missing[serial] > 0:
                missing[serial] -= 1
            else:
                free.append(slot)
        for adapter in adapters:
            if missing[adapter.serial] > 0:
                missing[adapter.serial] -= 1
                self._write(free.pop(), adapter)

    def _write(self, slot: int, adapter: Adapter) -> None:
        for layer, (downs, ups) in self._stacks.items():
            down, up = downs[slot], ups[slot] if self._dtype == Type.f32 else ups[slot].T
            rank = adapter.ranks.get(layer, 0)
            if rank:
                down[:rank], own = adapter.layers[layer]
                up[:, :rank] = own if self._dtype == Type.f32 else own.T
            if rank < self._ranks[layer]:
                down[rank:] = 0
                up[:, rank:] = 0
        self._slots[slot] = adapter.serial
        self.copied += 1


def alone(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], dtype: Type) -> dict[str, ov.Tensor]:
    """The graph's inputs for one adapter alone: its own memory, not copied."""
    made = {}
    for layer, (outputs, inputs) in shapes.items():
        full = dtype == Type.f32
        kind = np.float32 if full else np.uint16
        nothing = np.empty((0, inputs), kind), np.empty((outputs, 0) if full else (0, outputs), kind)
        down, up = adapter.layers.get(layer, nothing)
        made[f"{layer}.down"] = tensor(down[None], dtype)
        made[f"{layer}.up"] = tensor(up[None], dtype)
    return made


def tensor(values: Array, dtype: Type) -> ov.Tensor:
    """A tensor that shares the memory of a contiguous array."""
    if dtype == Type.f32:
        return ov.Tensor(values, shared_memory=True)
    return ov.Tensor(values, ov.Shape(list(values.shape)), dtype)


def to_bf16(values: Array) -> Array:
    """float32 → bfloat16 as uint16, to the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
