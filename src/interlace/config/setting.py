"""A field of the settings: a dataclass field that knows its documentation, bounds and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


def setting(
    doc: str,
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    only: str = "",
    required: bool = False,
) -> Any:
    """A dataclass field that carries its documentation, bounds and choices for the reader.

    `only` names the engine of a model that the field belongs to; with it, `required` means: by that engine.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": tuple(choices)}
    metadata |= {"only": only, "required": required}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
