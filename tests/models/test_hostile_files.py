"""Corrupted, truncated and hostile GGUF and safetensors files end in a CheckpointError, and never in anything else."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.errors import CheckpointError
from interlace.models import check_tensors, open_weights, read_architecture
from interlace.models.gguf_file import read_gguf
from interlace.models.layout import read_json
from interlace.models.safetensors_file import read_safetensors
from tests.support.tiny import tiny_llama_gguf, tiny_llama_safetensors

Mutation = tuple[str, int, bytes]

mutations = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "insert", "cut", "truncate"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([b"\xff" * 8, b"\x00" * 8, bytes(7) + b"\x80", b"\xff" * 7 + b"\x7f", b"\x09\0\0\0"]),
    ),
    min_size=1,
    max_size=4,
)
quickly = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mutated(raw: bytes, changes: list[Mutation], reach: int) -> bytes:
    """`raw` with each change applied somewhere in its first `reach` bytes."""
    data = bytearray(raw)
    for verb, where, value in changes:
        at = where % max(min(reach, len(data)), 1)
        if verb == "overwrite":
            data[at : at + len(value)] = value
        elif verb == "insert":
            data[at:at] = value
        elif verb == "cut":
            del data[at : at + len(value)]
        else:
            del data[where % max(len(data), 1) :]
    return bytes(data)


def try_to_load(path: Path) -> None:
    """All that a load does before a graph is built; CheckpointError is the one allowed way to fail."""
    try:
        architecture = read_architecture(path)
        with open_weights(path) as weights:
            check_tensors(architecture, weights)
            for name in weights.names():
                assert weights.float32(name).shape == weights.shapes()[name]
    except CheckpointError:
        pass


@quickly
@given(changes=mutations)
def test_a_mutated_gguf_loads_or_is_refused(tmp_path: Path, changes: list[Mutation]) -> None:
    """Whatever bytes change in the header, the reader answers in words."""
    sound = tmp_path / "sound.gguf"
    if not sound.exists():
        tiny_llama_gguf(sound)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(mutated(sound.read_bytes(), changes, reach=4000))
    try_to_load(broken)


@quickly
@given(changes=mutations)
def test_a_mutated_safetensors_folder_loads_or_is_refused(tmp_path: Path, changes: list[Mutation]) -> None:
    """The same for the header of a safetensors file."""
    folder = tmp_path / "tiny"
    if not folder.exists():
        tiny_llama_safetensors(folder)
        (tmp_path / "sound").write_bytes((folder / "model.safetensors").read_bytes())
    raw = (tmp_path / "sound").read_bytes()
    (folder / "model.safetensors").write_bytes(mutated(raw, changes, reach=2600))
    try_to_load(folder)


@quickly
@given(raw=st.binary(max_size=300), prefix=st.sampled_from([b"", b"GGUF\x03\0\0\0", b"\x20\0\0\0\0\0\0\0{"]))
def test_noise_is_refused(tmp_path: Path, raw: bytes, prefix: bytes) -> None:
    """Bytes that are no checkpoint at all are refused by both readers (an empty GGUF is the one sound exception)."""
    file = tmp_path / "noise"
    file.write_bytes(prefix + raw)
    for reader in (read_gguf, read_safetensors):
        try:
            assert not getattr(reader(file), "tensors", None)
        except CheckpointError:
            pass


def gguf_bytes(*, keys: int = 0, tensors: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    """A hand-made GGUF: header and whatever follows."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(value: str | bytes) -> bytes:
    """A string as GGUF writes it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor info as GGUF writes it."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = (1 << 64) - 1
GGUF_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "other magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "old version": (gguf_bytes(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many keys": (gguf_bytes(keys=HUGE), "metadata keys"),
    "many tensors": (gguf_bytes(tensors=HUGE), "tensors"),
    "long key": (gguf_bytes(keys=1, body=struct.pack("<Q", HUGE)), "claims"),
    "key past the end": (gguf_bytes(keys=1, body=struct.pack("<Q", 100) + b"short"), "past the end"),
    "key not UTF-8": (gguf_bytes(keys=1, body=text(b"\xff\xfe") + bytes(16)), "not UTF-8"),
    "unknown value type": (gguf_bytes(keys=1, body=text("k") + struct.pack("<I", 99)), "unknown type 99"),
    "nested arrays": (gguf_bytes(keys=1, body=text("k") + struct.pack("<IIQ", 9, 9, 1)), "unsupported type 9"),
    "huge array": (gguf_bytes(keys=1, body=text("k") + struct.pack("<IIQ", 9, 4, HUGE)), "claims"),
    "many strings": (gguf_bytes(keys=1, body=text("k") + struct.pack("<IIQ", 9, 8, 1 << 21)), "2097152 strings"),
    "arrays without end": (
        gguf_bytes(
            keys=2,
            body=text("a") + struct.pack("<IIQB", 9, 0, 1, 0) + text("b") + struct.pack("<IIQ", 9, 0, 1 << 22),
        ),
        "4194305 items in arrays",
    ),
    "key twice": (gguf_bytes(keys=2, body=(text("k") + struct.pack("<IB", 0, 1)) * 2), "there twice"),
    "odd alignment": (
        gguf_bytes(keys=1, body=text("general.alignment") + struct.pack("<II", 4, 3)),
        "not a power of two",
    ),
    "zero alignment": (
        gguf_bytes(keys=1, body=text("general.alignment") + struct.pack("<II", 4, 0)),
        "not a power of two",
    ),
    "five dimensions": (gguf_bytes(tensors=1, body=tensor("t", [1] * 5)), "5 dimensions"),
    "zero length": (gguf_bytes(tensors=1, body=tensor("t", [0]) + bytes(64)), "cannot store"),
    "overflowing shape": (gguf_bytes(tensors=1, body=tensor("t", [1 << 63, 1 << 63]) + bytes(64)), "ends at byte"),
    "unknown tensor type": (gguf_bytes(tensors=1, body=tensor("t", [32], kind=77)), "unknown type 77"),
    "part of a block": (gguf_bytes(tensors=1, body=tensor("t", [33], kind=2) + bytes(64)), "cannot store"),
    "offset past the end": (gguf_bytes(tensors=1, body=tensor("t", [8], offset=1 << 40)), "ends at byte"),
    "crooked offset": (gguf_bytes(tensors=1, body=tensor("t", [8], offset=1) + bytes(99)), "multiple of 32"),
    "tensor twice": (gguf_bytes(tensors=2, body=tensor("t", [8]) * 2 + bytes(99)), "there twice"),
    "overlap": (gguf_bytes(tensors=2, body=tensor("a", [16]) + tensor("b", [8], offset=32) + bytes(256)), "overlap"),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_each_gguf_fault_is_named(tmp_path: Path, case: str) -> None:
    """Every fault has its own words, names the file, and costs no memory beyond the file's own size."""
    raw, words = GGUF_CASES[case]
    file = tmp_path / "hostile.gguf"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words) as caught:
        without_allocation(lambda: read_gguf(file))
    assert "hostile.gguf" in caught.value.message


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A hand-made safetensors file."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "claims"),
    "huge header": (struct.pack("<Q", HUGE) + b"{}", "claims"),
    "header past the end": (struct.pack("<Q", 50) + b"{}", "claims 50 bytes"),
    "no brace": (safetensors_bytes(b"  {}"), "brace"),
    "no JSON": (safetensors_bytes(b"{nope}"), "not valid JSON"),
    "deep nesting": (safetensors_bytes(b'{"a":' * 100_000), "not valid JSON"),
    "not UTF-8": (safetensors_bytes(b'{"\xff":1}'), "not valid JSON"),
    "endless number": (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "name twice": (safetensors_bytes(b'{"a":1,"a":2}'), "there twice"),
    "no object": (safetensors_bytes({"t": 3}), "not an object"),
    "unknown type": (safetensors_bytes({"t": entry(dtype="F3")}, bytes(4)), "unknown type 'F3'"),
    "type no string": (safetensors_bytes({"t": entry(dtype=[])}, bytes(4)), "unknown type"),
    "a shape of lists": (
        safetensors_bytes(b'{"t":{"shape":[' + b"[]," * (1 << 20) + b"0]}}"),
        "more than 262144 tensors",
    ),
    "negative shape": (safetensors_bytes({"t": entry(shape=[-1])}, bytes(4)), "shape"),
    "true in a shape": (safetensors_bytes({"t": entry(shape=[True])}, bytes(4)), "shape"),
    "overflowing shape": (safetensors_bytes({"t": entry(shape=[1 << 62, 1 << 62])}, bytes(4)), "does not fill"),
    "offsets reversed": (safetensors_bytes({"t": entry(offsets=[4, 0])}, bytes(4)), "does not fill"),
    "offsets past the end": (safetensors_bytes({"t": entry()}, b""), "the file at"),
    "overlap": (safetensors_bytes({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
    "hole": (safetensors_bytes({"t": entry(offsets=[4, 8])}, bytes(8)), "hole"),
    "trailing bytes": (safetensors_bytes({"t": entry()}, bytes(9)), "the file at"),
}


@pytest.mark.parametrize("case", SAFETENSORS_CASES)
def test_each_safetensors_fault_is_named(tmp_path: Path, case: str) -> None:
    """Every fault has its own words and names the file."""
    raw, words = SAFETENSORS_CASES[case]
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_safetensors(file)
    assert "hostile.safetensors" in caught.value.message


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b'{"a": "\xff"}', "not valid JSON"), (b"{" * 100_000, "not valid JSON"),
     (b"[" + b"[]," * (1 << 22) + b"0]", "lists and objects"), (b"[]", "not a JSON object")],
    ids=["not UTF-8", "deep", "many lists", "no object"],
)  # fmt: skip
def test_each_json_fault_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    """A config that is no text, nests or swells without end, or is no object, is refused by name."""
    file = tmp_path / "config.json"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_json(file)
    assert "config.json" in caught.value.message


def test_a_name_in_a_file_cannot_steer_the_terminal_or_fill_the_log(tmp_path: Path) -> None:
    """Names that an error quotes are shown with their control characters written out, and cut."""
    file = tmp_path / "hostile.gguf"
    name = "\x1b[2J\u202e" + "x" * 60_000
    file.write_bytes(gguf_bytes(tensors=1, body=tensor(name, [32], kind=77)))
    with pytest.raises(CheckpointError, match="sound GGUF") as caught:
        read_gguf(file)
    assert "\\x1b[2J\\u202e" in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 5000


def without_allocation(act: Callable[[], object]) -> None:
    """Run `act`, which may fail, and see that it never held more than two megabytes."""
    tracemalloc.start()
    try:
        act()
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20
