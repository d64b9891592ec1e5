"""Which tensors a graph will ask for, so that a checkpoint with other ones is refused before anything is built."""

from __future__ import annotations

import re

from interlace.errors import CheckpointError
from interlace.models.architecture import Architecture, BertArchitecture, LlamaArchitecture
from interlace.models.weights import Weights

# Buffers and heads that real checkpoints carry and no graph of ours needs.
_IGNORED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|embeddings\.position_ids|pooler\..*|cls\..*|lm_head\.weight"
)

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(architecture: Architecture) -> Shapes:
    """Canonical name → shape of every tensor the architecture needs."""
    if isinstance(architecture, LlamaArchitecture):
        return _llama_shapes(architecture)
    return _bert_shapes(architecture)


def check_tensors(architecture: Architecture, weights: Weights) -> None:
    """Raise CheckpointError when a tensor is missing, has another shape, or would be silently left out."""
    there = weights.shapes()
    # Counted first: a config may claim millions of layers, whose names nobody should have to list.
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


def _llama_shapes(a: LlamaArchitecture) -> Shapes:
    shapes: Shapes = {
        "model.embed_tokens.weight": (a.vocabulary, a.hidden),
        "model.norm.weight": (a.hidden,),
    }
    if not a.tied_embeddings:
        shapes["lm_head.weight"] = (a.vocabulary, a.hidden)
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for layer in range(a.layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (a.hidden,),
            f"{at}.self_attn.q_proj.weight": (queries, a.hidden),
            f"{at}.self_attn.k_proj.weight": (keys, a.hidden),
            f"{at}.self_attn.v_proj.weight": (keys, a.hidden),
            f"{at}.self_attn.o_proj.weight": (a.hidden, queries),
            f"{at}.post_attention_layernorm.weight": (a.hidden,),
            f"{at}.mlp.gate_proj.weight": (a.feed_forward, a.hidden),
            f"{at}.mlp.up_proj.weight": (a.feed_forward, a.hidden),
            f"{at}.mlp.down_proj.weight": (a.hidden, a.feed_forward),
        }
    return shapes


def _bert_shapes(a: BertArchitecture) -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (a.vocabulary, a.hidden),
        "embeddings.position_embeddings.weight": (a.positions, a.hidden),
        "embeddings.token_type_embeddings.weight": (a.token_types, a.hidden),
    }
    shapes |= _with_bias("embeddings.LayerNorm", (a.hidden,))
    for layer in range(a.layers):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _with_bias(f"{at}.attention.self.{part}", (a.hidden, a.hidden))
        shapes |= _with_bias(f"{at}.attention.output.dense", (a.hidden, a.hidden))
        shapes |= _with_bias(f"{at}.attention.output.LayerNorm", (a.hidden,))
        shapes |= _with_bias(f"{at}.intermediate.dense", (a.feed_forward, a.hidden))
        shapes |= _with_bias(f"{at}.output.dense", (a.hidden, a.feed_forward))
        shapes |= _with_bias(f"{at}.output.LayerNorm", (a.hidden,))
    return shapes


def _with_bias(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
