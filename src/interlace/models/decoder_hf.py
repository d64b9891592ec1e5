"""The dimensions of a decoder from the `config.json` of a Hugging Face folder, for every family of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.errors import CheckpointError
from interlace.models.architecture import Activation, DecoderArchitecture, Layer
from interlace.models.families import FAMILIES
from interlace.models.fields import Fields
from interlace.models.rope import config_rope

MAX_LAYERS = 1024  # the deepest known model has 126

# Each of these bends the graph in a way ours does not know.
_MUST_BE_OFF = (
    "num_local_experts", "num_experts", "logit_scale", "embedding_multiplier", "residual_multiplier",
    "use_parallel_residual", "scale_attn_by_inverse_layer_idx", "add_cross_attention", "use_bidirectional_attention",
)  # fmt: skip
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}


def decoder_architecture(family: str, given: Fields) -> DecoderArchitecture:
    """The architecture that the settings `given` of a model of that family describe."""
    fields = _completed(family, given)
    table = FAMILIES[family]
    for name in _MUST_BE_OFF:
        fields.must_be_off(name)
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    kv_heads = fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", max(hidden // heads, 1))
    layers = fields.count("num_hidden_layers")
    check_sizes(fields.where, layers, heads, kv_heads, head_dim)
    if family == "gemma3_text":
        fields.must_be_off("attn_logit_softcapping")  # transformers reads it and then leaves it out
    pattern, context = _pattern(family, fields, layers, head_dim)
    gemma = table.norm_offset == 1
    return DecoderArchitecture(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=fields.count("intermediate_size"),
        vocabulary=fields.count("vocab_size"),
        context_length=context,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        pattern=pattern,
        activation=_activation(fields),
        biased=table.biased | _config_biases(family, fields),
        positions=context if "positions" in table.names else 0,
        norm=table.norm,
        norm_offset=table.norm_offset,
        embedding_scale=float(hidden**0.5) if gemma else 1.0,
        attention_scale=_attention_scale(family, fields, head_dim),
        attention_cap=_optional(fields, "attn_logit_softcapping"),
        logit_cap=_optional(fields, "final_logit_softcapping"),
    )


def check_sizes(where: str, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Refuse numbers from which no attention can be built."""
    if layers > MAX_LAYERS:
        raise CheckpointError(f"{where}: {layers} layers are more than this engine builds ({MAX_LAYERS}).")
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(f"{where}: {heads} heads of {head_dim} over {kv_heads} key heads cannot be built.")


def _set(fields: Fields, name: str) -> bool:
    return fields.values.get(name) is not None


def _optional(fields: Fields, name: str) -> float:
    return fields.number(name) if _set(fields, name) else 0.0


def _completed(family: str, given: Fields) -> Fields:
    """The settings under the names most families use, with what the family takes for granted."""
    values = {name: value for name, value in given.values.items() if value is not None}
    values = dict(FAMILIES[family].defaults) | values
    if family == "gpt2":
        values = {_GPT2_NAMES.get(name, name): value for name, value in values.items()}
        if type(values.get("hidden_size")) is int:
            values.setdefault("intermediate_size", 4 * values["hidden_size"])
    return Fields(values, given.where)


def _activation(fields: Fields) -> Activation:
    """Gemma's own name for it wins: its older files carry another one that was never used."""
    name = fields.word("hidden_activation" if _set(fields, "hidden_activation") else "hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise fields.wrong("hidden_act", name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _config_biases(family: str, fields: Fields) -> frozenset[str]:
    """The roles that have a bias because the config says so."""
    attention = "qkvo" if fields.flag("attention_bias", False) and family not in ("phi3", "gpt2", "qwen2") else ""
    return frozenset(attention) | (frozenset(("gate", "up", "down")) if fields.flag("mlp_bias", False) else frozenset())


def _attention_scale(family: str, fields: Fields, head_dim: int) -> float:
    if "query_pre_attn_scalar" in FAMILIES[family].defaults:
        return float(fields.number("query_pre_attn_scalar") ** -0.5)
    return float(head_dim**-0.5) if fields.flag("scale_attn_weights", True) else 1.0


def _pattern(family: str, fields: Fields, layers: int, head_dim: int) -> tuple[tuple[Layer, ...], int]:
    """What each layer's attention sees, and the longest context."""
    if family == "gpt2":
        return (Layer(None),), fields.count("max_position_embeddings")
    if family != "phi3":
        fields.must_be_off("partial_rotary_factor", 1)
    sliding = _sliding(family, fields, layers)
    window = fields.count("sliding_window") if any(sliding) else 0
    whole, context = config_rope(fields, head_dim)
    local = config_rope(fields, head_dim, "sliding_attention")[0] if any(sliding) else whole
    turned = _turned(family, fields, layers)
    kinds = [
        Layer((local if slides else whole) if turns else None, window if slides else 0)
        for slides, turns in zip(sliding, turned, strict=True)
    ]
    return (kinds[0],) if len(set(kinds)) == 1 else tuple(kinds), context


def _sliding(family: str, fields: Fields, layers: int) -> list[bool]:
    """Whether each layer sees a window only."""
    if _set(fields, "layer_types"):
        kinds = {"sliding_attention": True, "full_attention": False}
        return [kinds[kind] for kind in _listed(fields, "layer_types", layers, kinds)]
    match family:
        case "mistral" | "phi3":
            return [_set(fields, "sliding_window")] * layers
        case "qwen2" | "qwen3":
            first = fields.index("max_window_layers", 28)
            return [fields.flag("use_sliding_window", False) and layer >= first for layer in range(layers)]
        case "gemma2":
            return [layer % 2 == 0 for layer in range(layers)]
        case "gemma3_text":
            every = fields.count("sliding_window_pattern", 6)
            return [(layer + 1) % every != 0 for layer in range(layers)]
        case "smollm3":
            slides = fields.flag("use_sliding_window", False) and _set(fields, "sliding_window")
            return [slides and not turns for turns in _turned(family, fields, layers)]
    fields.must_be_off("sliding_window")
    return [False] * layers


def _turned(family: str, fields: Fields, layers: int) -> list[bool]:
    """Whether each layer has rotary positions."""
    if family != "smollm3":
        return [True] * layers
    if _set(fields, "no_rope_layers"):
        return [bool(kind) for kind in _listed(fields, "no_rope_layers", layers, (0, 1))]
    every = fields.count("no_rope_layer_interval")
    return [(layer + 1) % every != 0 for layer in range(layers)]


def _listed(fields: Fields, name: str, layers: int, known: Any) -> list[Any]:
    """A list with one entry a layer, each of them known."""
    value = fields.values[name]
    if (
        not isinstance(value, list)
        or len(value) != layers
        or not all(isinstance(v, str | int) and v in known for v in value)
    ):
        raise fields.wrong(name, value, f"a list of {layers} of {', '.join(map(str, known))}")
    return value
