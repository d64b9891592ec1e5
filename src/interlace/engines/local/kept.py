"""How much memory a precision takes, as far as it can be told before loading."""

from __future__ import annotations

from interlace.engines.local.constants import KEPT_AS_STORED, KEPT_IN_EIGHT_BITS
from interlace.models import Checkpoint, open_weights


def kept_precision(precision: str, checkpoint: Checkpoint) -> str:
    """The precision to estimate memory by: a file with kinds that are kept in more bits grows, so it counts as int8 or,
    where some are re-coded as f16, as bf16."""
    if precision != "file":
        return precision
    with open_weights(checkpoint.path) as weights:
        kinds = {weights.stored(name).kind for name in weights.names()}
    if kinds <= KEPT_AS_STORED:
        return "file"
    return "int8" if kinds <= KEPT_AS_STORED | KEPT_IN_EIGHT_BITS else "bf16"
