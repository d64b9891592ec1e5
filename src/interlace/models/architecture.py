"""What a checkpoint's weights mean: the dimensions a graph is built from, read from `config.json` or GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interlace.models.families import FAMILIES, Norm

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al., 2021): pair i of a head turns by `position * frequencies[i]`.

    The pairs are the halves of the head's first `2 * len(frequencies)` elements; the rest stays as it is. cosine and
    sine are multiplied by `scale`. Sequences of more than `border` tokens (0: none) turn by `beyond` instead, from
    their first token on.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0
    beyond: tuple[float, ...] = ()
    border: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer's attention sees: `rope` None, no positions; `window` tokens, its own included (0: all)."""

    rope: Rope | None
    window: int = 0


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """A decoder; which parts it has and what they are called is in `FAMILIES[family]`.

    All sizes are counts of elements; `context_length` is in tokens. `pattern` repeats over the layers. `biased`: the
    roles that have a bias. `positions`: rows of the table of learned positions, 0 for none. `norm_offset` is added to
    the weights of norms. A score or logit x becomes `cap * tanh(x / cap)`; a cap of 0 leaves it alone.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    tied_embeddings: bool  # the head is the embedding matrix
    pattern: tuple[Layer, ...]
    activation: Activation = "silu"
    biased: frozenset[str] = frozenset()
    positions: int = 0
    norm: Norm = "rms"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0

    @property
    def border(self) -> int:
        """The length in tokens beyond which all of a sequence is computed in another way; 0 for none."""
        return max((layer.rope.border for layer in self.pattern if layer.rope), default=0)

    def has(self, role: str) -> bool:
        """Whether layers of this family have that part."""
        return role in FAMILIES[self.family].names

    def name(self, role: str, layer: int = 0) -> str:
        """The module of that role, in that layer where it is a layer's."""
        return FAMILIES[self.family].names[role].format(layer)

    def layer(self, number: int) -> Layer:
        """What sets layer `number` apart."""
        return self.pattern[number % len(self.pattern)]


@dataclass(frozen=True, slots=True)
class EncoderArchitecture:
    """An encoder of the BERT or RoBERTa family. `max_tokens` is the sentence config's limit, special tokens in.

    The first token of a text has position `first_position`. With `labels` it has a head that scores a text or a pair
    of texts for each of them, and `scores` says how its numbers become scores; without, it embeds: `pooling` and
    `normalize` say how.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float
    activation: Activation
    max_tokens: int
    pooling: Literal["cls", "mean", "max", "mean_sqrt_len"]
    normalize: bool
    first_position: int = 0
    labels: tuple[str, ...] = ()
    scores: Literal["softmax", "sigmoid", "plain"] = "softmax"


Architecture = DecoderArchitecture | EncoderArchitecture


def read_architecture(path: Path) -> Architecture:
    """What the checkpoint at `path` (a GGUF file, a folder holding one, or a Hugging Face folder) is built like.

    Raises CheckpointError, naming the setting, for whatever the graphs would compute wrongly.
    """
    from interlace.models.architecture_gguf import gguf_architecture
    from interlace.models.architecture_hf import folder_architecture
    from interlace.models.layout import locate

    layout = locate(path)
    return gguf_architecture(layout.weights[0]) if layout.format == "gguf" else folder_architecture(layout.folder)
