"""A strict reader of GGUF headers, written for files nobody vouches for.

Every length, count, type, offset and name is checked against the file before it is used, so that a corrupted or
hostile file ends in a CheckpointError: never a crash, a hang, or an allocation larger than the file justifies.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME_BYTES = 1 << 16
MAX_ARRAY_ITEMS = 1 << 22  # of all arrays together; the largest real vocabularies need a million and a half
MAX_METADATA_BYTES = 1 << 28

_BOOL, _STRING, _ARRAY = 7, 8, 9
# metadata type → (struct code, numpy dtype); 7 to 9 are handled apart
_NUMBERS = {
    0: ("<B", "<u1"), 1: ("<b", "<i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4"),
    6: ("<f", "<f4"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8"),
}  # fmt: skip
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in numpy order (rows first), `start` in bytes from the beginning of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A validated header. All tensor data lies inside the file and no two tensors share a byte."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read and validate the header of a GGUF file; raises CheckpointError naming the file and what is wrong."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise _Bad(f"it has {size} bytes, a header alone has 24")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _read(_Cursor(mapped, size))
    except _Bad as error:
        raise CheckpointError(f"{path.name} is not a sound GGUF file: {error}. Pull it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error


class _Bad(Exception):
    """What is wrong with the file, in words."""


class _Cursor:
    """A position in the mapped file that never runs past its end."""

    def __init__(self, buffer: mmap.mmap, size: int) -> None:
        self.buffer = buffer
        self.size = size
        self.position = 0
        self.array_items = 0

    def take(self, count: int, what: str) -> int:
        """Move over `count` bytes and return where they begin."""
        start = self.position
        if count > self.size - start:
            raise _Bad(f"{what} runs past the end of the file")
        self.position = start + count
        return start

    def number(self, code: str, what: str) -> Any:
        return struct.unpack_from(code, self.buffer, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str, limit: int = MAX_METADATA_BYTES) -> str:
        length = self.number("<Q", what)
        if length > limit:
            raise _Bad(f"{what} claims {length} bytes")
        start = self.take(length, what)
        return _text(self.buffer[start : start + length], what)

    def strings(self, count: int, what: str) -> list[str]:
        """Many strings: the loop over a vocabulary, kept tight."""
        buffer, size, position = self.buffer, self.size, self.position
        read_length = _U64.unpack_from
        found: list[str] = []
        for _ in range(count):
            start = position + 8
            if start > size:
                raise _Bad(f"{what} runs past the end of the file")
            position = start + read_length(buffer, position)[0]
            if position > size or position - start > MAX_METADATA_BYTES:
                raise _Bad(f"a string in {what} runs past the end of the file")
            found.append(_text(buffer[start:position], what))
        self.position = position
        return found


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Bad(f"{what} is not UTF-8") from error


def _read(cursor: _Cursor) -> GgufFile:
    if cursor.buffer[cursor.take(4, "the magic") : 4] != MAGIC:
        raise _Bad("it does not begin with GGUF")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        detail = " (big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise _Bad(f"version {version} is not 2 or 3{detail}")
    tensor_count = _bounded(cursor.number("<Q", "the tensor count"), MAX_TENSORS, "tensors")
    key_count = _bounded(cursor.number("<Q", "the key count"), MAX_KEYS, "metadata keys")
    metadata = _read_metadata(cursor, key_count)
    return GgufFile(metadata, _read_tensors(cursor, tensor_count, _alignment(metadata)))


def _bounded(count: int, limit: int, what: str) -> int:
    if count > limit:
        raise _Bad(f"it claims {count} {what}; at most {limit} are taken")
    return count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_NAME_BYTES)
        if not key or key in metadata:
            raise _Bad(f"the metadata key {key!r} is {'empty' if not key else 'there twice'}")
        metadata[key] = _read_value(cursor, key)
        if cursor.position > MAX_METADATA_BYTES:
            raise _Bad(f"its metadata has more than {MAX_METADATA_BYTES >> 20} MB")
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("<I", key)
    if kind == _STRING:
        return cursor.string(key)
    if kind == _ARRAY:
        return _read_array(cursor, key)
    if kind == _BOOL:
        return bool(cursor.number("<B", key))
    if kind not in _NUMBERS:
        raise _Bad(f"{key} has the unknown type {kind}")
    return cursor.number(_NUMBERS[kind][0], key)


def _read_array(cursor: _Cursor, key: str) -> list[Any]:
    kind = cursor.number("<I", key)
    count = cursor.number("<Q", key)
    # Of all arrays together: an item of two bytes in the file becomes a Python object of thirty.
    cursor.array_items = _bounded(cursor.array_items + count, MAX_ARRAY_ITEMS, f"items in arrays up to {key}")
    if kind == _STRING:
        if count * 8 > cursor.size - cursor.position:
            raise _Bad(f"{key} claims {count} strings, more than the rest of the file can hold")
        return cursor.strings(count, key)
    if kind != _BOOL and kind not in _NUMBERS:
        raise _Bad(f"{key} is an array of the unsupported type {kind}")
    dtype = np.dtype("<u1" if kind == _BOOL else _NUMBERS[kind][1])
    start = cursor.take(count * dtype.itemsize, key)
    # A copy of the bytes: a view would keep the mapping from closing.
    values = np.frombuffer(cursor.buffer[start : cursor.position], dtype)
    return [bool(value) for value in values] if kind == _BOOL else values.tolist()


def _alignment(metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise _Bad(f"general.alignment is {value!r}, not a power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    infos: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name, kind, shape, size, offset = _read_tensor_info(cursor)
        if name in infos:
            raise _Bad(f"the tensor {name} is there twice")
        if offset % alignment:
            raise _Bad(f"the tensor {name} does not begin at a multiple of {alignment} bytes")
        infos[name] = (kind, shape, size, offset)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: GgufTensor(name, kind, shape, data_start + offset, size)
        for name, (kind, shape, size, offset) in infos.items()
    }
    _check_places(tensors, cursor.size)
    return tensors


def _read_tensor_info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    dimensions = cursor.number("<I", name)
    if not name or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Bad(f"the tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    lengths = [cursor.number("<Q", name) for _ in range(dimensions)]
    kind, size = _stored_size(name, lengths, cursor.number("<I", name))
    return name, kind, tuple(reversed(lengths)), size, cursor.number("<Q", name)


def _stored_size(name: str, lengths: list[int], type_id: int) -> tuple[str, int]:
    """The kind's name and the bytes of a tensor; Python's integers cannot overflow here."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise _Bad(f"the tensor {name} has the unknown type {type_id}") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(lengths) < 1 or lengths[0] % block:
        raise _Bad(f"the tensor {name} has the shape {lengths}, which {kind.name} cannot store")
    elements = 1
    for length in lengths:
        elements *= length
    return kind.name, elements // block * block_bytes


def _check_places(tensors: dict[str, GgufTensor], file_bytes: int) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise _Bad(f"the tensors {before} and {tensor.name} overlap")
        end, before = tensor.start + tensor.bytes, tensor.name
        if end > file_bytes:
            raise _Bad(f"the tensor {tensor.name} ends at byte {end}, the file at {file_bytes}")
