"""The SentencePiece tokenizer of a GGUF file: Llama 2's, Mistral's, Gemma's, Phi-3's (`tokenizer.ggml.model` "llama").

SentencePiece joins, again and again, the two neighbours that make the token with the best score. Written as merges,
best first, the same is done by the `tokenizers` library, as transformers does it. A space is written as "▁"; one is put
before a text, and behind every special token in it, where the file says so. Characters without a token are spelled in
tokens of one byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from interlace.engines.local.gguf_vocabulary import (
    BYTE,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    add_frame,
    add_tokens,
    merge_list,
    token_id,
    token_kinds,
    token_list,
)
from interlace.errors import CheckpointError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
CONTINUED = "\ufdd3"  # a noncharacter: a text that begins with it goes on from another, so no space is put before it

_SPACELESS = ("<unk>", "<s>", "<|endoftext|>")  # Phi-3's tokens that leave the blanks behind them alone


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of that metadata; `CheckpointError` when the file lacks a part or asks for what is not done."""
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise CheckpointError(
            "tokenizer.ggml.precompiled_charsmap: normalisation of characters is not done for GGUF files. "
            "Use the checkpoint's safetensors folder, which carries its tokenizer.json."
        )
    spelled = token_list(metadata)
    kinds = token_kinds(metadata, spelled)
    tokens = _as_matched(spelled, kinds)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer(_model(metadata, tokens, kinds))
    tokenizer.normalizer = _normalizer(prefix=prefix, squeeze=bool(metadata.get(_SQUEEZE, False)))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    phi3 = metadata.get("general.architecture") == "phi3"
    rstrip = [token for token in tokens if token not in _SPACELESS] if phi3 else []
    add_tokens(tokenizer, tokens, kinds, rstrip=rstrip)
    add_frame(tokenizer, tokens, metadata, bos=True)
    return tokenizer


_SQUEEZE = "tokenizer.ggml.remove_extra_whitespaces"


def _as_matched(spelled: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """The tokens, user-defined ones as they are looked for in a text, which has spaces: older files spell runs of
    blanks (Gemma's) as the others are spelled, newer ones as they are."""
    tokens = [
        token.replace(SPACE, " ") if kind == USER_DEFINED else token for token, kind in zip(spelled, kinds, strict=True)
    ]
    if len(set(tokens)) != len(tokens):
        raise CheckpointError("tokenizer.ggml.tokens names a user-defined token twice; the file is damaged.")
    return tokens


def _model(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = token_id(metadata, "unknown")
    if unknown is None:
        unknown = next((index for index, kind in enumerate(kinds) if kind == UNKNOWN), None)
    bytes_missing = not all(kinds[vocabulary[name]] == BYTE if name in vocabulary else False for name in _BYTES)
    if bytes_missing and unknown is None:
        raise CheckpointError(
            "tokenizer.ggml.tokens has neither a token for each byte nor one for what is unknown, so some texts could "
            "not be read; the file has no usable tokenizer."
        )
    if metadata.get("tokenizer.ggml.merges"):
        merges = merge_list(metadata, tokens)
    else:
        merges = _merges(vocabulary, kinds, _scores(metadata, len(tokens)))
    return models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != count:
        raise CheckpointError("tokenizer.ggml.scores is missing or not one number for each of tokenizer.ggml.tokens.")
    if not all(isinstance(score, float | int) and math.isfinite(score) for score in scores):
        raise CheckpointError("tokenizer.ggml.scores has what is no number; the file is damaged.")
    return scores


def _merges(vocabulary: Mapping[str, int], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to make a token of two, the best token first; of equal scores, the earlier token first.

    Tokens that stand for bytes, control and what is unknown come of no text, and user-defined ones are found whole.
    """
    joined = {token: index for token, index in vocabulary.items() if kinds[index] in (NORMAL, UNUSED)}
    ranked: Iterable[str] = sorted(joined, key=lambda token: (-scores[joined[token]], joined[token]))
    merges: list[tuple[str, str]] = []
    for token in ranked:
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in joined and right in joined]
        merges += sorted(pairs, key=lambda pair: (joined[pair[0]], joined[pair[1]]))
    return merges


def _normalizer(*, prefix: bool, squeeze: bool) -> normalizers.Normalizer:
    """From text to how the tokens spell it. `squeeze`: without spaces at the edges, and one for a run of them."""
    steps: list[normalizers.Normalizer] = []
    if squeeze:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps += [normalizers.Prepend(SPACE), normalizers.Replace(SPACE + CONTINUED, "")]
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
