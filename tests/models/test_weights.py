"""Weights and architectures read back as they were written, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from interlace.errors import CheckpointError
from interlace.models import check_tensors, gguf_metadata, open_weights, read_architecture
from interlace.models.architecture import DecoderArchitecture, EncoderArchitecture
from tests.support.tiny import (
    CHAT_TEMPLATE,
    CONTEXT,
    MERGES,
    TOKENS,
    gguf_name,
    permuted,
    through,
    tiny_llama_gguf,
    tiny_llama_safetensors,
    tiny_weights,
)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "BF16", "Q5_0"])
def test_gguf_weights_equal_the_packages_own(tmp_path: Path, kind: str) -> None:
    """Every tensor, de-quantised, is bit for bit what GGUFReader and gguf's own code give, and what was written."""
    path = tiny_llama_gguf(tmp_path / "t.gguf", kind)
    theirs = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with open_weights(path) as weights:
        assert weights.rope_permuted
        for name, written in tiny_weights().items():
            other = theirs[gguf_name(name)]
            ours = weights.float32(name)
            assert np.array_equal(ours, dequantize(other.data, other.tensor_type).reshape(ours.shape))
            wanted = permuted(name, written)
            if written.ndim > 1 and kind not in ("F32", "F16"):
                wanted = through(kind, wanted)
            assert np.array_equal(ours, wanted.astype(np.float16) if kind == "F16" and written.ndim > 1 else wanted)


def test_stored_tensors_lie_as_promised(tmp_path: Path) -> None:
    """Quantised data comes as rows of bytes, plain data typed; both read-only views, valid after closing."""
    with open_weights(tiny_llama_gguf(tmp_path / "t.gguf", "Q4_1")) as weights:
        matrix = weights.stored("model.layers.1.mlp.down_proj.weight")
        norm = weights.stored("model.norm.weight")
    assert (matrix.kind, matrix.shape, matrix.data.shape, matrix.data.dtype) == ("Q4_1", (64, 96), (64, 60), np.uint8)
    assert (norm.kind, norm.data.shape, norm.data.dtype) == ("F32", (64,), np.float32)
    assert not matrix.data.flags.writeable
    assert np.isfinite(norm.data).all()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_read_as_one(tmp_path: Path, shards: int) -> None:
    """Names and numbers do not depend on how many files the tensors lie in."""
    path = tiny_llama_safetensors(tmp_path / "tiny", shards)
    with open_weights(path) as weights:
        assert not weights.rope_permuted
        check_tensors(read_architecture(path), weights)
        for name, written in tiny_weights().items():
            assert np.array_equal(weights.float32(name), written)
        assert weights.names() == sorted(tiny_weights())


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "gone.safetensors", ""])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, shard: str) -> None:
    """A shard is a plain name in the same folder, and it is there."""
    path = tiny_llama_safetensors(tmp_path / "tiny", 2)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(CheckpointError, match="shard"):
        open_weights(path)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    """A tensor the index names must be in the shard it names."""
    path = tiny_llama_safetensors(tmp_path / "tiny", 2)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        open_weights(path)


def test_both_formats_have_one_architecture(tmp_path: Path) -> None:
    """GGUF metadata and config.json of the same model give the same dimensions."""
    gguf = read_architecture(tiny_llama_gguf(tmp_path / "t.gguf"))
    folder = read_architecture(tiny_llama_safetensors(tmp_path / "tiny"))
    assert isinstance(gguf, DecoderArchitecture)
    assert isinstance(folder, DecoderArchitecture)
    assert gguf.norm_epsilon == pytest.approx(folder.norm_epsilon)
    assert (gguf.heads, gguf.kv_heads, gguf.head_dim, gguf.tied_embeddings) == (4, 2, 16, True)
    assert gguf.vocabulary == folder.vocabulary == len(TOKENS)
    assert gguf.layers == folder.layers


def test_gguf_metadata_has_the_tokenizer(tmp_path: Path) -> None:
    """Tokens, merges, ids and template come back as written."""
    metadata = gguf_metadata(tiny_llama_gguf(tmp_path / "t.gguf"))
    assert metadata["tokenizer.ggml.tokens"] == list(TOKENS)
    assert metadata["tokenizer.ggml.merges"] == list(MERGES)
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert metadata["tokenizer.chat_template"] == CHAT_TEMPLATE


