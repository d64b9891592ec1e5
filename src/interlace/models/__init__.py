"""Checkpoints at rest: pull, verify, read. The front door; what is heavy is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.models.architecture import Architecture, BertArchitecture, LlamaArchitecture, read_architecture
    from interlace.models.checkpoint import Checkpoint, Manifest
    from interlace.models.metadata import gguf_metadata
    from interlace.models.weights import StoredTensor, Weights, dequantise, open_weights

# name → the module that has it
_HOMES = {
    "Architecture": "architecture",
    "BertArchitecture": "architecture",
    "Checkpoint": "checkpoint",
    "LlamaArchitecture": "architecture",
    "Manifest": "checkpoint",
    "StoredTensor": "weights",
    "Weights": "weights",
    "dequantise": "weights",
    "gguf_metadata": "metadata",
    "open_weights": "weights",
    "read_architecture": "architecture",
}

__all__ = [
    "Architecture",
    "BertArchitecture",
    "Checkpoint",
    "LlamaArchitecture",
    "Manifest",
    "StoredTensor",
    "Weights",
    "dequantise",
    "gguf_metadata",
    "open_weights",
    "read_architecture",
]


def __getattr__(name: str) -> Any:
    """Import a name of the front door from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
