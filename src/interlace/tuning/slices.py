"""Which weights are learnt where no adapter is: all of them, or a private slice of blocks."""

from __future__ import annotations

from typing import Any

import torch

from interlace.tuning.endings import Ending
from interlace.tuning.settings import blocks_of


def leave_to_learn(model: Any, private: str) -> None:
    """Freeze all but what is learnt; with `private` empty, nothing. With the head, the final norm is learnt as well,
    and a head that shares the embeddings' weights gets its own: else learning it would change what lies open. Raises
    `Ending` where the model has no such blocks."""
    if not private:
        return
    first, last, head = blocks_of(private)
    count = int(model.config.num_hidden_layers)
    if not first <= last < count:
        raise Ending(
            "wrong",
            f"private: {private} are no blocks of this base, which has {count}. Write blocks:FIRST-LAST, from 0 to "
            f"{count - 1}.",
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    blocks = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count)
    for block in blocks[first : last + 1]:
        block.requires_grad_(True)
    if head:
        model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
        model.config.tie_word_embeddings = False
        for name, module in model.base_model.named_children():
            if name in ("norm", "ln_f"):
                module.requires_grad_(True)
