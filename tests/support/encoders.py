"""Tiny random BERT and RoBERTa models, made by transformers' own classes and served from their own folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlace.models import check_tensors, open_weights, read_architecture

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *(chr(letter) for letter in range(97, 123)),
    "cat",
    "dog",
    "sleeps",
    "barks",
)


def tokenizer(pair: str, single: str) -> str:
    """A word-level tokenizer.json with that frame around texts."""
    ids = {token: {"id": token, "ids": [WORDS.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    special = [
        {"id": i, "content": WORDS[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i in range(4)
    ]  # fmt: skip

    def template(text: str) -> list[dict[str, Any]]:
        items = [item.split(":") for item in text.split()]
        return [
            {"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": int(kind)}} for name, kind in items
        ]

    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": special,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template(single),
                "pair": template(pair),
                "special_tokens": ids,
            },
            "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
        }
    )


FRAMES = {
    "bert": ("[CLS]:0 A:0 [SEP]:0 B:1 [SEP]:1", "[CLS]:0 A:0 [SEP]:0"),
    "roberta": ("[CLS]:0 A:0 [SEP]:0 [SEP]:0 B:0 [SEP]:0", "[CLS]:0 A:0 [SEP]:0"),
}
FRAMES["xlm-roberta"] = FRAMES["roberta"]
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


def tiny_encoder(family: str, head: str, folder: Path, **settings: Any) -> Any:
    """transformers' model with large random weights, saved in `folder` beside a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{CLASSES[family]}Config")(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40, type_vocab_size=2 if family == "bert" else 1, pad_token_id=0, initializer_range=0.4,
        **settings,
    )  # fmt: skip
    made = getattr(transformers, f"{CLASSES[family]}{head}")(config).eval()
    with torch.no_grad():
        for name, values in made.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                values.add_(torch.randn_like(values) * 0.3)
    made.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer(*FRAMES[family]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    with open_weights(folder) as weights:
        check_tensors(read_architecture(folder), weights)
    return made
