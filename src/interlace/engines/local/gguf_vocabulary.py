"""What every kind of tokenizer in a GGUF file has: a list of tokens, what each is for, and what frames a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from interlace.errors import CheckpointError

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Tokens with these texts end a turn also where the file names another one as its end, as llama.cpp takes them.
_TURN_ENDS = frozenset({"<end_of_turn>", "<|end|>", "<|eot_id|>", "<|im_end|>"})


def token_list(metadata: Mapping[str, Any]) -> list[str]:
    """The text of each token, by id, as the file spells it; no two are the same."""
    return strings(metadata, "tokenizer.ggml.tokens")


def strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """The strings under `key`, all different."""
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{key} is missing or no list of strings; the file has no usable tokenizer.")
    if len(set(value)) != len(value):
        raise CheckpointError(f"{key} names the same entry twice; the file is damaged.")
    return value


def token_kinds(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """What each token is for; all are normal where the file does not say."""
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError("tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length.")
    return kinds


def token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """The id under `tokenizer.ggml.NAME_token_id`, checked against the vocabulary; None when the file has none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(metadata["tokenizer.ggml.tokens"]):
        raise CheckpointError(f"{key} is {value!r}, which is no id of the vocabulary; the file is damaged.")
    return value


def end_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Every id that ends an answer: those that the file names, and control tokens that end a turn by their text."""
    named = {token_id(metadata, name) for name in ("eos", "eot", "eom")}
    tokens = token_list(metadata)
    kinds = zip(tokens, token_kinds(metadata, tokens), strict=True)
    turns = {index for index, (token, kind) in enumerate(kinds) if kind == CONTROL and token in _TURN_ENDS}
    return frozenset(turns.union(index for index in named if index is not None))


def merge_list(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The file's own merges, first to last, of tokens of the vocabulary."""
    known = set(tokens)
    pairs = []
    for merge in strings(metadata, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise CheckpointError(f"tokenizer.ggml.merges has {merge!r}, whose parts are not all in the vocabulary.")
        pairs.append((left, right))
    return pairs


def add_tokens(
    tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int], *, rstrip: Sequence[str] = ()
) -> None:
    """Make control tokens special and user-defined ones whole; both keep the id they have in the vocabulary. Blanks
    behind those of `rstrip` are part of them."""
    for those, special in (((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False)):
        added = [
            AddedToken(token, normalized=False, special=special, rstrip=token in rstrip)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in those and token
        ]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)


def add_frame(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Mapping[str, Any], *, bos: bool) -> None:
    """Have whole texts begin with BOS and end with EOS where the file says so; `bos`: where it says nothing of BOS."""
    frame = ["$A:0"]
    special = []
    for name, default in (("bos", bos), ("eos", False)):
        index = token_id(metadata, name)
        if index is None or not metadata.get(f"tokenizer.ggml.add_{name}_token", default):
            continue
        special.append((tokens[index], index))
        frame.insert(0 if name == "bos" else len(frame), f"{tokens[index]}:0")
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=list(dict(special).items())
        )
