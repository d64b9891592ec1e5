"""The compiled operation: where it lies, when it is used, and what it keeps of an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from interlace.engines.local import kernel
from interlace.engines.local.adapter_bank import Adapter, to_bf16
from interlace.engines.local.constants import Array
from interlace.engines.local.fused import MOST_RANK, Rooms, fused_adapter
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


def _kept(adapter: Adapter, column: int, rank: int, inputs: int, outputs: int) -> tuple[Array, Array]:
    """A layer as it lies in the adapter's memory: A, and B transposed."""
    assert adapter.entries is not None
    assert adapter.memory is not None
    address, _, size = adapter.entries[column].tolist()
    begin = address - adapter.memory.ctypes.data
    assert begin % 64 == 0
    both = adapter.memory[begin : begin + rank * (inputs + outputs) * size].view(np.float32 if size == 4 else np.uint16)
    return both[: rank * inputs].reshape(rank, inputs), both[rank * inputs :].reshape(rank, outputs)


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


def test_one_that_does_not_load_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Made for another system: adapters run as if there were none, and the log says what
    to do; the same of one that was made for something else."""
    path = kernel.kernel_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"of another system" * 1000)
    path.chmod(0o700)
    assert kernel.find_kernel(tmp_path) is None
    assert "cannot be loaded" in caplog.text
    assert "interlace adapters compile" in caplog.text
    caplog.clear()
    path.rename(path.with_name("lowrank-0123456789abcdef.so"))
    assert kernel.find_kernel(tmp_path) is None
    assert "interlace adapters compile" in caplog.text


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


def test_exact_numbers_take_half_the_memory(compiled_home: Path) -> None:
    """A layer whose numbers are all bfloat16 numbers is kept as such without being changed; one that has others is not.
    A rank that the operation has no room for is refused."""
    found = kernel.kernel_path(compiled_home)
    columns = {"a": 0, "b": 1, "c": 2}
    layers = Layers({"b": _low(24, 16, 3, 1), "a": _low(8, 16, 5, 2, short=True)})
    adapter = fused_adapter("x", 1, layers, columns, found, Rooms(), short=False)
    assert adapter.entries is not None
    assert adapter.memory is not None
    assert adapter.entries[:, 1:].tolist() == [[5, 2], [3, 4], [0, 0]]
    for layer, low in layers.items():
        down, up = _kept(adapter, columns[layer], low.rank, low.down.shape[1], len(low.up))
        wide = [m if m.dtype == np.float32 else (m.astype(np.uint32) << 16).view(np.float32) for m in (down, up)]
        assert np.array_equal(wide[0], low.down)
        assert np.array_equal(wide[1], low.up.T)
    with pytest.raises(CheckpointError, match=f"above {MOST_RANK}"):
        fused_adapter("x", 1, Layers({"a": _low(2, 2, MOST_RANK + 1, 1)}), columns, found, Rooms(), short=False)


def test_rounded_to_the_nearest(compiled_home: Path) -> None:
    """An adapter that is kept in bfloat16 is the nearest to what was read, ties to even, whatever its shapes."""
    low = _low(37, 19, 3, 7)
    low.down[0, :4] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF817FFF], np.uint32).view(np.float32)
    adapter = fused_adapter(
        "x", 1, Layers({"a": low}), {"a": 0}, kernel.kernel_path(compiled_home), Rooms(), short=True
    )
    down, up = _kept(adapter, 0, 3, 19, 37)
    assert down[0, :4].tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF81]
    assert np.array_equal(down, to_bf16(low.down))
    assert np.array_equal(up, to_bf16(np.ascontiguousarray(low.up.T)))


def test_large_memory_lies_in_large_pages_and_goes_with_its_adapter() -> None:
    """Memory that processes could share would have small ones. A large piece is not kept for another adapter: nobody
    would count it."""
    rooms, size = Rooms(), 80 << 20
    memory = rooms.take(size)
    memory[:] = 1
    if "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        begin = memory.ctypes.data
        large, here = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split()[0]
            if "-" in head and ":" not in head:
                first, last = (int(end, 16) for end in head.split("-"))
                here = first <= begin < last
            elif here and head == "AnonHugePages:":
                large = int(line.split()[1]) << 10
        assert large >= size // 2
    del memory
    assert not rooms._free
    rooms.take(1 << 20)
    assert len(rooms._free) == 1


def test_memory_is_used_again_but_never_twice_at_once(compiled_home: Path) -> None:
    """The memory of an adapter that was let go is the next one's; that of one in use is nobody else's."""
    rooms, found = Rooms(), kernel.kernel_path(compiled_home)

    def made(seed: int, outputs: int = 64) -> Adapter:
        layers = Layers({"a": _low(outputs, 64, 8, seed)})
        return fused_adapter("x", seed, layers, {"a": 0}, found, rooms, short=False)

    first, second = made(1), made(2)
    address = _address(first)
    assert address != _address(second)
    del first
    third = made(3)
    assert _address(third) == address
    assert np.array_equal(_kept(second, 0, 8, 64, 64)[0], _low(64, 64, 8, 2).down)
    del second
    larger = made(4, outputs=640)
    assert np.array_equal(_kept(larger, 0, 8, 64, 640)[1], _low(640, 64, 8, 4).up.T)
    assert np.array_equal(_kept(third, 0, 8, 64, 64)[0], _low(64, 64, 8, 3).down)


def _address(adapter: Adapter) -> int:
    assert adapter.memory is not None
    address: int = adapter.memory.ctypes.data
    return address


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
