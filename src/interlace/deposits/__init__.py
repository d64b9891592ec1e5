"""What callers leave here: files, and batches of requests to be answered when there is room.

The front door; what is heavy (SQLAlchemy) is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.deposits.batch_lines import Line, Problem, Wanted
    from interlace.deposits.batches import Batch, BatchView, NewBatch, Result, output_row, request_id
    from interlace.deposits.blobs import Partial
    from interlace.deposits.files import File, NewFile
    from interlace.deposits.room import Deposits

# name → the module that has it
_HOMES = {
    "Batch": "batches",
    "BatchView": "batches",
    "Deposits": "room",
    "File": "files",
    "Line": "batch_lines",
    "NewBatch": "batches",
    "NewFile": "files",
    "Partial": "blobs",
    "Problem": "batch_lines",
    "Result": "batches",
    "Wanted": "batch_lines",
    "output_row": "batches",
    "request_id": "batches",
}

__all__ = [
    "Batch",
    "BatchView",
    "Deposits",
    "File",
    "Line",
    "NewBatch",
    "NewFile",
    "Partial",
    "Problem",
    "Result",
    "Wanted",
    "output_row",
    "request_id",
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
