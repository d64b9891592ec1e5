"""Several rows in one pass: as a batch of their own shape, each with the examples that were packed into it.

TRL lays all rows of a pass one behind the other. Where attention has to be told by a mask who sees whom, as PyTorch's
own has, its work and the mask grow with the square of what lies behind one another; side by side, each row has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from interlace.tuning.prompts import NO_LOSS

TOKENS = "tokens"


def side_by_side(filler: int) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
    """What makes a batch of rows: `input_ids`, `labels` and `position_ids`, [rows, longest] each, and how many tokens
    each has, [rows, 1]. Positions begin again at each example, and at the filler: none sees what lies before."""

    def batch(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids, labels, places = [], [], []
        for row in rows:
            lengths = [*(row.get("seq_lengths") or [len(row["input_ids"])])]
            more = longest - len(row["input_ids"])
            starts = torch.tensor([place == 0 for length in (*lengths, more) for place in range(length)])
            ids.append([*row["input_ids"], *[filler] * more])
            labels.append(torch.tensor([*row["labels"], *[NO_LOSS] * more]).masked_fill(starts, NO_LOSS))
            places.append([place for length in (*lengths, more) for place in range(length)])
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.stack(labels),
            "position_ids": torch.tensor(places),
            TOKENS: torch.tensor([[len(row["input_ids"])] for row in rows]),
        }

    return batch


def loss_of_rows(model: Any, inputs: Mapping[str, torch.Tensor], count: torch.Tensor | int | None) -> torch.Tensor:
    """Nats of the answers' tokens in a batch of rows, over `count`, or over their own number; by TRL's head, which
    works in tiles."""
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    number = outputs.label_mask.sum() if count is None else torch.as_tensor(count, device=outputs.log_probs.device)
    loss: torch.Tensor = -outputs.log_probs.sum() / number.clamp(min=1)
    return loss
