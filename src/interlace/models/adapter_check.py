"""Whether an adapter is sound, where another program is going to read it and its base may be of a family unknown here.

What can be told without that family is checked: the config, the file's layout, types, ranks, that matrices come in
pairs, that every number is one, and the shapes wherever the base's own files name the layer.
"""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path

import numpy as np

from interlace.errors import CheckpointError
from interlace.models.adapter_config import HEAD, MAX_CONFIG_BYTES, MAX_HEADER_BYTES, parse_lora_config
from interlace.models.adapter_file import Shapes
from interlace.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, opened
from interlace.models.safetensors_file import SafeTensor, read_safetensors, read_safetensors_header

_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B")
_CHUNK = 1 << 24  # bytes of numbers looked at in one go
# kind → how its bits are read, and which of them are all ones in an infinity or NaN
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_WHOLE = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # packed weights have another shape than their layer


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The two-dimensional weights of the checkpoint in `folder`, [outputs, inputs] by layer; packed ones are left out.
    Raises `CheckpointError`."""
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_safetensors(path).items():
            if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.kind in _WHOLE:
                shapes[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return shapes


def check_adapter(folder: Path, shapes: Shapes) -> None:
    """Check the adapter in `folder` for a base with linear layers of those `shapes`, as far as they are known. Raises
    `CheckpointError`, naming file and field."""
    with opened(folder, CONFIG_FILE) as (file, size):
        if size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{CONFIG_FILE} has {size:,} bytes. No config of an adapter is so large.")
        config = parse_lora_config(file.read(MAX_CONFIG_BYTES + 1))
    if config.own_head:
        raise CheckpointError(
            f"{CONFIG_FILE}: modules_to_save names {HEAD}, and the engine of this base serves no output layer of an "
            "adapter's own. Train without."
        )
    with opened(folder, WEIGHTS_FILE) as (file, size):
        tensors = read_safetensors_header(WEIGHTS_FILE, file, size, MAX_HEADER_BYTES)
        found: dict[str, set[str]] = {}
        for tensor in tensors.values():
            layer, part = _place(tensor.name)
            _check_shape(tensor, part, config.rank_of(layer), shapes.get(layer))
            found.setdefault(layer, set()).add(part)
            _check_numbers(file, tensor)
        if not found:
            raise CheckpointError(f"{WEIGHTS_FILE} has no tensors. Save the adapter again.")
        if alone := sorted(layer for layer, parts in found.items() if len(parts) < len(_PARTS)):
            raise CheckpointError(f"{WEIGHTS_FILE} lacks lora_A or lora_B of {alone[0][:200]}. Save the adapter again.")


def _place(name: str) -> tuple[str, str]:
    """The layer a tensor belongs to, and which of the two it is there."""
    for part in _PARTS:
        ending = f".{part}.weight"
        if name.startswith(_PREFIX) and name.endswith(ending):
            return name[len(_PREFIX) : -len(ending)], part
    raise CheckpointError(
        f"{WEIGHTS_FILE} has the tensor {name[:200]!r}, which has no place here. Only lora_A and lora_B of linear "
        f"layers can be served, named {_PREFIX}LAYER.lora_A.weight."
    )


def _check_shape(tensor: SafeTensor, part: str, rank: int, base: tuple[int, int] | None) -> None:
    if tensor.kind not in _EXPONENT:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {tensor.name[:200]!r} is stored as {tensor.kind}. Save it as float32, float16 or "
            "bfloat16."
        )
    shape = tensor.shape
    own = shape[0 if part == "lora_A" else 1] if len(shape) == 2 else -1
    if own != rank:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {tensor.name[:200]!r} has the shape {shape}, and the rank is {rank}, {CONFIG_FILE} says. "
            "Save the adapter again."
        )
    if base is not None and shape[1 if part == "lora_A" else 0] != base[1 if part == "lora_A" else 0]:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {tensor.name[:200]!r} has the shape {shape}, and the base's layer is {base}. Is the "
            "adapter of another model?"
        )


def _check_numbers(file: BufferedReader, tensor: SafeTensor) -> None:
    kind, exponent = _EXPONENT[tensor.kind]
    file.seek(tensor.start)
    left = tensor.bytes
    while left:
        read = file.read(min(left, _CHUNK))
        if not read:
            raise CheckpointError(f"{WEIGHTS_FILE} ends within {tensor.name[:200]!r}. Copy it again.")
        left -= len(read)
        if ((np.frombuffer(read, kind) & exponent) == exponent).any():
            raise CheckpointError(
                f"{WEIGHTS_FILE}: {tensor.name[:200]!r} has numbers that are not finite (NaN or infinity). Train it "
                "again: the run has diverged."
            )
