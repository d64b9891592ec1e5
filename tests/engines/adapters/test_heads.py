"""Adapters with an output layer of their own (`modules_to_save`): each answers as the checkpoint that has it, beside
others that share the base's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interlace.config import AdapterSettings
from interlace.engines.core import Core
from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.adapter_head import with_own_heads
from interlace.engines.local.runner import Run, Runner
from interlace.engines.types import GenerateRequest, Sampling
from interlace.errors import CheckpointError
from interlace.models import DecoderArchitecture, read_adapter, read_architecture
from tests.support.adapters import lora_tensors, merged, write_adapter
from tests.support.driving import load, run, token_ids
from tests.support.tiny import HIDDEN, VOCABULARY, Tensors, tiny_llama_gguf, tiny_llama_safetensors, tiny_weights

HEAD = "base_model.model.lm_head.weight"
OWN = (True, False, True, False)  # which of the adapters have a head


def _head(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    values = np.random.default_rng(100 + seed).standard_normal((VOCABULARY, HIDDEN)) / HIDDEN**0.5
    return values.astype(np.float32)


def _tensors(number: int) -> Tensors:
    return lora_tensors(tiny_weights(), r"\.[qv]_proj", seed=number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, its head tied, in `base`; adapters in `0`, `1`, ...; checkpoints that are whole in `whole0`, ..."""
    folder = tmp_path_factory.mktemp("heads")
    tiny_llama_safetensors(folder / "base")
    for number, own in enumerate(OWN):
        tensors = _tensors(number)
        weights = merged(tiny_weights(), tensors)
        if own:
            weights["lm_head.weight"] = tensors[HEAD] = _head(number)
        write_adapter(folder / str(number), tensors, modules_to_save=["lm_head"] if own else None)
        tiny_llama_safetensors(folder / f"whole{number}", weights=weights, config={"tie_word_embeddings": not own})
    return folder


def _request(number: int, adapter: str = "") -> GenerateRequest:
    ids = tuple(np.random.default_rng(number).integers(3, VOCABULARY, 4 + 5 * number).tolist())
    sampling = Sampling(max_tokens=64, temperature=0, ignore_eos=True, logprobs=0)
    return GenerateRequest(id=f"r{number}", prompt_ids=ids, sampling=sampling, adapter=adapter)


def _alone(folder: Path, names: list[str]) -> list[list[int]]:
    """The tokens of whole checkpoints, one request at a time."""
    cores: dict[str, Core] = {name: load(folder / (f"whole{name}" if name else "base"), cache_bytes=1 << 20)
                              for name in set(names)}  # fmt: skip
    return [token_ids(run(cores[name], [_request(n, "")])[f"r{n}"]) for n, name in enumerate(names)]


@pytest.mark.parametrize("step_tokens", [256, 11])
def test_any_mix(folder: Path, home: Path, step_tokens: int) -> None:
    """Rows of adapters with a head, of those without and of the base in one step, prompts in pieces beside single
    tokens: each gets the logits of its own head, 64 tokens long. Adapters without a head that came first go on."""
    names = ["1", "0", "", "2", "0", "3", "1", ""]
    expected = _alone(folder, names)
    assert len({tuple(answer) for answer in expected}) == len(names)
    adapters = tuple(AdapterSettings(n, str(folder / n)) for n in "0123")
    core = load(folder / "base", cache_bytes=1 << 20, adapters=adapters, step_tokens=step_tokens, home=home)
    assert token_ids(run(core, [_request(0, "1")])["r0"]) == expected[0]
    outcomes = run(core, [_request(number, name) for number, name in enumerate(names)])
    for number, name in enumerate(names):
        assert token_ids(outcomes[f"r{number}"]) == expected[number], (number, name)


@pytest.mark.parametrize("precision", ["file", "f32", "bf16", "int8"])
def test_logits(folder: Path, tmp_path: Path, precision: str) -> None:
    """At every precision the logits are those of the whole checkpoint, as far as the precision goes."""
    base = folder / "base"
    if precision == "file":
        base = tiny_llama_gguf(tmp_path / "base.gguf", "F32", tiny_weights())
    architecture = read_architecture(base)
    assert isinstance(architecture, DecoderArchitecture)
    runner = Runner(base, architecture, precision=precision, cache_bytes=1 << 20, threads=1)  # type: ignore[arg-type]
    adapter = runner.adapter("0", 1, _read(folder / "0", runner))
    ids = list(range(5, 40))
    wanted = np.array([3, 20, 34, 35 + 10])
    runs = [Run(ids, 0, [0, 1], adapter), Run(ids, 0, [2, 3])]
    logits = runner.forward(runs, wanted).copy()
    whole = read_architecture(folder / "whole0")
    assert isinstance(whole, DecoderArchitecture)
    reference = Runner(folder / "whole0", whole, precision="f32", cache_bytes=1 << 20, threads=1)
    expected = reference.forward([Run(ids, 0, [0, 1])], wanted[:3])
    tolerance = {"file": 1e-5, "f32": 1e-5, "bf16": 0.12, "int8": 0.12}[precision]
    assert np.sqrt(np.mean((logits[:3] - expected) ** 2)) < tolerance * np.sqrt(np.mean(expected**2))
    plain = runner.forward([Run(ids, 0, [2, 3])], np.array([10]))
    assert np.sqrt(np.mean((logits[3:] - plain) ** 2)) < tolerance * np.sqrt(np.mean(plain**2))


