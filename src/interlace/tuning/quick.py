"""What makes learning an adapter quicker on processors, and changes nothing that is learnt but by what chance it is.

On a small model, the random numbers of dropout take PyTorch as long as all matrix products of a forward pass: it draws
one for each input of each adapted layer. Eight times fewer do. And autocast rounds every frozen weight to bfloat16 anew
for each row; once is enough.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import nn

_STEPS = 256  # a share left out is told in so many


class QuickDropout(nn.Module):  # type: ignore[misc]
    """Leaves out a share of its inputs while learning, and makes the others larger for it. A byte of chance decides
    over each, so the share is rounded to a 256th, and is never none."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.out = max(1, round(share * _STEPS))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[...] as it came, where the model is not learning."""
        if not self.training:
            return inputs
        words = torch.empty(-(-inputs.numel() // 8), dtype=torch.int64, device=inputs.device)
        words.random_(-(2**63), None)  # all 64 bits
        kept = words.view(torch.uint8)[: inputs.numel()].view(inputs.shape) >= self.out
        return inputs * kept.to(inputs.dtype).mul_(_STEPS / (_STEPS - self.out))


def quicken(model: Any) -> None:
    """Put `QuickDropout` in place of each dropout of an adapter."""
    for module in model.modules():
        dropouts = getattr(module, "lora_dropout", None)
        if not isinstance(dropouts, nn.ModuleDict):
            continue
        for name, dropout in dropouts.items():
            if isinstance(dropout, nn.Dropout):
                dropouts[name] = QuickDropout(dropout.p)


def round_once(model: Any) -> None:
    """Round the weights of frozen linear layers to bfloat16, as autocast would each time; from then on the model
    computes under autocast alone. A head that shares its weights with the embeddings is left, as those are read in
    float32."""
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and id(module.weight) not in shared:
            module.weight.data = module.weight.data.to(torch.bfloat16)
    give_back()


def give_back() -> None:
    """Let the system have what was freed: else malloc keeps it, in holes that what comes next does not fit into. Where
    malloc is not glibc's, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
