"""What a model answers to the held-out questions, greedily: for metrics that compare texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from interlace.tuning.base import Tongue
from interlace.tuning.work import Placed

_ROWS = 8  # answered at once
_LEAST_TOKENS = 16


def wanted_of(placed: Sequence[Placed]) -> list[str]:
    """The last answer of each example."""
    return [one.messages[-1]["content"] for one in placed]


def answers_of(model: Any, tongue: Tongue, placed: Sequence[Placed], context_length: int) -> list[str]:
    """The likeliest token at each place, up to the one that ends an answer, or twice as many as the longest answer
    wanted has. What is asked is all of an example but its last turn."""
    tokenizer = tongue.tokenizer
    prompts = [
        str(tokenizer.apply_chat_template(one.messages[:-1], tokenize=False, add_generation_prompt=True))
        for one in placed
    ]
    asked = [list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in wanted_of(placed)]
    most = max(2 * max(lengths), _LEAST_TOKENS)
    said = [""] * len(placed)
    order = sorted(range(len(placed)), key=lambda number: len(asked[number]))  # rows of like length together
    for start in range(0, len(order), _ROWS):
        group = order[start : start + _ROWS]
        longest = max(len(asked[number]) for number in group)
        tokens = max(min(most, context_length - longest), 1) if context_length else most
        for number, text in zip(group, _answered(model, tongue, [asked[each] for each in group], tokens), strict=True):
            said[number] = text
    return said


def _answered(model: Any, tongue: Tongue, asked: Sequence[list[int]], tokens: int) -> list[str]:
    tokenizer = tongue.tokenizer
    longest = max(len(ids) for ids in asked)
    pad, device = tokenizer.pad_token_id, model.device
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in asked], device=device)
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked], device=device)
    learning = model.training
    model.eval()
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=tokens, eos_token_id=_ends(model, tongue), pad_token_id=pad,
                use_cache=True,
            ),
        )  # fmt: skip
    model.train(learning)
    return [str(tokenizer.decode(row[longest:], skip_special_tokens=True)).strip() for row in made]


def _ends(model: Any, tongue: Tongue) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the checkpoint's own settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = named if isinstance(named, list) else [] if named is None else [named]
    return sorted({int(tongue.tokenizer.eos_token_id), *(int(each) for each in more)})
