"""What the assistant says after a call of a tool stays after it, wherever a turn has an order."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from tests.support.dialect_writers import normal_body, written_body
from tests.support.neutral_form import canonical
from tests.support.provider_readers import asked
from tests.translation.test_requests import FAR, WIRES, _sent

CALL = {"type": "tool_use", "id": "call_1", "name": "look", "input": {"a": 1}}
MESSAGES = {
    "model": "m",
    "max_tokens": 9,
    "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {}}}],
    "messages": [
        {"role": "user", "content": "one"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "first"}, CALL, {"type": "text", "text": "second"}],
        },
        {"role": "assistant", "content": [CALL | {"id": "call_2"}, {"type": "text", "text": "third"}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": f"call_{i}", "content": "done"} for i in (1, 2)],
        },
    ],
}
RESPONSES = {
    "model": "m",
    "input": [
        {"type": "message", "role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "content": "first"},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"a": 1}'},
        {"type": "message", "role": "assistant", "content": "second"},
        {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": '{"a": 1}'},
        {"type": "message", "role": "assistant", "content": "third"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "function_call_output", "call_id": "call_2", "output": "done"},
    ],
}
BODIES: dict[str, Any] = {"anthropic.messages": MESSAGES, "openai.responses": RESPONSES}
ORDERED = [name for name, far in FAR.items() if far.kind != "openai"]


@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize("name", ORDERED)
def test_a_turn_keeps_its_order(name: str, dialect: str) -> None:
    """A model would read its own words before the call that they were about."""
    (request,) = asked(dialect, BODIES[dialect]).generate
    got = canonical(FAR[name].read(_sent(WIRES[name], request)))
    turn = next(turn for turn in got.messages or () if turn.role == "assistant")
    said = [getattr(one, "text", "") or getattr(one, "id", "") for one in turn.sequence]
    assert said == ["first", "call_1", "second", "call_2", "third"]
    if FAR[name].kind in {"anthropic", "responses"} and FAR[name].kind in dialect.replace(
        "anthropic.messages", "anthropic"
    ):
        field, back = ("messages" if dialect == "anthropic.messages" else "input"), written_body(dialect, got)
        assert normal_body(dialect, back)[field] == normal_body(dialect, deepcopy(BODIES[dialect]))[field]


@pytest.mark.parametrize("dialect", BODIES)
def test_one_turn_is_one_message_where_there_is_no_order(dialect: str) -> None:
    """A chat server refuses a call whose result does not come next."""
    (request,) = asked(dialect, BODIES[dialect]).generate
    body = json.loads(_sent(WIRES["openai"], request))
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "tool", "tool"]
