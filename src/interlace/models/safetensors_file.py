"""A strict reader of safetensors headers: lengths, JSON, types, offsets and shapes are checked before any use.

The format: https://github.com/huggingface/safetensors#format. As there: the header is at most 100 MB, and the
tensors cover the rest of the file without holes or overlaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from interlace.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_TENSORS = 1 << 18  # as of GGUF files; real shards have some thousands

# kind → bits of one element
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor; `start` in bytes from the beginning of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """Read and validate the header of a safetensors file; raises CheckpointError naming the file and the fault."""
    try:
        with path.open("rb") as file:
            return read_safetensors_header(path.name, file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error


def read_safetensors_header(
    name: str, file: BinaryIO, size: int, most_bytes: int = MAX_HEADER_BYTES
) -> dict[str, SafeTensor]:
    """The same of an open file of `size` bytes, called `name` in errors, whose header has at most `most_bytes`."""
    try:
        return _read(file, size, most_bytes)
    except _Bad as error:
        raise CheckpointError(f"{name} is not a sound safetensors file: {error}. Pull it again.") from error


class _Bad(Exception):
    """What is wrong with the file, in words."""


def _read(file: BinaryIO, size: int, most_bytes: int) -> dict[str, SafeTensor]:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length < 2 or length > most_bytes or length > size - 8:
        raise _Bad(f"its header claims {length} bytes in a file of {size}")
    header = _parse(file.read(length))
    data_start = 8 + length
    tensors = {name: _tensor(name, entry, data_start) for name, entry in header.items() if name != "__metadata__"}
    _check_places(tensors, data_start, size)
    return tensors


def _parse(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise _Bad("its header does not begin with a brace")
    # Counted before parsing: an empty list takes three bytes in the header and sixty in memory.
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b"[") > 2 * MAX_TENSORS + 2:
        raise _Bad(f"its header has more than {MAX_TENSORS} tensors, or is not one")
    try:
        header: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _Bad("its header is not valid JSON") from error
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Bad("a name in its header is there twice")
    return found


def _tensor(name: str, entry: Any, data_start: int) -> SafeTensor:
    if not isinstance(entry, dict):
        raise _Bad(f"the entry of {name!r} is not an object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _BITS:
        raise _Bad(f"the tensor {name!r} has the unknown type {kind!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Bad(f"the tensor {name!r} has the shape {shape!r}")
    if not _counts(offsets) or len(offsets) != 2:
        raise _Bad(f"the tensor {name!r} has the offsets {offsets!r}")
    start, end = offsets
    if end - start != math.prod(shape) * _BITS[kind] // 8:
        raise _Bad(f"the tensor {name!r} has {end - start} bytes, which its shape {shape} in {kind} does not fill")
    return SafeTensor(name, kind, tuple(shape), data_start + start, end - start)


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of integers that fit an unsigned 63-bit count."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_places(tensors: dict[str, SafeTensor], data_start: int, file_bytes: int) -> None:
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != end:
            raise _Bad(f"the tensor {tensor.name!r} leaves a hole or overlaps another one")
        end += tensor.bytes
    if end != file_bytes:
        raise _Bad(f"its tensors end at byte {end}, the file at {file_bytes}")
