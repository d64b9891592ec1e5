"""LoRA adapters in PEFT's format, written by hand, and what they make of a tiny Llama's weights when merged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.tiny import Tensors, tiny_weights

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def config(**fields: Any) -> dict[str, Any]:
    """An `adapter_config.json` as PEFT writes it, with some fields changed."""
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "revision": None,
        "inference_mode": True, "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
        "fan_in_fan_out": False, "bias": "none", "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "init_lora_weights": True, "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {},
        "alpha_pattern": {}, "exclude_modules": None,
    }  # fmt: skip
    return plain | fields


def lora_tensors(weights: Tensors, layers: str, rank: int = 4, seed: int = 0, size: float = 1.0) -> Tensors:
    """Random A and B of that rank for the linear layers whose names the pattern is found in."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        if weight.ndim == 2 and "_proj" in layer and re.search(layers, layer):
            outputs, inputs = weight.shape
            at = f"base_model.model.{layer}"
            tensors[f"{at}.lora_A.weight"] = _random(random, (rank, inputs), size)
            tensors[f"{at}.lora_B.weight"] = _random(random, (outputs, rank), size)
    return tensors


def _random(random: np.random.Generator, shape: tuple[int, int], size: float) -> np.ndarray[Any, Any]:
    return (random.standard_normal(shape) * size / shape[1] ** 0.5).astype(np.float32)


def write_adapter(folder: Path, tensors: Mapping[str, Any], **fields: Any) -> Path:
    """An adapter's folder with those tensors and `config(**fields)`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config(**fields)))
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def merged(weights: Tensors, tensors: Tensors, *, alpha: float = 8, root: bool = False) -> Tensors:
    """The weights with the adapter added: W + alpha / r B A, computed in float64."""
    changed = dict(weights)
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")].astype(np.float64)
            own = name.removeprefix("base_model.model.").replace(".lora_A", "")
            scale = alpha / (math.sqrt(len(down)) if root else len(down))
            changed[own] = (weights[own] + scale * (up @ down)).astype(np.float32)
    return changed


def random_adapter(folder: Path, number: int, weights: Tensors | None = None) -> tuple[Path, Tensors]:
    """Adapter number `number` of a varied crowd over a tiny Llama: its folder, and the merged weights."""
    weights = weights or tiny_weights()
    layers = [r"\.[qv]_proj", r".", r"layers\.1\.mlp", r"down_proj|k_proj"][number % 4]
    rank = [4, 1, 8, 3][number // 2 % 4]
    root = number % 3 == 0
    tensors = lora_tensors(weights, layers, rank, seed=number)
    target = rf".*({layers}).*_proj|.*_proj" if layers == "." else rf".*({layers}).*"
    write_adapter(folder, tensors, r=rank, target_modules=target, use_rslora=root)
    return folder, merged(weights, tensors, root=root)
