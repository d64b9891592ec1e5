"""A LoRA adapter in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The folder may come from anybody. Both files are opened once, must be plain files and no links, are bounded before they
are read, and are copied rather than mapped, so that whoever cuts one short meanwhile cannot crash us. Nothing else in
the folder is looked at; a pickle beside them least of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from interlace.errors import CheckpointError
from interlace.models.adapter_config import (
    HEAD,
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    LoraConfig,
    parse_lora_config,
)
from interlace.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, opened
from interlace.models.safetensors_file import SafeTensor, read_safetensors_header

_PREFIX = "base_model.model."
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Matrix = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, int]]
"""The base's linear layers: dotted name without `.weight` → (outputs, inputs)."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one layer's output: `up @ (down @ x)`. `down` is [rank, inputs]; `up` is
    [outputs, rank], with the adapter's scale in it."""

    down: Matrix
    up: Matrix

    @property
    def rank(self) -> int:
        """The width between the two."""
        return len(self.down)


class Layers(dict[str, LowRank]):
    """What an adapter adds, by layer; and `head`, [vocabulary, hidden], which takes the place of the base's output
    layer where the adapter has one of its own."""

    head: Matrix | None = None


def read_adapter(folder: Path, shapes: Shapes, *, most_bytes: int, head: tuple[int, int] = (0, 0)) -> Layers:
    """The adapter in `folder`, for a base with linear layers of those `shapes` and an output layer of the shape `head`.

    Raises `CheckpointError`, naming file and field, for anything unsound: what does not fit the base, numbers that are
    none, more than `most_bytes` in memory.
    """
    with opened(folder, CONFIG_FILE) as (file, size):
        if size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{CONFIG_FILE} has {size:,} bytes. No config of an adapter is so large.")
        config = parse_lora_config(file.read(MAX_CONFIG_BYTES + 1))
    with opened(folder, WEIGHTS_FILE) as (file, size):
        tensors = dict(read_safetensors_header(WEIGHTS_FILE, file, size, MAX_HEADER_BYTES))
        own_head = _own_head(tensors, head) if config.own_head else None
        places = _places(tensors, config, shapes)
        every = [t for pair in places.values() for t in pair] + ([own_head] if own_head else [])
        needed = sum(4 * (t.shape[0] * t.shape[1]) for t in every)
        if needed > most_bytes:
            raise CheckpointError(
                f"{WEIGHTS_FILE} needs {needed:,} bytes of memory, over the {most_bytes:,} of adapter_bytes. "
                "Raise adapter_bytes, or train with a smaller r."
            )
        numbers = _numbers(file, every)
        if own_head:  # each by itself: they may be kept apart, and all of one piece would be kept with each
            numbers = {name: values.copy() for name, values in numbers.items()}
    layers = Layers(
        (layer, LowRank(numbers[down.name], _scaled(numbers[up.name], config.scale_of(layer), up.name)))
        for layer, (down, up) in places.items()
    )
    layers.head = numbers[own_head.name] if own_head else None
    return layers


# --- files --------------------------------------------------------------------------------------------------------


# --- tensors ------------------------------------------------------------------------------------------------------


def _places(
    tensors: Mapping[str, SafeTensor], config: LoraConfig, shapes: Shapes
) -> dict[str, tuple[SafeTensor, SafeTensor]]:
    """Where `down` and `up` of each layer lie, their shapes checked. Every tensor has a layer, and every layer both."""
    targets = set(config.targets_of(shapes))
    found: dict[str, dict[str, SafeTensor]] = {}
    for tensor in tensors.values():
        layer, part = _part(tensor.name, targets, shapes)
        _check_shape(tensor, layer, part, config.rank_of(layer), shapes[layer])
        found.setdefault(layer, {})[part] = tensor
    if missing := sorted(layer for layer in targets if len(found.get(layer, ())) < 2):
        raise CheckpointError(
            f"{WEIGHTS_FILE} lacks lora_A or lora_B of {missing[0]}, which target_modules in {CONFIG_FILE} names. "
            "Save the adapter again."
        )
    if not found:
        raise CheckpointError(f"{CONFIG_FILE}: target_modules fits no layer of the base. Is it of another model?")
    return {layer: (parts["lora_A"], parts["lora_B"]) for layer, parts in sorted(found.items())}


