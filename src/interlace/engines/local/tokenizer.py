"""Text to token ids and back, for a GGUF file or a folder with tokenizer.json.

Two encoders stand side by side. One reads control tokens (`<|im_start|>`) as such: for templates, and for completions
as vLLM and transformers do. The other does not know them at all: for what users wrote inside a chat, so that nobody
can close their own turn and open a system turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Backend

from interlace.engines.local import gguf_tokenizer
from interlace.engines.local.checkpoint_text import gguf_text_metadata, is_gguf, read_json, template_sources
from interlace.engines.local.decoder import Decoder, token_table
from interlace.engines.local.gguf_sentencepiece import CONTINUED
from interlace.engines.local.gguf_vocabulary import end_ids, token_id
from interlace.errors import CheckpointError

# A vocabulary may mark these as special, but clients must see the calls: they stay text for decoding and grammars.
_ALWAYS_TEXT = frozenset({"<tool_call>", "</tool_call>"})
_NAMES = ("bos", "eos", "unk", "pad")


class Piece(NamedTuple):
    """A stretch of a prompt; `special` says whether control tokens written in it count as such."""

    text: str
    special: bool


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Immutable and safe to share between threads. Made by `load_tokenizer`."""

    vocabulary: int  # ids are 0 … vocabulary - 1
    eos_ids: frozenset[int]
    bos_id: int | None
    special_ids: frozenset[int]  # shown as nothing, unless asked for
    control_tokens: frozenset[str]  # texts a user may not write as tokens
    named_tokens: Mapping[str, str]  # "bos_token" and so on, as chat templates know them
    _reading: Backend
    _plain: Backend
    _table: list[bytes]
    _continued: str = ""  # before a text that goes on from another, so that it gets no space before it
    _strips: bool = False  # whole texts begin with a space that is none of theirs

    def encode(self, text: str, special: bool, *, framed: bool = False) -> list[int]:
        """Token ids of `text`. `special`: control tokens in it are read as such. `framed`: with what the checkpoint
        puts around a whole text (BOS for some decoders, [CLS] and [SEP] for BERT), never truncated or padded."""
        backend = self._reading if special else self._plain
        # A batch of one: `encode` would hold the GIL, and so everybody's next token, for as long as a long text takes.
        encoding, *_ = backend.encode_batch_fast([text], add_special_tokens=framed)
        ids: list[int] = encoding.ids
        return ids

    def encode_pairs(self, first: str | None, seconds: Sequence[str]) -> list[tuple[list[int], int]]:
        """Token ids of each of `seconds` behind `first` (alone where that is None), framed as the checkpoint frames a
        pair, and where the second's type begins. Control tokens in either are text."""
        inputs = list(seconds) if first is None else [(first, second) for second in seconds]
        encodings = self._plain.encode_batch_fast(inputs, add_special_tokens=True)
        return [(encoding.ids, encoding.type_ids.count(0)) for encoding in encodings]

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Token ids of a rendered conversation, each piece encoded under its own rule."""
        ids: list[int] = []
        for number, (text, special) in enumerate(pieces):
            ids += self.encode(self._continued + text if number else text, special)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token, a special one's text too; empty for an id the tokenizer doesn't have."""
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def decoder(self, *, special: bool = False, whole: bool = False) -> Decoder:
        """A decoder for one growing sequence, which goes on from a text unless it is a `whole` one; `special` shows
        special tokens as their text. A space that encoding put before a whole text is left out again."""
        return Decoder(self._table, frozenset() if special else self.special_ids, strips=whole and self._strips)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of all ids at once, a whole one, U+FFFD for bytes that are no character."""
        decoder = self.decoder(special=special, whole=True)
        return "".join([*map(decoder.push, ids), decoder.flush()])

    def to_json(self) -> str:
        """The reading encoder as tokenizer.json text, for `llguidance`."""
        return self._reading.to_str()


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, or of a folder with tokenizer.json; `CheckpointError` when it can't be proven."""
    return _from_gguf(path) if is_gguf(path) else _from_folder(path)


