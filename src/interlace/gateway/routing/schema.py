"""Whether a JSON value keeps a JSON schema, in bounded time: for judging an answer that is there, whole.

An engine holds its tokens to a schema while it speaks. Here it is looked at once more before another model is asked, so
what cannot be decided in so much work is taken for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import isfinite
from typing import Any

import regex

MOST_STEPS = 200_000  # keywords looked at
_SECONDS = 0.1  # the longest that one pattern may take
_UNBOUNDED = ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef")


class _Undecided(Exception):
    """It would take more work than an answer is worth."""


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether `value` keeps all of `schema` (JSON Schema 2020-12; formats are not looked at). References to what is not
    in the schema, keywords that need unbounded time and patterns that nobody can read decide nothing."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if any(f'"{keyword}"' in json.dumps(schema) for keyword in _UNBOUNDED):
        schema = _without(schema)
    try:
        # An empty registry: a reference to another machine is an error, never a request.
        return next(_validator_class()(schema, registry=Registry()).iter_errors(value), None) is None
    except (_Undecided, RecursionError, TimeoutError, Unresolvable, regex.error):
        return True


def _without(schema: Any) -> Any:
    """The schema without the keywords that may take unbounded time; properties of such a name stay."""
    if isinstance(schema, list):
        return [_without(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: _without(one) for key, one in value.items()}
        if name in {"properties", "$defs", "definitions", "patternProperties"} and isinstance(value, dict)
        else value
        if name in {"enum", "const"}
        else _without(value)
        for name, value in schema.items()
        if name not in _UNBOUNDED
    }


def _validator_class() -> Any:
    """Counts steps, so it is made anew for each check. Patterns have a time limit; decimals are divided exactly."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    steps = iter(range(MOST_STEPS))

    def counted(keyword: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def check(validator: Any, schema: Any, instance: Any, parent: Any) -> Iterator[Any]:
            if next(steps, None) is None:
                raise _Undecided
            yield from keyword(validator, schema, instance, parent) or ()

        return check

    ours: dict[str, Callable[..., Iterator[Any] | None]] = {
        "pattern": _pattern,
        "multipleOf": _multiple_of,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional,
        "uniqueItems": _unique,
    }
    theirs = {name: keyword for name, keyword in Draft202012Validator.VALIDATORS.items() if name not in ours}
    keywords = {name: counted(keyword) for name, keyword in {**theirs, **ours}.items()}
    return extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]


def _found(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=_SECONDS) is not None


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _found(pattern, instance):
        yield _fault("pattern")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, value in instance.items():
                if _found(pattern, name):
                    yield from validator.descend(value, subschema)


def _additional(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name not in named and not any(_found(pattern, name) for pattern in patterns):
            if rule is False:
                yield _fault("additionalProperties")
            else:
                yield from validator.descend(value, rule)


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """By how they are written, in linear time."""
    if wanted and isinstance(instance, list):
        written = {json.dumps(one, sort_keys=True) for one in instance}
        if len(written) < len(instance):
            yield _fault("uniqueItems")


def _multiple_of(_validator: Any, divisor: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """By the digits: as binary fractions, 0.3 is no multiple of 0.1."""
    if isinstance(instance, bool) or not isinstance(instance, int | float) or not isfinite(instance):
        return
    if Fraction(repr(instance)) % Fraction(repr(divisor)):
        yield _fault("multipleOf")


def _fault(keyword: str) -> Exception:
    from jsonschema import ValidationError

    return ValidationError(f"it breaks {keyword!r}")
