"""Adapters saved by PEFT itself, over transformers' model: the same layers, ranks and scales, the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest

from interlace.config import AdapterSettings
from interlace.engines.core import Core
from interlace.engines.types import GenerateRequest, Sampling
from tests.support.driving import load, run, token_ids
from tests.support.tiny import tiny_llama_safetensors

TIE = 1e-4
TOKENS = 64
CONFIGS: dict[str, dict[str, Any]] = {
    "lists": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": r".*\.(q|k|up|down)_proj",
        "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\..*": 2},
        "alpha_pattern": {r"1\.mlp\.up_proj": 3, "k_proj": 32},
    },
    "some layers": {"r": 3, "target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [1]},
    "one layer": {"r": 3, "target_modules": ["up_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "excluded": {"r": 5, "target_modules": "all-linear", "exclude_modules": ["v_proj", "mlp.down_proj"]},
    "own head": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "half": {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]},
}


def _trained(base: Path, folder: Path, seed: int, fields: dict[str, Any], size: float) -> Any:
    """PEFT's model with a random adapter, which is saved into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**fields)).eval()
    torch.manual_seed(seed)
    for name, values in adapted.named_parameters():
        if "lora_" in name:
            values.data.normal_(std=size)
            if folder.name == "half":
                values.data = values.data.bfloat16().float()
        elif "modules_to_save" in name:
            values.data.normal_(std=size)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tiny_models(tmp_path: Path, home: Path) -> None:
    """Every way to name layers, ranks and scales means here what it means to PEFT: the answers are the same, alone and
    all at once."""
    base = tiny_llama_safetensors(tmp_path / "base")
    models = {n: _trained(base, tmp_path / n, i, c, 0.25) for i, (n, c) in enumerate(CONFIGS.items())}
    adapters = tuple(AdapterSettings(name, str(tmp_path / name)) for name in CONFIGS)
    core = load(base, cache_bytes=1 << 20, adapters=adapters, home=home)
    prompts = [list(range(3 + number, 9 + 3 * number)) for number in range(len(CONFIGS))]
    _same(core, models, prompts)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_smollm2(smollm2_f32: Path, tmp_path: Path, home: Path) -> None:
    """The same of the real model, among adapters of several ranks and the base."""
    names = ("lists", "all", "patterns")
    models = {n: _trained(smollm2_f32, tmp_path / n, i, CONFIGS[n], 0.05) for i, n in enumerate(names)}
    adapters = tuple(AdapterSettings(name, str(tmp_path / name)) for name in names)
    core = load(smollm2_f32, cache_bytes=64 << 20, adapters=adapters, home=home)
    _same(core, models, [[504, 3575, 282, 4649, 314], [6403, 1980, 253, 655], [1604, 216, 34, 1232, 216, 34, 446]])


def _same(core: Core, models: dict[str, Any], prompts: list[list[int]]) -> None:
    """Whether ours and PEFT's agree, one at a time and all at once with the base: every token must be PEFT's own
    choice after the same ones, but where its two best lie within 1e-4."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=0)
    requests = [
        GenerateRequest(id=name, prompt_ids=tuple(ids), sampling=sampling, adapter=name)
        for name, ids in zip(models, prompts, strict=True)
    ]
    base = GenerateRequest(id="", prompt_ids=tuple(prompts[0]), sampling=sampling)
    together = run(core, [*requests, base])
    for request, ids in zip(requests, prompts, strict=True):
        chosen = token_ids(together[request.id])
        assert token_ids(run(core, [request])[request.id]) == chosen
        assert chosen != token_ids(together[""])
        logits = _logits(models[request.id], ids + chosen)[len(ids) - 1 : -1]
        best_two = np.sort(logits, axis=1)[:, -2:]
        for position, token in enumerate(chosen):
            tied = best_two[position, 1] - best_two[position, 0] < TIE
            assert token == logits[position].argmax() or tied, (request.id, position)


def _logits(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([ids])).logits[0].double().numpy()
    return logits
