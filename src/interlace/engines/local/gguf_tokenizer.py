"""The tokenizer a GGUF file describes, built from nothing but the file's own metadata.

Only pre-tokenizers proven equal to a reference implementation are here (see `tests/engines/text`); any other is
refused, because a wrong split still gives plausible text, only worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from interlace.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> pre_tokenizers.PreTokenizer:
    """Each digit alone, then GPT-2's words.

    transformers' own GGUF conversion leaves the digits out. SmolLM2 was trained with them: on text with numbers after
    blank lines the likelihood of the whole text is 6 % better (250 against 266 nats), and llama.cpp splits so too.
    """
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_split()])


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_SPLITS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2_split,
    "smollm": _digits_first,
    "llama-bpe": lambda: _words(_LLAMA3_WORDS),
    "qwen2": lambda: _words(_QWEN2_WORDS),
}


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of that metadata; `CheckpointError` when the file lacks a part or asks for an unproven kind."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) is served from GGUF. "
            "Use the checkpoint's safetensors folder, which carries its tokenizer.json."
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _SPLITS:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {pre!r}; proven pre-tokenizers are {', '.join(sorted(_SPLITS))}. "
            "Use the checkpoint's safetensors folder, which carries its tokenizer.json."
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    tokenizer = Tokenizer(_bpe(tokens, _merges(metadata, tokens), ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, metadata)
    _add_bos(tokenizer, tokens, metadata, default=pre == "llama-bpe")
    return tokenizer


def token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """The id under `tokenizer.ggml.NAME_token_id`, checked against the vocabulary; None when the file has none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(metadata["tokenizer.ggml.tokens"]):
        raise CheckpointError(f"{key} is {value!r}, which is no id of the vocabulary; the file is damaged.")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{key} is missing or no list of strings; the file has no usable tokenizer.")
    if len(set(value)) != len(value):
        raise CheckpointError(f"{key} names the same entry twice; the file is damaged.")
    return value


def _merges(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    known = set(tokens)
    pairs = []
    for merge in _strings(metadata, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise CheckpointError(f"tokenizer.ggml.merges has {merge!r}, whose parts are not all in the vocabulary.")
        pairs.append((left, right))
    return pairs


def _bpe(tokens: Sequence[str], merges: list[tuple[str, str]], *, ignore_merges: bool) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=ignore_merges)


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Mapping[str, Any]) -> None:
    """Make control tokens special and user-defined ones whole; both keep the id they have in the vocabulary."""
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    if kinds and len(kinds) != len(tokens):
        raise CheckpointError("tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length.")
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, its_kind in zip(tokens, kinds, strict=False)
            if its_kind == kind and token
        ]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)


def _add_bos(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Mapping[str, Any], *, default: bool) -> None:
    bos = token_id(metadata, "bos")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokens[bos]}:0 $A:0".split(), special_tokens=[(tokens[bos], bos)]
    )
