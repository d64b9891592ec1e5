"""Checkpoints at rest: pull, verify, read. The front door; what is heavy is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.models.adapter_file import Layers, LowRank, Shapes, read_adapter
    from interlace.models.adapter_store import (
        Added,
        change_added,
        copy_adapter,
        copy_folder,
        find_copy,
        forget_copy,
        read_added,
        sweep_copies,
    )
    from interlace.models.architecture import (
        Activation,
        Architecture,
        DecoderArchitecture,
        EncoderArchitecture,
        Layer,
        Rope,
        read_architecture,
    )
    from interlace.models.catalogue import known_models
    from interlace.models.checkpoint import Checkpoint, Manifest, SuggestedSampling
    from interlace.models.layout import Layout, locate
    from interlace.models.lock import HeldLock, try_lock
    from interlace.models.metadata import gguf_metadata
    from interlace.models.pulling import pull
    from interlace.models.room import check_memory, memory_needed
    from interlace.models.store import (
        default_home,
        find_checkpoint,
        get_checkpoint,
        list_checkpoints,
        remove_checkpoint,
        resolve,
        verify_checkpoint,
    )
    from interlace.models.table import print_table
    from interlace.models.tensors import check_tensors, expected_shapes, head_modules
    from interlace.models.weights import StoredTensor, Weights, dequantise, open_weights

# name → the module that has it
_HOMES = {
    "Activation": "architecture",
    "Added": "adapter_store",
    "Architecture": "architecture",
    "Checkpoint": "checkpoint",
    "DecoderArchitecture": "architecture",
    "EncoderArchitecture": "architecture",
    "HeldLock": "lock",
    "Layer": "architecture",
    "Layers": "adapter_file",
    "Layout": "layout",
    "LowRank": "adapter_file",
    "Manifest": "checkpoint",
    "Rope": "architecture",
    "Shapes": "adapter_file",
    "StoredTensor": "weights",
    "SuggestedSampling": "checkpoint",
    "Weights": "weights",
    "change_added": "adapter_store",
    "check_memory": "room",
    "check_source": "pulling",
    "check_tensors": "tensors",
    "copy_adapter": "adapter_store",
    "copy_folder": "adapter_store",
    "default_home": "store",
    "dequantise": "weights",
    "expected_shapes": "tensors",
    "find_checkpoint": "store",
    "find_copy": "adapter_store",
    "forget_copy": "adapter_store",
    "get_checkpoint": "store",
    "gguf_metadata": "metadata",
    "head_modules": "tensors",
    "known_models": "catalogue",
    "list_checkpoints": "store",
    "locate": "layout",
    "memory_needed": "room",
    "open_weights": "weights",
    "print_table": "table",
    "pull": "pulling",
    "read_adapter": "adapter_file",
    "read_added": "adapter_store",
    "read_architecture": "architecture",
    "remove_checkpoint": "store",
    "resolve": "store",
    "sweep_copies": "adapter_store",
    "try_lock": "lock",
    "verify_checkpoint": "store",
}

__all__ = [
    "Activation",
    "Added",
    "Architecture",
    "Checkpoint",
    "DecoderArchitecture",
    "EncoderArchitecture",
    "HeldLock",
    "Layer",
    "Layers",
    "Layout",
    "LowRank",
    "Manifest",
    "Rope",
    "Shapes",
    "StoredTensor",
    "SuggestedSampling",
    "Weights",
    "change_added",
    "check_memory",
    "check_source",
    "check_tensors",
    "copy_adapter",
    "copy_folder",
    "default_home",
    "dequantise",
    "expected_shapes",
    "find_checkpoint",
    "find_copy",
    "forget_copy",
    "get_checkpoint",
    "gguf_metadata",
    "head_modules",
    "known_models",
    "list_checkpoints",
    "locate",
    "memory_needed",
    "open_weights",
    "print_table",
    "pull",
    "read_adapter",
    "read_added",
    "read_architecture",
    "remove_checkpoint",
    "resolve",
    "sweep_copies",
    "try_lock",
    "verify_checkpoint",
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
