"""Checkpoints at rest: pull, verify, read. The front door; what is heavy is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.models.adapter_check import check_adapter, linear_shapes
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
    from interlace.models.checkpoint import AgreementGate, Checkpoint, Manifest, SuggestedSampling
    from interlace.models.dataset_layout import are_class_names
    from interlace.models.layout import Layout, locate
    from interlace.models.lock import HeldLock, locked, try_lock
    from interlace.models.measured import (
        METHOD,
        Machine,
        Measurement,
        Trial,
        count_attempt,
        keep_measurement,
        measurements,
        read_measurement,
        this_machine,
        weights_of,
    )
    from interlace.models.metadata import gguf_metadata
    from interlace.models.model_store import change_added_models
    from interlace.models.pulling import pull
    from interlace.models.refs import is_name
    from interlace.models.room import available_memory, check_memory, gigabytes, memory_needed
    from interlace.models.source_dataset import DataSet, is_data_set, pull_data_set
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
    "METHOD": "measured",
    "Activation": "architecture",
    "Added": "adapter_store",
    "AgreementGate": "checkpoint",
    "Architecture": "architecture",
    "Checkpoint": "checkpoint",
    "DataSet": "source_dataset",
    "DecoderArchitecture": "architecture",
    "EncoderArchitecture": "architecture",
    "HeldLock": "lock",
    "Layer": "architecture",
    "Layers": "adapter_file",
    "Layout": "layout",
    "LowRank": "adapter_file",
    "Machine": "measured",
    "Manifest": "checkpoint",
    "Measurement": "measured",
    "Rope": "architecture",
    "Shapes": "adapter_file",
    "StoredTensor": "weights",
    "SuggestedSampling": "checkpoint",
    "Trial": "measured",
    "Weights": "weights",
    "are_class_names": "dataset_layout",
    "available_memory": "room",
    "change_added": "adapter_store",
    "change_added_models": "model_store",
    "check_adapter": "adapter_check",
    "check_memory": "room",
    "check_source": "pulling",
    "check_tensors": "tensors",
    "copy_adapter": "adapter_store",
    "copy_folder": "adapter_store",
    "count_attempt": "measured",
    "default_home": "store",
    "dequantise": "weights",
    "expected_shapes": "tensors",
    "find_checkpoint": "store",
    "find_copy": "adapter_store",
    "forget_copy": "adapter_store",
    "get_checkpoint": "store",
    "gguf_metadata": "metadata",
    "gigabytes": "room",
    "head_modules": "tensors",
    "keep_measurement": "measured",
    "is_data_set": "source_dataset",
    "is_name": "refs",
    "known_models": "catalogue",
    "linear_shapes": "adapter_check",
    "list_checkpoints": "store",
    "locate": "layout",
    "locked": "lock",
    "measurements": "measured",
    "memory_needed": "room",
    "open_weights": "weights",
    "print_table": "table",
    "pull": "pulling",
    "pull_data_set": "source_dataset",
    "read_adapter": "adapter_file",
    "read_added": "adapter_store",
    "read_architecture": "architecture",
    "read_measurement": "measured",
    "remove_checkpoint": "store",
    "resolve": "store",
    "sweep_copies": "adapter_store",
    "this_machine": "measured",
    "try_lock": "lock",
    "verify_checkpoint": "store",
    "weights_of": "measured",
}

__all__ = [
    "METHOD",
    "Activation",
    "Added",
    "AgreementGate",
    "Architecture",
    "Checkpoint",
    "DataSet",
    "DecoderArchitecture",
    "EncoderArchitecture",
    "HeldLock",
    "Layer",
    "Layers",
    "Layout",
    "LowRank",
    "Machine",
    "Manifest",
    "Measurement",
    "Rope",
    "Shapes",
    "StoredTensor",
    "SuggestedSampling",
    "Trial",
    "Weights",
    "are_class_names",
    "available_memory",
    "change_added",
    "change_added_models",
    "check_adapter",
    "check_memory",
    "check_source",
    "check_tensors",
    "copy_adapter",
    "copy_folder",
    "count_attempt",
    "default_home",
    "dequantise",
    "expected_shapes",
    "find_checkpoint",
    "find_copy",
    "forget_copy",
    "get_checkpoint",
    "gguf_metadata",
    "gigabytes",
    "head_modules",
    "keep_measurement",
    "is_data_set",
    "is_name",
    "known_models",
    "linear_shapes",
    "list_checkpoints",
    "locate",
    "locked",
    "measurements",
    "memory_needed",
    "open_weights",
    "print_table",
    "pull",
    "pull_data_set",
    "read_adapter",
    "read_added",
    "read_architecture",
    "read_measurement",
    "remove_checkpoint",
    "resolve",
    "sweep_copies",
    "this_machine",
    "try_lock",
    "verify_checkpoint",
    "weights_of",
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
