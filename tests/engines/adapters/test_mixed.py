"""Requests with adapters, in any mix: each answers as the checkpoint with its adapter merged into the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interlace.config import AdapterSettings
from interlace.engines.core import Core
from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.kernel import find_kernel
from interlace.engines.local.runner import Run, Runner
from interlace.engines.types import GenerateRequest, Sampling
from interlace.models import DecoderArchitecture, read_adapter, read_architecture
from tests.support.adapters import random_adapter
from tests.support.driving import load, run, token_ids
from tests.support.tiny import VOCABULARY, tiny_llama_gguf, tiny_llama_safetensors, tiny_weights

CROWD = 8
TOKENS = 64


def _request(number: int, adapter: str = "", *, tokens: int = TOKENS) -> GenerateRequest:
    random = np.random.default_rng(number)
    ids = tuple(random.integers(3, VOCABULARY, 3 + number * 5 % 29).tolist())
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0)
    return GenerateRequest(id=f"r{number}", prompt_ids=ids, sampling=sampling, adapter=adapter)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in `base`, adapters in `adapter0`, ..., and the base with each merged into it in `merged0`, ..."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_llama_safetensors(folder / "base")
    for number in range(CROWD):
        _, weights = random_adapter(folder / f"adapter{number}", number)
        tiny_llama_safetensors(folder / f"merged{number}", weights=weights)
    return folder


@pytest.fixture(scope="module")
def alone(folders: Path) -> dict[str, dict[int, list[int]]]:
    """Name of the adapter ("" the base) → number of the request → the tokens of the merged checkpoint, alone."""
    answers = {}
    for adapter in ["", *(f"a{number}" for number in range(CROWD))]:
        core = load(folders / (f"merged{adapter[1:]}" if adapter else "base"), cache_bytes=1 << 20)
        answers[adapter] = {n: token_ids(run(core, [_request(n)])[f"r{n}"]) for n in range(12)}
    return answers


@pytest.fixture
def core(folders: Path, home: Path) -> Core:
    """The base with all adapters."""
    adapters = tuple(AdapterSettings(f"a{n}", str(folders / f"adapter{n}")) for n in range(CROWD))
    return load(folders / "base", cache_bytes=1 << 20, adapters=adapters, home=home)


def _resident(runner: Runner, folder: Path, number: int) -> Adapter:
    layers = read_adapter(folder, runner.linear_shapes, most_bytes=1 << 20)
    return runner.adapter(f"a{number}", number, layers)


def test_adapters_change_answers(alone: dict[str, dict[int, list[int]]]) -> None:
    """The adapters of these tests differ from the base and from each other; else the other tests would prove little."""
    assert len({tuple(map(tuple, answers.values())) for answers in alone.values()}) == CROWD + 1
    for name in alone.keys() - {""}:
        assert sum(alone[name][number] != alone[""][number] for number in range(12)) >= 6


@pytest.mark.parametrize("step_tokens", [256, 11])
def test_any_mix(folders: Path, home: Path, alone: dict[str, dict[int, list[int]]], step_tokens: int) -> None:
    """Many requests at once, with all adapters and none, prompts read beside tokens chosen and in pieces: each answers
    as the merged checkpoint alone."""
    adapters = tuple(AdapterSettings(f"a{n}", str(folders / f"adapter{n}")) for n in range(CROWD))
    changed = {"step_tokens": step_tokens, "max_sequences": 9, "home": home}
    core = load(folders / "base", cache_bytes=1 << 20, adapters=adapters, **changed)
    names = ["a3", "", "a0", "a1", "a1", "a7", "a2", "", "a4", "a5", "a6", "a1"]
    outcomes = run(core, [_request(number, name) for number, name in enumerate(names)])
    for number, name in enumerate(names):
        assert token_ids(outcomes[f"r{number}"]) == alone[name][number], (number, name)


def test_alone(core: Core, alone: dict[str, dict[int, list[int]]]) -> None:
    """One at a time, each adapter answers as its merged checkpoint, and so does the base after them."""
    for number, name in enumerate(["a0", "a1", "a2", "a3", ""]):
        assert token_ids(run(core, [_request(number, name)])[f"r{number}"]) == alone[name][number]


@pytest.mark.parametrize("precision", ["file", "f32", "bf16", "int8"])
def test_logits_of_mixed_steps(folders: Path, home: Path, tmp_path: Path, precision: str) -> None:
    """Logits of prompts and single tokens in one step, some cut short, are those of merged weights: exactly as far as
    the precision goes. A GGUF's q and k rows, which lie in another order, take adapters too."""
    base = folders / "base"
    if precision == "file":
        base = tiny_llama_gguf(tmp_path / "base.gguf", "F32", tiny_weights())
    architecture = read_architecture(base)
    assert isinstance(architecture, DecoderArchitecture)
    tolerance = {"file": 1e-5, "f32": 1e-5, "bf16": 0.12, "int8": 0.12}[precision]
    sizes = {"cache_bytes": 1 << 20, "threads": 1}
    mixed = Runner(base, architecture, precision=precision, kernel=find_kernel(home), **sizes)  # type: ignore[arg-type]
    adapters = [_resident(mixed, folders / f"adapter{number}", number) for number in range(4)]
    rows = [list(range(5 + n, 25 + 3 * n)) for n in range(6)]
    runs = [Run(ids, 0, [n]) for n, ids in enumerate(rows)]
    who = [0, None, 1, 2, 3, 1]
    runs = [Run(r.tokens, 0, r.blocks, None if w is None else adapters[w]) for r, w in zip(runs, who, strict=True)]
    logits = mixed.forward(runs, np.arange(sum(map(len, rows)))).copy()
    begin = 0
    for ids, adapter in zip(rows, who, strict=True):
        folder = folders / ("base" if adapter is None else f"merged{adapter}")
        reference = Runner(folder, architecture, precision="f32", cache_bytes=1 << 20, threads=1)
        expected = reference.forward([Run(ids, 0, [0])], np.arange(len(ids)))
        difference = logits[begin : begin + len(ids)] - expected
        assert np.sqrt(np.mean(difference**2)) < tolerance * np.sqrt(np.mean(expected**2))
        begin += len(ids)
