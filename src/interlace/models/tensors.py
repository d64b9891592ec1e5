"""Which tensors a graph will ask for, so that a checkpoint with other ones is refused before anything is built."""

from __future__ import annotations

import re

from interlace.errors import CheckpointError
from interlace.models.architecture import Architecture, DecoderArchitecture, EncoderArchitecture
from interlace.models.weights import Weights

# Buffers and heads that real checkpoints carry and no graph of ours needs.
_IGNORED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|embeddings\.position_ids|pooler\..*|cls\..*|lm_head\..*"
    r"|transformer\.h\.\d+\.attn\.(masked_)?bias|rope_(freqs|factors_long|factors_short)\.weight"
)

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(architecture: Architecture) -> Shapes:
    """Canonical name → shape of every tensor the architecture needs."""
    if isinstance(architecture, DecoderArchitecture):
        return _decoder_shapes(architecture)
    return _encoder_shapes(architecture)


def check_tensors(architecture: Architecture, weights: Weights) -> None:
    """Raise CheckpointError when a tensor is missing, has another shape, or would be silently left out."""
    there = weights.shapes()
    # Counted first: a config may claim many layers, whose names nobody should have to list.
    if architecture.layers > len(there):
        raise CheckpointError(f"The config claims {architecture.layers} layers, the file has {len(there)} tensors.")
    expected = expected_shapes(architecture)
    for name, shape in expected.items():
        if name not in there:
            raise CheckpointError(f"The tensor {name} is missing.")
        if there[name] != shape:
            raise CheckpointError(f"The tensor {name} has the shape {there[name]}; its config says {shape}.")
    for name in there:
        if name not in expected and not _IGNORED.fullmatch(name):
            raise CheckpointError(f"The tensor {name[:100]!r} has no place in a {architecture.family} model.")


def _decoder_shapes(a: DecoderArchitecture) -> Shapes:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    outer: Shapes = {"embed": (a.vocabulary, a.hidden), "final_norm": (a.hidden,)}
    if a.has("positions"):
        outer["positions"] = (a.positions, a.hidden)
    if not a.tied_embeddings:
        outer["head"] = (a.vocabulary, a.hidden)
    inner: Shapes = {
        **dict.fromkeys(("attn_norm", "post_attn_norm", "ffn_norm", "post_ffn_norm"), (a.hidden,)),
        **dict.fromkeys(("q_norm", "k_norm"), (a.head_dim,)),
        **dict.fromkeys(("k", "v"), (keys, a.hidden)),
        **dict.fromkeys(("gate", "up"), (a.feed_forward, a.hidden)),
        "q": (queries, a.hidden),
        "qkv": (queries + 2 * keys, a.hidden),
        "o": (a.hidden, queries),
        "gate_up": (2 * a.feed_forward, a.hidden),
        "down": (a.hidden, a.feed_forward),
    }
    shapes: Shapes = {}
    for role, shape in outer.items():
        shapes |= _tensors(a.name(role), shape, biased=role in a.biased)
    for layer in range(a.layers):
        for role, shape in inner.items():
            if a.has(role):
                shapes |= _tensors(a.name(role, layer), shape, biased=role in a.biased)
    return shapes


def _encoder_shapes(a: EncoderArchitecture) -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (a.vocabulary, a.hidden),
        "embeddings.position_embeddings.weight": (a.positions, a.hidden),
        "embeddings.token_type_embeddings.weight": (a.token_types, a.hidden),
    }
    shapes |= _tensors("embeddings.LayerNorm", (a.hidden,))
    for layer in range(a.layers):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _tensors(f"{at}.attention.self.{part}", (a.hidden, a.hidden))
        shapes |= _tensors(f"{at}.attention.output.dense", (a.hidden, a.hidden))
        shapes |= _tensors(f"{at}.attention.output.LayerNorm", (a.hidden,))
        shapes |= _tensors(f"{at}.intermediate.dense", (a.feed_forward, a.hidden))
        shapes |= _tensors(f"{at}.output.dense", (a.hidden, a.feed_forward))
        shapes |= _tensors(f"{at}.output.LayerNorm", (a.hidden,))
    if a.labels:
        dense, last = head_modules(a.family)
        shapes |= _tensors(dense, (a.hidden, a.hidden)) | _tensors(last, (len(a.labels), a.hidden))
    return shapes


def head_modules(family: str) -> tuple[str, str]:
    """The two linear layers of a classification head, a tanh between them: BERT's first is what pools."""
    return ("pooler.dense", "classifier") if family == "bert" else ("classifier.dense", "classifier.out_proj")


def _tensors(name: str, shape: tuple[int, ...], *, biased: bool = True) -> Shapes:
    """The weight of a module, and its bias where it has one."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if biased else {})
