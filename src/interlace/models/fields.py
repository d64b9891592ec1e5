"""Typed, bounded access to the settings of a checkpoint, which anyone may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import CheckpointError

MAX_COUNT = 1 << 27  # of anything a config counts: larger is a broken file

_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Fields:
    """The settings of one file (`where`), read by name; every fault is a CheckpointError naming both."""

    values: Mapping[str, Any]
    where: str

    def count(self, name: str, default: Any = _MISSING) -> int:
        """A positive integer; `null` counts as absent."""
        value = self._get(name, default)
        if type(value) is not int or not 1 <= value <= MAX_COUNT:
            raise self.wrong(name, value, "a positive count")
        return value

    def index(self, name: str, default: Any = _MISSING) -> int:
        """A count that may be zero, an id; `null` counts as absent."""
        return 0 if self.values.get(name) == 0 else self.count(name, default)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A positive, finite number; `null` counts as absent."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
            raise self.wrong(name, value, "a positive number")
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of `count` positive, finite numbers."""
        value = self._get(name, _MISSING)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, value, f"a list of {count} numbers")
        return [Fields({name: item}, self.where).number(name) for item in value]

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `null` counts as absent."""
        value = self._get(name, default)
        if type(value) is not bool:
            raise self.wrong(name, value, "true or false")
        return value

    def word(self, name: str, default: Any = _MISSING) -> str:
        """A string; `null` counts as absent."""
        value = self._get(name, default)
        if type(value) is not str:
            raise self.wrong(name, value, "a string")
        return value

    def must_be_off(self, name: str, *off: Any) -> None:
        """Refuse the checkpoint unless `name` is absent, null, false or one of `off`."""
        value = self.values.get(name)
        if value is not None and value is not False and value not in off:
            raise CheckpointError(f"{self.where}: {name} is {_shown(value)}, which this engine cannot run yet.")

    def wrong(self, name: str, value: Any, wanted: str) -> CheckpointError:
        """The error for a value of the wrong kind."""
        return CheckpointError(f"{self.where}: {name} is {_shown(value)}, where {wanted} is needed.")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(f"{self.where}: {name} is missing.")
        return default


def _shown(value: Any) -> str:
    """A value of a hostile file, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
