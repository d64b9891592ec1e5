"""The tokenizer a GGUF file describes, built from nothing but the file's own metadata.

Only pre-tokenizers proven equal to a reference implementation are here (see `tests/engines/text`); any other is
refused, because a wrong split still gives plausible text, only worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from interlace.engines.local import gguf_sentencepiece
from interlace.engines.local.gguf_vocabulary import add_frame, add_tokens, merge_list, token_kinds, token_list
from interlace.errors import CheckpointError

_INSTEAD = "Use the checkpoint's safetensors folder, which carries its tokenizer.json."

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
# A word of Tekken's and GPT-4o's is capitals and then small letters, so that "camelCase" is two.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+CUT|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*CUT"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_WORDS = _CASED.replace("CUT", "").replace("DIGITS", r"\p{N}")
_GPT4O_WORDS = _CASED.replace("CUT", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")


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


class _Pre(NamedTuple):
    """What `tokenizer.ggml.pre` stands for. `whole`: a word that is a token is taken as it is, without merges; `bos`:
    texts begin with BOS where the file says nothing of it; `composed`: characters are composed first (NFC)."""

    split: Callable[[], pre_tokenizers.PreTokenizer]
    whole: bool = False
    bos: bool = False
    composed: bool = False


_LLAMA3 = _Pre(lambda: _words(_LLAMA3_WORDS), whole=True, bos=True)
_PRE: Mapping[str, _Pre] = {
    "gpt-2": _Pre(_gpt2_split),
    "smollm": _Pre(_digits_first),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Pre(lambda: _words(_QWEN2_WORDS), composed=True),
    "tekken": _Pre(lambda: _words(_TEKKEN_WORDS), whole=True),
    "gpt-4o": _Pre(lambda: _words(_GPT4O_WORDS)),
}


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of that metadata; `CheckpointError` when the file lacks a part or asks for an unproven kind."""
    kind = metadata.get("tokenizer.ggml.model")
    match kind:
        case "gpt2":
            return _byte_level(metadata)
        case "llama":
            return gguf_sentencepiece.build(metadata)
    raise CheckpointError(
        f"tokenizer.ggml.model is {str(kind)[:40]!r}; served from GGUF are 'gpt2' (byte-level BPE) and 'llama' "
        f"(SentencePiece). {_INSTEAD}"
    )


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in _PRE:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {name!r}; proven pre-tokenizers are {', '.join(sorted(_PRE))}. {_INSTEAD}"
        )
    pre, tokens = _PRE[name], token_list(metadata)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = merge_list(metadata, tokens)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=pre.whole))
    if pre.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.split()
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens(tokenizer, tokens, token_kinds(metadata, tokens))
    add_frame(tokenizer, tokens, metadata, bos=pre.bos)
    return tokenizer