def _from_gguf(path: Path) -> Tokenizer:
    metadata = gguf_text_metadata(path)
    backend = gguf_tokenizer.build(metadata)
    stated = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: token_id(metadata, theirs) for name, theirs in stated.items()}
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    return _assemble(backend, path, named, end_ids(metadata))


def _from_folder(path: Path) -> Tokenizer:
    source = path / "tokenizer.json"
    try:
        backend = Backend.from_file(str(source))
    except Exception as error:  # `tokenizers` raises the bare class for every unusable file
        raise CheckpointError(f"{source} is missing or not a tokenizer that can be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    config = read_json(path / "tokenizer_config.json")
    named = {f"{name}_token": _content(config.get(f"{name}_token")) for name in _NAMES}
    known = {name: text for name, text in named.items() if text is not None}
    return _assemble(backend, path, known, _folder_eos(path, backend, known))


def _content(token: Any) -> str | None:
    """A token in tokenizer_config.json is a string, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _folder_eos(path: Path, backend: Backend, named: Mapping[str, str]) -> frozenset[int]:
    """Every id that ends a text: of generation_config.json (else config.json), and the tokenizer's own."""
    for file in ("generation_config.json", "config.json"):
        stated = read_json(path / file).get("eos_token_id")
        if stated is not None:
            break
    listed = stated if isinstance(stated, list) else [stated]
    own = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return frozenset(index for index in [*listed, own] if isinstance(index, int))


def _assemble(backend: Backend, path: Path, named: Mapping[str, str], eos_ids: frozenset[int]) -> Tokenizer:
    layout = json.loads(backend.to_str())
    for token in layout["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in _ALWAYS_TEXT
    added = {token["id"]: token["content"] for token in layout["added_tokens"]}
    special = frozenset(token["id"] for token in layout["added_tokens"] if token["special"])
    control = _control_tokens(added, special, "\0".join(template_sources(path).values()))
    decoder = json.dumps(layout["decoder"])
    byte_level = '"ByteLevel"' in decoder
    strips = '"type": "Strip", "content": " ", "start": 1' in decoder
    table = token_table(backend.get_vocab(with_added_tokens=False), added, byte_level=byte_level)
    return Tokenizer(
        vocabulary=len(table),
        eos_ids=eos_ids,
        bos_id=backend.token_to_id(named["bos_token"]) if "bos_token" in named else None,
        special_ids=special,
        control_tokens=control,
        named_tokens=dict(named),
        _reading=Backend.from_str(json.dumps(layout)),
        _plain=_without(layout, control),
        _table=table,
        _continued=CONTINUED if CONTINUED in json.dumps(layout["normalizer"], ensure_ascii=False) else "",
        _strips=strips,
    )


def _control_tokens(added: Mapping[int, str], special: frozenset[int], templates: str) -> frozenset[str]:
    """All special tokens, and those added tokens a chat template writes itself (`<tool_response>`); but blanks, of
    which Gemma has tokens, are anybody's."""
    written = (text for index, text in added.items() if index in special or text in templates)
    return frozenset(text for text in written if text.strip())


def _without(layout: Mapping[str, Any], control: frozenset[str]) -> Backend:
    """The same tokenizer, unable to produce the control tokens: neither matched in the text nor in the vocabulary.

    One stays if the model falls back to it (`[UNK]`) or a merge is made of it; it is then no more than text.
    """
    plain = dict(layout)
    plain["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in control]
    model = dict(layout["model"])
    if isinstance(model.get("vocab"), dict):
        needed = {model.get("unk_token")} | _merge_parts(model.get("merges") or [])
        dropped = control - needed
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in dropped}
    plain["model"] = model
    return Backend.from_str(json.dumps(plain))


def _merge_parts(merges: list[Any]) -> set[str]:
    """Every token a merge reads or makes; a merge is "left right" or ["left", "right"], by the file's age."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return {token for pair in pairs for token in (*pair, "".join(pair))}
