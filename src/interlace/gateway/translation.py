"""What becomes of each field that callers send: carried to the engine, used here, or refused.

A dialect has one table from the paths of its body (`messages[].content[].text`) to one of three fates. What is carried
has names in the neutral form, and each engine's own table (`engines.fields`) goes on from there; both together make
`docs/reference/translation.md`. A test holds each table against the structs that read the body, so that a field cannot
be added without saying what becomes of it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
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


def words_of(table: Table) -> dict[str, str]:
    """The dialect's word for each neutral name: the first path that carries it."""
    words: dict[str, str] = {}
    for path, place in table.items():
        if isinstance(place, Carried):
            for name in place.names:
                words.setdefault(name, path)
    return words


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
