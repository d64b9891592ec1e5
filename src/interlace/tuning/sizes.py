"""How large a model is, and how much of it a way of training learns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from interlace.models import Architecture, DecoderArchitecture, expected_shapes

ALL_LINEAR = "all-linear"
_LAYER = re.compile(r"\.(?:layers?|h|blocks)\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor → its shape, as `models.expected_shapes` gives it."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of parameters, shared ones once. `largest_layer`: of the largest single module. The dimensions of the
    activations are 0 where nobody knows them; then memory is told without activations."""

    parameters: int
    largest_layer: int
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    vocabulary: int = 0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is trained of a model: `trained` parameters, `added` of them beside the model's own (an adapter's).
    `passed`: parameters of the model, trained ones included, that gradients run through on their way back."""

    method: str
    trained: int
    added: int
    passed: int


def size_of(architecture: Architecture) -> ModelSize:
    """The size of a checkpoint, from its configuration alone."""
    shapes = expected_shapes(architecture)
    counts = [math.prod(shape) for shape in shapes.values()]
    return ModelSize(
        sum(counts),
        max(counts),
        architecture.layers,
        architecture.hidden,
        architecture.heads,
        architecture.vocabulary if isinstance(architecture, DecoderArchitecture) else 0,
    )


def full(size: ModelSize) -> Learnt:
    """All parameters are trained."""
    return Learnt("full", size.parameters, 0, size.parameters)


def lora(size: ModelSize, shapes: Shapes, rank: int, targets: Iterable[str] | str = ALL_LINEAR) -> Learnt:
    """A LoRA adapter: beside each matrix of the layers that ends with one of `targets` (such as `q_proj`), one of
    `rank` × inputs and one of outputs × `rank`. Raises `ValueError` where the targets match nothing."""
    names = None if targets == ALL_LINEAR else {targets} if isinstance(targets, str) else set(targets)
    matched = [
        shape
        for name, shape in shapes.items()
        if len(shape) == 2
        and _LAYER.search(f".{name}")
        and (names is None or name.removesuffix(".weight").rpartition(".")[2] in names)
    ]
    if not matched:
        raise ValueError(f"no matrix of the layers is called {', '.join(sorted(names or {ALL_LINEAR}))}")
    added = sum(rank * (rows + columns) for rows, columns in matched)
    return Learnt("lora", added, added, size.parameters)


def blocks(size: ModelSize, shapes: Shapes, first: int, last: int, *, head: bool = False) -> Learnt:
    """A private slice: the layers `first` to `last` (counted from 0, both included); with `head`, the final norm and
    the head as well, which is counted as a matrix of its own where it was tied to the embeddings."""
    layers = {name: found[1] for name in shapes if (found := _LAYER.search(f".{name}"))}
    trained = sum(math.prod(shapes[name]) for name, number in layers.items() if first <= int(number) <= last)
    above = sum(math.prod(shapes[name]) for name, number in layers.items() if int(number) > last)
    after = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if name.endswith(("norm.weight", "norm.bias")) and name not in layers
    )
    matrix = size.vocabulary * size.hidden
    untied = head and not any("head" in name for name in shapes)
    learnt = trained + (matrix + after if head else 0)
    own = 0 if untied else matrix  # an untied head is passed in place of the embeddings, and counted as added
    return Learnt("blocks", learnt, matrix if untied else 0, trained + above + own + after)
