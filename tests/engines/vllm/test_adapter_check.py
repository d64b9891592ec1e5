"""What vLLM is given to read: an adapter from anybody is refused by name, or it is sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.errors import CheckpointError
from interlace.models import check_adapter, linear_shapes
from tests.support.adapters import lora_tensors, write_adapter
from tests.support.tiny import Tensors, tiny_llama_safetensors, tiny_weights
from tests.support.vllms import adapter_tensors

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Of a tiny base in two files."""
    return linear_shapes(tiny_llama_safetensors(tmp_path_factory.mktemp("base"), shards=2))


def test_the_shapes_of_a_base_are_those_of_its_weights(shapes: dict[str, tuple[int, int]]) -> None:
    """All of both files, without the norms' vectors."""
    assert shapes == {n.removesuffix(".weight"): v.shape for n, v in tiny_weights().items() if v.ndim == 2}


@pytest.mark.parametrize("layers", [r"\.[qv]_proj", r"_proj"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_sound_ones_pass(tmp_path: Path, shapes: dict[str, tuple[int, int]], layers: str, kind: type) -> None:
    """Whatever layers they change; and where the base's layers are not known, too."""
    tensors = {name: values.astype(kind) for name, values in lora_tensors(tiny_weights(), layers).items()}
    folder = write_adapter(tmp_path / "a", tensors, target_modules="all-linear")
    check_adapter(folder, shapes)
    check_adapter(folder, {})


def _one(name: str, change: Callable[[Any], Any]) -> Tensors:
    tensors = adapter_tensors()
    return tensors | {f"{Q0}.{name}.weight": change(tensors[f"{Q0}.{name}.weight"])}


def _last_is(value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values = values.copy()
        values[-1, -1] = value
        return values

    return change


@pytest.mark.parametrize(
    ("tensors", "fields", "words"),
    [
        (lambda: _one("lora_A", _last_is(np.nan)), {}, ["lora_A", "not finite"]),
        (lambda: _one("lora_B", _last_is(-np.inf)), {}, ["lora_B", "not finite"]),
        (lambda: _one("lora_B", lambda v: _last_is(np.inf)(v.astype(np.float16))), {}, ["lora_B", "not finite"]),
        (lambda: _one("lora_A", lambda v: v[:, :-1].copy()), {}, ["lora_A", "(4, 63)", "another model"]),
        (lambda: _one("lora_B", lambda v: v[:-1].copy()), {}, ["lora_B", "another model"]),
        (lambda: _one("lora_A", lambda v: v.reshape(-1)), {}, ["lora_A", "the rank is 4"]),
        (lambda: _one("lora_A", lambda v: v.astype(np.int32)), {}, ["lora_A", "I32", "float16"]),
        (adapter_tensors, {"r": 8}, ["the rank is 8"]),
        (adapter_tensors, {"use_dora": True}, ["use_dora"]),
        (adapter_tensors, {"modules_to_save": ["lm_head"]}, ["modules_to_save", "lm_head"]),
        (lambda: adapter_tensors() | {"model.norm.weight": np.ones(64, np.float32)}, {}, ["model.norm.weight"]),
        (dict, {}, ["no tensors"]),
        (
            lambda: {name: v for name, v in adapter_tensors().items() if name != f"{Q0}.lora_B.weight"}, {},
            ["lacks", "layers.0.self_attn.q_proj"],
        ),
    ],
)  # fmt: skip
def test_unsound_ones_are_refused_by_name(
    tmp_path: Path,
    shapes: dict[str, tuple[int, int]],
    tensors: Callable[[], Tensors],
    fields: dict[str, Any],
    words: list[str],
) -> None:
    """Numbers that are none, what does not fit the base, what vLLM has no place for: file, field and mend are told."""
    folder = write_adapter(tmp_path / "a", tensors(), **fields)
    with pytest.raises(CheckpointError) as refused:
        check_adapter(folder, shapes)
    assert all(word in refused.value.message for word in words), refused.value.message
    assert str(folder) not in refused.value.message


def test_a_huge_header_and_a_link_are_not_read(tmp_path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Neither can cost memory, or lead to somebody's file."""
    folder = write_adapter(tmp_path / "a", adapter_tensors())
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.write_bytes((10 << 30).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(CheckpointError, match="header claims"):
        check_adapter(folder, shapes)
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link"):
        check_adapter(folder, shapes)
