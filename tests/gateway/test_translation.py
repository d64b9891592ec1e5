"""The tables of what becomes of each field are whole: against the structs that read bodies, and against the engines."""

from __future__ import annotations

import pytest

from interlace.engines.fields import NAMES
from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Carried, Denied, paths_of

SEVERAL_SHAPES = {
    "openai.chat": {
        "messages[].role",
        "response_format.type",
        "tool_choice",
        "tools[].type",
        "tools[].custom.format.type",
    },
    "anthropic.messages": {"messages[].role", "tool_choice.type", "thinking.type"},
    "anthropic.count_tokens": {"messages[].role", "tool_choice.type", "thinking.type"},
    "openai.responses": {
        *("input", "input[].type", "text.format", "tools[].type", "tools[].format.type", "tool_choice"),
        *("tool_choice.type", *(f"input[].output[].{name}" for name in ("stdout", "stderr", "outcome"))),
    },
}
"""Paths that are tags of unions, another shape of a path that has fields, or what a shell's output holds, which passes
as it is: no struct has them as fields."""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_of_a_body_has_its_place(dialect: str) -> None:
    """A field that is read and not in the table would be lost without anybody having said so. What is refused unread,
    such as a kind of tools, has a row as well."""
    body, table = DIALECTS[dialect].body, DIALECTS[dialect].table
    assert paths_of(body) <= set(table)
    others = set(table) - SEVERAL_SHAPES.get(dialect, set()) - paths_of(body)
    assert all(isinstance(table[path], Denied) for path in others), others


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_carried_has_a_name_that_engines_know(dialect: str) -> None:
    """A slip in a table would let a refusal go by the wrong name."""
    for place in DIALECTS[dialect].table.values():
        if isinstance(place, Carried):
            assert set(place.names) <= set(NAMES)
