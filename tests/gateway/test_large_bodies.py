"""Bodies of very many small things: each costs what its size says, or one caller holds up all others."""

from __future__ import annotations

import json
import time
from typing import Any

from interlace.gateway.anthropic_messages import parse_messages
from interlace.gateway.calls import Ask
from interlace.gateway.responses import ask_of, read_body

SOON = 2.0  # seconds of the processor; what grows with the square takes many more
ID = "0" * 24
USER = {"role": "user", "content": "a"}


def response_of(items: list[dict[str, Any]], **more: Any) -> Ask:
    """What the parser of `/v1/responses` makes of these items, and that soon."""
    body = json.dumps({"model": "m", "input": items, **more}).encode()
    began = time.process_time()
    ask, _ = ask_of(read_body(body), ID, (), {})
    assert time.process_time() - began < SOON
    return ask


def test_very_many_turns_of_one_role() -> None:
    """Otherwise joining them copies what was joined before, again and again."""
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": [USER] * 60_000}).encode()
    began = time.process_time()
    ask, _ = parse_messages(body, ID, 8)
    assert time.process_time() - began < SOON
    (turn,) = ask.generate[0].messages or ()
    assert len(turn.content) == 60_000


def test_very_many_thoughts() -> None:
    """Otherwise each thought looks through all thoughts before it."""
    thoughts = [{"type": "reasoning", "id": f"rs_{i}", "summary": []} for i in range(20_000)]
    ask = response_of([USER, *thoughts, {"role": "assistant", "content": "a"}])
    assert [len(turn.parts) for turn in ask.generate[0].messages or ()] == [1, 20_001]


def test_very_many_sealed_calls() -> None:
    """Otherwise each seal looks through all calls."""
    count = 8000
    calls = [{"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"} for i in range(count)]
    seals = [
        {"type": "reasoning", "id": f"rs_{i}", "summary": [], "encrypted_content": f"interlace-call:c{i}\ns{i}"}
        for i in range(count)
    ]
    outputs = [{"type": "function_call_output", "call_id": f"c{i}", "output": "x"} for i in range(count)]
    turn = (response_of([USER, *calls, *seals, *outputs]).generate[0].messages or ())[1]
    assert [call.signature for call in turn.tool_calls] == [f"s{i}" for i in range(count)]


def test_a_deep_schema_of_a_tool() -> None:
    """Otherwise a schema that is deep, but not too deep to be read, ends in a 500."""
    schema: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    (tool,) = response_of([USER], tools=[{"type": "function", "name": "f", "parameters": schema}]).generate[0].tools
    assert tool.strict
