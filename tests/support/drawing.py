"""Random values of msgspec's types: what a struct could have been read from, drawn field by field.

A `Draw` follows the types and their constraints; `own` says of a path, as `gateway.translation.paths_of` writes it, how
it is drawn where the types do not say enough. The randomness is a `Random`, so that hypothesis can lend its own.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")
Own = Callable[["Draw", str], Any]
Json = dict[str, Any]

PIECES = ("a", "Hello", "world", " ", "\n", "é", "漢字", "🙂", '"', "\\", "{}", "<|x|>", "\u2028", "0", "_", ": ", "\t")
LETTERS = "abcxyzABC019_-"
NOTHING = object()


class Draw:
    """Draws values. `likely` is how likely an optional field of the body itself is said; inside it is one in three."""

    def __init__(self, random: Random, own: Mapping[str, Own], likely: float = 0.12) -> None:
        self.random = random
        self.own = own
        self.likely = likely
        self.role = ""
        self.count = 0

    # --- plain values --------------------------------------------------------------------------------------------

    def chance(self, likely: float) -> bool:
        """Whether; shrinks to no."""
        return self.random.random() > 1 - likely

    def one(self, values: Sequence[T]) -> T:
        """One of them; shrinks to the first."""
        return values[self.random.randint(0, len(values) - 1)]

    def text(self, most: int = 4) -> str:
        """A text, not empty."""
        return "".join(self.one(PIECES) for _ in range(self.random.randint(1, most)))

    def words(self) -> str:
        """A text that does not end in white space."""
        return self.text() + self.one(("a", "b.", "é"))

    def name(self) -> str:
        """A name as functions have it."""
        return "".join(self.one(LETTERS) for _ in range(self.random.randint(1, 6)))

    def fresh(self, prefix: str) -> str:
        """An id that nothing else has."""
        self.count += 1
        return f"{prefix}_{self.count}{self.name()}"

    def base64(self) -> str:
        """Some bytes."""
        return base64.b64encode(self.text().encode()).decode()

    def value(self, depth: int = 2) -> Any:
        """Any JSON value."""
        kind = self.random.randint(0, 6 if depth else 4)
        match kind:
            case 0:
                return self.text()
            case 1:
                return self.random.randint(-(1 << 53), 1 << 53)
            case 2:
                return self.one((0.5, -1.25, 1e-7, 1e20))
            case 3:
                return self.one((True, False))
            case 4:
                return None
            case 5:
                return [self.value(depth - 1) for _ in range(self.random.randint(0, 2))]
        return self.object(depth - 1)

    def object(self, depth: int = 2) -> Json:
        """Any JSON object."""
        return {self.text(2): self.value(depth) for _ in range(self.random.randint(0, 3))}

    def schema(self) -> Json:
        """A JSON schema of an object."""
        names = list(dict.fromkeys(self.text(2) for _ in range(self.random.randint(1, 3))))
        made: Json = {"type": "object", "properties": {name: self._property() for name in names}}
        if self.chance(0.5):
            made |= {"required": names, "additionalProperties": False}
        if self.chance(0.2):
            made["description"] = self.text()
        return made

    def _property(self) -> Json:
        kind = self.one(("string", "integer", "array"))
        if kind == "array":
            return {"type": "array", "items": {"type": "string", "enum": [self.text()]}}
        return {"type": kind} | ({"description": self.text()} if self.chance(0.3) else {})

    def arguments(self) -> str:
        """Arguments of a call as a model could have written them."""
        if self.chance(0.1):
            return '{"n": 123456789012345678901234567890, "x": 0.1000}'
        return json.dumps(self.object(), ensure_ascii=self.chance(0.5), indent=1 if self.chance(0.2) else None)

    # --- by type -------------------------------------------------------------------------------------------------

    def body(self, struct: type[msgspec.Struct]) -> Json:
        """A whole body."""
        return self.struct(_info(struct), "", self.likely)

    def struct(self, info: inspect.StructType, path: str, likely: float = 0.3) -> Json:
        """An object that the struct could be read from."""
        made: Json = {}
        if info.tag_field is not None:
            made[info.tag_field] = info.tag
        for field in info.fields:
            if not field.required and not self.chance(likely):
                continue
            where = f"{path}.{field.encode_name}" if path else field.encode_name
            value = self.of(field.type, where)
            if value is not NOTHING:
                made[field.encode_name] = value
        return made

    def of(self, kind: inspect.Type, path: str) -> Any:
        """A value of a type."""
        if (own := self.own.get(path)) is not None:
            return own(self, path)
        match kind:
            case inspect.UnionType(types=kinds):
                said = [one for one in kinds if not isinstance(one, inspect.NoneType)]
                return self.of(self.one(said), path)
            case inspect.StructType():
                return self.struct(kind, path)
            case inspect.ListType(item_type=item, min_length=least, max_length=most):
                count = self.random.randint(least or 1, min(most or 3, 3))
                return [self.of(item, f"{path}[]") for _ in range(count)]
            case inspect.VarTupleType(item_type=item):
                return [self.of(item, f"{path}[]") for _ in range(self.random.randint(0, 2))]
            case inspect.DictType(value_type=value):
                if isinstance(value, inspect.AnyType):
                    return self.object() or {"a": 1}
                return {self.name(): self.of(value, path) for _ in range(self.random.randint(1, 2))}
            case inspect.LiteralType(values=values):
                return self.one(sorted(values, key=str))
            case inspect.BoolType():
                return self.one((True, False))
            case inspect.IntType(ge=least, le=most):
                low = 0 if least is None else int(least)
                return self.random.randint(low, min(low + 9000 if most is None else int(most), low + 9000))
            case inspect.FloatType(ge=least, gt=above, le=most):
                low, high = (least if above is None else above + 0.125) or 0.0, most or 1.0
                return low + self.random.randint(0, 8) * (high - low) / 8
            case inspect.StrType():
                return self.name() if kind.pattern and "a-z" in kind.pattern else self.text()
            case inspect.AnyType():
                return self.value() or "a"
        raise AssertionError(f"nobody knows how to draw {kind} at {path}")


@functools.cache
def _info(struct: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return info


def info_of(struct: type[msgspec.Struct]) -> inspect.StructType:
    """What msgspec knows of a struct."""
    return _info(struct)


def paths_in(body: Json, paths: set[str]) -> set[str]:
    """Which of the paths a body says."""
    said: set[str] = set()

    def walk(value: Any, path: str) -> None:
        if value is None:
            return
        if path in paths:
            said.add(path)
        if isinstance(value, list):
            for one in value:
                walk(one, f"{path}[]")
        elif isinstance(value, dict) and (not path or any(known.startswith(f"{path}.") for known in paths)):
            for name, one in value.items():
                walk(one, f"{path}.{name}" if path else name)

    walk(body, "")
    return said
