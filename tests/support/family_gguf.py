"""The tiny models of `families`, written as GGUF as llama.cpp's converter does; names are the gguf package's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from tests.support.families import oracle

_ARCH = {"mistral": "llama", "gemma3_text": "gemma3"}
_PERMUTED = ("llama", "mistral", "smollm3")


def family_gguf(variant: str, path: Path) -> Path:
    """Write the weights of that variant, in F32, with the metadata of its architecture and no tokenizer."""
    return model_gguf(oracle(variant), path)


def model_gguf(model: Any, path: Path, also: Callable[[GGUFWriter], None] = lambda _: None) -> Path:
    """The same of a model of transformers; `also` adds what else the file is to say."""
    config = model.config
    arch = _ARCH.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, arch)
    _metadata(writer, arch, config)
    also(writer)
    for name, values in _tensors(model, arch).items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        finish()
    writer.close()
    return path


def _metadata(writer: GGUFWriter, arch: str, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_string(f"{arch}.rope.scaling.type", rope["rope_type"])
        writer.add_float32(f"{arch}.rope.scaling.factor", rope["factor"])
    if rope["rope_type"] in ("longrope", "yarn"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _tensors(model: Any, arch: str) -> dict[str, np.ndarray[Any, Any]]:
    config = model.config
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == arch and isinstance(key, MODEL_ARCH))
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.numpy()
        if config.model_type in _PERMUTED and name.endswith(
            ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
        ):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        stem, _, last = name.rpartition(".")
        found = names.get_name(stem)
        assert found is not None, name
        tensors[f"{found}.{last}"] = values
    return tensors | _rope_tensors(model)


def _rope_tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What a converter works out beforehand: by what each frequency is divided."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        plain = rope["rope_theta"] ** -(np.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{size}.weight": np.array(rope[f"{size}_factor"], np.float32) for size in ("short", "long")
        }
    return {}
