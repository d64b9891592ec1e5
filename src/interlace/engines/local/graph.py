"""The graph of a decoder with paged attention, built by hand from its weights: one builder for all families.

What sets a family apart is data: the parts it has and their names (`models/families.py`), and the settings of
`DecoderArchitecture`. Inputs, for a step over T tokens of S sequences (a sequence brings one token when it decodes,
many when it prefills):

| input | shape | meaning |
|---|---|---|
| input_ids, position_ids | [T] i64 | tokens of all sequences, one after another, and their positions (+ `FAR`) |
| past_lens | [S] i32 | tokens of each sequence already in the cache |
| subsequence_begins | [S + 1] i32 | where each sequence starts in `input_ids` |
| block_indices, block_indices_begins | [N], [S + 1] i32 | cache blocks of each sequence, one after another |
| max_context_len | [] i32 | the longest sequence, cached and new tokens together |
| logits_idx | [R] i32 | positions in `input_ids` whose logits are wanted |
| key_cache.i, value_cache.i | [blocks, kv_heads, 32, head_dim] | the cache of layer i, owned by the caller |

Output `logits`: [R, vocabulary] f32; `states`, where they are asked for: what goes into the head, [R, hidden] f32.
The layout [T, heads, 1, head_dim] is the one in which the runtime was seen to fuse rotary embedding, norms and linear
layers.

A part of a decoder (`Span`) takes `hidden_in` [T, hidden] f32 in place of `input_ids`, or gives `hidden` [T, hidden]
f32 in place of `logits`, and has the inputs that its layers need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import PartialShape, Type
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension as PagedAttention  # private: the version is pinned, a test guards it

from interlace.engines.local.capped import capped_attention
from interlace.engines.local.constants import Array, ConstantMaker
from interlace.engines.local.nodes import (
    activate,
    empty,
    float32,
    int32,
    integer,
    integers,
    layer_norm,
    rms_norm,
    slice_last,
    split_last,
)
from interlace.models import DecoderArchitecture, Rope

BLOCK = 32  # tokens in one cache block: what the runtime's CPU kernel is built for
FAR = 1 << 30  # added to the positions of a sequence beyond the border of its model's rotary positions (LongRoPE)


Adapt = Callable[[Callable[[str, list[int], Type], ov.Node], ov.Node, list[ov.Node], list[str]], list[ov.Node]]
"""(input, x, ys, names) → what becomes of `ys`, the linear layers `names` of `x`; `input` makes inputs of the model."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a decoder. It takes the hidden states in front of layer `begin` (None: tokens), and gives those in
    front of layer `end`, which after the last one is the number of layers (None: logits)."""

    begin: int | None = None
    end: int | None = None


WHOLE = Span()


def build_decoder(
    architecture: DecoderArchitecture,
    make: ConstantMaker,
    adapt: Adapt | None = None,
    span: Span = WHOLE,
    *,
    states: bool = False,
) -> ov.Model:
    """The decoder, or that part of it, uncompiled; see the module's docstring for its inputs and outputs."""
    build = _Builder(architecture, make, adapt)
    x = build.embedding() if span.begin is None else build.input("hidden_in", [-1, architecture.hidden], Type.f32)
    for layer in range(span.begin or 0, architecture.layers if span.end is None else span.end):
        x = build.attention(x, layer)
        x = build.feed_forward(x, layer)
    names = ["hidden"]
    results = [x]
    if span.end is None:
        x = ops.gather(x, build.input("logits_idx", [-1], Type.i32), integer(0))
        normed = build.norm(x, architecture.name("final_norm"))
        results, names = [build.head(normed), normed], ["logits", "states"]
    outputs = [ops.result(node) for node in results[: 2 if states else 1]]
    for output, name in zip(outputs, names, strict=False):
        output.get_output_tensor(0).set_names({name})
    return ov.Model(outputs, list(build.inputs.values()), architecture.family)


