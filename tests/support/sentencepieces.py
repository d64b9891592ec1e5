"""Small SentencePiece models, trained on the spot, and their tokenizers as llama.cpp's converter writes them."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

_SENTENCES = [
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
    "The sons had to grind, the donkey had to fetch corn and carry the flour away, and the cat had to catch the mice.",
    "  indented by two", "    by four:  two  blanks,   three   more,        8", "def f(x):\treturn x ** 2  # squared",
    "Es war einmal ein Müller, der hatte drei Söhne; la donna è mobile, où est le château ?",
    "漢字かな交じり文と日本語の文字、漢字の文。",
    "Привет, как дела? Хорошо, спасибо.", "12 345 3.14159 2024-11-26 $99.95",
    "aaaa abab ababab banana bananas abababab", "<table><tr><td>1</td></tr></table>", "100 % of 1,000 is 1,000!!! ...",
]  # fmt: skip


def trained(size: int = 460, **changed: Any) -> SentencePieceProcessor:
    """A BPE model of `size` tokens with byte fallback, as Llama 2's is made, but for what is `changed`."""
    settings: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": size, "byte_fallback": True, "character_coverage": 1.0,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
        "allow_whitespace_only_pieces": True, "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(_SENTENCES * 3), model_writer=model, **(settings | changed))
    return SentencePieceProcessor(model_proto=model.getvalue())


def kinds(model: SentencePieceProcessor, own: Collection[str] = ()) -> list[int]:
    """What each token is for, as GGUF numbers it; `own` are those that the user defined: a model does not tell."""
    asked = ((model.IsUnknown, 2), (model.IsControl, 3), (model.IsUnused, 5), (model.IsByte, 6))
    size = range(model.GetPieceSize())
    plain = [4 if model.IdToPiece(index) in own else 1 for index in size]
    return [next((kind for is_so, kind in asked if is_so(index)), plain[index]) for index in size]


def write_tokenizer(writer: GGUFWriter, model: SentencePieceProcessor, own: Collection[str] = (), **more: Any) -> None:
    """Its tokens, scores and kinds; `more` replaces single lists or sets flags under `tokenizer.ggml.`."""
    size = range(model.GetPieceSize())
    writer.add_tokenizer_model(more.pop("kind", "llama"))
    writer.add_tokenizer_pre("default")
    writer.add_token_list(more.pop("tokens", [model.IdToPiece(index) for index in size]))
    if (scores := more.pop("scores", [model.GetScore(index) for index in size])) is not None:
        writer.add_token_scores(scores)
    writer.add_token_types(more.pop("types", kinds(model, own)))
    if more.pop("unknown", True):
        writer.add_unk_token_id(model.unk_id())
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    if (template := more.pop("template", None)) is not None:
        writer.add_chat_template(template)
    for name, value in more.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_bool(f"tokenizer.ggml.{name}", value)


def tokenizer_file(path: Path, model: SentencePieceProcessor, *, architecture: str = "llama", **more: Any) -> Path:
    """A GGUF file with that tokenizer and nothing else."""
    writer = GGUFWriter(path, architecture)
    write_tokenizer(writer, model, **more)
    finish(writer)
    return path


def finish(writer: GGUFWriter) -> None:
    """Write what was added to the file."""
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
