"""What sets the decoder families apart: one table, which the readers of checkpoints and the graph builder share.

A decoder is made of the same parts in every family; which of them it has, and what the files call them, is a line
here. A part is known by its role. Its name is the module's path in the checkpoint's own library, and so what PEFT's
adapters call it: a projection that a family keeps fused (`qkv`, `gate_up`) is one module, with one name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from interlace.errors import CheckpointError

Norm = Literal["rms", "layer"]

Names = dict[str, str]

_LAYER = "model.layers.{}."
_LLAMA: Names = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attn_norm": _LAYER + "input_layernorm",
    "q": _LAYER + "self_attn.q_proj",
    "k": _LAYER + "self_attn.k_proj",
    "v": _LAYER + "self_attn.v_proj",
    "o": _LAYER + "self_attn.o_proj",
    "ffn_norm": _LAYER + "post_attention_layernorm",
    "gate": _LAYER + "mlp.gate_proj",
    "up": _LAYER + "mlp.up_proj",
    "down": _LAYER + "mlp.down_proj",
}
_HEAD_NORMS: Names = {"q_norm": _LAYER + "self_attn.q_norm", "k_norm": _LAYER + "self_attn.k_norm"}
_GEMMA: Names = _LLAMA | {
    "post_attn_norm": _LAYER + "post_attention_layernorm",
    "ffn_norm": _LAYER + "pre_feedforward_layernorm",
    "post_ffn_norm": _LAYER + "post_feedforward_layernorm",
}
_PHI3: Names = {role: name for role, name in _LLAMA.items() if role not in ("q", "k", "v", "gate", "up")} | {
    "qkv": _LAYER + "self_attn.qkv_proj",
    "gate_up": _LAYER + "mlp.gate_up_proj",
}
_BLOCK = "transformer.h.{}."
_GPT2: Names = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attn_norm": _BLOCK + "ln_1",
    "qkv": _BLOCK + "attn.c_attn",
    "o": _BLOCK + "attn.c_proj",
    "ffn_norm": _BLOCK + "ln_2",
    "up": _BLOCK + "mlp.c_fc",
    "down": _BLOCK + "mlp.c_proj",
}

# What GGUF files call the parts, the same in all families; a fused gate is part of what they call "up".
_GGUF: Names = {
    "embed": "token_embd",
    "positions": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attn_norm": "blk.{}.attn_norm",
    "q": "blk.{}.attn_q",
    "k": "blk.{}.attn_k",
    "v": "blk.{}.attn_v",
    "qkv": "blk.{}.attn_qkv",
    "o": "blk.{}.attn_output",
    "q_norm": "blk.{}.attn_q_norm",
    "k_norm": "blk.{}.attn_k_norm",
    "post_attn_norm": "blk.{}.post_attention_norm",
    "ffn_norm": "blk.{}.ffn_norm",
    "gate": "blk.{}.ffn_gate",
    "up": "blk.{}.ffn_up",
    "gate_up": "blk.{}.ffn_up",
    "down": "blk.{}.ffn_down",
    "post_ffn_norm": "blk.{}.post_ffw_norm",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One line of the table.

    `names`: role → module, with `{}` for the layer's number; a role that is absent is a part the family lacks.
    `norm_offset` is added to the weight of a norm as safetensors files have it (GGUF files have it added already).
    `biased`: roles with a bias in every model. `transposed`: roles whose safetensors matrices are [inputs, outputs].
    `permuted`: GGUF files hold q and k rows in an order of their own. `gguf`: `general.architecture` of its files.
    `defaults`: what `config.json` leaves out.
    """

    names: Mapping[str, str]
    gguf: str
    norm: Norm = "rms"
    norm_offset: float = 0.0
    biased: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    permuted: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def gguf_roles(self) -> dict[str, str]:
        """What GGUF calls each part of this family → its role."""
        return {_GGUF[role]: role for role in self.names}


_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
}
_GEMMA3_DEFAULTS = _GEMMA_DEFAULTS | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072}
_GPT2_LINEAR = frozenset({"qkv", "o", "up", "down"})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(_LLAMA, "llama", permuted=True),
        "mistral": Family(_LLAMA, "llama", permuted=True, defaults={"max_position_embeddings": 131072}),
        "qwen2": Family(
            _LLAMA,
            "qwen2",
            biased=frozenset("qkv"),
            defaults={"max_position_embeddings": 32768, "sliding_window": 4096},
        ),
        "qwen3": Family(
            _LLAMA | _HEAD_NORMS,
            "qwen3",
            defaults={"head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096},
        ),
        "smollm3": Family(
            _LLAMA,
            "smollm3",
            permuted=True,
            defaults={"tie_word_embeddings": True, "max_position_embeddings": 32768, "no_rope_layer_interval": 4},
        ),
        "gemma2": Family(_GEMMA, "gemma2", norm_offset=1.0, defaults=_GEMMA_DEFAULTS | {"sliding_window": 4096}),
        "gemma3_text": Family(
            _GEMMA | _HEAD_NORMS, "gemma3", norm_offset=1.0, defaults=_GEMMA3_DEFAULTS | {"sliding_window": 4096}
        ),
        "phi3": Family(_PHI3, "phi3", defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
        "gpt2": Family(
            _GPT2,
            "gpt2",
            norm="layer",
            biased=_GPT2_LINEAR | {"attn_norm", "ffn_norm", "final_norm"},
            transposed=_GPT2_LINEAR,
            defaults={"tie_word_embeddings": True, "n_positions": 1024, "activation_function": "gelu_new"},
        ),
    }
)


def gguf_family(architecture: object, file_name: str) -> str:
    """Our name for what a GGUF file's `general.architecture` says; Mistral's files say they are Llama's."""
    known = {family.gguf: name for name, family in reversed(list(FAMILIES.items()))}
    if not isinstance(architecture, str) or architecture not in known:
        raise CheckpointError(
            f"{file_name} has the architecture {str(architecture)[:40]!r}; this engine runs {', '.join(sorted(known))}."
        )
    return known[architecture]
