"""What a checkpoint on disk says about its text: GGUF metadata, JSON side files, chat template sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from interlace.errors import CheckpointError
from interlace.models import gguf_metadata

_LARGEST_TEMPLATE = 1 << 20  # characters; the largest known template has about 30,000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return value


def is_gguf(path: Path) -> bool:
    """Whether the checkpoint is a GGUF file, or a folder that holds one."""
    return not path.is_dir() or any(path.glob("*.gguf"))


def gguf_text_metadata(path: Path) -> Mapping[str, Any]:
    """All `tokenizer.*` metadata of a GGUF file, and its architecture, as plain values. Don't change it: callers share
    it."""
    stat = path.stat()
    return _gguf_text_metadata(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)  # tokenizer and template of one checkpoint are loaded one after the other
def _gguf_text_metadata(path: Path, _mtime: int, _size: int) -> Mapping[str, Any]:
    metadata = gguf_metadata(path)
    return {key: metadata[key] for key in metadata if key.startswith("tokenizer.") or key == "general.architecture"}


def template_sources(path: Path) -> dict[str, str]:
    """Every chat template of a checkpoint by name; the plain one is "default"."""
    found = _gguf_templates(gguf_text_metadata(path)) if is_gguf(path) else _folder_templates(path)
    for name, source in found.items():
        if not isinstance(source, str) or len(source) > _LARGEST_TEMPLATE:
            message = f"{path}: chat template {name!r} is no text of at most {_LARGEST_TEMPLATE} characters."
            raise CheckpointError(message)
    return found


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, Any]:
    stem = "tokenizer.chat_template"
    named = {key[len(stem) + 1 :]: source for key, source in metadata.items() if key.startswith(stem + ".")}
    return named | ({"default": metadata[stem]} if stem in metadata else {})


def _folder_templates(path: Path) -> dict[str, Any]:
    """Template files win over tokenizer_config.json, as in transformers."""
    stated = read_json(path / "tokenizer_config.json").get("chat_template")
    found: dict[str, Any] = {}
    if isinstance(stated, str):
        found["default"] = stated
    elif isinstance(stated, list):
        found.update({row["name"]: row["template"] for row in stated if {"name", "template"} <= set(row)})
    files = {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        files["default"] = path / "chat_template.jinja"
    return found | {name: file.read_text(encoding="utf-8") for name, file in files.items()}
