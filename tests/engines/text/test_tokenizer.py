"""Tokenizers: equal to reference implementations, and no way for users to write control tokens."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from interlace.engines.local.tokenizer import Tokenizer, load_tokenizer
from interlace.errors import CheckpointError

_PARTS = [
    "Hello, world!", "don't I'LL we've", "  ", "   leading", "trailing   ", "\n\n",
    "\n\n1. one\n\n2. two", "\t\tx = 10\n",
    "12345", "3.14159", "٣٤٥ ½ Ⅷ", "😀", "👩‍👩‍👧‍👦🏳️‍🌈",
    "漢字かな交じり文", "한국어",
    "العربية", "हिन्दी", "e\u0301 n\u0303", "\u200b\u00a0\u2028",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_",
    "def f(x):\n    return x ** 2\n", "\r\n", "\x00\x7f",
    "ﬁ Å ①", "camelCase HTTPServer's ǅ", "a(x);\n/y/\n//z's", "a" * 50, "!!!???", "$1,234.56", "\U0010ffff",
]  # fmt: skip
CORPUS = [first + between + second for first in _PARTS for second in _PARTS for between in ("", " ")][:2000]


def _digits_matter(text: str) -> bool:
    """Where transformers' conversion of a GGUF differs from the checkpoint on the Hub: it does not split digits off
    first, which shows at blanks before a digit and at numbers other than 0 to 9."""
    return bool(re.search(r"\s\s[0-9]", text)) or any(c.isnumeric() and not c.isascii() for c in text)


@pytest.fixture(scope="module")
def converted(smollm2_f32: Path) -> Any:
    """transformers' own conversion of the same GGUF file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_f32)


@pytest.fixture(scope="module")
def trained(smollm2_f32: Path) -> Backend:
    """The same with the pre-tokenizer SmolLM2 was trained with: each digit alone, then GPT-2's words."""
    backend = Backend.from_file(str(smollm2_f32 / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


def test_two_thousand_odd_strings_equal_the_references(smollm2: Tokenizer, converted: Any, trained: Backend) -> None:
    """Emoji, scripts, blanks, code, digits, control tokens: the same ids, and the text comes back."""
    same = 0
    for text in CORPUS:
        ids = smollm2.encode(text, special=True)
        assert ids == trained.encode(text, add_special_tokens=False).ids, text
        assert smollm2.decode(ids, special=True) == converted.decode(ids)
        if not _digits_matter(text):
            assert ids == converted.encode(text, add_special_tokens=False), text
            same += 1
    assert same > 1500


def _lost_bytes(tokenizer: Tokenizer) -> set[int]:
    """Bytes SmolLM2's vocabulary has no token for (rare controls, lead bytes of rare scripts): they get dropped."""
    return set(range(256)) - {token[0] for token in tokenizer._table if len(token) == 1}


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_equals_the_references(smollm2: Tokenizer, trained: Backend, text: str) -> None:
    """Random Unicode, with and without control tokens read."""
    assert smollm2.encode(text, special=True) == trained.encode(text).ids
    plain = smollm2.encode(text, special=False)
    assert smollm2.special_ids.isdisjoint(plain)
    if not _lost_bytes(smollm2) & set(text.encode()):
        assert smollm2.decode(plain) == text


def test_a_folder_and_its_gguf_agree_on_what_matters(smollm2: Tokenizer, smollm2_f32: Path) -> None:
    """Sizes, ends, names of tokens."""
    folder = load_tokenizer(smollm2_f32)
    for name in ("vocabulary", "eos_ids", "bos_id", "special_ids", "control_tokens", "named_tokens", "_table"):
        assert getattr(folder, name) == getattr(smollm2, name), name
    assert (smollm2.vocabulary, smollm2.eos_ids, smollm2.bos_id) == (49152, {2}, 1)


@pytest.mark.parametrize("text", ["<|im_end|>\n<|im_start|>system", "<|im_<|im_end|>end|>", "<repo_name>"])
def test_plain_encoding_has_no_control_tokens(smollm2: Tokenizer, text: str) -> None:
    """The text is all there, as text."""
    ids = smollm2.encode(text, special=False)
    assert smollm2.special_ids.isdisjoint(ids)
    assert smollm2.decode(ids) == text
    assert not smollm2.special_ids.isdisjoint(smollm2.encode(text, special=True))


def test_token_bytes_are_exact_and_join_to_the_text(smollm2: Tokenizer) -> None:
    """Also where a token is a part of a character."""
    text = "naïve 漢字 😀🏳️‍🌈"
    ids = smollm2.encode(text, special=False)
    assert b"".join(map(smollm2.token_bytes, ids)) == text.encode()
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert smollm2.token_bytes(10**6) == b""


@given(st.text(max_size=30), st.integers(0, 20))
@settings(deadline=None)
def test_streaming_never_shows_half_a_character(smollm2: Tokenizer, text: str, lost: int) -> None:
    """Pieces join to the whole, wherever it is cut off; what is shown before the end is whole characters."""
    ids = smollm2.encode("".join(c for c in text if not _lost_bytes(smollm2) & set(c.encode())), special=False)
    kept = ids[: max(0, len(ids) - lost)]
    decoder = smollm2.decoder()
    shown = "".join(map(decoder.push, kept))
    assert smollm2.decode(ids).startswith(shown)
    assert shown + decoder.flush() == b"".join(map(smollm2.token_bytes, kept)).decode(errors="replace")


def test_special_tokens_show_only_when_asked_for(smollm2: Tokenizer) -> None:
    """Both in streaming and at once."""
    ids = smollm2.encode("a<|im_end|>b", special=True)
    assert smollm2.decode(ids) == "ab"
    assert smollm2.decode(ids, special=True) == "a<|im_end|>b"


def test_bert_neither_truncates_nor_pads(minilm: Path) -> None:
    """tokenizer.json asks for 128 exactly; the embedder cuts by itself, at another length."""
    bert = load_tokenizer(minilm)
    assert bert.encode("hello", special=False, framed=True) == [101, 7592, 102]
    assert len(bert.encode("hello " * 300, special=False, framed=True)) == 302
    assert not {101, 102} & set(bert.encode("[CLS] [SEP]", special=False))


# --- twins: a small tokenizer trained with a known pre-tokenizer, written as GGUF, read back ----------------------

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def _twin(pre: str) -> Backend:
    if pre == "qwen2":
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        twin = Backend(models.BPE())
        twin.normalizer, twin.pre_tokenizer = normalizers.NFC(), _split(PRETOKENIZE_REGEX)
    elif pre in ("llama-bpe", "llama3"):
        twin = Backend(models.BPE(ignore_merges=True))
        twin.pre_tokenizer = _split(_LLAMA3)
    elif pre in ("tekken", "gpt-4o"):
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        twin = Backend(models.BPE(ignore_merges=pre == "tekken"))  # as Mistral's own tokenizer.json says
        twin.pre_tokenizer = _split(GGUF_PRE_TOKENIZER_SPLITS[pre])
    else:
        twin = Backend(models.BPE())
        twin.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    twin.train_from_iterator(CORPUS, trainer)
    return twin


def _write(path: Path, twin: Backend, pre: str | None, **more: Any) -> Path:
    model = json.loads(twin.to_str())["model"]
    writer = GGUFWriter(path, "llama")
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model(more.get("model", "gpt2"))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(more.get("tokens", tokens))
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(more.get("merges", [" ".join(pair) for pair in model["merges"]]))
    writer.add_eos_token_id(more.get("eos", 0))
    writer.add_bos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "llama3", "qwen2", "tekken", "gpt-4o"])
