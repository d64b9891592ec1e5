"""The graph of a Llama-family decoder with paged attention, built by hand from its weights.

Inputs, for a step over T tokens of S sequences (a sequence brings one token when it decodes, many when it prefills):

| input | shape | meaning |
|---|---|---|
| input_ids, position_ids | [T] i64 | tokens of all sequences, one after another, and their positions |
| past_lens | [S] i32 | tokens of each sequence already in the cache |
| subsequence_begins | [S + 1] i32 | where each sequence starts in `input_ids` |
| block_indices, block_indices_begins | [N], [S + 1] i32 | cache blocks of each sequence, one after another |
| max_context_len | [] i32 | the longest sequence, cached and new tokens together |
| logits_idx | [R] i32 | positions in `input_ids` whose logits are wanted |
| key_cache.i, value_cache.i | [blocks, kv_heads, 32, head_dim] | the cache of layer i, owned by the caller |

Output `logits`: [R, vocabulary] f32. The layout [T, heads, 1, head_dim] is the one in which the runtime was seen to
fuse rotary embedding, norms and linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import PartialShape, Type
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension as PagedAttention  # private: the version is pinned, a test guards it

from interlace.engines.local.constants import Array, ConstantMaker
from interlace.models import LlamaArchitecture

BLOCK = 32  # tokens in one cache block: what the runtime's CPU kernel is built for


Adapt = Callable[[Callable[[str, list[int], Type], ov.Node], ov.Node, ov.Node, str], ov.Node]
"""(input, x, y, name) → what becomes of `y`, the linear layer `name` of `x`; `input` makes inputs of the model."""


def build_llama(architecture: LlamaArchitecture, make: ConstantMaker, adapt: Adapt | None = None) -> ov.Model:
    """The whole decoder as an uncompiled model; see the module's docstring for its inputs and output."""
    build = _Builder(architecture, make, adapt)
    x = make.table("model.embed_tokens.weight")(build.input("input_ids", [-1], Type.i64))
    for layer in range(architecture.layers):
        x = build.attention(x, layer)
        x = build.feed_forward(x, layer)
    x = ops.gather(x, build.input("logits_idx", [-1], Type.i32), _integer(0))
    x = build.norm(x, "model.norm.weight")
    head = "model.embed_tokens.weight" if architecture.tied_embeddings else "lm_head.weight"
    logits = ops.matmul(x, make.matrix(head), transpose_a=False, transpose_b=True)
    result = ops.result(ops.convert(logits, "f32") if logits.get_element_type() != Type.f32 else logits)
    result.get_output_tensor(0).set_names({"logits"})
    return ov.Model([result], list(build.inputs.values()), "llama")


