"""How large a model is, and how much of it a way of training learns."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from interlace.models import Architecture, DecoderArchitecture, expected_shapes

ALL_LINEAR = "all-linear"
_LAYER = re.compile(r"\.(?:layers?|h|blocks)\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor → its shape, as `models.expected_shapes` gives it."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of parameters, shared ones once. `largest_layer`: of the largest single module. `matrices`: of those that
    products are made with, the head among them, `head` its own where it shares the embeddings' weights. The dimensions
    of the activations are 0 where nobody knows them; then memory is told without activations."""

    parameters: int
    largest_layer: int
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    vocabulary: int = 0
    feed_forward: int = 0
    matrices: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is trained of a model: `trained` parameters, `added` of them beside the model's own (an adapter's).
    `passed`: parameters of the model, trained ones included, that gradients run through on their way back, and `layers`
    how many layers those are in (None: all)."""

    method: str
    trained: int
    added: int
    passed: int
    layers: int | None = None


def size_of(architecture: Architecture) -> ModelSize:
    """The size of a checkpoint, from its configuration alone."""
    shapes = expected_shapes(architecture)
    counts = [math.prod(shape) for shape in shapes.values()]
    inner = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and _LAYER.search(f".{name}"))
    vocabulary, tied = 0, False
    if isinstance(architecture, DecoderArchitecture):
        vocabulary, tied = architecture.vocabulary, architecture.tied_embeddings
    head = vocabulary * architecture.hidden
    return ModelSize(
        parameters=sum(counts),
        largest_layer=max(counts),
        layers=architecture.layers,
        hidden=architecture.hidden,
        heads=architecture.heads,
        vocabulary=vocabulary,
        feed_forward=architecture.feed_forward,
        matrices=inner + head,
        head=head if tied else 0,
    )


def full(size: ModelSize) -> Learnt:
    """All parameters are trained."""
    return Learnt("full", size.parameters, 0, size.parameters)


def lora(size: ModelSize, shapes: Shapes, rank: int, targets: Iterable[str] | str = ALL_LINEAR) -> Learnt:
    """A LoRA adapter: beside each matrix of the layers that ends with one of `targets` (such as `q_proj`), one of
    `rank` × inputs and one of outputs × `rank`. Raises `ValueError` where a target matches nothing."""
    names = [] if targets == ALL_LINEAR else [targets] if isinstance(targets, str) else list(targets)
    there = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2 and _LAYER.search(f".{name}")
    }
    if unknown := unmatched(names, there):
        raise ValueError(no_such_layers(unknown, there))
    matched = [shape for name, shape in there.items() if not names or any(_ends(name, each) for each in names)]
    added = sum(rank * (rows + columns) for rows, columns in matched)
    return Learnt("lora", added, added, size.parameters)


def unmatched(targets: Iterable[str], layers: Collection[str]) -> list[str]:
    """Those of an adapter's targets that none of the layers ends with: without a word, it would be learnt without
    them."""
    return [target for target in targets if not any(_ends(layer, target) for layer in layers)]


def no_such_layers(targets: Iterable[str], layers: Iterable[str]) -> str:
    """What is wrong with such targets, and what could be written."""
    kinds = sorted({layer.rpartition(".")[2] for layer in layers})
    return (
        f"{', '.join(targets)[:200]!r} names no layer of this base that can be changed. There are: "
        f"{', '.join(kinds)}. Write some of these with commas between, or {ALL_LINEAR}."
    )


def no_such_blocks(private: str, count: int) -> str:
    """What is wrong with a slice that a base of `count` blocks does not have."""
    return f"{private} are no blocks of this base, which has {count}. Write blocks:FIRST-LAST, from 0 to {count - 1}."


def _ends(layer: str, target: str) -> bool:
    return f".{layer}".endswith(f".{target}")


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
    passed = trained + above + own + after
    return Learnt("blocks", learnt, matrix if untied else 0, passed, size.layers - first)
