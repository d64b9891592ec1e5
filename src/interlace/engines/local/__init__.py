"""The default engines: a decoder with continuous batching, and an encoder that embeds or scores texts.

The front door is `load_core`, which an engine host calls in its own process; everything heavy is imported there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from interlace.config import ModelSettings
from interlace.engines.core import Core

__all__ = ["load_core"]

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
