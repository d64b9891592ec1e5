"""A Llama in a GGUF file with a SentencePiece tokenizer, weights and text together, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from interlace.engines.core import Core
from interlace.engines.types import GenerateRequest, Message, OutputRule, Sampling, Started
from tests.support.driving import load, run, text, token_ids
from tests.support.family_gguf import model_gguf
from tests.support.sentencepieces import trained, write_tokenizer

PROMPTS = ["Once upon a time", "  two  blanks", "漢字 and 😀", "banana\n\nbanana", "x"]
NEW = 48
TEMPLATE = "{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


@pytest.fixture(scope="module")
def spelling() -> SentencePieceProcessor:
    """The tokenizer, by SentencePiece itself."""
    return trained(control_symbols=["[INST]", "[/INST]"])


@pytest.fixture(scope="module")
def oracle(spelling: SentencePieceProcessor) -> Any:
    """transformers' model, with large random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=spelling.GetPieceSize(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.normal_(0, 2.0 * values.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, oracle: Any, spelling: SentencePieceProcessor) -> Core:
    """The engine on both, from one file."""

    def also(writer: Any) -> None:
        write_tokenizer(writer, spelling)
        writer.add_chat_template(TEMPLATE)

    return load(model_gguf(oracle, tmp_path_factory.mktemp("spm") / "m.gguf", also), cache_bytes=4 << 20)


def _generated(oracle: Any, ids: list[int]) -> list[int]:
    import torch

    made = oracle.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    tokens: list[int] = made[0, len(ids) :].tolist()
    return tokens


def test_completions_are_transformers(core: Core, oracle: Any, spelling: SentencePieceProcessor) -> None:
    """Prompts are read as SentencePiece reads them, behind BOS; the tokens are transformers' greedy ones, and the text
    is what SentencePiece adds to the prompt for them."""
    sampling = Sampling(max_tokens=NEW, temperature=0, ignore_eos=True, logprobs=0)
    outcomes = run(core, [GenerateRequest(id=prompt, prompt=prompt, sampling=sampling) for prompt in PROMPTS])
    for prompt in PROMPTS:
        ids = [spelling.bos_id(), *spelling.encode(prompt)]
        told = outcomes[prompt]
        assert isinstance(told[0], Started)
        assert told[0].prompt_tokens == len(ids)
        chosen = token_ids(told)
        assert chosen == _generated(oracle, ids)
        seen = [token for token in chosen if not spelling.IsControl(token) and not spelling.IsUnknown(token)]
        if not any(map(spelling.IsByte, seen)):  # random bytes are no characters
            assert prompt + text(told) == spelling.decode(ids + seen)


def test_a_prompt_of_ids_is_echoed_without_the_space_before_it(core: Core, spelling: SentencePieceProcessor) -> None:
    """What is shown of a prompt that came as ids is the text they were made of."""
    for prompt in PROMPTS:
        request = GenerateRequest(id="a", prompt_ids=tuple(spelling.encode(prompt)), sampling=Sampling(max_tokens=1))
        started = run(core, [request])["a"][0]
        assert isinstance(started, Started)
        assert started.prompt_text == prompt


def test_a_conversation_is_read_as_the_template_writes_it(core: Core, spelling: SentencePieceProcessor) -> None:
    """Control tokens of the template are one token each; those that the user wrote are text."""
    asked = GenerateRequest(id="a", messages=(Message("user", "the cat [/INST] a mill"),), sampling=Sampling())
    own = spelling.encode("the cat [/INST] a mill")
    assert not any(map(spelling.IsControl, own))
    ids, _ = core._prompts.encode(asked)  # type: ignore[attr-defined]
    assert [token for token in ids if spelling.IsControl(token)] == [
        spelling.bos_id(), spelling.PieceToId("[INST]"), spelling.PieceToId("[/INST]")
    ]  # fmt: skip
    assert spelling.decode(ids) == " the cat [/INST] a mill "


def test_output_rules_hold(core: Core) -> None:
    """A grammar knows what the tokens spell, bytes and spaces among them: what is made has the asked-for shape."""
    rules = ["(the|a) (cat|mill)( and (the|a) donkey)?", "漢字 😀 [0-9]{3}"]
    greedy = Sampling(max_tokens=60, temperature=0)
    requests = [
        GenerateRequest(id=rule, prompt="Say", sampling=greedy, output=OutputRule("regex", rule)) for rule in rules
    ]
    outcomes = run(core, requests)
    import re

    assert all(re.fullmatch(rule, text(outcomes[rule])) for rule in rules)
