"""The base as transformers loads it for training: weights in float32, and its tokenizer; and examples in its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from interlace.tuning.endings import Ending
from interlace.tuning.prompts import CannotRender, Row, row_of
from interlace.tuning.work import Base, Placed

_MOST_SHOWN = 20  # problems of the data in one message


@dataclass(frozen=True)
class Tongue:
    """The tokenizer."""

    tokenizer: Any
    control: frozenset[str]  # the tokens that steer, and that no text may have in it


def _where(base: Base) -> dict[str, Any]:
    where: dict[str, Any] = {"pretrained_model_name_or_path": base.folder, "local_files_only": True}
    return where | ({"gguf_file": base.gguf} if base.gguf else {})


def load_model(base: Base) -> Any:
    """Load it from its folder alone: no pickle, no code of the checkpoint, no network. A GGUF file is de-quantised, and
    the model made to forget that it came quantised, else it could neither be trained nor saved."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **_where(base), dtype=torch.float32, **({} if base.gguf else {"use_safetensors": True})
    )
    if base.gguf and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        model.is_quantized = False
        model.hf_quantizer = None
        model.quantization_method = None
    return model


def load_tongue(base: Base) -> Tongue:
    """The tokenizer, with the chat template that serving uses."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(**_where(base))
    tokenizer.chat_template = base.chat_template
    if tokenizer.eos_token is None:
        raise Ending("wrong", f"{base.name} has no token that ends an answer. Give another base.")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return Tongue(tokenizer, frozenset({*tokenizer.all_special_tokens, *added}))


def rows_of(placed: list[Placed], file: str, tongue: Tongue, max_tokens: int, base: Base) -> list[Row]:
    """The examples in tokens. Raises `Ending` that lists those that cannot be learnt from, none of them cut."""
    limit, words = base.context_length or max_tokens, f"that {base.name} reads. Shorten it."
    if limit > max_tokens:
        limit, words = max_tokens, "of max_tokens. Shorten it, or raise max_tokens."
    rows: list[Row] = []
    problems: list[str] = []
    for one in placed:
        try:
            row = row_of(one.messages, tongue.tokenizer, tongue.control)
        except CannotRender as error:
            problems.append(f"{file}:{one.line}: {error}")
            continue
        if len(row.input_ids) > limit:
            problems.append(f"{file}:{one.line}: messages: has {len(row.input_ids)} tokens, over the {limit} {words}")
        rows.append(row)
    if problems:
        more = len(problems) - _MOST_SHOWN
        shown = problems[:_MOST_SHOWN] + ([f"... and {more} more."] if more > 0 else [])
        raise Ending("wrong", "\n".join(shown))
    return rows
