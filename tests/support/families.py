"""Tiny random models of every decoder family, made by transformers' own classes: the oracle, and its checkpoint."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.tiny import VOCABULARY, tiny_tokenizer

_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "eager",
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.4, 1.7, 2.0],
    "long_factor": [2.0] * 6, "original_max_position_embeddings": 200, "partial_rotary_factor": 0.75,
}  # fmt: skip
_FAR = _LONGROPE | {"long_factor": [1.5, 2.0, 2.0, 2.7, 3.1, 4.0], "original_max_position_embeddings": 100}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 40, "final_logit_softcapping": 20.0}

# Name of a variant → (transformers' class, settings beside the sizes). A window of 40 is no multiple of a block.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 40}),
    "mistral-whole": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2", {"use_sliding_window": False}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "Qwen3",
        {"rope_parameters": _YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3}},
    ),
    "mistral-yarn": (
        "Mistral",
        {"rope_parameters": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.3}, "sliding_window": None},
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "smollm3": ("SmolLM3", {}),
    "gemma2": ("Gemma2", _GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", _GEMMA | {"num_hidden_layers": 7}),
    "gemma3-linear": (
        "Gemma3Text",
        _GEMMA
        | {
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 40}),
    "phi3-longrope": ("Phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 200}),
    "phi3-far": ("Phi3", {"rope_parameters": _FAR, "original_max_position_embeddings": 100}),
    "gpt2": ("GPT2", {}),
    "gpt2-wide": ("GPT2", {"n_inner": 80, "tie_word_embeddings": False, "activation_function": "gelu"}),
}
_GPT2_SIZES = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}
_OUTSIDE_GPT2 = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "max_position_embeddings")  # fmt: skip


@cache
def oracle(variant: str) -> Any:
    """transformers' model of that variant, in float32 with large random weights, norms and biases."""
    import torch
    import transformers

    name, settings = VARIANTS[variant]
    sizes = {k: v for k, v in _SIZES.items() if name != "GPT2" or k not in _OUTSIDE_GPT2}
    sizes |= _GPT2_SIZES if name == "GPT2" else {}
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(
        transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name.removesuffix('Text')}ForCausalLM"
    )
    if name in ("Llama", "Mistral", "Phi3") and "head_dim" not in settings:
        sizes.pop("head_dim")
        settings = settings | {"hidden_size": 48} if settings.get("num_attention_heads") == 3 else settings
    torch.manual_seed(7)
    model = model_class(config_class(**(sizes | settings))).float().eval()
    with torch.no_grad():
        for key, values in model.named_parameters():
            if values.ndim == 1:  # norms and biases, which start as ones and zeros
                values.add_(torch.randn_like(values) * 0.2)
            else:
                tokens = "embed" in key or "wte" in key  # small: with tied heads, a large one repeats its own token
                values.normal_(0, 0.05 if tokens else 0.5 if "wpe" in key else 2.5 * values.shape[-1] ** -0.5)
    return model


@cache
def _saved(variant: str, folder: Path) -> Path:
    oracle(variant).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    return folder


def checkpoint(variant: str, folder: Path) -> Path:
    """The oracle's weights and config in `folder`, as transformers saves them, and a tokenizer."""
    return _saved(variant, folder)