def _read(folder: Path, runner: Runner, most_bytes: int = 1 << 20):  # type: ignore[no-untyped-def]
    return read_adapter(folder, runner.linear_shapes, most_bytes=most_bytes, head=runner.head_shape)


def test_its_memory_counts(folder: Path) -> None:
    """A head is as large as all else of an adapter many times over: the cap of memory has to know."""
    architecture = read_architecture(folder / "base")
    assert isinstance(architecture, DecoderArchitecture)
    runner = Runner(folder / "base", architecture, precision="f32", cache_bytes=1 << 20, threads=1)
    sizes = [runner.adapter(str(n), n, _read(folder / str(n), runner)).bytes for n in range(2)]
    assert sizes[0] == sizes[1] + 4 * VOCABULARY * HIDDEN
    with pytest.raises(CheckpointError, match="adapter_bytes"):
        _read(folder / "0", runner, most_bytes=sizes[0] - 1)


def test_logits_are_bounded_as_the_bases() -> None:
    """Where the family bounds its logits (Gemma 2), those of an adapter's own head are, too."""
    random = np.random.default_rng(0)
    head, states = random.standard_normal((7, 4), np.float32) * 9, random.standard_normal((3, 4), np.float32)
    adapter = Adapter("a", 1, {}, {}, 0, head)
    base = np.zeros((3, 7), np.float32)
    runs = [Run([1, 2], 0, [0], adapter), Run([3], 0, [1])]
    logits = with_own_heads(base, states, runs, np.arange(3), 5.0)
    np.testing.assert_allclose(logits[:2], 5 * np.tanh(states[:2] @ head.T / 5), rtol=1e-5)
    np.testing.assert_array_equal(logits[2], base[2])


@pytest.mark.parametrize(
    ("fields", "head", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, None, ["lacks lm_head.weight", "modules_to_save"]),
        ({"modules_to_save": ["lm_head"]}, (VOCABULARY, HIDDEN + 1), ["lm_head.weight has the shape", "the base says"]),
        ({"modules_to_save": ["lm_head"]}, (VOCABULARY - 1, HIDDEN), ["lm_head.weight has the shape"]),
        ({"modules_to_save": ["lm_head"]}, (VOCABULARY * HIDDEN,), ["lm_head.weight has the shape"]),
        ({"modules_to_save": ["lm_head"]}, np.nan, ["lm_head", "not finite"]),
        ({"modules_to_save": None}, (VOCABULARY, HIDDEN), ["lm_head", "no place", "modules_to_save"]),
        ({"modules_to_save": ["embed_tokens"]}, None, ["modules_to_save", "embed_tokens", "only lm_head"]),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, None, ["modules_to_save", "embed_tokens", "only lm_head"]),
        ({"modules_to_save": "lm_head"}, None, ["modules_to_save", "only lm_head"]),
        ({"modules_to_save": {"lm_head": 1}}, None, ["modules_to_save"]),
        ({"trainable_token_indices": [1]}, None, ["trainable_token_indices", "embeddings"]),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, None, ["trainable_token_indices", "embeddings"]),
    ],
)
def test_what_cannot_be(tmp_path: Path, fields: dict[str, object], head: object, words: list[str]) -> None:
    """A head that does not fit the base, or whole layers other than the head, are refused by the name of the field."""
    tensors = _tensors(0)
    if isinstance(head, tuple):
        tensors[HEAD] = np.zeros(head, np.float32)
    elif head is not None:
        tensors[HEAD] = _head(0)
        tensors[HEAD][-1, -1] = head
    folder = write_adapter(tmp_path / "a", tensors, **fields)
    shapes = {n.removesuffix(".weight"): w.shape for n, w in tiny_weights().items() if "_proj" in n}
    with pytest.raises(CheckpointError) as refused:
        read_adapter(folder, shapes, most_bytes=1 << 20, head=(VOCABULARY, HIDDEN))  # type: ignore[arg-type]
    for word in words:
        assert word in refused.value.message
