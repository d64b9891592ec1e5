"""Checkpoints of the store that were put into service by command; the list is read in `config/added_models.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from interlace.config import AddedModel, added_models_file, read_added_models
from interlace.models.added_list import change_list


def change_added_models(home: Path, change: Callable[[tuple[AddedModel, ...]], tuple[AddedModel, ...]]) -> None:
    """Replace the entries by what `change` makes of them, whole and synced, one change after the other."""
    change_list(added_models_file(home), lambda: read_added_models(home), change)
