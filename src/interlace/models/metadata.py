"""What a GGUF file says beside its weights: tokens, merges, special ids, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interlace.errors import CheckpointError
from interlace.models.gguf_file import read_gguf
from interlace.models.layout import locate


def gguf_metadata(path: Path) -> dict[str, Any]:
    """All metadata of the GGUF file at `path` (or of the one in that folder): strings, numbers, lists of them."""
    layout = locate(path)
    if layout.format != "gguf":
        raise CheckpointError(f"{path} is a safetensors folder; its metadata is in its JSON files.")
    return read_gguf(layout.weights[0]).metadata
