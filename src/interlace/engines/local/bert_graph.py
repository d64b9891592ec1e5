"""The graph of a BERT-family encoder with pooling, built by hand from its weights (Devlin et al., 2018).

Inputs, for B texts padded to T tokens:

| input | shape | meaning |
|---|---|---|
| input_ids | [B, T] i64 | token ids; what stands in padding does not matter |
| mask | [B, T] f32 | 1 for a token, 0 for padding; every text has at least one token |

Output: [B, hidden] f32, one vector a text, pooled and normalised as the architecture says.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import PartialShape, Type
from openvino import opset15 as ops

from interlace.errors import CheckpointError
from interlace.models import BertArchitecture, Weights

_MASKED = np.float32(-1e9)  # added where nothing may be attended to, or taken as a maximum; -inf could make NaN
_NORM_MIN = np.float32(1e-12)  # as torch's `normalize`: a vector of zeros stays one


def build_bert(architecture: BertArchitecture, weights: Weights) -> ov.Model:
    """The whole encoder as an uncompiled model; `CheckpointError` for a weight that is missing or misshapen."""
    ids = ops.parameter(PartialShape([-1, -1]), Type.i64, name="input_ids")
    mask = ops.parameter(PartialShape([-1, -1]), Type.f32, name="mask")
    build = _Builder(architecture, weights)
    columns = ops.unsqueeze(mask, _axes(-1))  # [B, T, 1]
    hidden = build.embed(ids)
    # [B, 1, 1, T]: 0 for a token, a large negative number for padding.
    bias = ops.multiply(ops.subtract(ops.unsqueeze(mask, _axes(1, 2)), np.float32(1)), -_MASKED)
    for layer in range(architecture.layers):
        hidden = build.layer(hidden, bias, f"encoder.layer.{layer}.")
    return ov.Model([ops.result(_finish(architecture, hidden, columns))], [ids, mask], "bert")


def _finish(architecture: BertArchitecture, hidden: ov.Node, columns: ov.Node) -> ov.Node:
    """Pool [B, T, hidden] to [B, hidden], where `columns` [B, T, 1] masks; normalise where wanted."""
    match architecture.pooling:
        case "cls":
            pooled = ops.gather(hidden, _integer(0), _integer(1))
        case "max":
            lifted = ops.add(hidden, ops.multiply(ops.subtract(columns, np.float32(1)), -_MASKED))
            pooled = ops.reduce_max(lifted, _axes(1))
        case "mean" | "mean_sqrt_len":
            lengths = ops.reduce_sum(columns, _axes(1))
            divisor = lengths if architecture.pooling == "mean" else ops.sqrt(lengths)
            pooled = ops.divide(ops.reduce_sum(ops.multiply(hidden, columns), _axes(1)), divisor)
    if not architecture.normalize:
        return pooled
    length = ops.sqrt(ops.reduce_sum(ops.multiply(pooled, pooled), _axes(-1), keep_dims=True))
    return ops.divide(pooled, ops.maximum(length, _NORM_MIN))


class _Builder:
    """The parts of the encoder, by the names of their weights."""

    def __init__(self, architecture: BertArchitecture, weights: Weights) -> None:
        self._arch = architecture
        self._weights = weights
        self._shapes = weights.shapes()

    def _tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The weight `name`, which must have that shape."""
        if name in self._shapes and self._shapes[name] != shape:
            raise CheckpointError(
                f"The tensor {name} has shape {list(self._shapes[name])}, but config.json means {list(shape)}."
            )
        return self._weights.float32(name)

    def embed(self, ids: ov.Node) -> ov.Node:
        """Word, position and type embeddings, [B, T, hidden]. All tokens are of type 0, folded into the positions."""
        arch = self._arch
        words = self._tensor("embeddings.word_embeddings.weight", arch.vocabulary, arch.hidden)
        positions = self._tensor("embeddings.position_embeddings.weight", arch.positions, arch.hidden)
        types = self._tensor("embeddings.token_type_embeddings.weight", arch.token_types, arch.hidden)
        tokens = ops.gather(ops.shape_of(ids, output_type="i64"), _integer(1), _integer(0))
        places = ops.range(_integer(0), tokens, _integer(1), output_type="i64")
        placed = ops.gather(ops.constant(positions + types[0]), places, _integer(0))
        embedded = ops.add(ops.gather(ops.constant(words), ids, _integer(0)), placed)
        return self.norm(embedded, "embeddings.LayerNorm")

    def layer(self, x: ov.Node, bias: ov.Node, prefix: str) -> ov.Node:
        """One block: self-attention, then the feed-forward network, each with residual and norm after it."""
        arch = self._arch
        attended = self.attention(x, bias, prefix + "attention.self.")
        attended = self.linear(attended, prefix + "attention.output.dense", arch.hidden, arch.hidden)
        x = self.norm(ops.add(x, attended), prefix + "attention.output.LayerNorm")
        inner = self.activate(self.linear(x, prefix + "intermediate.dense", arch.hidden, arch.feed_forward))
        outer = self.linear(inner, prefix + "output.dense", arch.feed_forward, arch.hidden)
        return self.norm(ops.add(x, outer), prefix + "output.LayerNorm")

    def attention(self, x: ov.Node, bias: ov.Node, prefix: str) -> ov.Node:
        """Every token of a text attends to all of its tokens; `bias` [B, 1, 1, T] keeps padding out."""
        heads, size = self._arch.heads, self._arch.hidden // self._arch.heads

        def split(name: str) -> ov.Node:
            rows = self.linear(x, prefix + name, self._arch.hidden, self._arch.hidden)
            return ops.transpose(ops.reshape(rows, _axes(0, 0, heads, size), special_zero=True), _axes(0, 2, 1, 3))

        scale = ops.constant(np.float32(1 / sqrt(size)))
        mixed = ops.scaled_dot_product_attention(split("query"), split("key"), split("value"), bias, scale)
        joined = ops.transpose(mixed, _axes(0, 2, 1, 3))
        return ops.reshape(joined, _axes(0, 0, self._arch.hidden), special_zero=True)

    def activate(self, x: ov.Node) -> ov.Node:
        """The activation that the config names: exact gelu (by erf), its tanh approximation, or relu."""
        match self._arch.activation:
            case "gelu":
                return ops.gelu(x, "erf")
            case "gelu_new" | "gelu_pytorch_tanh":
                return ops.gelu(x, "tanh")
            case "relu":
                return ops.relu(x)
        raise CheckpointError(f"config.json: this engine has no activation {self._arch.activation!r}.")

    def linear(self, x: ov.Node, name: str, columns: int, rows: int) -> ov.Node:
        """`x @ W.T + b`, W of shape [rows, columns]."""
        weight = ops.constant(self._tensor(name + ".weight", rows, columns))
        product = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
        return ops.add(product, ops.constant(self._tensor(name + ".bias", rows)))

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        """Layer normalisation (Ba et al., 2016) over the last axis."""
        spread = ops.mvn(x, _axes(-1), normalize_variance=True, eps=self._arch.norm_epsilon, eps_mode="inside_sqrt")
        scaled = ops.multiply(spread, ops.constant(self._tensor(name + ".weight", self._arch.hidden)))
        return ops.add(scaled, ops.constant(self._tensor(name + ".bias", self._arch.hidden)))


def _axes(*values: int) -> ov.Node:
    return ops.constant(np.array(values, dtype=np.int64))


def _integer(value: int) -> ov.Node:
    return ops.constant(np.int64(value))
