"""The loss of the answers' tokens, the model's head computed at their places alone.

TRL's own head computes every place of a row unless it runs on Triton, and for its log the entropy of each. With a
vocabulary of tens of thousands and half of a row a question, that is a fifth of a small model's training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from interlace.tuning.prompts import NO_LOSS

MOST_BYTES = 1 << 30  # of logits, their float32 copy and its gradients: beyond it TRL's head, which works in tiles
_COPIES = 12  # bytes of each logit, in all of those


def loss_of_answers(
    model: Any,
    inputs: Mapping[str, Any],
    count: torch.Tensor | int | None,
    most_of_all: Callable[[int], int] = int,
) -> torch.Tensor | None:
    """Nats of the answers' tokens in one row of `inputs` (tensors [1, tokens], `labels` among them), over `count`, or
    over their own number. None where this is not the way to compute it: several rows, a model that cannot leave places
    out, or too many of them for the memory. Processes that learn together must all go one way, as TRL's has them speak
    more often: `most_of_all` gives, for the places of this one's row, the most that any of them has."""
    labels = inputs.get("labels")
    if labels is None or labels.dim() != 2 or labels.shape[0] != 1 or not _leaves_out(_inner(model)):
        return None
    places = (labels[0, 1:] != NO_LOSS).nonzero()[:, 0]  # the token after each of them is guessed there
    if most_of_all(len(places)) * _inner(model).config.get_text_config().vocab_size * _COPIES > MOST_BYTES:
        return None
    others = {name: value for name, value in inputs.items() if name != "labels"}
    computed = places if len(places) else places.new_zeros(1)  # a process without answers has a share in the step, too
    logits = model(**others, logits_to_keep=computed, use_cache=False).logits[0]
    if not len(places):
        return logits.float().sum() * 0
    nats = torch.nn.functional.cross_entropy(logits.float(), labels[0, places + 1], reduction="sum")
    return nats / torch.as_tensor(len(places) if count is None else count, device=nats.device).clamp(min=1)


def _inner(model: Any) -> Any:
    """The model of transformers, out of what other libraries put around it."""
    while not hasattr(model, "get_output_embeddings") or hasattr(model, "get_base_model"):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    return model


def _leaves_out(inner: Any) -> bool:
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters
