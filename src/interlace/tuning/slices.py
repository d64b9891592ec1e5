"""Which weights are learnt where no adapter is: all of them, or a private slice of blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from interlace.tuning.endings import Ending

_FORM = re.compile(r"blocks:(\d{1,4})-(\d{1,4})(\+head)?")


@dataclass(frozen=True)
class Slice:
    """Blocks `first` to `last`, both among them, and the final norm and the head where `head` says so."""

    first: int
    last: int
    head: bool

    @classmethod
    def of(cls, text: str) -> Slice:
        """From `blocks:24-29` or `blocks:24-29+head`, whose form is checked before."""
        found = _FORM.fullmatch(text)
        assert found is not None
        return cls(int(found[1]), int(found[2]), found[3] is not None)


def leave_to_learn(model: Any, private: str) -> None:
    """Freeze all but what is learnt; with `private` empty, nothing. A head that shares the embeddings' weights gets its
    own, else learning it would change what lies open. Raises `Ending` where the model has no such blocks."""
    if not private:
        return
    chosen, count = Slice.of(private), int(model.config.num_hidden_layers)
    if not chosen.first <= chosen.last < count:
        raise Ending(
            "wrong",
            f"private: {private} are no blocks of this base, which has {count}. Write blocks:FIRST-LAST, from 0 to "
            f"{count - 1}.",
        )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    blocks = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count)
    for block in blocks[chosen.first : chosen.last + 1]:
        block.requires_grad_(True)
    if chosen.head:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        for name, module in model.base_model.named_children():
            if name in ("norm", "ln_f"):
                module.requires_grad_(True)
