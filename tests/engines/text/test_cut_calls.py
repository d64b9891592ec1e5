"""A call of a tool that runs into the bound of its answer, token by token."""

from __future__ import annotations

import random
from typing import Any

import pytest

from interlace.engines.local.choice import Choice
from interlace.engines.local.stops import StopFinder
from interlace.engines.local.toolcalls import ToolCallParser
from interlace.engines.types import Delta, OutputRule, Tool

WRITTEN = '<tool_call>[{"name": "get", "arguments": {"a": "x"}}]</tool_call>'
RULE = OutputRule("json_schema", '{"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}')


class _Letters:
    """One token for each letter of what is written, and one for its end."""

    def push(self, token: int) -> str:
        """The letter."""
        return WRITTEN[token]

    def flush(self) -> str:
        """Nothing is held back."""
        return ""

    def observe(self, token: int) -> None:
        """What a sampler would note."""


def _answer(bound: int, end: int | None = None) -> list[Delta]:
    letters: Any = _Letters()
    choice = Choice(
        index=0,
        sampler=letters,
        tokenizer=letters,
        decoder=letters,
        stops=StopFinder(()),
        max_tokens=bound,
        end_ids=frozenset({len(WRITTEN)}),
        tools=ToolCallParser((Tool("get"),), random.Random(1)),
        argument_rules={"get": RULE},
    )
    tokens = [*range(len(WRITTEN) if end is None else end), len(WRITTEN)]
    deltas: list[Delta] = []
    for token in tokens:
        sampled: Any = type("Sampled", (), {"id": token})()
        deltas.append(choice.accept(sampled))
        if choice.finished:
            break
    return deltas


@pytest.mark.parametrize(("bound", "arguments"), [(45, '{"a"'), (48, '{"a": "'), (39, ""), (24, None)])
def test_a_call_that_is_cut_off_is_no_text(bound: int, arguments: str | None) -> None:
    """The client would show a person `<tool_call>[{`; a strict tool's half arguments would be taken for a fault."""
    deltas = _answer(bound)
    assert "".join(delta.text for delta in deltas) == ""
    assert deltas[-1].finish_reason == "length"
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls]
    assert calls == ([] if arguments is None else [("get", arguments)])


def test_a_call_that_the_model_itself_left_is_text() -> None:
    """Nothing cut it off, so it is none."""
    deltas = _answer(1000, end=44)
    assert ("".join(delta.text for delta in deltas), deltas[-1].finish_reason) == (WRITTEN[:44], "stop")


def test_a_call_that_is_whole_is_one() -> None:
    """As ever."""
    assert _answer(1000)[-1].finish_reason == "tool_calls"
