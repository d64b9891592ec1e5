"""A compiled graph and its one infer request: token runs in, logits out. `runner.py` says which graph runs when."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.constants import Array
from interlace.engines.local.graph import BLOCK, FAR


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one sequence: `past` tokens are in the cache already, `blocks` holds them and these. All
    of a sequence is computed with the same `adapter`, and as one that is `far` beyond the model's border, or not."""

    tokens: Rows[int]
    past: int
    blocks: Rows[int]
    adapter: Adapter | None = None
    far: bool = False


class Compiled:
    """`model`, compiled for the processor. `buffers` is memory that it reads as long as it lives."""

    def __init__(self, model: ov.Model, properties: dict[str, Any], buffers: list[Any]) -> None:
        self._compiled = ov.Core().compile_model(model, "CPU", properties)
        self._buffers = buffers
        self._request = self._compiled.create_infer_request()  # does not keep its model alive
        self._inputs: dict[str, Any] = {}

    @property
    def input_names(self) -> frozenset[str]:
        """What the graph takes."""
        return frozenset(port.get_any_name() for port in self._compiled.inputs)

    def cache_ports(self) -> list[Any]:
        """The inputs that hold the cache, in order."""
        return [port for port in self._compiled.inputs if "_cache." in port.get_any_name()]

    def bind(self, name: str, tensor: ov.Tensor) -> None:
        """Let an input have that tensor, in place, until it is given another."""
        self._inputs[name] = tensor
        self._request.set_tensor(name, tensor)

    def set(self, name: str, values: Array) -> None:
        """Let an input have those values; their memory is shared."""
        self._inputs[name] = values
        self._request.set_tensor(name, ov.Tensor(values, shared_memory=True))

    def forward(self, runs: Rows[Run], wanted: Array) -> Array:
        """Compute all runs; return logits [len(wanted), vocabulary] f32 for the `wanted` positions, which count
        through the runs' tokens laid end to end. The array is a view that the next call overwrites."""
        self.set("input_ids", np.concatenate([np.asarray(run.tokens, np.int64) for run in runs]))
        for name, values in places(runs).items():
            self.set(name, values)
        self.set("logits_idx", wanted.astype(np.int32))
        return self.infer()

    def infer(self) -> Array:
        """Compute with the inputs as they were set; the output, a view that the next call overwrites."""
        self._request.infer()  # releases the GIL
        output: Array = self._request.get_output_tensor(0).data
        return output

    def states(self) -> Array:
        """What went into the head in the last `forward`, [len(wanted), hidden] f32: a view. Of graphs that give it."""
        states: Array = self._request.get_output_tensor(1).data
        return states


def places(runs: Rows[Run]) -> dict[str, Array]:
    """The inputs that say where the tokens of `runs` stand and where their cache lies. Of the tokens only their number
    is looked at."""
    lengths = np.fromiter((len(run.tokens) for run in runs), np.int32, len(runs))
    past = np.fromiter((run.past for run in runs), np.int32, len(runs))
    totals = past + lengths
    used = (totals + BLOCK - 1) // BLOCK
    begins = offsets(lengths)
    # The position of token j of a run is past + j: count through all tokens, then shift each run to its past.
    shift = past - begins[:-1] + FAR * np.fromiter((run.far for run in runs), np.int64, len(runs))
    indices = [np.asarray(run.blocks[:n], np.int32) for run, n in zip(runs, used.tolist(), strict=True)]
    return {
        "position_ids": np.arange(begins[-1], dtype=np.int64) + np.repeat(shift, lengths),
        "past_lens": past,
        "subsequence_begins": begins,
        "block_indices_begins": offsets(used),
        "block_indices": np.concatenate(indices),
        "max_context_len": np.array(totals.max(), np.int32),
    }


def offsets(lengths: Array) -> Array:
    """[a, b, c] → [0, a, a + b, a + b + c] as int32."""
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
