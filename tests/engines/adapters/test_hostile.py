"""Adapters from anybody: whatever is in the folder, it is refused by name before it is used, or it is sound."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import CheckpointError
from interlace.models import read_adapter
from tests.support.adapters import config, lora_tensors, write_adapter
from tests.support.tiny import Tensors, tiny_weights

SHAPES = {
    name.removesuffix(".weight"): weight.shape for name, weight in tiny_weights().items() if "_proj" in name
}  # fmt: skip
MOST_BYTES = 1 << 20
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def _read(folder: Path) -> Any:
    return read_adapter(folder, SHAPES, most_bytes=MOST_BYTES)  # type: ignore[arg-type]


def _tensors() -> Tensors:
    return lora_tensors(tiny_weights(), r"\.[qv]_proj")


def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        _read(folder)
    for word in words:
        assert word in refused.value.message
    assert str(folder) not in refused.value.message  # where it lies is nobody's business


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound adapter of rank 4 on q and v."""
    return write_adapter(tmp_path / "adapter", _tensors())


def test_sound(folder: Path) -> None:
    """The adapter the others are made from is read, with the scale in B."""
    layers = _read(folder)
    assert len(layers) == 4
    low = layers["model.layers.0.self_attn.q_proj"]
    tensors = _tensors()
    np.testing.assert_array_equal(low.down, tensors[f"{Q0}.lora_A.weight"])
    np.testing.assert_allclose(low.up, tensors[f"{Q0}.lora_B.weight"] * 2)


def test_no_more_is_held_than_is_counted(folder: Path) -> None:
    """The scale goes into the numbers where they lie: else what was read is kept beside what was made of it."""
    layers = _read(folder)
    held = {}
    for low in layers.values():
        for values in (low.down, low.up):
            whole = values
            while whole.base is not None:
                whole = whole.base
            held[id(whole)] = whole.nbytes
    assert sum(held.values()) == sum(low.down.nbytes + low.up.nbytes for low in layers.values())


