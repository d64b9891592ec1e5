"""The last look at a constrained output, whole: complete, and what its rule says.

Patterns are matched by llguidance's automata, in time linear in the text; Python's `re` would let a caller's pattern
hold the engine for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from math import isfinite
from typing import Any, NoReturn

from llguidance import LLMatcher, LLTokenizer

from interlace.engines.local.grammars import LIMITS, rule_grammar
from interlace.engines.types import OutputRule

_MAX_STEPS = 20_000  # references followed and subschemas tried
_UNBOUNDED = ("patternProperties", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef")


def validate_output(rule: OutputRule, text: str) -> str | None:
    """What is wrong with a finished output, in a sentence; None when it is as it should be. The sentence ends up in
    logs, so it quotes neither the output nor the rule."""
    if rule.kind in {"regex", "grammar"}:
        fits = _matches(rule_grammar(rule), text)
        return None if fits else f"the output does not match the {rule.kind}"
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return f"the output is no valid JSON: {error}"
    if rule.kind == "json_object":
        return None if isinstance(value, dict) else "the output is no JSON object"
    return _schema_fault(json.loads(rule.rule), value)


class _TooMuchWork(Exception):
    """The schema takes more steps to check than an output is worth."""


def _schema_fault(schema: dict[str, Any], value: Any) -> str | None:
    if any(f'"{keyword}"' in json.dumps(schema) for keyword in _UNBOUNDED):
        return _grammar_fault(schema, value)
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        # An empty registry: a reference to another machine is an error, never a request.
        error = next(_validator_class()(schema, registry=Registry()).iter_errors(value), None)
    except (_TooMuchWork, RecursionError):
        return _grammar_fault(schema, value)
    except Unresolvable:
        return "the schema refers to what is not in it"
    if error is None:
        return None
    return f"the output does not match the schema's {error.validator!r}"


def _grammar_fault(schema: dict[str, Any], value: Any) -> str | None:
    """The check by automaton alone, for schemas that jsonschema would need unbounded time for."""
    grammar = rule_grammar(OutputRule(kind="json_schema", rule=json.dumps(schema)))
    fits = _matches(grammar, json.dumps(value, ensure_ascii=False))
    return None if fits else "the output does not match the schema"


def _validator_class() -> Any:
    """JSON Schema 2020-12 with patterns matched by automata and decimals divided exactly, counting steps; made anew for
    each check."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    steps = iter(range(_MAX_STEPS))

    def counted(keyword: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
        def check(validator: Any, schema: Any, instance: Any, parent: Any) -> Iterator[Any]:
            if next(steps, None) is None:
                raise _TooMuchWork
            yield from keyword(validator, schema, instance, parent) or ()

        return check

    watched = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "contains", "items", "properties", "dependentSchemas")
    keywords = {name: counted(Draft202012Validator.VALIDATORS[name]) for name in watched}
    return extend(Draft202012Validator, {**keywords, "pattern": _pattern, "multipleOf": _multiple_of})  # type: ignore[no-untyped-call]


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not isinstance(instance, str):
        return
    alone = OutputRule(kind="json_schema", rule=json.dumps({"type": "string", "pattern": pattern}))
    if not _matches(rule_grammar(alone), json.dumps(instance, ensure_ascii=False)):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _multiple_of(_validator: Any, divisor: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """By the digits, as the grammar counts: as binary fractions, 0.3 is no multiple of 0.1."""
    from jsonschema import ValidationError

    if isinstance(instance, bool) or not isinstance(instance, int | float) or not isfinite(instance):
        return
    if Fraction(repr(instance)) % Fraction(repr(divisor)):
        yield ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


def _matches(grammar: str, text: str) -> bool:
    tokenizer = _byte_tokenizer()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    tokens = list(text.encode())
    return not matcher.is_error() and matcher.validate_tokens(tokens) == len(tokens) and _accepts(matcher, tokens)


def _accepts(matcher: LLMatcher, tokens: list[int]) -> bool:
    return (not tokens or matcher.consume_tokens(tokens)) and matcher.is_accepting()


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")  # a token for each byte


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
