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
    only: Sequence[str] = (),
    required: Sequence[str] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field that carries its documentation, bounds and choices for the reader.

    `only` names the engines of a model that the field belongs to, `required` those that cannot do without it. A
    `secret` is written as a reference to an environment variable.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": tuple(choices)}
    metadata |= {"only": tuple(only), "required": tuple(required), "secret": secret}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