def _own_head(tensors: dict[str, SafeTensor], shape: tuple[int, int]) -> SafeTensor:
    """The adapter's own output layer, taken out of its tensors."""
    tensor = tensors.pop(f"{_PREFIX}{HEAD}.weight", None)
    if tensor is None:
        raise CheckpointError(
            f"{WEIGHTS_FILE} lacks {HEAD}.weight, which modules_to_save in {CONFIG_FILE} names. Save the adapter again."
        )
    _check_tensor(tensor, f"{HEAD}.weight", shape, "the base says")
    return tensor


def _part(name: str, targets: set[str], shapes: Shapes) -> tuple[str, str]:
    """The layer a tensor belongs to, and which of the two it is there."""
    for part in ("lora_A", "lora_B"):
        ending = f".{part}.weight"
        if name.startswith(_PREFIX) and name.endswith(ending):
            layer = name[len(_PREFIX) : -len(ending)]
            if layer in targets:
                return layer, part
            if layer in shapes:
                mend = f"target_modules in {CONFIG_FILE} does not name it. Save the adapter again"
            elif layer.endswith("lm_head"):
                mend = "the output layer is shared by all. Train without lm_head in target_modules"
            else:
                mend = "the base has no such linear layer. Is the adapter of another model?"
            raise CheckpointError(f"{WEIGHTS_FILE} has the tensor {name[:200]!r}, but {mend}.")
    if "lm_head" in name or "embed_tokens" in name:
        mend = "Train without embeddings and lm_head in target_modules; of modules_to_save, lm_head alone can be served"
    else:
        mend = f"Only lora_A and lora_B of linear layers can be served, named {_PREFIX}LAYER.lora_A.weight"
    raise CheckpointError(f"{WEIGHTS_FILE} has the tensor {name[:200]!r}, which has no place here. {mend}.")


def _check_shape(tensor: SafeTensor, layer: str, part: str, rank: int, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    expected = (rank, inputs) if part == "lora_A" else (outputs, rank)
    _check_tensor(tensor, f"{part} of {layer}", expected, f"the base and r in {CONFIG_FILE} say")


def _check_tensor(tensor: SafeTensor, what: str, expected: tuple[int, int], who: str) -> None:
    if tensor.shape != expected:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {what} has the shape {tensor.shape}; {who} {expected}. Is the adapter of another model?"
        )
    if tensor.kind not in _TYPES:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {what} is stored as {tensor.kind}. Save it as float32, float16 or bfloat16."
        )


def _numbers(file: BufferedReader, tensors: list[SafeTensor]) -> dict[str, Matrix]:
    """All tensors of the file in float32, by name; all their numbers are finite. They are read at once: some hundred
    small ones take five times as long one by one, most of it with Python's lock held."""
    begin = min(tensor.start for tensor in tensors)
    stored = np.empty(sum(tensor.bytes for tensor in tensors), np.uint8)
    file.seek(begin)
    read = file.readinto(stored.data)
    for tensor in tensors if read != len(stored) else ():
        if tensor.start + tensor.bytes - begin > read:
            raise CheckpointError(f"{WEIGHTS_FILE} ends within {tensor.name[:200]!r}. Copy it again.")
    sound = all(tensor.kind == "F32" for tensor in tensors) and begin % 4 == 0 and _all_finite(stored.view(np.float32))
    numbers = {}
    for tensor in tensors:
        at = tensor.start - begin
        values = stored[at : at + tensor.bytes].view(_TYPES[tensor.kind]).reshape(tensor.shape)
        if tensor.kind == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32, copy=False)
        numbers[tensor.name] = values if sound else _finite(values, tensor.name)
    return numbers


def _scaled(values: Matrix, scale: float, name: str) -> Matrix:
    if scale == 1:
        return values
    with np.errstate(over="ignore"):
        return _finite(np.multiply(values, np.float32(scale), out=values), name)


def _all_finite(values: Matrix) -> bool:
    """Whether all are; where one is no number, neither is the least nor the largest."""
    return bool(np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)))


def _finite(values: Matrix, name: str) -> Matrix:
    if not _all_finite(values):
        raise CheckpointError(
            f"{WEIGHTS_FILE}: {name[:200]!r} has numbers that are not finite (NaN or infinity). Train it again: the "
            "run has diverged."
        )
    return values
