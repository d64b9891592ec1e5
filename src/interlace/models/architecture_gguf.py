"""The dimensions of a decoder from GGUF metadata, for every family of the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interlace.errors import CheckpointError
from interlace.models.architecture import Activation, DecoderArchitecture, Layer, Rope
from interlace.models.decoder_hf import check_sizes
from interlace.models.families import FAMILIES, Family, gguf_family
from interlace.models.fields import Fields
from interlace.models.gguf_file import GgufFile, read_gguf
from interlace.models.rope import frequencies, longrope, longrope_scale, rope, yarn, yarn_scale

# Each of these bends the graph in a way ours does not know; 0 and 1 are how converters write "unused".
_MUST_BE_OFF = (
    "expert_count",
    "expert_used_count",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "use_parallel_residual",
)
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3_text": 62}  # their files don't say it: these scale by hidden / heads instead
_GEMMA3_LOCAL_THETA = 10000.0  # nor this


def gguf_architecture(file: Path) -> DecoderArchitecture:
    """Read a GGUF file's architecture; CheckpointError for one that is not in the table, or bent in an unknown way."""
    content = read_gguf(file)
    fields = Fields(content.metadata, file.name)
    named = fields.word("general.architecture")
    family = gguf_family(named, file.name)
    fields.must_be_off("split.count", 0, 1)
    own = {
        name.removeprefix(named + "."): value
        for name, value in content.metadata.items()
        if name.startswith(named + ".")
    }
    return _Reader(file, content, family, Fields(own, f"{file.name}, {named}")).architecture()


