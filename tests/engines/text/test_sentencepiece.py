"""SentencePiece tokenizers from GGUF files against the sentencepiece package: the same ids, and the text comes back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from interlace.engines.local.tokenizer import Piece, Tokenizer, load_tokenizer
from interlace.errors import CheckpointError
from tests.support.sentencepieces import tokenizer_file, trained

# What sets the families apart: (how the model is trained, what the file says).
_GEMMA_TOKENS = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁", "<table>", "</table>", "<b>", "\t\t"]
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "mistral": ({"control_symbols": ["[INST]", "[/INST]"]}, {"add_bos_token": True, "add_space_prefix": True}),
    "gemma": (
        {"add_dummy_prefix": False, "control_symbols": ["<start_of_turn>", "<end_of_turn>"],
         "user_defined_symbols": _GEMMA_TOKENS, "size": 500},
        {"add_space_prefix": False, "own": _GEMMA_TOKENS},
    ),
    "tidy": ({"remove_extra_whitespaces": True}, {"remove_extra_whitespaces": True}),
    "no-bytes": ({"byte_fallback": False, "size": 220, "character_coverage": 0.98}, {}),
}  # fmt: skip
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text("ab n▁", max_size=12),
        st.sampled_from([
            " ", "  ", "   ", "        ", " " * 17, "\n", "\n\n", "\n\n\n\n", "\t", "\t\t", "\r\n", "\u00a0", "\u3000",
            "banana", " banana", "ababab", "the mill", "miller's", "Müller", "漢字", "😀", "👩‍👩‍👧‍👦", "e\u0301",
            "12345", "3.14", "<table>", "</table>", "<b>", "<0x41>", "<0x0A>", "▁", "▁▁", "\x00", "\U0010ffff",
        ]),
    ),
    max_size=8,
).map("".join)  # fmt: skip
_MANY = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SentencePieceProcessor, Tokenizer]]:
    """For each family SentencePiece's own model, and ours of its GGUF file."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    made = {}
    for name, (training, flags) in FAMILIES.items():
        model = trained(**training)
        made[name] = model, load_tokenizer(tokenizer_file(folder / f"{name}.gguf", model, **flags))
    return made


Pairs = dict[str, tuple[SentencePieceProcessor, Tokenizer]]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_equals_sentencepiece(pairs: Pairs, family: str) -> None:
    """Unicode, emoji, runs of blanks, line ends, blanks at the edges: the ids are SentencePiece's own."""
    theirs, ours = pairs[family]

    @_MANY
    @given(TEXTS)
    def check(text: str) -> None:
        if family in ("gemma", "tidy"):  # what they do with several blanks, they do with blanks, not with their sign
            text = text.replace("▁", "")
        assert ours.encode(text, special=False) == theirs.encode(text)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_comes_back(pairs: Pairs, family: str) -> None:
    """Decoded at once, as SentencePiece decodes it, without the space that was put before it; token by token, whole
    characters only, which join to the same."""
    theirs, ours = pairs[family]

    @_MANY
    @given(TEXTS)
    def check(text: str) -> None:
        ids = theirs.encode(text.replace("▁", "") if family == "tidy" else text)
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
        if family not in ("tidy", "no-bytes"):
            assert ours.decode(ids) == text.replace("▁", " ")
        decoder = ours.decoder(whole=True)
        shown = [decoder.push(token) for token in ids]
        assert "\ufffd" not in "".join(shown) or "\ufffd" in text
        assert "".join([*shown, decoder.flush()]) == ours.decode(ids)

    check()


def test_what_goes_on_from_a_text_keeps_its_space(pairs: Pairs) -> None:
    """An answer's first token begins with a space, which is the one between it and the prompt."""
    theirs, ours = pairs["llama"]
    prompt, whole = theirs.encode("the miller"), theirs.encode("the miller had three sons")
    assert whole[: len(prompt)] == prompt
    answer = ours.decoder()
    assert "".join(map(answer.push, whole[len(prompt) :])) == " had three sons"


def test_frames(pairs: Pairs, tmp_path: Path) -> None:
    """Whole texts begin with BOS where the file does not say otherwise, and end with EOS where it says so."""
    theirs, ours = pairs["llama"]
    ids = theirs.encode("the mill")
    assert ours.encode("the mill", special=True, framed=True) == [theirs.bos_id(), *ids]
    for number, (bos, eos) in enumerate(((False, False), (False, True), (True, True))):
        file = tokenizer_file(tmp_path / f"{number}.gguf", theirs, add_bos_token=bos, add_eos_token=eos)
        framed = [theirs.bos_id()] * bos + ids + [theirs.eos_id()] * eos
        assert load_tokenizer(file).encode("the mill", special=True, framed=True) == framed


def test_control_tokens_are_read_where_they_may_be(pairs: Pairs) -> None:
    """As llama.cpp and transformers read them, each text behind one begins with a space; as text they are no tokens."""
    theirs, ours = pairs["mistral"]
    inst, end = theirs.PieceToId("[INST]"), theirs.PieceToId("[/INST]")
    expected = [1, inst, *theirs.encode("the cat"), end, *theirs.encode("a mill")]
    assert ours.encode("<s>[INST]the cat[/INST]a mill", special=True) == expected
    plain = ours.encode("[INST]", special=False)
    assert plain == theirs.encode("[INST]")
    assert ours.special_ids.isdisjoint(plain)
    assert {theirs.unk_id(), 1, 2, inst, end} == ours.special_ids


