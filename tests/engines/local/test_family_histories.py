"""Every family through the whole engine: greedy output is transformers', whatever else happens to a request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.core import Core
from interlace.engines.types import GenerateRequest, Sampling, Started
from interlace.models import DecoderArchitecture, read_architecture
from tests.support.driving import Outcomes, load, run, token_ids
from tests.support.families import VARIANTS, checkpoint, oracle
from tests.support.tiny import VOCABULARY

NEW = 64
BLOCK = 32
TIE = 1e-3
RANDOM = np.random.default_rng(11)
COMMON = RANDOM.integers(3, VOCABULARY, 40).tolist()
# Several of them begin alike, one is longer than a window and than two blocks, one is a single token.
PROMPTS = [COMMON + RANDOM.integers(3, VOCABULARY, size).tolist() for size in (0, 1, 27, 40)]
PROMPTS.append(RANDOM.integers(3, VOCABULARY, 1).tolist())
GREEDY = Sampling(max_tokens=NEW, temperature=0, ignore_eos=True, logprobs=0)
QUICK = ("llama3", "mistral", "qwen2-window", "qwen3", "smollm3", "gemma2", "gemma3", "phi3-far", "gpt2")


def engine(path: Path) -> Core:
    """The engine on that checkpoint, with a cache of nine blocks: less than two of the longest sequences."""
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    block = 2 * architecture.layers * architecture.kv_heads * BLOCK * architecture.head_dim * 4
    return load(path, cache_bytes=9 * block, max_sequences=4, step_tokens=24)


def ask(core: Core, tenant: str, prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The tokens that answer each prompt, all asked at once, and how many of each prompt's were found in the cache."""
    requests = [
        GenerateRequest(id=str(i), prompt_ids=tuple(prompt), sampling=GREEDY, tenant=f"{tenant}{i % 2}")
        for i, prompt in enumerate(prompts)
    ]
    outcomes: Outcomes = run(core, requests)
    first = [outcomes[request.id][0] for request in requests]
    found = [one.cached_tokens for one in first if isinstance(one, Started)]
    return [token_ids(outcomes[request.id]) for request in requests], found


def assert_greedy(variant: str, border: int, prompt: list[int], answer: list[int]) -> None:
    """Every token is transformers' own choice after the same ones, but where its two best lie within 1e-3."""
    text = prompt + answer
    logits = logits_of(variant, text)
    if 0 < border < len(text):  # a text within the border is computed in another way than one beyond it
        logits = np.concatenate([logits_of(variant, text[:border]), logits[border:]])
    logits = logits[len(prompt) - 1 : -1]
    best_two = np.sort(logits, axis=1)[:, -2:]
    tied = best_two[:, 1] - best_two[:, 0] < TIE
    assert len(answer) == NEW
    assert ((logits.argmax(1) == answer) | tied).all()
    assert tied.mean() < 0.05, "ties prove nothing"


def logits_of(variant: str, ids: list[int]) -> np.ndarray[Any, Any]:
    """transformers' logits for every position."""
    import torch

    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = oracle(variant)(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("variant", [v if v in QUICK else pytest.param(v, marks=pytest.mark.nightly) for v in VARIANTS])
def test_greedy_whatever_happens(tmp_path: Path, variant: str) -> None:
    """Alone, found in the cache, among strangers, and after giving way, 64 tokens are the same, and transformers'."""
    path = checkpoint(variant, tmp_path)
    core = engine(path)
    alone = []
    for number, prompt in enumerate(PROMPTS):
        (answer,), found = ask(core, f"alone{number}", [prompt])
        assert found == [0]
        (again,), found = ask(core, f"alone{number}", [prompt])
        assert found == [(len(prompt) - 1) // BLOCK * BLOCK], "a prefix was there, so it is found"
        assert again == answer
        alone.append(answer)
    assert core.health().preemptions == 0
    together, _ = ask(core, "crowd", PROMPTS)
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    # Who waits to cross the border has given its blocks back already.
    assert core.health().preemptions > 0 or architecture.border, "in so small a cache somebody gives way"
    assert together == alone
    assert core.health().blocks_used == 0
    for prompt, answer in zip(PROMPTS, alone, strict=True):
        assert_greedy(variant, architecture.border, prompt, answer)
    assert len({token for answer in alone for token in answer}) > 15, "a model that repeats itself proves nothing"


@pytest.mark.parametrize(
    "variant",
    ["phi3-far", pytest.param("gemma3", marks=pytest.mark.nightly), pytest.param("gpt2", marks=pytest.mark.nightly)],
)
def test_greedy_is_what_generate_gives(tmp_path: Path, variant: str) -> None:
    """transformers' own `generate`, which keeps a cache and drops it at LongRoPE's border, gives the same tokens."""
    import torch

    core = engine(checkpoint(variant, tmp_path))
    for prompt in (PROMPTS[2], PROMPTS[4]):
        (ours,), _ = ask(core, "generate", [prompt])
        theirs = oracle(variant).generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert theirs[0, len(prompt) :].tolist() == ours
