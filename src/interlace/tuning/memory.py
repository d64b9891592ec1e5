"""What a training takes of a device's memory: see `plan.py` for the words, and where the published part is from.

What `interlace tune` (`fused`) keeps of each layer for the way back was counted on a Llama; other families keep about
as much. The residual stream is in float32, read by two norms. Each matrix has its input, in bfloat16 a rounded one of
its own, in float32 the norm's. Attention keeps queries, what comes out, keys and values (for each head of the queries),
and a mask; a gated feed-forward four times its width. Where norms are learnt, what they made is kept as well. Besides
there are the scores of the head, at the places of answers alone while they are few.

On processors a quarter more was measured than all of that, and in whole runs in float32 a half: what a layer needs on
its way back, and holes that malloc leaves between what is kept and what is not.

A run also scores the base, before and after, whole and on one device, whatever the launcher shares out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from interlace.tuning.sizes import Learnt, ModelSize

Precision = Literal["mixed", "f32"]
Stage = Literal[0, 1, 2, 3]

STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
"""Of ZeRO: 0 keeps a whole copy on each device (plain data parallelism), 3 shares out everything."""
PROCESS_BYTES = 500 << 20
"""Of a training process on processors, beside what it learns: the interpreter, torch and the other libraries. On a GPU
none of that is in the device's memory."""
HEAD_BYTES = 1 << 30  # of the scores of a head, at most: beyond it, it works in tiles
TILE_TOKENS, _TILE_WORDS = 1024, 32768  # of such a head
_SCORED, _LEARNT = 14, 24  # bytes of each score in a tile, beside itself: without a way back, and with one
_HOLES, _HOLES_OF_FLOAT32 = 5 / 4, 3 / 2


