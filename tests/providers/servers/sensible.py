"""A very small mind for the loopback servers: it answers what the tutorial and `interlace providers check` ask as any
real model would, so that both can be run whole. Each server reads the question out of its own format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CITIES = re.compile(r"Paris|Rome|Berlin|Nairobi")
COUNTRIES = {"Paris": "France", "Rome": "Italy", "Berlin": "Germany", "Nairobi": "Kenya"}


@dataclass(frozen=True)
class Question:
    """What was asked last: the user's text, tools as names, results of tools that came with it, the schema of the
    answer, whether there is a picture, texts that end the answer."""

    text: str
    tools: Sequence[str] = ()
    results: Sequence[str] = ()
    schema: dict[str, Any] | None = None
    picture: bool = False
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Reply:
    """A text, or calls: names and arguments. The counts are about those of a real tokenizer."""

    text: str
    calls: Sequence[tuple[str, dict[str, Any]]]
    prompt_tokens: int
    completion_tokens: int


def reply(question: Question, size: int) -> Reply:
    """The answer to a question whose request has `size` bytes."""
    cities = CITIES.findall(question.text)
    calls: list[tuple[str, dict[str, Any]]] = []
    if question.tools and not question.results:
        calls = [(question.tools[0], {"city": city}) for city in cities or ["Paris"]]
    text = "" if calls else _text(question, cities)
    for stop in question.stops:
        text = text.partition(stop)[0]
    return Reply(text, calls, size // 4, len(text) // 4 + 1 + 12 * len(calls))


def _text(question: Question, cities: Sequence[str]) -> str:
    if question.schema is not None:
        import json

        return json.dumps(_filled(question.schema, cities[0] if cities else "Paris"))
    if question.results:
        return " ".join(f"It is {result}" for result in question.results)
    if question.picture:
        return "Red."
    if "Count from 1 to 9" in question.text:
        return "1 2 3 4 5 6 7 8 9"
    return "The capital of France is Paris." if "capital of France" in question.text else "Good day to you."


def _filled(schema: dict[str, Any], city: str) -> Any:
    """Something of that shape; members are filled by their names."""
    known = {"city": city, "country": COUNTRIES[city]}
    plain = {"string": "some", "integer": 1, "number": 1, "boolean": True, "array": []}
    members = schema.get("properties", {})
    return {name: known.get(name, plain.get(member.get("type"), {})) for name, member in members.items()}
