"""Where the weights of a checkpoint lie: one GGUF file, or a Hugging Face folder of safetensors files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from interlace.errors import CheckpointError

Format = Literal["gguf", "safetensors"]

JSON_LIMIT_BYTES = 64 << 20  # the largest real one, a tokenizer.json, has about 35 MB
JSON_LIMIT_NODES = 1 << 22  # lists and objects; the largest real one has half a million


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one checkpoint. `folder` holds config and tokenizer; `weights` are absolute, in stored order."""

    format: Format
    folder: Path
    weights: tuple[Path, ...]


def locate(path: Path) -> Layout:
    """Find the weights at `path`: a GGUF file, a folder with exactly one, or a folder of safetensors.

    Raises CheckpointError when nothing, or more than one thing, is there.
    """
    path = path.expanduser().absolute()
    if path.is_file():
        return _locate_file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist. Give a GGUF file or a folder with config.json and safetensors.")
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return Layout("safetensors", path, _safetensors_files(path))
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Layout("gguf", path, (ggufs[0],))
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise CheckpointError(f"{path} holds several GGUF files ({names}). Name the one you want.")
    raise CheckpointError(f"{path} holds neither a GGUF file nor config.json with *.safetensors.")


def _locate_file(path: Path) -> Layout:
    if path.suffix == ".gguf":
        return Layout("gguf", path.parent, (path,))
    if path.suffix == ".safetensors" and (path.parent / "config.json").is_file():
        return Layout("safetensors", path.parent, (path,))
    raise CheckpointError(f"{path.name} is not a GGUF file. For safetensors, name the folder that has config.json too.")


def _safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The single `model.safetensors`, or the shards its index names; each must lie directly in `folder`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file() and not single.is_file():
        return tuple(shard_file(folder, shard) for shard in sorted(set(read_index(index).values())))
    if single.is_file():
        return (single,)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return (files[0],)
    raise CheckpointError(f"{folder} holds several safetensors files but no model.safetensors.index.json.")


def read_index(index: Path) -> dict[str, str]:
    """The `weight_map` of a sharded checkpoint: tensor name → file name."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map. Pull the checkpoint again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index.name} maps {name!r} to something that is not a file name.")
    return weight_map


def shard_file(folder: Path, shard: str) -> Path:
    """The path of one shard; refuses names that would leave `folder`."""
    if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
        raise CheckpointError(f"The shard name {shard!r} is not a plain safetensors file name.")
    file = folder / shard
    if not file.is_file():
        raise CheckpointError(f"The shard {shard} is missing from {folder}. Pull the checkpoint again.")
    return file


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from disk, bounded in size."""
    value = read_json_value(file)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.name} is not a JSON object.")
    return value


def read_json_value(file: Path) -> Any:
    """Any JSON value from disk, bounded in size; CheckpointError for a broken or unreadable one."""
    try:
        if file.stat().st_size > JSON_LIMIT_BYTES:
            raise CheckpointError(f"{file.name} is larger than {JSON_LIMIT_BYTES >> 20} MB, which no real one is.")
        raw = file.read_bytes()
        # Counted before parsing: an empty list takes three bytes on disk and sixty in memory.
        if raw.count(b"[") + raw.count(b"{") > JSON_LIMIT_NODES:
            raise CheckpointError(
                f"{file.name} has more than {JSON_LIMIT_NODES} lists and objects, as no real one has."
            )
        return msgspec.json.decode(raw)
    except OSError as error:
        raise CheckpointError(f"{file.name} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is not valid JSON: {error}.") from error