class _Reader:
    """One file's header, and its metadata under `ARCHITECTURE.`."""

    def __init__(self, file: Path, content: GgufFile, family: str, own: Fields) -> None:
        self._file, self._content, self._name, self._own = file, content, family, own
        self._table: Family = FAMILIES[family]
        for name in _MUST_BE_OFF:
            own.must_be_off(name, 0, 1)
        if own.flag("attention.causal", True) is not True:
            raise CheckpointError(f"{own.where}: attention.causal is false, which this engine cannot run.")

    def architecture(self) -> DecoderArchitecture:
        own, table = self._own, self._table
        hidden, heads = own.count("embedding_length"), own.count("attention.head_count")
        head_dim = own.count("attention.key_length", max(hidden // heads, 1))
        if own.count("attention.value_length", head_dim) != head_dim:
            raise own.wrong("attention.value_length", own.values["attention.value_length"], f"the head size {head_dim}")
        kv_heads, layers = own.count("attention.head_count_kv", heads), own.count("block_count")
        check_sizes(own.where, layers, heads, kv_heads, head_dim)
        pattern, context = self._pattern(head_dim)
        gemma = table.norm_offset == 1
        epsilon = "attention.layer_norm_rms_epsilon" if table.norm == "rms" else "attention.layer_norm_epsilon"
        query = hidden // heads if gemma and layers == _GEMMA_27B_LAYERS[self._name] else head_dim
        return DecoderArchitecture(
            family=self._name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=own.count("feed_forward_length"),
            vocabulary=self._vocabulary(),
            context_length=context,
            norm_epsilon=own.number(epsilon),
            tied_embeddings="output.weight" not in self._content.tensors,
            pattern=pattern,
            activation=self._activation(),
            biased=self._biased(),
            positions=context if "positions" in table.names else 0,
            norm=table.norm,
            embedding_scale=float(hidden**0.5) if gemma else 1.0,
            attention_scale=query**-0.5,
            attention_cap=self._cap("attn_logit_softcapping", 50.0),
            logit_cap=self._cap("final_logit_softcapping", 30.0),
        )

    def _cap(self, name: str, default: float) -> float:
        """A cap as the file says; Gemma 2 has one in any case."""
        if self._own.values.get(name) or self._name == "gemma2":
            return self._own.number(name, default)
        return 0.0

    def _activation(self) -> Activation:
        return "gelu_tanh" if self._table.norm_offset or self._name == "gpt2" else "silu"

    def _biased(self) -> frozenset[str]:
        """Files show biases only by having them: those of layer 0 tell."""
        roles = self._table.gguf_roles().items()
        return frozenset(role for name, role in roles if f"{name.format(0)}.bias" in self._content.tensors)

    def _vocabulary(self) -> int:
        """The rows of the embedding: metadata may leave the vocabulary out, or disagree with the weights."""
        embedding = self._content.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise CheckpointError(f"{self._file.name} has no embedding matrix token_embd.weight.")
        return embedding.shape[0]

    def _pattern(self, head_dim: int) -> tuple[tuple[Layer, ...], int]:
        """What each layer's attention sees, and the longest context."""
        own = self._own
        if self._table.norm == "layer":
            return (Layer(None),), own.count("context_length")
        whole, context = self._rope(head_dim)
        window = own.count("attention.sliding_window") if own.values.get("attention.sliding_window") else 0
        match self._name:
            case "gemma2":
                own.count("attention.sliding_window")
                return (Layer(whole, window), Layer(whole)), context
            case "gemma3_text":
                own.count("attention.sliding_window")
                theta = own.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA)
                local = Layer(rope(frequencies(theta, head_dim)), window)
                return (local,) * 5 + (Layer(whole),), context
            case "smollm3":
                return (Layer(whole),) * 3 + (Layer(None),), context
            case "llama" | "phi3":
                return (Layer(whole, window),), context
        own.must_be_off("attention.sliding_window", 0)
        return (Layer(whole),), context

    def _rope(self, head_dim: int) -> tuple[Rope, int]:
        """The rotary positions of the layers that see everything, and the longest context they are right for."""
        own, context = self._own, self._own.count("context_length")
        dimensions = own.count("rope.dimension_count", head_dim)
        if dimensions > head_dim or dimensions % 2 or (self._name != "phi3" and dimensions != head_dim):
            raise own.wrong("rope.dimension_count", dimensions, f"the head size {head_dim}")
        theta = own.number("rope.freq_base", 10000.0)
        plain = frequencies(theta, dimensions)
        own.must_be_off("rope.scaling.type", "none", "linear", "yarn", "longrope" if self._name == "phi3" else "none")
        own.must_be_off("rope.scale_linear", 0, 1)
        if self._name == "phi3" and "rope_factors_short.weight" in self._content.tensors:
            original = own.count("rope.scaling.original_context_length")
            scale = own.number("rope.scaling.attn_factor", longrope_scale(context / original, original))
            short, long = (self._factors(f"rope_factors_{length}.weight", len(plain)) for length in ("short", "long"))
            return longrope(theta, short, long, scale, context, original), context
        if own.values.get("rope.scaling.type") == "yarn":
            return self._yarn(theta, dimensions, context)
        if own.values.get("rope.scaling.type") == "linear":
            plain = plain / np.float32(own.number("rope.scaling.factor"))
        else:
            own.must_be_off("rope.scaling.factor", 0, 1)
        if "rope_freqs.weight" in self._content.tensors:  # Llama 3's scaling, worked out by the converter
            plain = plain / self._factors("rope_freqs.weight", len(plain))
        return rope(plain), context

    def _yarn(self, theta: float, dimensions: int, context: int) -> tuple[Rope, int]:
        own = self._own
        for name in ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"):
            own.must_be_off(name, 1)
        own.must_be_off("rope.scaling.yarn_log_multiplier", 0)
        if theta <= 1:
            raise own.wrong("rope.freq_base", theta, "more than 1")
        stretched, original = own.number("rope.scaling.factor"), own.count("rope.scaling.original_context_length")
        values = yarn(theta, dimensions, stretched, original, fast=own.number("rope.scaling.yarn_beta_fast", 32),
                      slow=own.number("rope.scaling.yarn_beta_slow", 1))  # fmt: skip
        scale = own.number("rope.scaling.attn_factor", 1) * yarn_scale(stretched)
        return rope(values, scale), max(context, int(original * stretched))

    def _factors(self, name: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """A small F32 tensor of the file that the frequencies are divided by."""
        tensor = self._content.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._file.name} has no tensor {name}.")
        if tensor.kind != "F32" or tensor.shape != (count,):
            raise CheckpointError(
                f"{self._file.name}: {name} is {tensor.kind} {list(tensor.shape)}, not F32 [{count}]."
            )
        values = np.fromfile(self._file, np.float32, count, offset=tensor.start)
        if not (np.isfinite(values) & (values > 0)).all():
            raise CheckpointError(f"{self._file.name}: {name} has numbers that no frequency can be divided by.")
        return values
