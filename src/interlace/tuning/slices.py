"""Which layers an adapter changes; and which weights are learnt where none is: all, or a private slice of blocks."""

from __future__ import annotations

from typing import Any

import torch

from interlace.tuning.endings import Ending
from interlace.tuning.settings import blocks_of
from interlace.tuning.sizes import ALL_LINEAR, no_such_blocks, no_such_layers, unmatched


def targets_of(model: Any, targets: str) -> str | list[str]:
    """The layers that an adapter changes, as PEFT takes them. Raises `Ending` where one is no matrix of the blocks: the
    others would be learnt without it, or what is learnt could not be served."""
    names = [each.strip() for each in targets.split(",")]
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    there = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")  # GPT-2's, of transformers
        and any(part.isdigit() for part in name.split("."))
    ]
    if unknown := unmatched(names, there):
        raise Ending("wrong", f"targets: {no_such_layers(unknown, there)}")
    return names


def leave_to_learn(model: Any, private: str) -> None:
    """Freeze all but what is learnt; with `private` empty, nothing. With the head, the final norm is learnt as well,
    and a head that shares the embeddings' weights gets its own: else learning it would change what lies open. Raises
    `Ending` where the model has no such blocks."""
    if not private:
        return
    first, last, head = blocks_of(private)
    count = int(model.config.num_hidden_layers)
    if not first <= last < count:
        raise Ending("wrong", f"private: {no_such_blocks(private, count)}")
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