@dataclass
class _Builder:
    arch: DecoderArchitecture
    make: ConstantMaker
    adapt: Adapt | None = None
    inputs: dict[str, ov.Node] = field(default_factory=dict)
    rotary: dict[Rope, tuple[ov.Node, ov.Node]] = field(default_factory=dict)

    def input(self, name: str, shape: list[int], dtype: Type) -> ov.Node:
        """The model input of that name, made on first use."""
        if name not in self.inputs:
            node = ops.parameter(PartialShape(shape), dtype=dtype, name=name)
            node.get_output_tensor(0).set_names({name})
            self.inputs[name] = node
        return self.inputs[name]

    def embedding(self) -> ov.Node:
        """What goes into the first layer, [T, hidden]."""
        arch = self.arch
        x = self.make.table(arch.name("embed") + ".weight")(self.input("input_ids", [-1], Type.i64))
        if arch.embedding_scale != 1:
            x = ops.multiply(x, float32(arch.embedding_scale))
        if arch.has("positions"):
            learned = self.make.table(arch.name("positions") + ".weight")
            x = ops.add(x, learned(self.input("position_ids", [-1], Type.i64)))
        return x

    def head(self, x: ov.Node) -> ov.Node:
        """Logits [R, vocabulary] f32 of normed states [R, hidden]."""
        arch = self.arch
        logits = self._product(x, arch.name("embed" if arch.tied_embeddings else "head") + ".weight")
        if arch.logit_cap:
            cap = float32(arch.logit_cap)
            logits = ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)
        return ops.convert(logits, "f32") if logits.get_element_type() != Type.f32 else logits

    def norm(self, x: ov.Node, module: str) -> ov.Node:
        """The family's norm over the last axis, with the weights of `module`."""
        arch, weight = self.arch, self.make.vector(module + ".weight")
        if arch.norm == "layer":
            return layer_norm(x, weight, self.make.vector(module + ".bias"), arch.norm_epsilon)
        return rms_norm(x, weight + np.float32(arch.norm_offset), arch.norm_epsilon)

    def linear(self, x: ov.Node, *names: str) -> list[ov.Node]:
        """The linear layers of the weights `names` on one x [T, in], and what adapters make of them; every one but the
        head comes through here. Without `.weight` a name is the module's path as PEFT knows it, so an adapter
        of `qkv_proj`, `gate_up_proj` (Phi-3) or `c_attn` (GPT-2) is one of the whole fused module."""
        return self._adapted(x, self._products(x, list(names), [None] * len(names)), list(names))

    def _adapted(self, x: ov.Node, ys: list[ov.Node], names: list[str]) -> list[ov.Node]:
        return ys if self.adapt is None else self.adapt(self.input, x, ys, names)

    def _product(self, x: ov.Node, name: str) -> ov.Node:
        """`x @ W.T` for the weight `name`, and its bias where the checkpoint has one."""
        (y,) = self._products(x, [name], [None])
        return y

    def _products(self, x: ov.Node, names: list[str], orders: list[Array | None]) -> list[ov.Node]:
        """`_product` for each name, its rows re-ordered; computed together where the weights are kept alike."""
        biases = [self._bias(name, rows) for name, rows in zip(names, orders, strict=True)]
        nodes = self.make.matrices(names, orders)
        if len(nodes) == len(names):
            return [self._linear(x, weight, bias) for weight, bias in zip(nodes, biases, strict=True)]
        widths = [self.make.weights.shapes()[name][0] for name in names]
        filled = [
            np.zeros(width, np.float32) if bias is None else bias for bias, width in zip(biases, widths, strict=True)
        ]
        whole = None if all(bias is None for bias in biases) else np.concatenate(filled)
        return split_last(self._linear(x, nodes[0], whole), widths)

    def _linear(self, x: ov.Node, weight: ov.Node, bias: Array | None) -> ov.Node:
        y = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
        return y if bias is None else ops.add(y, ops.constant(bias[None]))

    def _bias(self, name: str, rows: Array | None) -> Array | None:
        bias = name.removesuffix("weight") + "bias"
        if bias not in self.make.weights.shapes():
            return None
        values = self.make.vector(bias)
        return values if rows is None else values[rows]

    def attention(self, x: ov.Node, layer: int) -> ov.Node:
        """Grouped-query attention over the paged cache, with its residual."""
        arch = self.arch
        q, k, v = self._projected(self.norm(x, arch.name("attn_norm", layer)), layer)
        q = self._placed(q, arch.heads, "q_norm", layer)
        k = self._placed(k, arch.kv_heads, "k_norm", layer)
        attended = self._paged_attention(q, k, v, layer)
        (y,) = self.linear(attended, arch.name("o", layer) + ".weight")
        return self._residual(x, y, "post_attn_norm", layer)

    def feed_forward(self, x: ov.Node, layer: int) -> ov.Node:
        """Two linear layers with an activation between them, gated (Shazeer, 2020) in most families; with residual."""
        arch = self.arch
        normed = self.norm(x, arch.name("ffn_norm", layer))
        if arch.has("gate_up"):
            (both,) = self.linear(normed, arch.name("gate_up", layer) + ".weight")
            inner = slice_last(both, 0, arch.feed_forward)
            gated = slice_last(both, arch.feed_forward, 2 * arch.feed_forward)
        elif arch.has("gate"):
            inner, gated = self.linear(normed, *(arch.name(part, layer) + ".weight" for part in ("gate", "up")))
        else:
            (inner,), gated = self.linear(normed, arch.name("up", layer) + ".weight"), None
        inner = activate(inner, arch.activation)
        inner = inner if gated is None else ops.multiply(inner, gated)
        (y,) = self.linear(inner, arch.name("down", layer) + ".weight")
        return self._residual(x, y, "post_ffn_norm", layer)

    def _residual(self, x: ov.Node, y: ov.Node, norm: str, layer: int) -> ov.Node:
        """`x + y`, y normed first in families that do."""
        return ops.add(x, self.norm(y, self.arch.name(norm, layer)) if self.arch.has(norm) else y)

    def _projected(self, x: ov.Node, layer: int) -> tuple[ov.Node, ov.Node, ov.Node]:
        """q, k and v of normed states, [T, heads * head_dim] each."""
        arch = self.arch
        if not arch.has("qkv"):
            names = [arch.name(part, layer) + ".weight" for part in ("q", "k", "v")]
            orders = [self._rope_rows(arch.heads), self._rope_rows(arch.kv_heads), None]
            q, k, v = self._adapted(x, self._products(x, names, orders), names)
            return q, k, v
        (joined,) = self.linear(x, arch.name("qkv", layer) + ".weight")
        queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        return (
            slice_last(joined, 0, queries),
            slice_last(joined, queries, queries + keys),
            slice_last(joined, queries + keys, queries + 2 * keys),
        )

    def _rope_rows(self, heads: int) -> Array | None:
        """The order that undoes GGUF's permutation of q and k rows, for the half-split rotary form used here.

        GGUF stores (0, d/2, 1, d/2 + 1, ...) within each head; without undoing it the model still answers "Paris"
        to easy questions, but its perplexity is ruined.
        """
        if not self.make.weights.rope_permuted:
            return None
        d = self.arch.head_dim
        return np.arange(heads * d).reshape(heads, d // 2, 2).swapaxes(1, 2).reshape(-1)

    def _angles(self, rope: Rope) -> tuple[ov.Node, ov.Node]:
        """cos and sin of the rotary angles, each [T, 1, 1, 2 * pairs], shared by all layers that turn alike."""
        if rope not in self.rotary:
            positions, far = self._positions()
            inverse: ov.Node = ops.constant(np.array(rope.frequencies, np.float32)[None])
            if rope.beyond and far is not None:
                inverse = ops.select(far, ops.constant(np.array(rope.beyond, np.float32)[None]), inverse)
            angles = ops.multiply(ops.convert(positions, "f32"), inverse)
            both = ops.concat([angles, angles], -1)
            pair = [ops.unsqueeze(turn(both), integers(1, 2)) for turn in (ops.cos, ops.sin)]
            if rope.scale != 1:
                pair = [ops.multiply(values, float32(rope.scale)) for values in pair]
            self.rotary[rope] = (pair[0], pair[1])
        return self.rotary[rope]

    def _positions(self) -> tuple[ov.Node, ov.Node | None]:
        """The positions [T, 1], and where the model has a border, whether each one's sequence is beyond it."""
        positions = ops.unsqueeze(self.input("position_ids", [-1], Type.i64), integers(1))
        if not self.arch.border:
            return positions, None
        far = ops.greater_equal(positions, integer(FAR))
        return ops.select(far, ops.subtract(positions, integer(FAR)), positions), far

    def _placed(self, x: ov.Node, heads: int, norm: str, layer: int) -> ov.Node:
        """q or k [T, heads * head_dim], each head normed where the family does, then turned to its position."""
        d, rope = self.arch.head_dim, self.arch.layer(layer).rope
        if rope is None and not self.arch.has(norm):
            return x
        x = ops.reshape(x, integers(0, heads, 1, d), special_zero=True)
        if self.arch.has(norm):
            x = self.norm(x, self.arch.name(norm, layer))
        if rope is not None:
            x = self._turned(x, rope)
        return ops.reshape(x, integers(0, heads * d), special_zero=True)

    def _turned(self, x: ov.Node, rope: Rope) -> ov.Node:
        """Rotary positions on [T, heads, 1, head_dim], in the half-split form."""
        pairs = len(rope.frequencies)
        cos, sin = self._angles(rope)
        first, second = slice_last(x, 0, pairs, axis=3), slice_last(x, pairs, 2 * pairs, axis=3)
        rest = None
        if 2 * pairs < self.arch.head_dim:
            rest = slice_last(x, 2 * pairs, self.arch.head_dim, axis=3)
            x = slice_last(x, 0, 2 * pairs, axis=3)
        minus_one = ops.constant(np.full((1, 1, 1, 1), -1, np.float32))
        rotated = ops.concat([ops.multiply(second, minus_one), first], -1)
        y = ops.add(ops.multiply(x, cos), ops.multiply(rotated, sin))
        return y if rest is None else ops.concat([y, rest], -1)

    def _paged_attention(self, q: ov.Node, k: ov.Node, v: ov.Node, layer: int) -> ov.Node:
        arch = self.arch
        shape = [-1, arch.kv_heads, BLOCK, arch.head_dim]
        key_cache = self.input(f"key_cache.{layer}", shape, Type.dynamic)
        value_cache = self.input(f"value_cache.{layer}", shape, Type.dynamic)
        past, begins, indices, index_begins = (
            self.input(name, [-1], Type.i32)
            for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
        )
        longest = self.input("max_context_len", [], Type.i32)
        arguments = [
            q, k, v, key_cache, value_cache, past, begins, indices, index_begins,
            float32(arch.attention_scale),
            int32(arch.layer(layer).window),
            empty(np.float32),  # ALiBi slopes: none
            longest,
            # From here on everything is switched off: score aggregation, cache rotation, sparse attention, sinks.
            empty(np.int32), empty(np.int32), empty(np.int32), empty(np.float32),
            empty(np.float32), int32(0), int32(0), ops.constant(np.zeros((0, 0, 0, 0), np.float32)), int32(0),
            empty(np.int32), empty(np.int32), empty(np.int32), empty(np.int32), empty(np.uint8),
            empty(np.int32),
        ]  # fmt: skip
        node = PagedAttention([a if isinstance(a, ov.Output) else a.output(0) for a in arguments])  # v may be either
        info = node.get_rt_info()
        info["num_k_heads"] = info["num_v_heads"] = arch.kv_heads
        info["k_head_size"] = info["v_head_size"] = arch.head_dim
        attended = ops.reshape(node.output(0), integers(-1, arch.heads * arch.head_dim), special_zero=False)
        if not arch.attention_cap:
            return attended
        return capped_attention(
            arch, layer, attended, q, (key_cache, value_cache), (past, begins, indices, index_begins)
        )
