"""The decoder against transformers in fp32, on the same weights: token for token, and logprobs to 1e-3.

The reference reads our output with one forward pass (teacher forcing): every token must be its own greedy choice after
the same prefix, but where its two best logits lie within 1e-3 of each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.core import Core
from interlace.engines.types import Delta, GenerateRequest, Outcome, Sampling, Started
from tests.support.driving import deltas, load, run, token_ids

TOKENS = 64
TIE = 1e-3
PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "import numpy as np\n\n", "2 + 2 =",
    "The quick brown fox", "In 1969, the first", "Water boils at", "To be, or not to be,", "Dear Sir or Madam,",
    "Ingredients:\n- 2 eggs\n-", "SELECT name FROM", "<html>\n<head>", "Photosynthesis is", "Les enfants jouent",
    "Der schnelle Fuchs", "El perro y el", "日本の首都は", "Привет, как", "The mitochondria is", "Roses are red,",
    "A list of primes: 2, 3, 5,", "She opened the door and", "Chapter 1\n\n", "Q: What is gravity?\nA:",
    "The three laws of", "class Stack:\n    def", "for i in range(10):", "Breaking news:", "According to scientists,",
    "My favourite colour is", "The meaning of life is", "How to bake bread:\n1.", "Newton discovered", "E = mc",
    "The largest planet is", "Kubernetes is a", "A haiku about rain:\n", "JSON: {\"name\":", "The opposite of hot is",
    "Monday, Tuesday,", "1, 1, 2, 3, 5, 8,", "The Great Wall of", "Shakespeare wrote", "Python lists are",
    "In the year 2050,", "The recipe calls for", "Once the war ended,", "Our company", "x = 5\ny = 7\nprint(x",
]  # fmt: skip


def _requests(prompts: list[str]) -> list[GenerateRequest]:
    sampling = Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=2)
    return [GenerateRequest(id=str(i), prompt=prompt, sampling=sampling) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def reference(smollm2_f32: Path) -> tuple[Any, Any]:
    """transformers' own model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(smollm2_f32, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(smollm2_f32)


def _reference_logits(reference: tuple[Any, Any], ids: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = reference[0](torch.tensor([ids])).logits[0].double().numpy()
    return logits


def _check(reference: tuple[Any, Any], prompt: str, outcomes: list[Outcome]) -> None:
    prompt_ids = reference[1](prompt)["input_ids"]
    chosen = token_ids(outcomes)
    assert len(chosen) == TOKENS
    assert isinstance(outcomes[0], Started)
    assert outcomes[0].prompt_tokens == len(prompt_ids)
    logits = _reference_logits(reference, prompt_ids + chosen)[len(prompt_ids) - 1 : -1]
    best_two = np.sort(logits, axis=1)[:, -2:]
    for position, token in enumerate(chosen):
        tied = best_two[position, 1] - best_two[position, 0] < TIE
        assert token == logits[position].argmax() or tied, f"{prompt!r}: token {position}"
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    expected -= logits.max(1, keepdims=True)
    entries = [entry for delta in deltas(outcomes) for entry in delta.logprobs]
    ours = np.array([entry.logprob for entry in entries])
    assert np.abs(ours - expected[np.arange(TOKENS), chosen]).max() < 1e-3
    for position, entry in enumerate(entries):
        for top in entry.top:
            assert abs(top.logprob - expected[position, top.id]) < 1e-3


def test_fifty_prompts_among_strangers(decoder: Core, reference: tuple[Any, Any]) -> None:
    """All fifty at once, prefill of some beside decode of others: each answers as transformers does."""
    outcomes = run(decoder, _requests(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        _check(reference, prompt, outcomes[str(i)])


@pytest.mark.parametrize("few", [8, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_prompts_alone(decoder: Core, reference: tuple[Any, Any], few: int) -> None:
    """One at a time, the answers are transformers' too, and the same tokens as among strangers."""
    together = run(decoder, _requests(PROMPTS[:few]))
    for i, prompt in enumerate(PROMPTS[:few]):
        alone = run(decoder, [_requests(PROMPTS)[i]])[str(i)]
        _check(reference, prompt, alone)
        assert token_ids(alone) == token_ids(together[str(i)])


def test_prompt_logprobs(decoder: Core, reference: tuple[Any, Any]) -> None:
    """`echo` with logprobs tells each prompt token's logprob to 1e-3; the first has none."""
    prompt = PROMPTS[24] + " Gravity is what makes apples fall."
    sampling = Sampling(max_tokens=0, logprobs=3, prompt_logprobs=True)
    outcomes = run(decoder, [GenerateRequest(id="a", prompt=prompt, sampling=sampling)])["a"]
    started = outcomes[0]
    assert isinstance(started, Started)
    ids = reference[1](prompt)["input_ids"]
    assert [entry.id for entry in started.prompt_logprobs] == ids
    logits = _reference_logits(reference, ids)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert started.prompt_logprobs[0].logprob is None
    for position, entry in enumerate(started.prompt_logprobs[1:]):
        assert entry.logprob == pytest.approx(logprobs[position, entry.id], abs=1e-3)
        assert [top.id for top in entry.top] == list(np.argsort(-logprobs[position])[:3])
    assert isinstance(outcomes[1], Delta)
    assert (outcomes[1].finish_reason, outcomes[1].tokens) == ("length", 0)


def _loss(core: Core, ids: list[int]) -> float:
    sampling = Sampling(max_tokens=0, logprobs=0, prompt_logprobs=True)
    request = GenerateRequest(id="a", prompt_ids=tuple(ids), sampling=sampling)
    started = run(core, [request])["a"][0]
    assert isinstance(started, Started)
    return -float(np.mean([entry.logprob for entry in started.prompt_logprobs[1:] if entry.logprob is not None]))


PROSE = (
    "Gravity is the force by which a planet or other body draws objects toward its center. The force of gravity keeps "
    "all of the planets in orbit around the sun. Anything that has mass also has gravity, and objects with more mass "
    "have more gravity. Gravity also gets weaker with distance, so the closer objects are to each other, the stronger "
    "their gravitational pull is. Earth's gravity comes from all its mass."
)


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-4), ("file", 1e-4), ("int8", 0.05), ("bf16", 0.05)])
def test_loss_on_prose(smollm2_gguf: Path, reference: tuple[Any, Any], precision: str, tolerance: float) -> None:
    """The loss on prose is transformers', at every precision: q and k rows in the wrong order would raise it by more
    than one, and a rounded zero point by a tenth."""
    ids = reference[1](PROSE)["input_ids"]
    logits = _reference_logits(reference, ids)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = -float(logprobs[np.arange(len(ids) - 1), ids[1:]].mean())
    core = load(smollm2_gguf, precision=precision, cache_bytes=64 << 20)
    assert _loss(core, ids) == pytest.approx(expected, abs=tolerance)


def test_safetensors_equals_gguf(smollm2_f32: Path, decoder: Core, reference: tuple[Any, Any]) -> None:
    """The same weights from a safetensors folder give the same loss."""
    ids = reference[1](PROSE)["input_ids"]
    core = load(smollm2_f32, precision="file", cache_bytes=64 << 20)
    assert _loss(core, ids) == pytest.approx(_loss(decoder, ids), abs=1e-5)
