"""What a checkpoint's weights mean: the dimensions a graph is built from, read from `config.json` or GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class LlamaArchitecture:
    """A decoder of the Llama family (RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases).

    All sizes are counts of elements; `rope_theta` is the rotary base; `context_length` is in tokens.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context_length: int
    rope_theta: float
    rms_epsilon: float
    tied_embeddings: bool  # the head is the embedding matrix

    family: Literal["llama"] = "llama"


@dataclass(frozen=True, slots=True)
class BertArchitecture:
    """An encoder of the BERT family, for embeddings. `max_tokens` is the sentence config's limit, special tokens in."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float
    activation: str
    max_tokens: int
    pooling: Literal["cls", "mean", "max", "mean_sqrt_len"]
    normalize: bool

    family: Literal["bert"] = "bert"


Architecture = LlamaArchitecture | BertArchitecture


def read_architecture(path: Path) -> Architecture:
    """What the checkpoint at `path` (a GGUF file, a folder holding one, or a Hugging Face folder) is built like.

    Raises CheckpointError, naming the setting, for whatever the graphs would compute wrongly.
    """
    from interlace.models.architecture_gguf import gguf_architecture
    from interlace.models.architecture_hf import folder_architecture
    from interlace.models.layout import locate

    layout = locate(path)
    return gguf_architecture(layout.weights[0]) if layout.format == "gguf" else folder_architecture(layout.folder)
