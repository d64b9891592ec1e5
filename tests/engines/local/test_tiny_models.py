"""Tiny random Llamas in every layout against transformers: heads that share keys, untied heads, shards, all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.local.runner import Run, Runner
from interlace.models import DecoderArchitecture, read_architecture
from tests.support.tiny import (
    HIDDEN,
    VOCABULARY,
    Tensors,
    through,
    tiny_config,
    tiny_llama_gguf,
    tiny_llama_safetensors,
    tiny_weights,
)

IDS = [5, 17, 60, 3, 99, 42, 8, 8, 77, 21]


def _reference(weights: Tensors, **config: Any) -> np.ndarray[Any, Any]:
    """Logits of `IDS` by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**(tiny_config() | config))).float().eval()
    state = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


def _ours(path: Path, precision: str = "file") -> np.ndarray[Any, Any]:
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    runner = Runner(path, architecture, precision=precision, cache_bytes=1 << 20, threads=1)  # type: ignore[arg-type]
    whole = runner.forward([Run(IDS, 0, [3])], np.arange(len(IDS))).copy()
    first = runner.forward([Run(IDS[:4], 0, [1])], np.arange(4)).copy()
    rest = runner.forward([Run(IDS[4:], 4, [1]), Run(IDS[:2], 0, [2])], np.arange(6)).copy()
    np.testing.assert_allclose(np.concatenate([first, rest]), whole, atol=1e-5)
    return whole


def _stored_as(kind: str) -> Tensors:
    if kind == "F32":
        return tiny_weights()
    return {n: w if w.ndim == 1 else through(kind, w) for n, w in tiny_weights().items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_gguf_kinds(tmp_path: Path, kind: str) -> None:
    """A GGUF of each kind computes what transformers computes on the de-quantised weights."""
    ours = _ours(tiny_llama_gguf(tmp_path / "m.gguf", kind))
    # The table of a kind of four bits is kept as f16.
    np.testing.assert_allclose(ours, _reference(_stored_as(kind)), atol=2e-2 if kind in ("Q4_0", "Q4_1") else 1e-4)


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_shards(tmp_path: Path, shards: int) -> None:
    """One file or three, the logits are transformers'."""
    ours = _ours(tiny_llama_safetensors(tmp_path / "m", shards))
    np.testing.assert_allclose(ours, _reference(tiny_weights()), atol=1e-4)


def test_untied_head(tmp_path: Path) -> None:
    """A checkpoint with a head of its own uses it."""
    head = np.random.default_rng(9).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    weights = tiny_weights() | {"lm_head.weight": head}
    untied = {"tie_word_embeddings": False}
    ours = _ours(tiny_llama_safetensors(tmp_path / "m", weights=weights, config=untied))
    np.testing.assert_allclose(ours, _reference(weights, **untied), atol=1e-4)
