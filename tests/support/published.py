"""The official SDKs' published types of each request: what shapes they have, and which paths.

`shape_of` reads a type definition once into plain shapes; `paths_of` lists every path below it, written as the tables
of `gateway.translation` write them. A kind of an object, where a union tells its objects apart by a word, is a path
with that word: `tools[].type=web_search`.
"""

from __future__ import annotations

import functools
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

import typing_extensions
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

BODIES: dict[str, Any] = {
    "openai.chat": chat_create_params.CompletionCreateParams,
    "openai.responses": response_create_params.ResponseCreateParams,
    "openai.completions": completion_create_params.CompletionCreateParams,
    "openai.embeddings": embedding_create_params.EmbeddingCreateParams,
    "anthropic.messages": message_create_params.MessageCreateParams,
    "anthropic.count_tokens": message_count_tokens_params.MessageCountTokensParams,
}
TAGS = ("type", "role")


@dataclass(frozen=True, slots=True)
class Plain:
    """A value of one of Python's own types; `object` is any JSON value."""

    kind: type


@dataclass(frozen=True, slots=True)
class Words:
    """One of these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """A list."""

    item: Shape


@dataclass(frozen=True, slots=True)
class Named:
    """An object with any names."""

    value: Shape


@dataclass(frozen=True, slots=True)
class Either:
    """One of these shapes; null is not among them, as a body may as well leave the field out."""

    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """An object as a `TypedDict` has it, or a part of an answer that clients send back.

    Its fields are read when they are asked for, as some hold themselves.
    """

    type: Any

    @property
    def fields(self) -> Mapping[str, Shape]:
        """What each field holds."""
        return _fields(self.type)

    @property
    def required(self) -> frozenset[str]:
        """What must be there."""
        if typing_extensions.is_typeddict(self.type):
            return frozenset(name for name, hint in _hints(self.type).items() if _is_required(hint))
        return frozenset(name for name, field in self.type.model_fields.items() if field.is_required())

    def tag(self) -> tuple[str, tuple[str, ...]] | None:
        """The field that tells it from other objects, and its words for it."""
        for name in TAGS:
            shape = self.fields.get(name)
            if isinstance(shape, Words):
                return name, shape.values
        return None


Shape = Plain | Words | Many | Named | Either | Record


def shape_of(annotation: Any) -> Shape:
    """The shape of a type; raises `AssertionError` for a type that no SDK had until today."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    name = getattr(origin, "__name__", "")
    if typing_extensions.is_typeddict(annotation) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    ):
        return Record(annotation)
    if origin in (typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired):
        return shape_of(arguments[0])
    if origin in (Union, types.UnionType):
        shapes = tuple(shape_of(one) for one in arguments if not _in_process(one))
        return shapes[0] if len(shapes) == 1 else Either(tuple(_flat(shapes)))
    if origin is Literal or origin is typing_extensions.Literal:
        return Words(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Named(shape_of(arguments[1]))
    if name == "SequenceNotStr" or (isinstance(origin, type) and issubclass(origin, Iterable)):
        return Many(shape_of(arguments[0]))
    if annotation in (str, int, float, bool, object):
        return Plain(annotation)
    if annotation is Any:
        return Plain(object)
    raise AssertionError(f"nobody knows the shape of {annotation}")


def _in_process(annotation: Any) -> bool:
    """Whether no body holds it: nothing, and what an SDK reads a file from."""
    kind = typing.get_origin(annotation) or annotation
    return annotation is type(None) or (isinstance(kind, type) and issubclass(kind, os.PathLike | typing.IO))


def _flat(shapes: Iterable[Shape]) -> Iterator[Shape]:
    for shape in shapes:
        if isinstance(shape, Either):
            yield from shape.shapes
        else:
            yield shape


@functools.cache
def _fields(record: Any) -> Mapping[str, Shape]:
    if issubclass(record, BaseModel):
        return {name: shape_of(field.annotation) for name, field in record.model_fields.items()}
    return {name: shape_of(hint) for name, hint in _hints(record).items()}


@functools.cache
def _hints(record: Any) -> Mapping[str, Any]:
    return typing_extensions.get_type_hints(record, include_extras=True)


def _is_required(hint: Any) -> bool:
    return typing.get_origin(hint) is typing_extensions.Required


@functools.cache
def body_of(dialect: str) -> Shape:
    """The shape of a dialect's request."""
    return shape_of(BODIES[dialect])


Known = Callable[[str], bool]


def known_by(table: Collection[str]) -> Known:
    """Whether a table has a row for a path: its own, for a kind also without its date (`bash` for `bash_20250124`), or
    one for the whole of what it is in; another shape of a path whose fields have rows needs none."""
    whole = tuple(f"{row}{end}" for row in table for end in (".", "[") if not _any_in(f"{row}{end}", table))

    def known(path: str) -> bool:
        row = re.sub(r"_2\d{3}\w*$", "", path) if "=" in path else path
        return row in table or path in table or path.startswith(whole) or _any_in((f"{path}.", f"{path}["), table)

    return known


def _any_in(starts: str | tuple[str, ...], table: Collection[str]) -> bool:
    return any(row.startswith(starts) for row in table)


def paths_of(shape: Shape, known: Known) -> set[str]:
    """Every path of it, down to what holds no fields. Words that tell objects apart are no paths; of an object whose
    word itself is `known` there are none."""
    return set(_paths(shape, "", (), known))


def _paths(shape: Shape, path: str, inside: tuple[Any, ...], known: Known) -> Iterator[str]:
    match shape:
        case Either(shapes):
            for one in shapes:
                yield from _paths(one, path, inside, known)
        case Many(item) if holds_fields(item):
            yield from _paths(item, f"{path}[]", inside, known)
        case Record(kind):
            name, words = shape.tag() or ("", ())
            if kind in inside or (words and all(known(join(path, f"{name}={word}")) for word in words)):
                return
            if set(shape.fields) <= {name}:
                yield path
            for field, inner in shape.fields.items():
                if field != name:
                    yield from _paths(inner, join(path, field), (*inside, kind), known)
        case _:
            yield path


def join(path: str, name: str) -> str:
    """The path of a field."""
    return f"{path}.{name}" if path else name


def holds_fields(shape: Shape) -> bool:
    """Whether it is an object, or a list of some."""
    match shape:
        case Either(shapes):
            return any(map(holds_fields, shapes))
        case Many(item):
            return holds_fields(item)
    return isinstance(shape, Record)
