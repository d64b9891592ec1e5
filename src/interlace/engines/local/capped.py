"""Attention whose scores are capped by a tanh (Gemma 2), which the runtime's paged attention cannot do.

Its paged attention still runs, for one effect: it writes the step's keys and values into the cache. What it attended to
is dropped, and the capped attention is computed here, sequence by sequence in a loop, from what the cache then holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import openvino as ov
from openvino import Model, PartialShape, Type
from openvino import opset13 as ops

from interlace.engines.local.nodes import float32, integer, integers
from interlace.models import DecoderArchitecture

_MASKED = -1e30  # added to the score of what may not be seen


class _Body(NamedTuple):
    """What the loop's body is given: all of a step's queries and cached blocks, and where each sequence's lie."""

    number: ov.Node  # of the sequence, [1] i64
    q: ov.Node  # [T, heads * head_dim]
    keys: ov.Node  # [N, kv_heads, block, head_dim]
    values: ov.Node
    past: ov.Node
    begins: ov.Node
    index_begins: ov.Node


def capped_attention(
    arch: DecoderArchitecture,
    layer: int,
    written: ov.Node,
    q: ov.Node,
    caches: tuple[ov.Node, ov.Node],
    places: tuple[ov.Node, ov.Node, ov.Node, ov.Node],
) -> ov.Node:
    """[T, heads * head_dim]: what the queries `q` of layer `layer` see in `caches`, once `written` is computed.

    `places`: the graph's inputs past_lens, subsequence_begins, block_indices and block_indices_begins.
    """
    past, begins, indices, index_begins = places
    # Nothing ties a read of the cache to the write before it but this zero, made from what was written.
    sample = ops.slice(written, integers(0, 0), integers(1, 1), integers(1, 1), integers(0, 1))
    zero = ops.reshape(ops.convert(ops.multiply(sample, float32(0)), "i32"), integers(1), special_zero=False)
    indices = ops.add(indices, zero)
    keys, values = (ops.gather(ops.convert(cache, "f32"), indices, integer(0)) for cache in caches)
    outer = (q, keys, values, past, begins, index_begins)
    shapes = ([-1, arch.heads * arch.head_dim], *[[-1, arch.kv_heads, -1, arch.head_dim]] * 2, [-1], [-1], [-1])
    types = (Type.f32,) * 3 + (Type.i32,) * 3
    inner = [ops.parameter(PartialShape(shape), kind) for shape, kind in zip(shapes, types, strict=True)]
    number = ops.parameter(PartialShape([1]), Type.i64)
    done = ops.parameter(PartialShape([-1, arch.heads * arch.head_dim]), Type.f32)  # answers of the ones before
    answer = ops.result(ops.concat([done, _one(arch, layer, _Body(number, *inner))], 0))
    on = ops.result(ops.constant(np.array([True])))
    loop = ops.loop(ops.squeeze(ops.shape_of(past), integers(0)), ops.constant(np.array([True])))
    loop.set_function(Model([on, answer], [number, *inner, done], "sequence"))
    loop.set_special_body_ports([0, 0])
    for parameter, node in zip(inner, outer, strict=True):
        loop.set_invariant_input(parameter, node.output(0))
    nothing = ops.constant(np.zeros((0, arch.heads * arch.head_dim), np.float32))
    loop.set_merged_input(done, nothing.output(0), answer.output(0))
    return loop.get_iter_value(answer.output(0), -1).get_node()


def _one(arch: DecoderArchitecture, layer: int, body: _Body) -> ov.Node:
    """The answers of sequence `body.number`, [t, heads * head_dim]."""
    group, window = arch.heads // arch.kv_heads, arch.layer(layer).window
    first, end = _pair(body.begins, body.number)
    past = ops.convert(ops.gather(body.past, body.number, integer(0)), "i64")
    total = ops.add(past, ops.subtract(end, first))
    q = ops.slice(body.q, first, end, integers(1), integers(0))
    split = ops.reshape(q, integers(0, arch.kv_heads, group, arch.head_dim), special_zero=True)
    heads = ops.transpose(split, integers(1, 2, 0, 3))  # [kv_heads, group, t, head_dim]
    blocks = _pair(body.index_begins, body.number)
    keys, values = (_laid_out(arch, cached, blocks, total) for cached in (body.keys, body.values))
    scores = ops.multiply(ops.matmul(heads, keys, transpose_a=False, transpose_b=True), float32(arch.attention_scale))
    cap = float32(arch.attention_cap)
    scores = ops.multiply(ops.tanh(ops.divide(scores, cap)), cap)
    own = ops.unsqueeze(_range(past, total), integers(1))  # [t, 1], against [1, total]
    theirs = ops.unsqueeze(_range(integers(0), total), integers(0))
    hidden = ops.greater(theirs, own)
    if window:
        hidden = ops.logical_or(hidden, ops.less_equal(theirs, ops.subtract(own, integers(window))))
    weights = ops.softmax(ops.add(scores, ops.multiply(ops.convert(hidden, "f32"), float32(_MASKED))), axis=3)
    seen = ops.transpose(ops.matmul(weights, values, transpose_a=False, transpose_b=False), integers(2, 0, 1, 3))
    return ops.reshape(seen, integers(-1, arch.heads * arch.head_dim), special_zero=False)


def _laid_out(arch: DecoderArchitecture, cached: ov.Node, blocks: tuple[ov.Node, ov.Node], total: ov.Node) -> ov.Node:
    """A sequence's keys or values [kv_heads, 1, total, head_dim]; the rest of its last block was never written."""
    own = ops.slice(cached, *blocks, integers(1), integers(0))
    flat = ops.reshape(
        ops.transpose(own, integers(1, 0, 2, 3)), integers(arch.kv_heads, 1, -1, arch.head_dim), special_zero=False
    )
    return ops.slice(flat, integers(0), total, integers(1), integers(2))


def _pair(offsets: ov.Node, number: ov.Node) -> tuple[ov.Node, ov.Node]:
    """Entries `number` and `number + 1`, [1] i64 each."""
    wide = ops.convert(offsets, "i64")
    return ops.gather(wide, number, integer(0)), ops.gather(wide, ops.add(number, integers(1)), integer(0))


def _range(begin: ov.Node, end: ov.Node) -> ov.Node:
    """The integers from `begin` up to `end`, both [1] i64."""
    return ops.range(ops.squeeze(begin, integers(0)), ops.squeeze(end, integers(0)), integer(1), "i64")