@pytest.mark.parametrize("kind", ["<f2", "bf16"])
def test_half_precision(tmp_path: Path, kind: str) -> None:
    """Matrices saved in sixteen bits are read as the numbers they are."""
    exact = {name: np.round(values * 8) / 8 for name, values in _tensors().items()}
    folder = write_adapter(tmp_path / "a", exact)
    file = folder / "adapter_model.safetensors"
    stored = {
        n: v.astype("<f2") if kind == "<f2" else (v.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
        for n, v in exact.items()
    }
    _write_raw(file, {name: ("F16" if kind == "<f2" else "BF16", values) for name, values in stored.items()})
    low = _read(folder)["model.layers.0.self_attn.q_proj"]
    np.testing.assert_array_equal(low.down, exact[f"{Q0}.lora_A.weight"])


def _write_raw(file: Path, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    header, at, data = {}, 0, b""
    for name, (kind, values) in tensors.items():
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at, data = at + values.nbytes, data + values.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type", "IA3"]),
        ({"peft_type": None}, ["peft_type"]),
        ({"use_dora": True}, ["use_dora", "merge"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights", "path_initial_model_for_weight_conversion"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights", "PEFT changes"]),
        ({"init_lora_weights": ["x"]}, ["init_lora_weights"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save", "lm_head"]),
        ({"bias": "all"}, ["bias", "none"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"]),
        ({"brand_new": 1}, ["brand_new", "not known"]),
        ({"r": 0}, ["r has the rank 0"]),
        ({"r": 10**9}, ["rank"]),
        ({"r": "8"}, ["rank"]),
        ({"r": True}, ["rank"]),
        ({"r": 5}, ["lora_A", "(4, 64)", "(5, 64)"]),
        ({"rank_pattern": {"q_proj": 2}}, ["lora_A", "(2, 64)"]),
        ({"rank_pattern": {"q_proj": -1}}, ["rank_pattern"]),
        ({"rank_pattern": ["q_proj"]}, ["rank_pattern"]),
        ({"rank_pattern": {"(": 2}}, ["rank_pattern", "'(.*"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha"]),
        ({"lora_alpha": 1e30}, ["lora_alpha"]),
        ({"lora_alpha": "16"}, ["lora_alpha"]),
        ({"alpha_pattern": {"q_proj": float("inf")}}, ["alpha_pattern"]),
        ({"target_modules": None}, ["target_modules"]),
        ({"target_modules": []}, ["target_modules"]),
        ({"target_modules": 7}, ["target_modules"]),
        ({"target_modules": ["c_attn"]}, ["target_modules", "does not name it"]),
        ({"target_modules": ["q_proj"]}, ["v_proj", "target_modules", "does not name it"]),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, ["lacks", "o_proj"]),
        ({"target_modules": "*"}, ["target_modules", "'*'"]),
        ({"layers_to_transform": [0]}, ["layers.1", "does not name it"]),
        ({"layers_to_transform": ["0"]}, ["layers_to_transform"]),
        ({"exclude_modules": ["v_proj"]}, ["v_proj", "does not name it"]),
    ],
)
def test_configs(tmp_path: Path, fields: dict[str, Any], words: list[str]) -> None:
    """What cannot be served, or does not fit its tensors, is refused by the name of the field."""
    if words[-1].startswith("'("):
        words = words[:-1]
    _refused(write_adapter(tmp_path / "a", _tensors(), **fields), *words)


@pytest.mark.parametrize("end", ["(?=Z)", "[A-Z]", "(?P=x)(?P=x)(?P=x)(?P=x)"])
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_patterns_that_never_end(tmp_path: Path, end: str, field: str) -> None:
    """A pattern made to run for years costs a second at most."""
    pattern = f"(?:(?P<x>.)(?P=x)?|.|..)*{end}"
    value = pattern if field == "target_modules" else {pattern: 4}
    folder = write_adapter(tmp_path / "a", _tensors(), **{field: value})
    began = time.monotonic()
    _refused(folder, field, "too long")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}"])
def test_config_that_is_none(folder: Path, text: bytes) -> None:
    """Bytes that are no JSON object are refused, however deep they nest."""
    (folder / "adapter_config.json").write_bytes(text)
    _refused(folder, "adapter_config.json")


def _spoil(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Tensors:
    tensors = _tensors()
    return tensors | {name: change(tensors[name])}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_numbers_that_are_none(tmp_path: Path, value: float, part: str) -> None:
    """One NaN would spoil the whole batch's cache: it is found before anything runs."""

    def change(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values[-1, -1] = value
        return values

    name = f"{Q0}.{part}.weight"
    _refused(write_adapter(tmp_path / "a", _spoil(name, change)), name, "not finite")


def test_scale_that_overflows(tmp_path: Path) -> None:
    """Numbers that are finite until they are scaled are refused as well."""
    tensors = _spoil(f"{Q0}.lora_B.weight", lambda values: values * np.float32(1e38))
    _refused(write_adapter(tmp_path / "a", tensors, lora_alpha=1e9), "not finite")


def _with(name: str, shape: tuple[int, ...], kind: str = "<f4") -> Tensors:
    return _tensors() | {name: np.zeros(shape, kind)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (_with(f"{Q0}.lora_A.weight", (4, 65)), ["lora_A", "(4, 65)", "(4, 64)"]),
        (_with(f"{Q0}.lora_B.weight", (4, 64)), ["lora_B", "(4, 64)", "(64, 4)"]),
        (_with(f"{Q0}.lora_A.weight", (256,)), ["lora_A", "(256,)"]),
        (_with(f"{Q0}.lora_A.weight", (0, 64)), ["lora_A"]),
        (_with(f"{Q0}.lora_A.weight", (4, 64), "<i4"), ["lora_A", "I32"]),
        (_with(f"{Q0}.lora_magnitude_vector", (64,)), ["lora_magnitude_vector", "no place"]),
        (_with(f"{Q0}.lora_B.bias", (64,)), ["lora_B.bias"]),
        (_with("base_model.model.lm_head.weight", (101, 64)), ["lm_head", "modules_to_save"]),
        (_with("base_model.model.lm_head.lora_A.weight", (4, 64)), ["lm_head", "output layer"]),
        (_with("base_model.model.model.embed_tokens.lora_embedding_A", (4, 101)), ["embed_tokens"]),
        (_with("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", (4, 64)), ["layers.7", "no such"]),
        (_with("model.layers.0.self_attn.q_proj.weight", (64, 64)), ["no place"]),
        (_with("../../../etc/passwd", (1,)), ["no place"]),
        ({}, ["lacks", "q_proj"]),
    ],
)
def test_tensors(tmp_path: Path, tensors: Tensors, words: list[str]) -> None:
    """A tensor of another shape or type than base and config say, or with no place at all, is refused by its name."""
    _refused(write_adapter(tmp_path / "a", tensors), *words)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    """A pickle is refused by its name, and not a byte of it is run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "boom"),)

    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config()))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    _refused(folder, "adapter_model.bin", "pickle")
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    _refused(folder, "adapter_model.safetensors")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("length", [10 << 30, 1 << 63, (1 << 64) - 1, 5_000_000, 0, 1])
def test_headers_gone_wild(folder: Path, length: int) -> None:
    """A header that claims gigabytes is refused before anything is allocated, and one that is really large, too."""
    (folder / "adapter_model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 5_000_000 + b"}")
    _refused(folder, "header")


def test_over_the_cap(tmp_path: Path) -> None:
    """An adapter that would take more memory than there is for all is refused before its numbers are read."""
    tensors = lora_tensors(tiny_weights(), ".", rank=900)
    folder = write_adapter(tmp_path / "a", tensors, r=900, target_modules="all-linear")
    _refused(folder, "adapter_bytes", f"{MOST_BYTES:,}")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("way", ["link", "link to nothing", "folder", "pipe", "missing"])
def test_files_that_are_none(folder: Path, tmp_path: Path, name: str, way: str) -> None:
    """A link, which could lead to anybody's file, is not followed; a pipe is not waited for."""
    file = folder / name
    if way == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.unlink()
    if way == "link to nothing":
        file.symlink_to(tmp_path / "nothing")
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    _refused(folder, name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bytes_changed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes of either file are changed or cut off, the adapter is refused or all its numbers are finite."""
    folder = write_adapter(tmp_path_factory.mktemp("a"), _tensors())
    file = folder / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 900)))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    try:
        layers = _read(folder)
    except CheckpointError:
        return
    assert all(np.isfinite(low.up).all() and np.isfinite(low.down).all() for low in layers.values())
