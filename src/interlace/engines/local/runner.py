"""One compiled model and its paged cache: a batch of token runs in, logits out. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from interlace.engines.local.constants import Array, ConstantMaker, Precision, Report
from interlace.engines.local.graph import BLOCK, build_decoder
from interlace.errors import ConfigError
from interlace.models import DecoderArchitecture, open_weights

# Per precision: how the CPU plugin computes, how the cache is kept, and how activations are quantised (0: never).
_PROPERTIES: dict[Precision, dict[str, Any]] = {
    "file": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "f32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one sequence: `past` tokens are in the cache already, `blocks` holds them and these."""

    tokens: Rows[int]
    past: int
    blocks: Rows[int]


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
    ) -> None:
        with open_weights(path) as weights:
            make = ConstantMaker(weights, precision)
            model = build_decoder(architecture, make)
            properties = _PROPERTIES[precision] | {
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_NUM_THREADS": threads,
            }
            compiled = ov.Core().compile_model(model, "CPU", properties)
            self.report: Report = make.report
            self._buffers = make.buffers  # read, not copied, by the compiled model: they live as long as it does
        self._compiled = compiled  # an infer request does not keep its model alive
        self._request = compiled.create_infer_request()
        self._inputs: dict[str, Array] = {}
        self.cache_blocks = self._allocate_cache(cache_bytes)

    def _allocate_cache(self, cache_bytes: int) -> int:
        """Bind cache tensors of at most `cache_bytes` in all. Pages are touched only once a block is used."""
        caches = [port for port in self._compiled.inputs if "_cache." in port.get_any_name()]
        shapes = [[dim.get_length() for dim in list(port.partial_shape)[1:]] for port in caches]
        bytes_per_block = sum(
            int(np.prod(shape)) * port.element_type.bitwidth // 8 for port, shape in zip(caches, shapes, strict=True)
        )
        blocks: int = cache_bytes // bytes_per_block
        if blocks < 2:
            raise ConfigError(
                f"cache_bytes is {cache_bytes:,}, but this model keeps {BLOCK} tokens in {bytes_per_block:,} bytes: "
                f"give at least {2 * bytes_per_block:,}, better some hundred times as much."
            )
        for port, shape in zip(caches, shapes, strict=True):
            self._request.set_tensor(port, ov.Tensor(port.element_type, ov.Shape([blocks, *shape])))
        self.block_bytes = bytes_per_block
        return blocks

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """Compute all runs in one step; return logits [len(wanted), vocabulary] f32 for the `wanted` positions, which
        count through the runs' tokens laid end to end. The array is a view that the next call overwrites."""
        lengths = np.fromiter((len(run.tokens) for run in runs), np.int32, len(runs))
        past = np.fromiter((run.past for run in runs), np.int32, len(runs))
        totals = past + lengths
        used = (totals + BLOCK - 1) // BLOCK
        begins = _offsets(lengths)
        self._set("input_ids", np.concatenate([np.asarray(run.tokens, np.int64) for run in runs]))
        # The position of token j of a run is past + j: count through all tokens, then shift each run to its past.
        self._set("position_ids", np.arange(begins[-1], dtype=np.int64) + np.repeat(past - begins[:-1], lengths))
        self._set("past_lens", past)
        self._set("subsequence_begins", begins)
        self._set("block_indices_begins", _offsets(used))
        self._set(
            "block_indices",
            np.concatenate([np.asarray(run.blocks[:n], np.int32) for run, n in zip(runs, used.tolist(), strict=True)]),
        )
        self._set("max_context_len", np.array(totals.max(), np.int32))
        self._set("logits_idx", wanted.astype(np.int32))
        self._request.infer()  # releases the GIL
        logits: Array = self._request.get_output_tensor(0).data
        return logits

    def _set(self, name: str, values: Array) -> None:
        self._inputs[name] = values  # the tensor shares this memory
        self._request.set_tensor(name, ov.Tensor(values, shared_memory=True))


def _offsets(lengths: Array) -> Array:
    """[a, b, c] → [0, a, a + b, a + b + c] as int32."""
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