@dataclass(frozen=True, slots=True)
class Job:
    """One training: `tokens` in all, epochs included; on each device `rows` of `row_tokens` tokens at a time.

    `mixed`: 16-bit copies of the weights are computed with, beside those in float32. `f32`: there is one copy, in
    float32; with `autocast`, a pass rounds to bfloat16 on the way."""

    tokens: int
    row_tokens: int = 0
    rows: int = 0
    devices: int = 1
    precision: Precision = "mixed"
    checkpointing: bool = False  # activations are computed twice instead of kept
    stage: Stage = 0  # how much the launcher shares out
    fused: bool = False  # attention keeps no scores, and the head works in tiles
    process_bytes: int = 0  # what a process takes of the device's memory before it has a model
    autocast: bool = False
    rounds: bool = False  # that once and for all, for the frozen matrices below an adapter
    mapped: bool = False  # weights are read where they lie, in a file whose pages stay
    answers: float = 1.0  # the share of the tokens whose loss is learnt
    dropout_bytes: int = 0  # that dropout keeps of each input of an adapter
    scored: bool = False  # before and after, whole, on one device
    on_processors: bool = False


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on each device: weights, gradients and the state of Adam; activations; and the process itself. Instead of
    the first two, `scoring_bytes` while a device has the whole model to score it."""

    stage: Stage
    states_bytes: int
    activations_bytes: int
    process_bytes: int = 0
    scoring_bytes: int = 0

    @property
    def bytes(self) -> int:
        """At the highest."""
        return max(self.states_bytes + self.activations_bytes, self.scoring_bytes) + self.process_bytes


def memory_of(size: ModelSize, learnt: Learnt, job: Job, stage: Stage) -> StageMemory:
    """What one device must hold."""
    frozen = size.parameters + learnt.added - learnt.trained
    trained, devices = learnt.trained, job.devices
    weight = 2 if job.precision == "mixed" else 4
    whole, shared = _bytes_per_trained(job.precision, stage)
    if stage == 3:
        gathered = size.largest_layer * (weight if frozen else 2 * weight)
        states = -(-(frozen * weight + trained * shared) // devices) + gathered
    else:
        states = frozen * weight + trained * whole + -(-trained * shared // devices)
    activations, scoring = _activations(size, learnt, job, weight), 0
    if job.scored:
        scratch = _scratch(size, job)
        activations, scoring = max(activations, scratch), 4 * (size.parameters + learnt.added) + scratch
    states += _rounding(size, learnt, job, stage)
    return StageMemory(stage, states, activations, job.process_bytes, scoring)


def _bytes_per_trained(precision: Precision, stage: Stage) -> tuple[int, int]:
    """Bytes of each trained parameter on every device, and those that are shared out."""
    if precision == "mixed":
        return ((20, 0), (4, 16), (4, 16), (0, 18))[stage]  # 2 + 2 in 16 bits, and 16 of weight, gradient and Adam
    return ((16, 0), (8, 8), (4, 12), (0, 16))[stage]  # weight, gradient, two of Adam


def _rounding(size: ModelSize, learnt: Learnt, job: Job, stage: Stage) -> int:
    """What rounding float32 weights on the way adds to them, or saves. Done once and for all, the pages of the file
    that they came from stay. Otherwise each pass rounds what gradients run through, and keeps it for the way back."""
    if not job.autocast:
        return 0
    if stage == 3:
        return 2 * size.largest_layer
    if job.rounds:
        return (2 if job.mapped else -2) * (size.matrices - size.head) + 2 * size.head
    return 2 * min(learnt.passed, size.matrices)


def _activations(size: ModelSize, learnt: Learnt, job: Job, weight: int) -> int:
    tokens = job.rows * job.row_tokens
    if not tokens or not size.hidden:
        return 0
    if job.fused:
        layers, number = size.layers if learnt.layers is None else learnt.layers, 2 if job.autocast else weight
        ours = tokens * _of_layer(size, learnt, job, number) * (layers + 1) + _head(size, job, number)
        twice = weight * size.head if learnt.method == "full" else 0  # gradients of head and embeddings, until added up
        holes = (_HOLES if job.autocast else _HOLES_OF_FLOAT32) if job.on_processors else 1
        return math.ceil(ours * holes) + twice
    of_layer = tokens * size.hidden * (34 + 5 * size.heads * job.row_tokens / size.hidden) * weight / 2
    kept = tokens * size.hidden * weight * size.layers + of_layer if job.checkpointing else of_layer * size.layers
    return math.ceil(kept + tokens * size.vocabulary * (weight + 4 + 4))


def _of_layer(size: ModelSize, learnt: Learnt, job: Job, number: int) -> int:
    """Bytes of each token in a layer of a run of ours; `number`: of one number."""
    hidden, inner = size.hidden, size.feed_forward or 4 * size.hidden
    inputs = 6 * hidden if number == 2 else 2 * hidden
    norms = 0 if learnt.method == "lora" else 8 * hidden
    attention = 4 * hidden + job.row_tokens
    return 8 * hidden + norms + number * (inputs + attention + 4 * inner) + job.dropout_bytes * (6 * hidden + inner)


def _head(size: ModelSize, job: Job, number: int) -> int:
    """The scores of the answers' places: in a pass's numbers, in float32, their logarithms, and gradients. Tiles, where
    they are too many or of several rows."""
    scores = math.ceil(job.row_tokens * job.answers) * size.vocabulary
    if job.rows == 1 and scores * 12 <= HEAD_BYTES:
        return scores * (16 if number == 2 else 12)
    return _tile(size, job.rows * job.row_tokens) * (number + (_LEARNT if job.on_processors else _SCORED))


def _scratch(size: ModelSize, job: Job) -> int:
    """What scoring takes at once, beside the weights: a tile of the head's scores."""
    return _tile(size, job.row_tokens) * ((2 if job.autocast or job.precision == "mixed" else 4) + _SCORED)


def _tile(size: ModelSize, tokens: int) -> int:
    return min(tokens, TILE_TOKENS) * min(size.vocabulary, _TILE_WORDS)