REFUSED: list[dict[str, Any]] = [
    {"attention_bias": "yes"},
    {"hidden_act": "tanhshrink"},
    {"num_local_experts": 8},
    {"num_hidden_layers": 1 << 20},
    {"sliding_window": 4096},
    {"partial_rotary_factor": 0.5},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        }
    },
    {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0, 2.0]}},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["full_attention", ["sliding_attention"]]},
    {"layer_types": ["full_attention", "chunked_attention"]},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 4.0}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": -1}},
    {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "factor": 4.0}},
    {"rope_parameters": 7},
    {"quantization_config": {"quant_method": "gptq"}},
    {"auto_map": {"AutoModel": "modeling.Evil"}},
    {"model_type": "mamba"},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "2"},
    {"hidden_size": 1 << 60},
    {"num_attention_heads": 3, "num_key_value_heads": 2},
    {"rms_norm_eps": -1},
    {"vocab_size": None},
    {"tie_word_embeddings": "yes"},
]


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: ",".join(change))
def test_what_the_graph_would_get_wrong_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Each variant of Llama that needs another graph is refused, naming the file and the setting."""
    path = tiny_llama_safetensors(tmp_path / "tiny", config=change)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_architecture(path)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, CONTEXT),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}, 4 * CONTEXT),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT // 4}, CONTEXT),
        ({"type": "yarn", "factor": 4.0}, 4 * CONTEXT),
    ],
)
def test_scaled_positions_say_how_far_they_go(tmp_path: Path, scaling: dict[str, Any], context: int) -> None:
    """Dynamic scaling is plain up to the context that was trained, where we end; YaRN goes as far as it stretches,
    whether the file names the context before or after."""
    architecture = read_architecture(tiny_llama_safetensors(tmp_path / "tiny", config={"rope_scaling": scaling}))
    assert isinstance(architecture, DecoderArchitecture)
    assert architecture.context_length == context


def test_new_rope_parameters_are_read(tmp_path: Path) -> None:
    """The rotary base is found where newer configs keep it."""
    config = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}}
    architecture = read_architecture(tiny_llama_safetensors(tmp_path / "tiny", config=config))
    assert isinstance(architecture, DecoderArchitecture)
    rope = architecture.layer(0).rope
    assert rope is not None
    assert rope.frequencies[1] == pytest.approx(250000.0 ** (-2 / 16))


def test_gguf_variants_are_refused(tmp_path: Path) -> None:
    """Another architecture, scaled rope and foreign tensors cannot be taken for a plain Llama."""
    writer = GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="mamba"):
        read_architecture(tmp_path / "other.gguf")
    halfway = tiny_llama_gguf(tmp_path / "halfway.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.factor is missing"):
        read_architecture(halfway)
    scaled = tiny_llama_gguf(tmp_path / "scaled.gguf", llama__rope__scaling__type="longrope")
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type"):
        read_architecture(scaled)


@pytest.mark.parametrize("fault", ["missing", "shape", "extra"])
def test_tensors_must_fit_the_config(tmp_path: Path, fault: str) -> None:
    """A missing, a mis-shaped and an unknown tensor are each refused by name."""
    weights = tiny_weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "shape":
        weights[name] = weights[name][:-1]
    else:
        name = "model.layers.0.self_attn.q_proj.bias"
        weights[name] = np.zeros(64, np.float32)
    path = tiny_llama_safetensors(tmp_path / "tiny", weights=weights)
    with open_weights(path) as opened, pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        check_tensors(read_architecture(path), opened)


def bert_folder(path: Path, modules: list[dict[str, Any]], pooling: dict[str, Any], limit: int | None) -> Path:
    """The JSON files of a sentence-transformers folder, beside an empty safetensors file."""
    (path / "1_Pooling").mkdir(parents=True)
    config = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
              "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 512}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    (path / "model.safetensors").write_bytes(b"")
    return path


TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.mark.parametrize(("mode", "name"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max")])
def test_sentence_settings_are_read(tmp_path: Path, mode: str, name: str) -> None:
    """Pooling, normalisation without a folder, and the sentence limit come from sentence-transformers' files."""
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    path = bert_folder(tmp_path / "bert", [TRANSFORMER, POOLING, NORMALIZE], pooling, 256)
    architecture = read_architecture(path)
    assert isinstance(architecture, EncoderArchitecture)
    assert (architecture.pooling, architecture.normalize, architecture.max_tokens) == (name, True, 256)


@pytest.mark.parametrize(
    "modules",
    [
        [TRANSFORMER, POOLING, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}],
        [TRANSFORMER, POOLING | {"path": "../1_Pooling"}],
        [TRANSFORMER, POOLING | {"path": "/1_Pooling"}],
        [TRANSFORMER],
        [TRANSFORMER, NORMALIZE, POOLING],
        [7],
    ],
)
def test_other_sentence_modules_are_refused(tmp_path: Path, modules: list[Any]) -> None:
    """Modules in another order, of another kind, or outside the folder are refused."""
    path = bert_folder(tmp_path / "bert", modules, {"pooling_mode_mean_tokens": True}, None)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_architecture(path)
