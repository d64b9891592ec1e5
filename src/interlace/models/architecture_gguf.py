"""The dimensions of a Llama decoder from GGUF metadata."""

from __future__ import annotations

from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.architecture import LlamaArchitecture
from interlace.models.fields import Fields
from interlace.models.gguf_file import GgufFile, read_gguf

# Each of these bends the graph in a way ours does not know; 0 and 1 are how converters write "unused".
_MUST_BE_OFF = (
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.attention.sliding_window",
    "llama.attention.clamp_kqv",
    "llama.attention.max_alibi_bias",
    "llama.attention.scale",
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.residual_scale",
    "llama.use_parallel_residual",
    "llama.rope.scaling.original_context_length",
    "split.count",
)


def gguf_architecture(file: Path) -> LlamaArchitecture:
    """Read a GGUF file's architecture; CheckpointError for anything but a plain Llama decoder."""
    content = read_gguf(file)
    fields = Fields(content.metadata, file.name)
    family = fields.word("general.architecture")
    if family != "llama":
        raise CheckpointError(f"{file.name} has the architecture {family[:40]!r}; this engine runs llama only.")
    _refuse_variants(fields, content)
    return _llama(fields, content)


def _refuse_variants(fields: Fields, content: GgufFile) -> None:
    for name in _MUST_BE_OFF:
        fields.must_be_off(name, 0, 1)
    if fields.flag("llama.attention.causal", True) is not True:
        raise CheckpointError(f"{fields.where}: llama.attention.causal is false, which this engine cannot run.")
    fields.must_be_off("llama.rope.scaling.type", "none")
    fields.must_be_off("llama.rope.scaling.factor", 0, 1)
    fields.must_be_off("llama.rope.scale_linear", 0, 1)
    scaled = [name for name in content.tensors if name.startswith("rope_f") or ".rope_f" in name]
    if scaled:
        raise CheckpointError(f"{fields.where}: the tensor {scaled[0]} scales rope, which this engine cannot run yet.")


def _llama(fields: Fields, content: GgufFile) -> LlamaArchitecture:
    hidden, heads = fields.count("llama.embedding_length"), fields.count("llama.attention.head_count")
    head_dim = fields.count("llama.attention.key_length", hidden // heads)
    for same in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if fields.count(same, head_dim) != head_dim:
            raise CheckpointError(f"{fields.where}: {same} is not the head size {head_dim}; this engine needs it so.")
    kv_heads = fields.count("llama.attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(f"{fields.where}: {heads} heads of {head_dim} over {kv_heads} key heads cannot be built.")
    return LlamaArchitecture(
        layers=fields.count("llama.block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=fields.count("llama.feed_forward_length"),
        vocabulary=_vocabulary(content, fields),
        context_length=fields.count("llama.context_length"),
        rope_theta=fields.number("llama.rope.freq_base", 10000.0),
        rms_epsilon=fields.number("llama.attention.layer_norm_rms_epsilon"),
        tied_embeddings="output.weight" not in content.tensors,
    )


def _vocabulary(content: GgufFile, fields: Fields) -> int:
    """The rows of the embedding: metadata may leave the vocabulary out, or disagree with the weights."""
    embedding = content.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{fields.where} has no embedding matrix token_embd.weight.")
    return embedding.shape[0]
