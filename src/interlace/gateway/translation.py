"""What becomes of each field that callers send: carried to the engine, used here, or refused.

A dialect has one table from the paths of its body (`messages[].content[].text`) to one of three fates. What is carried
has names in the neutral form, and each engine's own table (`engines.fields`) goes on from there; both together make
`docs/reference/translation.md`. A test holds each table against the structs that read the body, so that a field cannot
be added without saying what becomes of it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from interlace.engines.fields import NAMES


@dataclass(frozen=True, slots=True)
class Carried:
    """It goes to the engine, as these fields of the neutral form; none where every engine can only keep it, such as the
    text of a message. `how` says what is done to it on the way, as a phrase."""

    names: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True, slots=True)
class Here:
    """The gateway itself does what it asks for; `how`, as a phrase."""

    how: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """It asks for nothing that matters to the answer, here or anywhere; `why`, as a phrase. Told in
    `x-interlace-unused` where somebody could have wished for it."""

    why: str


@dataclass(frozen=True, slots=True)
class Denied:
    """A body with it gets a 400 that names it; `why`, as a phrase."""

    why: str


Place = Carried | Here | Ignored | Denied
Table = Mapping[str, Place]


def carried(*names: str, how: str = "") -> Carried:
    """`Carried`, its names checked: raises `ValueError` for one that the neutral form does not have."""
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"no field is called {', '.join(sorted(unknown))}")
    return Carried(names, how)


Carriers = Mapping[str, Sequence[str]]


def carriers_of(table: Table) -> Carriers:
    """The paths that carry each neutral name."""
    carriers: dict[str, list[str]] = {}
    for path, place in table.items():
        for name in place.names if isinstance(place, Carried) else ():
            carriers.setdefault(name, []).append(path)
    return carriers


class Words(Mapping[str, str]):
    """The dialect's word for each neutral name, as one caller wrote it: of the paths that carry the name, the first
    that says something in this `body`. Looked up when it is asked for, which is seldom."""

    def __init__(self, carriers: Carriers, body: msgspec.Struct) -> None:
        self._carriers = carriers
        self._body = body

    def __getitem__(self, name: str) -> str:
        paths = self._carriers[name]
        return paths[0] if len(paths) == 1 else max(paths, key=lambda path: _said(self._body, path.split(".")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._carriers)

    def __len__(self) -> int:
        return len(self._carriers)


def _said(value: Any, steps: Sequence[str]) -> int:
    """How much a body says at a path: 2 for something, 1 for what may be the default (false, empty), 0 for nothing."""
    if value is None or not steps:
        return 0 if value is None else 2 if value else 1
    if not isinstance(value, msgspec.Struct):
        return 0
    name, many, _ = steps[0].partition("[]")
    if name == value.__struct_config__.tag_field:
        return 2
    inner = getattr(value, name, None)
    if not many:
        return _said(inner, steps[1:])
    return max((_said(one, steps[1:]) for one in inner), default=0) if isinstance(inner, list | tuple) else 0


def paths_of(body: type[msgspec.Struct]) -> set[str]:
    """Every path of a body's struct down to what holds no struct: `a.b` for an object in an object, `a[].b` for one in
    a list. The tags that tell structs of a union apart are no paths."""
    return set(_paths(body, ""))


def _paths(struct: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        inner = list(_structs(field.type, ""))
        if not inner:
            yield path
        for one, suffix in inner:
            yield from _paths(one, f"{path}{suffix}.")


def _structs(annotation: Any, suffix: str) -> Iterator[tuple[type[msgspec.Struct], str]]:
    """The structs in a type, with "[]" for each list around them."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation, suffix
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _structs(arguments[0], suffix)
    elif origin in (list, tuple):
        yield from _structs(arguments[0], f"{suffix}[]")
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _structs(argument, suffix)
