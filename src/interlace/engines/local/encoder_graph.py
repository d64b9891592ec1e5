"""The graph of a BERT or RoBERTa encoder with pooling or a head, built by hand from its weights (Devlin et al., 2018).

Inputs, for B texts padded to T tokens:

| input | shape | meaning |
|---|---|---|
| input_ids | [B, T] i64 | token ids; what stands in padding does not matter |
| mask | [B, T] f32 | 1 for a token, 0 for padding; every text has at least one token |
| types | [B, T] i64 | 0 for a token of the first text of a pair, 1 for one of the second; only of a model with a head |

Output, f32, one row a text: [B, hidden], pooled and normalised as the architecture says, or [B, labels] scores.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import PartialShape, Type
from openvino import opset13 as ops

from interlace.engines.local.nodes import activate, float32, integer, integers, layer_norm
from interlace.errors import CheckpointError
from interlace.models import EncoderArchitecture, Weights, expected_shapes, head_modules

_MASKED = np.float32(-1e9)  # added where nothing may be attended to, or taken as a maximum; -inf could make NaN
_NORM_MIN = np.float32(1e-12)  # as torch's `normalize`: a vector of zeros stays one


def build_encoder(architecture: EncoderArchitecture, weights: Weights) -> ov.Model:
    """The whole encoder as an uncompiled model; `CheckpointError` for a weight that is missing or misshapen."""
    ids = ops.parameter(PartialShape([-1, -1]), Type.i64, name="input_ids")
    mask = ops.parameter(PartialShape([-1, -1]), Type.f32, name="mask")
    inputs = [ids, mask]
    if architecture.labels:
        inputs.append(ops.parameter(PartialShape([-1, -1]), Type.i64, name="types"))
    build = _Builder(architecture, weights)
    columns = ops.unsqueeze(mask, integers(-1))  # [B, T, 1]
    hidden = build.embed(ids, inputs[2] if architecture.labels else None)
    # [B, 1, 1, T]: 0 for a token, a large negative number for padding.
    bias = ops.multiply(ops.subtract(ops.unsqueeze(mask, integers(1, 2)), np.float32(1)), -_MASKED)
    for layer in range(architecture.layers):
        hidden = build.layer(hidden, bias, f"encoder.layer.{layer}.")
    answer = build.head(hidden) if architecture.labels else _pooled(architecture, hidden, columns)
    return ov.Model([ops.result(answer)], inputs, architecture.family)


def _pooled(architecture: EncoderArchitecture, hidden: ov.Node, columns: ov.Node) -> ov.Node:
    """Pool [B, T, hidden] to [B, hidden], where `columns` [B, T, 1] masks; normalise where wanted."""
    match architecture.pooling:
        case "cls":
            pooled = ops.gather(hidden, integer(0), integer(1))
        case "max":
            lifted = ops.add(hidden, ops.multiply(ops.subtract(columns, np.float32(1)), -_MASKED))
            pooled = ops.reduce_max(lifted, integers(1))
        case "mean" | "mean_sqrt_len":
            lengths = ops.reduce_sum(columns, integers(1))
            divisor = lengths if architecture.pooling == "mean" else ops.sqrt(lengths)
            pooled = ops.divide(ops.reduce_sum(ops.multiply(hidden, columns), integers(1)), divisor)
    if not architecture.normalize:
        return pooled
    length = ops.sqrt(ops.reduce_sum(ops.multiply(pooled, pooled), integers(-1), keep_dims=True))
    return ops.divide(pooled, ops.maximum(length, _NORM_MIN))


class _Builder:
    """The parts of the encoder, by the names of their weights."""

    def __init__(self, architecture: EncoderArchitecture, weights: Weights) -> None:
        self._arch = architecture
        self._weights = weights
        self._shapes = weights.shapes()
        self._expected = expected_shapes(architecture)

    def _tensor(self, name: str) -> NDArray[np.float32]:
        """The weight `name`, which must have the shape that the architecture means."""
        if name in self._shapes and self._shapes[name] != self._expected[name]:
            raise CheckpointError(
                f"The tensor {name} has shape {list(self._shapes[name])}, but config.json means "
                f"{list(self._expected[name])}."
            )
        return self._weights.float32(name)

    def embed(self, ids: ov.Node, types: ov.Node | None) -> ov.Node:
        """Word, position and type embeddings, [B, T, hidden]. Without `types` all tokens are of type 0."""
        arch = self._arch
        words = self._tensor("embeddings.word_embeddings.weight")
        positions = self._tensor("embeddings.position_embeddings.weight")
        known = self._tensor("embeddings.token_type_embeddings.weight")
        typed = types is not None and arch.token_types > 1
        if not typed:
            positions = positions + known[0]
        tokens = ops.gather(ops.shape_of(ids, output_type="i64"), integer(1), integer(0))
        end = ops.add(tokens, integer(arch.first_position))
        places = ops.range(integer(arch.first_position), end, integer(1), output_type="i64")
        placed = ops.gather(ops.constant(positions), places, integer(0))
        embedded = ops.add(ops.gather(ops.constant(words), ids, integer(0)), placed)
        if typed:
            embedded = ops.add(embedded, ops.gather(ops.constant(known), types, integer(0)))
        return self.norm(embedded, "embeddings.LayerNorm")

    def layer(self, x: ov.Node, bias: ov.Node, prefix: str) -> ov.Node:
        """One block: self-attention, then the feed-forward network, each with residual and norm after it."""
        attended = self.attention(x, bias, prefix + "attention.self.")
        attended = self.linear(attended, prefix + "attention.output.dense")
        x = self.norm(ops.add(x, attended), prefix + "attention.output.LayerNorm")
        inner = activate(self.linear(x, prefix + "intermediate.dense"), self._arch.activation)
        return self.norm(ops.add(x, self.linear(inner, prefix + "output.dense")), prefix + "output.LayerNorm")

    def attention(self, x: ov.Node, bias: ov.Node, prefix: str) -> ov.Node:
        """Every token of a text attends to all of its tokens; `bias` [B, 1, 1, T] keeps padding out."""
        heads, size = self._arch.heads, self._arch.hidden // self._arch.heads

        def split(name: str) -> ov.Node:
            rows = self.linear(x, prefix + name)
            shaped = ops.reshape(rows, integers(0, 0, heads, size), special_zero=True)
            return ops.transpose(shaped, integers(0, 2, 1, 3))

        mixed = ops.scaled_dot_product_attention(
            split("query"), split("key"), split("value"), bias, float32(1 / sqrt(size))
        )
        joined = ops.transpose(mixed, integers(0, 2, 1, 3))
        return ops.reshape(joined, integers(0, 0, self._arch.hidden), special_zero=True)

    def head(self, hidden: ov.Node) -> ov.Node:
        """[B, labels]: two linear layers on the first token of each text, and what makes their numbers scores."""
        dense, last = head_modules(self._arch.family)
        first = ops.gather(hidden, integer(0), integer(1))
        numbers = self.linear(ops.tanh(self.linear(first, dense)), last)
        match self._arch.scores:
            case "softmax":
                return ops.softmax(numbers, axis=1)
            case "sigmoid":
                return ops.sigmoid(numbers)
        return numbers

    def linear(self, x: ov.Node, module: str) -> ov.Node:
        """`x @ W.T + b`."""
        weight = ops.constant(self._tensor(module + ".weight"))
        product = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
        return ops.add(product, ops.constant(self._tensor(module + ".bias")))

    def norm(self, x: ov.Node, module: str) -> ov.Node:
        """Layer normalisation over the last axis."""
        weight, bias = self._tensor(module + ".weight"), self._tensor(module + ".bias")
        return layer_norm(x, weight, bias, self._arch.norm_epsilon)
