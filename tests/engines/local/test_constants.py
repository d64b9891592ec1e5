"""Every stored kind becomes a graph node with the same values, as far as its kept format promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from openvino import Type
from openvino import opset13 as ops

from interlace.engines.local.constants import ConstantMaker, Precision
from interlace.engines.local.quantised import GROUPED_KINDS, grouped
from interlace.models import StoredTensor, open_weights
from tests.support.tiny import tiny_llama_gguf, tiny_llama_safetensors, tiny_weights

MATRIX = "model.layers.1.mlp.down_proj.weight"  # 64 x 96: three groups a row
TABLE = "model.embed_tokens.weight"


def _evaluate(make: ConstantMaker, node_of: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    parameter = ops.parameter([-1] * x.ndim, dtype=Type(x.dtype), name="x")
    model = ov.Model([ops.result(node_of(parameter))], [parameter], "one")
    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    result: np.ndarray[Any, Any] = ov.Core().compile_model(model, "CPU", properties)(x)[0]
    assert make.buffers is not None  # alive until here
    return result


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1"])
def test_matrix_products(tmp_path: Path, kind: str, rows: int) -> None:
    """A product with the stored weight equals one with the de-quantised weight."""
    x = np.random.default_rng(1).standard_normal((rows, 96)).astype(np.float32)
    with open_weights(tiny_llama_gguf(tmp_path / "m.gguf", kind)) as weights:
        make = ConstantMaker(weights, "file")
        ours = _evaluate(make, lambda p: ops.matmul(p, make.matrix(MATRIX), transpose_a=False, transpose_b=True), x)
        exact = x @ weights.float32(MATRIX).T
    assert np.abs(ours - exact).max() < 2e-5
    assert make.report.worst_error == 0


@pytest.mark.parametrize("precision", ["file", "f32", "int8"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_matrices_of_one_kind_are_one(tmp_path: Path, kind: str, precision: Precision) -> None:
    """q, k and v that are stored alike become one node: the three matrices below each other, with each one's order of
    rows."""
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    turned = np.arange(64)[::-1]
    with open_weights(tiny_llama_gguf(tmp_path / "m.gguf", kind)) as weights:
        make = ConstantMaker(weights, precision)
        (node,) = make.matrices(names, [turned, None, None])
        x = np.eye(64, dtype=np.float32)
        ours = _evaluate(make, lambda p: ops.matmul(p, node, transpose_a=False, transpose_b=True), x)
        exact = np.concatenate([weights.float32(name) for name in names])
    exact[:64] = exact[:64][turned]
    assert np.abs(ours.T - exact).max() < (2e-3 if precision == "int8" else 1e-5)
    assert sum(make.report.formats.values()) == 3


def test_matrices_of_several_kinds_stay_apart(tmp_path: Path) -> None:
    """Those that a file stores in different ways each keep their own node, their own type and their own values."""
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"]
    values = np.random.default_rng(2).standard_normal((3, 64, 64)).astype(np.float32)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, one, kind in zip(names, values, ("Q4_1", "Q8_0", "F16"), strict=True):
        quantisation = GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(one, quantisation), raw_dtype=quantisation)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with open_weights(tmp_path / "m.gguf") as weights:
        names = list(weights.names())
        make = ConstantMaker(weights, "file")
        nodes = make.matrices(names, [None] * 3)
        assert len(nodes) == 3
        for node, name in zip(nodes, names, strict=True):
            x = np.eye(64, dtype=np.float32)
            ours = _evaluate(make, lambda p, w=node: ops.matmul(p, w, transpose_a=False, transpose_b=True), x)
            np.testing.assert_allclose(ours.T, weights.float32(name), atol=1e-5)
    assert sorted(make.report.formats) == ["f16", "i8 (Q8_0)", "u4 (Q4_1)"]


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_look_ups(tmp_path: Path, kind: str) -> None:
    """Looking rows up gives the de-quantised rows (a table in another kind than these is kept as f16)."""
    ids = np.array([0, 7, 7, 99], np.int64)
    with open_weights(tiny_llama_gguf(tmp_path / "m.gguf", kind)) as weights:
        make = ConstantMaker(weights, "file")
        ours = _evaluate(make, make.table(TABLE), ids)
        exact = weights.float32(TABLE)[ids]
    np.testing.assert_allclose(ours, exact, atol=2e-3 if kind == "Q4_1" else 0)


def test_bfloat16_is_kept(tmp_path: Path) -> None:
    """bf16 safetensors are served from their own two bytes, exactly."""
    import torch
    from safetensors.torch import save_file

    folder = tiny_llama_safetensors(tmp_path / "m")
    tensors = {name: torch.from_numpy(values).bfloat16() for name, values in tiny_weights().items()}
    save_file(tensors, folder / "model.safetensors")
    x = np.eye(96, dtype=np.float32)
    with open_weights(folder) as weights:
        make = ConstantMaker(weights, "file")
        ours = _evaluate(make, lambda p: ops.matmul(p, make.matrix(MATRIX), transpose_a=False, transpose_b=True), x)
    np.testing.assert_array_equal(ours, tensors[MATRIX].float().numpy().T)
    assert make.report.formats == {"bf16": 1}


@pytest.mark.parametrize(("precision", "error"), [("f32", 1e-6), ("bf16", 1e-6), ("int8", 0.005)])
def test_asked_precisions(tmp_path: Path, precision: Precision, error: float) -> None:
    """f32 is exact; int8 has an error below its step, and reports it."""
    x = np.eye(96, dtype=np.float32)
    with open_weights(tiny_llama_gguf(tmp_path / "m.gguf", "Q4_1")) as weights:
        make = ConstantMaker(weights, precision)
        ours = _evaluate(make, lambda p: ops.matmul(p, make.matrix(MATRIX), transpose_a=False, transpose_b=True), x)
        exact = weights.float32(MATRIX)
    relative = np.abs(ours.T - exact).max() / np.abs(exact).max()
    assert relative <= error
    assert make.report.worst_error == pytest.approx(relative if precision == "int8" else 0, abs=1e-6)


def test_a_group_of_equal_values() -> None:
    """A Q4_1 block whose scale is zero (all its values are the minimum) is not divided by."""
    block = np.zeros(20, np.uint8)
    block[2:4] = np.frombuffer(np.float16(-0.75).tobytes(), np.uint8)
    block[4:] = 0x5A  # quants that must not matter
    stored = StoredTensor("m", (1, 32), "Q4_1", block[None])
    parts = grouped(stored)
    assert parts.zeros is not None
    assert np.all((parts.quants - parts.zeros) * parts.scales == -0.75)


def any_blocks(kind: str, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Rows of random blocks of that kind; the half-precision factors among the bytes are made small and finite."""
    size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(5).integers(0, 256, (rows * columns // size, block_bytes), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
    for number, at in enumerate(halves.get(kind, (0, 2))):
        factors = np.linspace(-0.02, 0.03, len(blocks)).astype(np.float16)[:: 1 - 2 * number]
        blocks[:, at : at + 2] = np.ascontiguousarray(factors).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", sorted(GROUPED_KINDS))
def test_every_block_means_what_gguf_says(tmp_path: Path, kind: str) -> None:
    """Any bytes of a quantised kind, taken apart, multiply as gguf's own code de-quantises them, in any order of rows;
    the runtime keeps them in their small type, and looks up rows of the eight-bit ones."""
    data = any_blocks(kind, 6, 512)
    path = tmp_path / "one.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", data, raw_dtype=GGMLQuantizationType[kind])
    for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        finish()
    writer.close()
    exact = dequantize(data, GGMLQuantizationType[kind])
    order = np.array([5, 0, 3, 1, 4, 2])
    x = np.random.default_rng(6).standard_normal((3, 512)).astype(np.float32)
    with open_weights(path) as weights:
        make = ConstantMaker(weights, "file")
        node = make.matrix("lm_head.weight", order)
        ours = _evaluate(make, lambda p: ops.matmul(p, node, transpose_a=False, transpose_b=True), x)
        rows = _evaluate(make, make.table("lm_head.weight"), np.array([4, 0], np.int64))
    np.testing.assert_allclose(ours, x @ exact[order].T, atol=2e-5 * np.abs(exact).max() * 512**0.5)
    eight = [kept for kept in make.report.formats if kept.startswith(("i8", "u8"))]
    np.testing.assert_allclose(rows, exact[[4, 0]], rtol=1e-6 if eight else 1e-3, atol=1e-4 * np.abs(exact).max())
    assert [f.split(" ")[1] for f in make.report.formats if f != "f16"] == [f"({kind})"]


def test_importing_the_runtime_calls_nobody() -> None:
    """The runtime's import would report itself to an analytics service: it may not even load the code that does."""
    script = (
        "import sys, socket\n"
        "def refuse(event, args):\n"
        "    if event.startswith('socket.'): raise SystemExit(f'{event} {args}')\n"
        "sys.addaudithook(refuse)\n"
        "import interlace.engines.local.runner, interlace.engines.local.encoder\n"
        "assert 'openvino_telemetry.main' not in sys.modules\n"
    )
    clean = {"PATH": "/usr/bin", "HOME": "/nonexistent"}  # CI=true would switch it off by itself
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
