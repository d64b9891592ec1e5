"""A model's graphs and its paged cache: a batch of token runs in, logits out. Knows nothing of requests.

A step in which no sequence has an adapter runs the plain graph. The graph with adapters is compiled once the first one
is loaded, beside the plain one and on the same cache: it costs the memory of the weights once more, and every layer an
adapter may change a few per cent of time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type

from interlace.engines.local.adapted import Adapted
from interlace.engines.local.adapter_bank import Adapter, to_bf16
from interlace.engines.local.adapter_graph import AdapterLayers, LinearLayers, kind_of
from interlace.engines.local.adapter_head import HEADS
from interlace.engines.local.compiled import Compiled, Run
from interlace.engines.local.constants import Array, ConstantMaker, Precision, Report
from interlace.engines.local.fused import Fused, FusedLayers, Rooms, fused_adapter
from interlace.engines.local.graph import BLOCK, Adapt, build_decoder
from interlace.errors import ConfigError
from interlace.models import DecoderArchitecture, Layers, open_weights

__all__ = ["Run", "Runner"]

# Per precision: how the CPU plugin computes, how the cache is kept, and how activations are quantised (0: never).
_PROPERTIES: dict[Precision, dict[str, Any]] = {
    "file": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "f32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
}


# Whose products are quick where their rows can be cut into equal blocks (`even`).
_UNEVEN: tuple[Precision, ...] = ("bf16", "int8")
_BLOCKS = range(8, 65)  # rows


def even(runs: Rows[Run], wanted: Array) -> tuple[Rows[Run], Array]:
    """The same step, with one row more where that makes it quicker; its logits are not among the `wanted`.

    The runtime cuts a product into equal blocks of at most 64 rows. For 71 there are none, and it takes a quarter more
    time than for 72 (decision 0010). The token more goes behind the last run whose last block has room for it, where
    the next token of that run will be written over it.
    """
    ends = np.cumsum([len(run.tokens) for run in runs])
    rows = int(ends[-1])
    if rows <= max(_BLOCKS) or any(rows % block == 0 for block in _BLOCKS):
        return runs, wanted
    for at in reversed(range(len(runs))):
        run = runs[at]
        if (run.past + len(run.tokens)) % BLOCK:
            longer = replace(run, tokens=[*run.tokens, 0])
            return [*runs[:at], longer, *runs[at + 1 :]], wanted + (wanted >= ends[at])
    return runs, wanted


def properties_of(precision: Precision, threads: int) -> dict[str, Any]:
    """What a graph is compiled with."""
    return _PROPERTIES[precision] | {
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_NUM_THREADS": threads,
    }


def allocate_cache(ports: Rows[Any], cache_bytes: int) -> tuple[dict[str, ov.Tensor], int, int]:
    """Cache tensors of at most `cache_bytes` in all for those inputs, bytes of a block, and how many there are. Pages
    are touched only once a block is used."""
    shapes = [[dim.get_length() for dim in list(port.partial_shape)[1:]] for port in ports]
    bytes_per_block = sum(
        int(np.prod(shape)) * port.element_type.bitwidth // 8 for port, shape in zip(ports, shapes, strict=True)
    )
    blocks: int = cache_bytes // bytes_per_block
    if blocks < 2:
        raise ConfigError(
            f"cache_bytes is {cache_bytes:,}, but this model keeps {BLOCK} tokens in {bytes_per_block:,} bytes: "
            f"give at least {2 * bytes_per_block:,}, better some hundred times as much."
        )
    cache = {
        port.get_any_name(): ov.Tensor(port.element_type, ov.Shape([blocks, *shape]))
        for port, shape in zip(ports, shapes, strict=True)
    }
    return cache, bytes_per_block, blocks


class Runner:
    """A compiled decoder with a cache of `cache_blocks` blocks of 32 tokens."""

    def __init__(
        self,
        path: Path,
        architecture: DecoderArchitecture,
        *,
        precision: Precision = "file",
        cache_bytes: int = 1 << 30,
        threads: int = 0,
        kernel: Path | None = None,
    ) -> None:
        """`kernel`: the compiled operation for adapters, where there is one (`kernel.py`)."""
        self._adapter_type = Type.bf16 if precision == "bf16" else Type.f32
        self._kernel = kernel
        self._path = path
        self._architecture = architecture
        self._precision = precision
        self._properties = properties_of(precision, threads)
        linears = LinearLayers()
        model, make = self._built(linears)
        self.linear_shapes: Mapping[str, tuple[int, int]] = MappingProxyType(linears.shapes)
        self.report: Report = make.report
        self._plain = Compiled(model, self._properties, make.buffers)
        self._adapted: Adapted | Fused | None = None
        self._columns = {layer: column for column, layer in enumerate(linears.shapes)}
        self._rooms = Rooms()
        self._compiling = threading.Lock()
        self.cache_blocks = self._allocate_cache(cache_bytes)

    def _built(self, adapt: Adapt, *, states: bool = False) -> tuple[ov.Model, ConstantMaker]:
        with open_weights(self._path) as weights:
            make = ConstantMaker(weights, self._precision)
            return build_decoder(self._architecture, make, adapt, states=states), make

    def _allocate_cache(self, cache_bytes: int) -> int:
        self._cache, self.block_bytes, blocks = allocate_cache(self._plain.cache_ports(), cache_bytes)
        self._bind_cache(self._plain)
        return blocks

    def _bind_cache(self, compiled: Compiled) -> None:
        for name, tensor in self._cache.items():
            compiled.bind(name, tensor)

    def adapter(self, name: str, serial: int, layers: Layers) -> Adapter:
        """An adapter for runs, from what was read. Where no graph can take it yet, one is compiled, which takes
        seconds; `forward` goes on meanwhile. From any thread; no two have the same `serial`."""
        self._take_adapters_in(layers)
        short = self._adapter_type == Type.bf16
        if self._kernel:
            return fused_adapter(name, serial, layers, self._columns, self._kernel, self._rooms, short=short)
        kept = {
            layer: (to_bf16(low.down), to_bf16(np.ascontiguousarray(low.up.T))) if short else (low.down, low.up)
            for layer, low in layers.items()
        }
        size = sum(down.nbytes + up.nbytes for down, up in kept.values())
        size += 0 if layers.head is None else layers.head.nbytes
        return Adapter(name, serial, kept, {layer: low.rank for layer, low in layers.items()}, size, layers.head)

    @property
    def head_shape(self) -> tuple[int, int]:
        """Of the output layer, (vocabulary, hidden)."""
        return self._architecture.vocabulary, self._architecture.hidden

    def takes(self, layers: Layers) -> bool:
        """Whether a graph that is there takes an adapter with those layers."""
        return self._adapted is not None and _kinds(layers) <= self._adapted.kinds

    def _take_adapters_in(self, layers: Layers) -> None:
        with self._compiling:
            if self.takes(layers):
                return
            present = self._adapted.kinds if self._adapted else frozenset()
            adapted = self._graph_with_adapters(_kinds(layers) | present)
            self._bind_cache(adapted.compiled)
            self._adapted = adapted

    def _graph_with_adapters(self, kinds: frozenset[str]) -> Adapted | Fused:
        cap = self._architecture.logit_cap
        if self._kernel:
            fused = FusedLayers(kinds, self._columns, self._kernel, self._adapter_type)
            model, make = self._built(fused, states=HEADS in kinds)
            return Fused(model, fused, self._properties, make.buffers, cap)
        stacked = AdapterLayers(kinds, self._adapter_type)
        model, make = self._built(stacked, states=HEADS in kinds)
        return Adapted(model, stacked, self._properties, make.buffers, cap)

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """Compute all runs in one step; return logits [len(wanted), vocabulary] f32 for the `wanted` positions, which
        count through the runs' tokens laid end to end, in rising order. The array may be a view that the next call
        overwrites. Adapters are `adapter`'s."""
        plain = all(run.adapter is None for run in runs)
        if self._precision in _UNEVEN and (plain or self._kernel):  # stacked, a row more may take a pass of its own
            runs, wanted = even(runs, wanted)
        if plain:
            return self._plain.forward(runs, wanted)
        adapted = self._adapted
        assert adapted is not None
        return adapted.forward(runs, wanted)


def _kinds(layers: Layers) -> frozenset[str]:
    return frozenset(map(kind_of, layers)) | (frozenset() if layers.head is None else {HEADS})
