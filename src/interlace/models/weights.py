"""The tensors of a checkpoint under one set of names, memory-mapped, whatever file they lie in."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from interlace.errors import CheckpointError
from interlace.models.families import FAMILIES, gguf_family
from interlace.models.gguf_file import read_gguf
from interlace.models.layout import Layout, locate, read_index, read_json
from interlace.models.safetensors_file import read_safetensors

# How typed kinds lie in memory; every other kind is a row of opaque bytes.
_TYPED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_INTEGERS = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "<u1", "U16": "<u2", "U32": "<u4",
             "U64": "<u8", "BOOL": "<u1"}  # fmt: skip

_GGUF_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")
_GGUF_EXTRA = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # of the architecture


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file has it. `shape` is logical, in numpy order (rows, columns).

    `data` is a read-only view of the mapped file: F32, F16 and F64 typed and of `shape`; BF16 as uint16 of `shape`;
    a quantised kind as uint8 of shape (rows, bytes_per_row).
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: the number of its file, and the bytes in it."""

    file: int
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int
    transposed: bool = False  # the file has [inputs, outputs]; `shape` is the other way round, as everywhere else


class Weights:
    """Open weights; a context manager. Arrays taken from it stay valid after it is closed.

    `rope_permuted` says that q and k rows lie in GGUF's interleaved order, which the engine must undo.
    """

    def __init__(self, layout: Layout, places: Mapping[str, _Place], *, rope_permuted: bool = False) -> None:
        self.format = layout.format
        self.rope_permuted = rope_permuted
        self._places = places
        self._maps = [_map(file) for file in layout.weights]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. A mapping that arrays still look into lives until the last of them is gone."""
        self._maps = []

    def names(self) -> list[str]:
        """All tensor names, canonical, sorted."""
        return sorted(self._places)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The logical shape of every tensor, without touching its data."""
        return MappingProxyType({name: place.shape for name, place in self._places.items()})

    def parameters(self) -> int:
        """How many numbers all tensors have together."""
        return sum(int(np.prod(place.shape, dtype=np.int64)) for place in self._places.values())

    def stored(self, name: str) -> StoredTensor:
        """The tensor as the file has it; CheckpointError when there is none of that name."""
        place = self._places.get(name)
        if place is None:
            raise CheckpointError(f"The checkpoint has no tensor {name}.")
        raw = np.frombuffer(self._maps[place.file], np.uint8)[place.start : place.start + place.bytes]
        dtype = _TYPED.get(place.kind) or _INTEGERS.get(place.kind)
        if dtype is None:
            rows = int(np.prod(place.shape[:-1], dtype=np.int64))
            return StoredTensor(name, place.shape, place.kind, raw.reshape(rows, -1))
        if place.transposed:
            turned = np.ascontiguousarray(raw.view(dtype).reshape(place.shape[::-1]).T)
            return StoredTensor(name, place.shape, place.kind, turned)
        # Graph runtimes want aligned memory; a safetensors header need not leave its data aligned.
        data = np.require(raw.view(dtype).reshape(place.shape), requirements="A")
        return StoredTensor(name, place.shape, place.kind, data)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor in float32 and of its logical shape, de-quantised where it must be; always a fresh array."""
        return dequantise(self.stored(name))


def dequantise(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """Float32 of any float or quantised tensor: exact but for F64, whose numbers are rounded."""
    if tensor.kind in ("F32", "F16", "F64"):
        return tensor.data.astype(np.float32)
    if tensor.kind == "BF16":
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return _dequantise_blocks(tensor)


def _dequantise_blocks(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType[tensor.kind]
        # Wild scales of a corrupted block become inf or NaN, as arithmetic says; no warning helps anyone.
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(tensor.data, kind), np.float32).reshape(tensor.shape)
    except (KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{tensor.name} is stored as {tensor.kind}, which cannot be read as numbers.") from error


def open_weights(path: Path) -> Weights:
    """Map the weights at `path` (GGUF file, folder with one, or safetensors folder) after validating every header.

    Raises CheckpointError for anything unsound, and for a GGUF tensor that the file's family does not have.
    """
    layout = locate(path)
    if layout.format == "gguf":
        return _gguf_weights(layout)
    return Weights(layout, _safetensors_places(layout, read_json(layout.folder / "config.json").get("model_type")))


def _gguf_weights(layout: Layout) -> Weights:
    file = layout.weights[0]
    content = read_gguf(file)
    family = gguf_family(content.metadata.get("general.architecture"), file.name)
    places = {
        canonical_name(name, family, file.name): _Place(0, tensor.kind, tensor.shape, tensor.start, tensor.bytes)
        for name, tensor in content.tensors.items()
    }
    return Weights(layout, places, rope_permuted=FAMILIES[family].permuted)


def canonical_name(gguf_name: str, family: str, file_name: str) -> str:
    """The family's own name of a GGUF tensor; CheckpointError for one that its graph would silently ignore."""
    if gguf_name in _GGUF_EXTRA:
        return gguf_name
    block = _GGUF_BLOCK.fullmatch(gguf_name)
    stem, _, kind = (f"blk.{{}}.{block[2]}" if block else gguf_name).rpartition(".")
    role = FAMILIES[family].gguf_roles().get(stem)
    if role is None or kind not in ("weight", "bias"):
        raise CheckpointError(f"{file_name} has a tensor {gguf_name[:100]!r}, which the {family} family does not have.")
    return f"{FAMILIES[family].names[role].format(block[1] if block else '')}.{kind}"


def _safetensors_places(layout: Layout, family: Any) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    owners: dict[str, Path] = {}
    transposed = _transposed(family)
    for number, file in enumerate(layout.weights):
        for name, tensor in read_safetensors(file).items():
            canonical = _folder_name(name, family)
            if canonical in places:
                raise CheckpointError(f"The tensor {name} is in {owners[canonical].name} and in {file.name}.")
            turned = transposed is not None and len(tensor.shape) == 2 and transposed.fullmatch(canonical) is not None
            shape = tensor.shape[::-1] if turned else tensor.shape
            places[canonical] = _Place(number, tensor.kind, shape, tensor.start, tensor.bytes, turned)
            owners[canonical] = file
    if len(layout.weights) > 1:
        _check_index(layout, owners, family)
    return places


def _folder_name(name: str, family: Any) -> str:
    """The name of a tensor with the prefix it has in a whole model; files of a bare decoder or encoder differ."""
    if family == "gpt2":
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    return name.removeprefix("bert.").removeprefix("roberta.")


def _transposed(family: Any) -> re.Pattern[str] | None:
    """What the weights that the family's files hold as [inputs, outputs] are called."""
    table = FAMILIES.get(family) if isinstance(family, str) else None
    if table is None or not table.transposed:
        return None
    names = (re.escape(table.names[role]).replace(r"\{\}", r"\d+") for role in sorted(table.transposed))
    return re.compile(rf"({'|'.join(names)})\.weight")


def _check_index(layout: Layout, owners: Mapping[str, Path], family: Any) -> None:
    """Every tensor the index names must lie in the shard it names: a missing one would surface much later."""
    for name, shard in read_index(layout.folder / "model.safetensors.index.json").items():
        owner = owners.get(_folder_name(name, family))
        if owner is None or owner.name != shard:
            raise CheckpointError(f"The index says that {name} is in {shard}, but it is not there.")


def _map(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file.name} cannot be mapped into memory: {error}.") from error
