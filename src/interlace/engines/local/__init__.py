"""The default engines: a decoder with continuous batching, and an encoder that embeds or scores texts.

The front door is `load_core`, which an engine host calls in its own process, and `open_segment`, for a part of a
decoder; everything heavy is imported there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interlace.config import ModelSettings
from interlace.engines.core import Core

if TYPE_CHECKING:
    from interlace.engines.local.segment import Segment

__all__ = ["load_core", "open_segment"]

# Importing openvino reports the import to a web analytics service through this package, and no environment variable
# stops it. Without the package openvino falls back on a stub of its own. Nothing may call home from a private fabric.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: "not to be imported"


def load_core(settings: ModelSettings, home: Path, progress: Callable[[str], None]) -> Core:
    """Load the checkpoint that `settings` name, as the engine that fits its architecture.

    `progress` is told, in a few words, what is being done. Raises `CheckpointError` where the checkpoint is missing,
    broken or too large for the memory that is left.
    """
    from interlace.engines.local.load import load

    return load(settings, home, progress)


def open_segment(
    checkpoint: str,
    home: Path,
    begin: int | None = None,
    end: int | None = None,
    *,
    precision: Literal["file", "f32", "bf16", "int8"] = "file",
    cache_bytes: int = 1 << 30,
    threads: int = 0,
) -> Segment:
    """Load the part of a decoder that takes the hidden states in front of layer `begin` (None: token ids) and gives
    those in front of layer `end`, which after the last is the number of layers (None: logits).

    Raises `CheckpointError` where the checkpoint is missing, broken or no decoder, `ConfigError` for a boundary that is
    none.
    """
    from interlace.engines.local.graph import Span
    from interlace.engines.local.segment import segment_of
    from interlace.models import resolve

    path = resolve(checkpoint, home).path
    return segment_of(path, Span(begin, end), precision=precision, cache_bytes=cache_bytes, threads=threads)