@dataclass
class _Builder:
    arch: LlamaArchitecture
    make: ConstantMaker
    adapt: Adapt | None = None
    inputs: dict[str, ov.Node] = field(default_factory=dict)
    rotary: tuple[ov.Node, ov.Node] | None = None

    def input(self, name: str, shape: list[int], dtype: Type) -> ov.Node:
        """The model input of that name, made on first use."""
        if name not in self.inputs:
            node = ops.parameter(PartialShape(shape), dtype=dtype, name=name)
            node.get_output_tensor(0).set_names({name})
            self.inputs[name] = node
        return self.inputs[name]

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        """RMSNorm (Zhang and Sennrich, 2019)."""
        mean = ops.reduce_mean(ops.power(x, _float(2)), _integers(-1), keep_dims=True)
        scale = ops.divide(_float(1), ops.sqrt(ops.add(mean, _float(self.arch.rms_epsilon))))
        return ops.multiply(ops.multiply(x, scale), ops.constant(self.make.vector(name)[None]))

    def linear(self, x: ov.Node, name: str, rows: Array | None = None) -> ov.Node:
        """`x @ W.T` for the weight `name`, and what adapters make of it."""
        y = ops.matmul(x, self.make.matrix(name, rows), transpose_a=False, transpose_b=True)
        return y if self.adapt is None else self.adapt(self.input, x, y, name)

    def attention(self, x: ov.Node, layer: int) -> ov.Node:
        """Grouped-query attention over the paged cache, with its residual."""
        arch, prefix = self.arch, f"model.layers.{layer}."
        normed = self.norm(x, prefix + "input_layernorm.weight")
        q = self.linear(normed, prefix + "self_attn.q_proj.weight", self._rope_rows(arch.heads))
        k = self.linear(normed, prefix + "self_attn.k_proj.weight", self._rope_rows(arch.kv_heads))
        v = self.linear(normed, prefix + "self_attn.v_proj.weight")
        attended = self._paged_attention(self._rope(q, arch.heads), self._rope(k, arch.kv_heads), v, layer)
        return ops.add(x, self.linear(attended, prefix + "self_attn.o_proj.weight"))

    def feed_forward(self, x: ov.Node, layer: int) -> ov.Node:
        """SwiGLU (Shazeer, 2020), with its residual."""
        prefix = f"model.layers.{layer}."
        normed = self.norm(x, prefix + "post_attention_layernorm.weight")
        gate = self.linear(normed, prefix + "mlp.gate_proj.weight")
        up = self.linear(normed, prefix + "mlp.up_proj.weight")
        return ops.add(x, self.linear(ops.multiply(ops.swish(gate), up), prefix + "mlp.down_proj.weight"))

    def _rope_rows(self, heads: int) -> Array | None:
        """The order that undoes GGUF's permutation of q and k rows, for the half-split rotary form used here.

        GGUF stores (0, d/2, 1, d/2 + 1, ...) within each head; without undoing it the model still answers "Paris"
        to easy questions, but its perplexity is ruined.
        """
        if not self.make.weights.rope_permuted:
            return None
        d = self.arch.head_dim
        return np.arange(heads * d).reshape(heads, d // 2, 2).swapaxes(1, 2).reshape(-1)

    def _angles(self) -> tuple[ov.Node, ov.Node]:
        """cos and sin of the rotary angles, each [T, 1, 1, head_dim], shared by all layers."""
        if self.rotary is None:
            d = self.arch.head_dim
            inverse = (1.0 / self.arch.rope_theta ** (np.arange(0, d, 2, dtype=np.float32) / d)).astype(np.float32)
            positions = ops.convert(self.input("position_ids", [-1], Type.i64), "f32")
            angles = ops.multiply(ops.unsqueeze(positions, _integers(1)), ops.constant(inverse[None]))
            both = ops.concat([angles, angles], -1)
            self.rotary = (
                ops.unsqueeze(ops.cos(both), _integers(1, 2)),
                ops.unsqueeze(ops.sin(both), _integers(1, 2)),
            )
        return self.rotary

    def _rope(self, x: ov.Node, heads: int) -> ov.Node:
        """Rotary positions (Su et al., 2021) on [T, heads * head_dim], in the half-split form."""
        d = self.arch.head_dim
        cos, sin = self._angles()
        x = ops.reshape(x, _integers(0, heads, 1, d), special_zero=True)
        first = ops.slice(x, _integers(0), _integers(d // 2), _integers(1), _integers(3))
        second = ops.slice(x, _integers(d // 2), _integers(2**62), _integers(1), _integers(3))
        minus_one = ops.constant(np.full((1, 1, 1, 1), -1, np.float32))
        rotated = ops.concat([ops.multiply(second, minus_one), first], -1)
        y = ops.add(ops.multiply(x, cos), ops.multiply(rotated, sin))
        return ops.reshape(y, _integers(0, heads * d), special_zero=True)

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
            _float(arch.head_dim**-0.5),
            _int32(0),  # sliding window: none
            _empty(np.float32),  # ALiBi slopes: none
            longest,
            # From here on everything is switched off: score aggregation, cache rotation, sparse attention, sinks.
            _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.float32),
            _empty(np.float32), _int32(0), _int32(0), ops.constant(np.zeros((0, 0, 0, 0), np.float32)), _int32(0),
            _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.int32), _empty(np.uint8),
            _empty(np.int32),
        ]  # fmt: skip
        node = PagedAttention([argument.output(0) for argument in arguments])
        info = node.get_rt_info()
        info["num_k_heads"] = info["num_v_heads"] = arch.kv_heads
        info["k_head_size"] = info["v_head_size"] = arch.head_dim
        return ops.reshape(node.output(0), _integers(-1, arch.heads * arch.head_dim), special_zero=False)


def _float(value: float) -> ov.Node:
    return ops.constant(np.float32(value))


def _integer(value: int) -> ov.Node:
    return ops.constant(np.int64(value))


def _int32(value: int) -> ov.Node:
    return ops.constant(np.int32(value))


def _integers(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))


def _empty(dtype: type[np.generic]) -> ov.Node:
    return ops.constant(np.zeros(0, dtype))
