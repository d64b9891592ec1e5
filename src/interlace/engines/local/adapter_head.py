"""Adapters with an output layer of their own: outside the graph, over the states that went into the base's.

Few adapters have one, and it is as large as the base's own, so it is read where it lies: stacked beside others it would
be copied whenever the batch changes.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.compiled import Run, offsets
from interlace.engines.local.constants import Array

HEADS = "lm_head"  # stands among the kinds of layers that a graph takes adapters in: it gives states, too


def with_own_heads(logits: Array, states: Array, runs: Rows[Run], wanted: Array, cap: float) -> Array:
    """The logits [R, vocabulary], where those of rows whose adapter has a head are made by it from their `states`
    [R, hidden], bounded by `cap` (0: not) as the base's are."""
    begins = offsets(np.array([len(run.tokens) for run in runs]))
    run_of = np.searchsorted(begins, wanted, side="right") - 1
    logits = logits.copy()
    for adapter in dict.fromkeys(run.adapter for run in runs):
        if adapter is not None and adapter.head is not None:
            rows = np.flatnonzero(np.isin(run_of, _members(runs, adapter)))
            own = states[rows] @ adapter.head.T
            logits[rows] = np.tanh(own / np.float32(cap)) * np.float32(cap) if cap else own
    return logits


def _members(runs: Rows[Run], adapter: Adapter) -> list[int]:
    return [at for at, run in enumerate(runs) if run.adapter is adapter]
