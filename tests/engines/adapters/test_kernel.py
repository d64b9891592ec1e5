"""The compiled operation: where it lies, when it is used, and what it keeps of an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from interlace.engines.local import kernel
from interlace.engines.local.fused import MOST_RANK, fused_adapter
from interlace.engines.local.runner import Run, Runner
from interlace.errors import CheckpointError, ConfigError
from interlace.models import DecoderArchitecture, Layers, read_architecture
from interlace.models.adapter_file import LowRank
from tests.support.tiny import tiny_llama_safetensors


def _low(outputs: int, inputs: int, rank: int, seed: int, *, short: bool = False) -> LowRank:
    random = np.random.default_rng(seed)
    down, up = (random.standard_normal(shape, np.float32) * 0.2 for shape in ((rank, inputs), (outputs, rank)))
    if short:
        down, up = ((values.view(np.uint32) & 0xFFFF0000).view(np.float32) for values in (down, up))
    return LowRank(down, up)


def test_nothing_is_used_that_is_not_there(tmp_path: Path) -> None:
    """Without a compiled operation there is none; compiling is asked for, never done on the way."""
    assert kernel.find_kernel(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_others_may_not_write_it(compiled_home: Path, tmp_path: Path) -> None:
    """What others than this user may write is not loaded into an engine."""
    path = kernel.kernel_path(tmp_path)
    path.parent.mkdir()
    shutil.copy(kernel.kernel_path(compiled_home), path)
    path.chmod(0o700)
    assert kernel.find_kernel(tmp_path) == path
    path.chmod(0o720)
    assert kernel.find_kernel(tmp_path) is None


def test_another_source_is_compiled_anew(compiled_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation of another version of the source is not used; one that does not compile leaves nothing, and says
    what the compiler says."""
    other = tmp_path / "lowrank.cpp"
    other.write_text("#error not today\n")
    monkeypatch.setattr(kernel, "SOURCE", other)
    assert kernel.find_kernel(compiled_home) is None
    with pytest.raises(ConfigError, match="not today"):
        kernel.compile_kernel(tmp_path / "home")
    assert list((tmp_path / "home" / "native").iterdir()) == []


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no compiler, the error says how to get one and that nothing depends on it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt-get install g\+\+.*run without it"):
        kernel.compile_kernel(tmp_path)


def test_exact_numbers_take_half_the_memory() -> None:
    """A layer whose numbers are all bfloat16 numbers is kept as such without being changed; one that has others is not.
    A rank that the operation has no room for is refused."""
    columns = {"a": 0, "b": 1, "c": 2}
    layers = Layers({"b": _low(24, 16, 3, 1), "a": _low(8, 16, 5, 2, short=True)})
    adapter = fused_adapter("x", 1, layers, columns, short=False)
    assert adapter.entries is not None
    assert adapter.entries[:, 1:].tolist() == [[5, 2], [3, 4], [0, 0]]
    for layer, (down, up) in adapter.layers.items():
        assert adapter.entries[columns[layer], 0] == down.ctypes.data
        assert up.ctypes.data == down.ctypes.data + down.nbytes
        wide = [m if m.dtype == np.float32 else (m.astype(np.uint32) << 16).view(np.float32) for m in (down, up)]
        assert np.array_equal(wide[0], layers[layer].down)
        assert np.array_equal(wide[1], layers[layer].up.T)
    with pytest.raises(CheckpointError, match=f"above {MOST_RANK}"):
        fused_adapter("x", 1, Layers({"a": _low(2, 2, MOST_RANK + 1, 1)}), columns, short=False)


def test_alone_and_among_others_to_the_bit(compiled_home: Path, tmp_path: Path) -> None:
    """A row's logits are the same bits whatever adapters run beside it, and an adapter of rank 0 changes no bit."""
    architecture = read_architecture(tiny_llama_safetensors(tmp_path / "base"))
    assert isinstance(architecture, DecoderArchitecture)
    found = kernel.find_kernel(compiled_home)
    sizes = {"precision": "f32", "cache_bytes": 1 << 20, "threads": 2}
    runner = Runner(tmp_path / "base", architecture, kernel=found, **sizes)  # type: ignore[arg-type]
    shapes = runner.linear_shapes.items()
    ranks = (1, 4, 7, 8, 9)
    adapters = [
        runner.adapter(
            str(rank), rank, Layers({n: _low(*s, rank, at, short=rank == 8) for at, (n, s) in enumerate(shapes)})
        )
        for rank in ranks
    ]
    nothing = runner.adapter("nothing", 100, Layers())
    tokens = [[5 + 3 * at, 7, 11 + at] for at in range(7)]
    who = [*adapters, None, nothing]
    runs = [Run(ids, 0, [at], adapter) for at, (ids, adapter) in enumerate(zip(tokens, who, strict=True))]
    together = runner.forward(runs, np.arange(21)).copy()
    for at, run in enumerate(runs):
        alone = runner.forward([run], np.arange(3))
        assert np.array_equal(together[3 * at : 3 * at + 3], alone), at
    bare = runner.forward([Run(tokens[6], 0, [6])], np.arange(3))
    assert np.array_equal(together[18:], bare)
