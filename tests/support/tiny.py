"""Tiny random Llama checkpoints: the same weights as GGUF and as safetensors, small enough to write in every test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 2, 64, 4, 2, 96, 128
HEAD_DIM = HIDDEN // HEADS
TOKENS = ("<unk>", "<s>", "</s>", *(chr(letter) for letter in range(33, 127)), "Ġ", "Ġa", "th", "Ġth")
MERGES = ("Ġ a", "t h", "Ġ th")
VOCABULARY = len(TOKENS)
CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"

Tensors = dict[str, npt.NDArray[np.float32]]

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_weights(seed: int = 0) -> Tensors:
    """Random weights by canonical name; embeddings are tied."""
    random = np.random.default_rng(seed)
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            f"{at}.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{at}.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    return {name: _random(random, shape) for name, shape in shapes.items()}


def _random(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    values = random.standard_normal(shape).astype(np.float32)
    return 1 + values / 10 if len(shape) == 1 else values / np.float32(shape[-1] ** 0.5)


def gguf_name(name: str) -> str:
    """What GGUF calls a tensor of that canonical name."""
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outer:
        return outer[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_BLOCK[rest.removesuffix('.weight')]}.weight"


def permuted(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of q and k in GGUF's interleaved order, as llama.cpp's converter writes them; others as they are."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    heads = values.shape[0] // HEAD_DIM
    return values.reshape(heads, 2, HEAD_DIM // 2, HIDDEN).swapaxes(1, 2).reshape(values.shape)


def tiny_llama_gguf(path: Path, kind: str = "Q4_1", weights: Tensors | None = None, **metadata: Any) -> Path:
    """Write a tiny Llama as GGUF, matrices quantised as `kind`, with tokenizer metadata; extra string metadata too."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    quantisation = GGMLQuantizationType[kind]
    for name, values in (weights or tiny_weights()).items():
        stored = permuted(name, values)
        if values.ndim == 1 or kind == "F32":
            writer.add_tensor(gguf_name(name), stored)
        elif kind == "F16":
            writer.add_tensor(gguf_name(name), stored.astype(np.float16))
        else:
            writer.add_tensor(gguf_name(name), quantize(stored, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_config() -> dict[str, Any]:
    """The `config.json` of the tiny Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tiny_llama_safetensors(
    path: Path, shards: int = 1, weights: Tensors | None = None, config: dict[str, Any] | None = None
) -> Path:
    """Write the same tiny Llama as a Hugging Face folder, in one file or several shards with an index."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = weights or tiny_weights()
    (path / "config.json").write_text(json.dumps(tiny_config() | (config or {})))
    (path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE})
    )
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[number::shards]
        save_file({name: tensors[name] for name in names}, path / shard)
        weight_map |= dict.fromkeys(names, shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def tiny_tokenizer() -> dict[str, Any]:
    """A byte-level BPE with the same tokens and merges as the GGUF's metadata."""
    special = [
        {"id": number, "content": TOKENS[number], "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for number in range(3)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(TOKENS)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def through(kind: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same numbers after a trip through a quantised kind, by the gguf package's own code."""
    quantisation = GGMLQuantizationType[kind]
    return np.asarray(dequantize(quantize(values, quantisation), quantisation), np.float32)