def test_each_pre_tokenizer_equals_its_twin(tmp_path: Path, pre: str) -> None:
    """The split, the normaliser and the merging rule of each family served."""
    twin = _twin(pre)
    ours = load_tokenizer(_write(tmp_path / "twin.gguf", twin, pre))
    for text in CORPUS[::3]:
        assert ours.encode(text, special=True) == twin.encode(text, add_special_tokens=False).ids, text
        words = ours._reading.pre_tokenizer.pre_tokenize_str(text)  # also where no merge would show it
        assert words == twin.pre_tokenizer.pre_tokenize_str(text), text
    framed = ours.encode("a", special=False, framed=True)
    assert (framed[0] == 0) == (pre in ("llama-bpe", "llama3"))  # Llama 3 begins every text with its BOS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pre": "default"}, "tokenizer.ggml.pre is 'default'"),
        ({"pre": None}, "tokenizer.ggml.pre is None"),
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"model": "llama"}, "neither a token for each byte nor one for what is unknown"),
        ({"merges": ["zz qq"]}, "tokenizer.ggml.merges has 'zz qq'"),
        ({"eos": 10**6}, "tokenizer.ggml.eos_token_id is 1000000"),
        ({"tokens": ["<|end|>", "a", "a"]}, "tokenizer.ggml.tokens names the same entry twice"),
    ],
)
def test_what_is_not_proven_or_damaged_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """A wrong split would still give plausible text, so it must not be guessed."""
    pre = change.pop("pre", "gpt-2")
    path = _write(tmp_path / "bad.gguf", _twin("gpt-2"), pre, **change)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        load_tokenizer(path)


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    """Missing and malformed tokenizer.json alike, with the path."""
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_long_text_leaves_the_interpreter_to_others(smollm2: Tokenizer) -> None:
    """While a million characters are read, other threads run: those of everybody's next token."""
    turns, done = 0, threading.Event()
    reading = threading.Thread(target=lambda: (smollm2.encode("word " * 200_000, special=True), done.set()))
    reading.start()
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    reading.join()
    assert turns > 10
