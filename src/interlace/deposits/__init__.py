"""What callers leave here: files, batches of requests to be answered when there is room, and responses to go on from.

The front door; what is heavy (SQLAlchemy) is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.deposits.batch_lines import Line, Problem, Wanted
    from interlace.deposits.batches import Batch, BatchView, NewBatch, Result, output_row, request_id
    from interlace.deposits.blobs import Partial
    from interlace.deposits.files import PURPOSES, File, NewFile, too_much
    from interlace.deposits.responses import Responses, Turn
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
    "PURPOSES": "files",
    "Partial": "blobs",
    "Problem": "batch_lines",
    "Responses": "responses",
    "Result": "batches",
    "Turn": "responses",
    "Wanted": "batch_lines",
    "output_row": "batches",
    "request_id": "batches",
    "too_much": "files",
}

__all__ = [
    "PURPOSES",
    "Batch",
    "BatchView",
    "Deposits",
    "File",
    "Line",
    "NewBatch",
    "NewFile",
    "Partial",
    "Problem",
    "Responses",
    "Result",
    "Turn",
    "Wanted",
    "output_row",
    "request_id",
    "too_much",
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
