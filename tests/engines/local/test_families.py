"""Every decoder family against transformers: tiny random models, whose every part is far from doing nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.local.runner import Run, Runner
from interlace.engines.types import GenerateRequest, Sampling
from interlace.models import DecoderArchitecture, check_tensors, open_weights, read_architecture
from tests.support.driving import load, run, token_ids
from tests.support.families import VARIANTS, checkpoint, oracle
from tests.support.family_gguf import family_gguf
from tests.support.tiny import VOCABULARY

Array = np.ndarray[Any, Any]

RANDOM = np.random.default_rng(3)
TEXT = RANDOM.integers(3, VOCABULARY, 150).tolist()  # longer than a window, and than four blocks
PROMPTS = [RANDOM.integers(3, VOCABULARY, length).tolist() for length in (1, 5, 31, 32, 47, 70)]
NEW = 64


@pytest.fixture(scope="module")
def runner_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runner]:
    """Our runner on the weights of a variant, compiled once."""
    made: dict[str, Runner] = {}

    def get(variant: str) -> Runner:
        if variant not in made:
            made[variant] = runner(checkpoint(variant, tmp_path_factory.mktemp(variant)))
        return made[variant]

    return get


def runner(path: Path, precision: Any = "f32") -> Runner:
    """Our runner on the checkpoint at `path`, every tensor of which must be expected."""
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    with open_weights(path) as weights:
        check_tensors(architecture, weights)
    return Runner(path, architecture, precision=precision, cache_bytes=4 << 20, threads=1)


def far(ours: Runner, tokens: int) -> bool:
    """Whether so long a sequence is beyond the model's border."""
    return 0 < ours._architecture.border < tokens


def reference(variant: str, ids: list[int]) -> Array:
    """transformers' logits for every position."""
    import torch

    with torch.inference_mode():
        logits: Array = oracle(variant)(torch.tensor([ids])).logits[0].numpy()
    return logits


def choices(ours: Runner, variant: str, prompt: list[int], answer: list[int]) -> Array:
    """transformers' logits for each token of the answer: those after a text within the border are of such a text."""
    text, border = prompt + answer, ours._architecture.border
    logits = reference(variant, text)
    if far(ours, len(text)):
        logits = np.concatenate([reference(variant, text[:border]), logits[border:]])
    return logits[len(prompt) - 1 : -1]


def assert_close(ours: Array, theirs: Array) -> None:
    """Within 1e-3 everywhere; the same best token but where two are that close."""
    assert np.abs(ours - theirs).max() < 1e-3
    best_two = np.sort(theirs, axis=1)[:, -2:]
    same = ours.argmax(1) == theirs.argmax(1)
    assert (same | (best_two[:, 1] - best_two[:, 0] < 1e-3)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(runner_of: Callable[[str], Runner], variant: str) -> None:
    """The logits of a text, whole or in pieces beside strangers, are transformers' to 1e-3."""
    ours, theirs = runner_of(variant), reference(variant, TEXT)
    assert np.ptp(theirs, axis=1).min() > 1, "a model whose logits are all alike proves nothing"
    blocks, others = [9, 3, 5, 1, 7], [2, 4]
    long = far(ours, len(TEXT))
    assert_close(ours.forward([Run(TEXT, 0, blocks, far=long)], np.arange(len(TEXT))), theirs)
    stranger = Run(PROMPTS[4], 0, others)
    pieces = []
    for begin, end in ((0, 33), (33, 100), (100, 101), (101, 150)):
        runs = [stranger, Run(TEXT[begin:end], begin, blocks, far=long)]
        pieces.append(ours.forward(runs, len(PROMPTS[4]) + np.arange(end - begin)).copy())
    assert_close(np.concatenate(pieces), theirs)


def greedy(ours: Runner, prompts: list[list[int]]) -> list[list[int]]:
    """`NEW` greedy tokens after each prompt, all computed together: prefill, then decode. Who crosses the model's
    border is computed anew."""
    texts = [list(prompt) for prompt in prompts]
    blocks = [list(range(5 * i, 5 * i + 5)) for i in range(len(prompts))]
    computed = [0] * len(prompts)
    for _ in range(NEW):
        computed = [
            0 if far(ours, len(text)) and not far(ours, past) else past
            for text, past in zip(texts, computed, strict=True)
        ]
        runs = [
            Run(text[past:], past, own, far=far(ours, len(text)))
            for text, past, own in zip(texts, computed, blocks, strict=True)
        ]
        last = np.cumsum([len(run.tokens) for run in runs]) - 1
        computed = [len(text) for text in texts]
        for text, token in zip(texts, ours.forward(runs, last).argmax(1).tolist(), strict=True):
            text.append(token)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_equals_transformers(runner_of: Callable[[str], Runner], variant: str) -> None:
    """64 greedy tokens after several prompts are transformers' own choices, the same alone as among strangers."""
    together = greedy(runner_of(variant), PROMPTS)
    assert len({token for answer in together for token in answer}) > 15, "a model that repeats itself proves nothing"
    for prompt, answer in zip(PROMPTS, together, strict=True):
        theirs = choices(runner_of(variant), variant, prompt, answer)
        best_two = np.sort(theirs, axis=1)[:, -2:]
        tied = best_two[:, 1] - best_two[:, 0] < 1e-3
        assert ((theirs.argmax(1) == answer) | tied).all()
        assert tied.mean() < 0.05, "ties prove nothing"
    assert [greedy(runner_of(variant), [prompt])[0] for prompt in PROMPTS[::2]] == together[::2]


@pytest.mark.parametrize("variant", ["qwen3", "gemma2", "gpt2"])
def test_the_engine_serves_a_family(runner_of: Callable[[str], Runner], tmp_path: Path, variant: str) -> None:
    """Loaded from its folder and asked for all at once, the engine's greedy tokens are those of the bare graph."""
    core = load(checkpoint(variant, tmp_path), cache_bytes=4 << 20, max_sequences=4)
    sampling = Sampling(max_tokens=NEW, temperature=0, ignore_eos=True, logprobs=0)
    outcomes = run(
        core,
        [GenerateRequest(id=str(i), prompt_ids=tuple(prompt), sampling=sampling) for i, prompt in enumerate(PROMPTS)],
    )
    assert [token_ids(outcomes[str(i)]) for i in range(len(PROMPTS))] == greedy(runner_of(variant), PROMPTS)


# Not what a GGUF file of the family can say: scaled rope of local layers, an activation, a window of some layers, YaRN
# with all its settings.
NO_GGUF = ("qwen2-window", "gemma3-linear", "gpt2-wide", "qwen3-yarn", "mistral-yarn")


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in NO_GGUF])
def test_gguf_equals_transformers(tmp_path: Path, variant: str) -> None:
    """The same weights from a GGUF file, as llama.cpp's converter writes them, give the same logits."""
    ours = runner(family_gguf(variant, tmp_path / "model.gguf"))
    theirs = reference(variant, TEXT)
    run = Run(TEXT, 0, [9, 3, 5, 1, 7], far=far(ours, len(TEXT)))
    assert_close(ours.forward([run], np.arange(len(TEXT))), theirs)
