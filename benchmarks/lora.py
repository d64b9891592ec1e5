"""LoRA adapters of random numbers in PEFT's format: the same files for every contestant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

RANK = 8
RESIDENT = 32  # adapters that are in use at once
REGISTERED = 1000  # names that one of our contestants knows; they share the files, and each is read anew
KINDS = {"all": "", "qv": "q_proj,v_proj"}


def write_adapters(checkpoint: Path, folder: Path) -> Path:
    """`folder` with `all/0` ... `all/31` and `qv/0` ... `qv/31`, made once: of rank 8, float32, over every linear layer
    of the decoder, or over q and v."""
    done = folder / ".done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with safe_open(checkpoint / "model.safetensors", "np") as stored:
            shapes = {
                name: tuple(stored.get_slice(name).get_shape())
                for name in stored.keys()  # noqa: SIM118 (it is no dictionary)
                if name.endswith("_proj.weight")
            }
        random = np.random.default_rng(0)
        for kind, only in KINDS.items():
            chosen = {n: shape for n, shape in shapes.items() if not only or n.split(".")[-2] in only.split(",")}
            for number in range(RESIDENT):
                _write(folder / kind / str(number), chosen, random)
        done.touch()
    return folder


def adapter_bytes(folder: Path, kind: str) -> int:
    """What one of them takes as float32."""
    return (folder / kind / "0" / "adapter_model.safetensors").stat().st_size


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        at = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{at}.lora_A.weight"] = random.standard_normal((RANK, inputs), np.float32) / np.float32(inputs**0.5)
        tensors[f"{at}.lora_B.weight"] = random.standard_normal((outputs, RANK), np.float32) / np.float32(50)
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.split(".")[-2] for name in shapes}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
