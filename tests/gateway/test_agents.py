"""What Claude Code and Codex send with every request: no model may refuse it for what only their own makers know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from interlace.config import ModelSettings
from interlace.engines.fields import Fields, check_fields
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.remote.providers.anthropic_fields import ANTHROPIC_FIELDS
from interlace.engines.remote.providers.openai_fields import fields_of_openai, fields_of_responses
from interlace.engines.remote.providers.vertex_fields import VERTEX_FIELDS
from interlace.errors import InvalidRequest
from interlace.gateway.anthropic_messages import parse_messages, with_betas
from interlace.gateway.calls import Ask
from interlace.gateway.openai_chat import parse_chat
from interlace.gateway.responses import ask_of, read_body

OPENAI = ModelSettings(name="m", engine="openai", model="m")
ELSEWHERE: dict[str, Fields] = {
    "local": LOCAL_FIELDS,
    "chat": fields_of_openai(OPENAI),
    "responses": fields_of_responses(OPENAI),
    "vertex": VERTEX_FIELDS,
}
HELLO = {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]}
CLAUDE_CODE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 32000,
    "stream": True,
    "system": [{"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [HELLO],
    "tools": [{"name": "Bash", "input_schema": {"type": "object", "$schema": "x"}, "eager_input_streaming": True}],
    "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
    "thinking": {"type": "adaptive", "display": "updates"},
    "output_config": {"effort": "medium"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "diagnostics": {"previous_message_id": "msg_1"},
    "speed": "fast",
}
BETAS = "claude-code-20250219,context-management-2025-06-27"
CODEX: dict[str, Any] = {
    "model": "m",
    "instructions": "You are Codex.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a"},
    ],
    "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "019a",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "i"},
}


def claude_code(betas: str = BETAS, **more: Any) -> Ask:
    """The ask of Claude Code's request."""
    ask, _ = parse_messages(json.dumps(CLAUDE_CODE | more).encode(), "id", 1)
    return with_betas(ask, {"headers": [(b"anthropic-beta", betas.encode())]} if betas else {"headers": []})


def unused(ask: Ask, fields: Fields) -> set[str]:
    """What an engine with this table says it has no use for."""
    (request,) = ask.generate
    return {*check_fields(request, fields, ask.words), *ask.unused}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_claude_code_is_served_by_any_model(where: str) -> None:
    """What is about how Anthropic's models work is left out elsewhere, and said to be."""
    told = unused(claude_code(), ELSEWHERE[where])
    assert told >= {
        "context_management", "diagnostics", "speed", "tools[].eager_input_streaming", "anthropic-beta",
    }  # fmt: skip


def test_thinking_switched_off_needs_no_model_of_anthropics() -> None:
    """An effort beside it made it a field that only Anthropic's models take."""
    assert "thinking" in unused(claude_code(thinking={"type": "disabled"}), LOCAL_FIELDS)


def test_claude_code_reaches_anthropic_whole() -> None:
    """Nothing of it is without use there."""
    assert unused(claude_code(), ANTHROPIC_FIELDS) == set()


@pytest.mark.parametrize("name", ["inference_geo", "container"])
def test_a_demand_is_no_aside(name: str) -> None:
    """Where the work is done, or with what, is not left out in silence beside what may be."""
    with pytest.raises(InvalidRequest, match=name):
        unused(claude_code(**{name: "us"}), LOCAL_FIELDS)


def test_a_tools_demand_is_no_aside() -> None:
    """An aside of the same tool does not hide it."""
    tools = [CLAUDE_CODE["tools"][0] | {"defer_loading": True}]
    with pytest.raises(InvalidRequest, match="defer_loading"):
        unused(claude_code(tools=tools), LOCAL_FIELDS)


@pytest.mark.parametrize("betas", ["a b", "a\u00e9", ",".join(map(str, range(65))), "x" * 65])
def test_a_header_of_betas_is_a_list_of_names(betas: str) -> None:
    """Nothing else of a caller's gets into a header that we send."""
    with pytest.raises(InvalidRequest, match="anthropic-beta"):
        claude_code(betas)


@pytest.mark.parametrize("where", ELSEWHERE)
def test_codex_is_served_by_any_model(where: str) -> None:
    """Its metadata are OpenAI's alone, and nothing in the rest is refused."""
    body = read_body(json.dumps(CODEX).encode())
    ask, _ = ask_of(body, "id", (), {})
    assert "client_metadata" in unused(ask, ELSEWHERE[where])


def test_a_prediction_is_a_wish() -> None:
    """It makes OpenAI's models faster and changes no answer, so others leave it out."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prediction": {"type": "content"}}
    ask, _ = parse_chat(json.dumps(body).encode(), "id", 1)
    assert unused(ask, LOCAL_FIELDS) == {"prediction"}
    assert unused(ask, fields_of_openai(OPENAI)) == set()


def test_some_of_the_tools_may_be_allowed() -> None:
    """Only those are offered, and the mode says whether one must be called."""
    tools = [{"type": "function", "function": {"name": name}} for name in "abc"]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": name}} for name in "cac"]}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    choice: dict[str, Any] = {"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    ask, _ = parse_chat(json.dumps(body | choice).encode(), "id", 1)
    assert ([tool.name for tool in ask.generate[0].tools], ask.generate[0].tool_choice) == (["c", "a"], "required")
    allowed["tools"][0]["function"]["name"] = "d"
    with pytest.raises(InvalidRequest, match="no tool named 'd'"):
        parse_chat(json.dumps(body | choice).encode(), "id", 1)