def test_a_text_cut_into_pieces_is_one_text(pairs: Pairs) -> None:
    """A control token that a user wrote is cut out of the prompt: no space comes into the text where it was cut."""
    theirs, ours = pairs["mistral"]
    pieces = [
        Piece("<s>[INST]the ", special=True),
        Piece("[/INST]", special=False),
        Piece("mill[/INST]a", special=True),
    ]
    ids = ours.encode_pieces(pieces)
    assert ours.decode(ids, special=True) == "<s>[INST] the [/INST]mill[/INST] a"
    assert ids.count(theirs.PieceToId("[/INST]")) == 1


def test_blanks_are_tokens_of_users_too(pairs: Pairs, tmp_path: Path) -> None:
    """Gemma's tokens of line ends and runs of spaces are no control tokens, though its template writes some."""
    theirs, _ = pairs["gemma"]
    template = "<b>{% for m in messages %}<start_of_turn>\n{{ m['content'] }}<end_of_turn>\n\n  {% endfor %}"
    file = tokenizer_file(tmp_path / "t.gguf", theirs, template=template, own=_GEMMA_TOKENS, add_space_prefix=False)
    ours = load_tokenizer(file)
    assert "<b>" in ours.control_tokens, "what else a template writes is"
    assert ours.control_tokens.isdisjoint({"\n", "\n\n", "  "})
    assert ours.encode("a\n\n  b", special=False) == theirs.encode("a\n\n  b")
    assert theirs.PieceToId("<end_of_turn>") in ours.eos_ids


def test_newer_files_spell_blanks_as_they_are(pairs: Pairs, tmp_path: Path) -> None:
    """Converters write Gemma's tokens of several spaces with spaces by now; they mean the same."""
    theirs, _ = pairs["gemma"]
    tokens = [theirs.IdToPiece(index) for index in range(theirs.GetPieceSize())]
    respelled = [" " * len(token) if set(token) == {"▁"} and len(token) > 1 else token for token in tokens]
    assert respelled != tokens
    file = tokenizer_file(tmp_path / "new.gguf", theirs, tokens=respelled, add_space_prefix=False, own=_GEMMA_TOKENS)
    newer = load_tokenizer(file)
    for text in ("a  b", "    a", "  \n\n   x" + " " * 13):
        assert newer.encode(text, special=False) == theirs.encode(text)
        assert newer.decode(theirs.encode(text)) == text


def test_scores_all_alike(pairs: Pairs, tmp_path: Path) -> None:
    """Some converters lose the scores: tokens are then joined in the order of the vocabulary, as they were learnt."""
    theirs, _ = pairs["llama"]
    file = tokenizer_file(tmp_path / "alike.gguf", theirs, scores=[-1000.0] * theirs.GetPieceSize())
    ours = load_tokenizer(file)
    for text in ("the miller had three sons", "ababab banana", "漢字の文"):
        assert ours.encode(text, special=False) == theirs.encode(text)


def test_phi3_takes_the_blanks_behind_its_tokens(tmp_path: Path) -> None:
    """As the model was trained: the line end behind `<|user|>` is no token."""
    model = trained(control_symbols=["<|user|>", "<|end|>"])
    ours = load_tokenizer(tokenizer_file(tmp_path / "phi.gguf", model, architecture="phi3"))
    user, end = model.PieceToId("<|user|>"), model.PieceToId("<|end|>")
    expected = [1, *model.encode("\na"), user, *model.encode("the mill"), end]
    assert ours.encode("<s>\na<|user|>\nthe mill<|end|>\n", special=True) == expected
    assert end in ours.eos_ids


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"kind": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"kind": "rwkv"}, "tokenizer.ggml.model is 'rwkv'"),
        ({"scores": None}, "tokenizer.ggml.scores is missing"),
        ({"scores": [float("nan")]}, "tokenizer.ggml.scores"),
        ({"types": [1, 1]}, "tokenizer.ggml.token_type and tokenizer.ggml.tokens differ"),
        ({"precompiled_charsmap": [1, 2, 3]}, "tokenizer.ggml.precompiled_charsmap"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    pairs: Pairs, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """Another kind of tokenizer, or a damaged one, would give plausible ids, only wrong ones."""
    theirs, _ = pairs["llama"]
    if change.get("scores"):
        change = {"scores": [float("nan")] * theirs.GetPieceSize()}
    file = tokenizer_file(tmp_path / "bad.gguf", theirs, **change)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        load_tokenizer(file)


def test_what_not_every_text_could_be_read_with_is_refused(tmp_path: Path) -> None:
    """Without a token for each byte there must be one for what is unknown."""
    model = trained()
    types = [3, 3, 3] + [1] * (model.GetPieceSize() - 3)
    assert load_tokenizer(tokenizer_file(tmp_path / "unknown.gguf", model, types=types)).encode("the", special=False)
    file = tokenizer_file(tmp_path / "bad.gguf", model, types=types, unknown=False)
    with pytest.raises(CheckpointError, match="neither a token for each byte nor one for what is unknown"):
        load_tokenizer(file)
