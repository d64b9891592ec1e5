"""Tools for templates that know none, in the words SmolLM2-Instruct was trained on (its public model card)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from interlace.engines.types import Message, Tool, ToolCall

# Word for word, trailing blanks too: the model has seen exactly this.
_PROMPT = (
    "You are an expert in composing functions. You are given a question and a set of possible functions. \n"
    "Based on the question, you will need to make one or more function/tool calls to achieve the purpose. \n"
    "If none of the functions can be used, point it out and refuse to answer. \n"
    "If the given question lacks the parameters required by the function, also point it out.\n\n"
    "You have access to the following tools:\n<tools>{tools}</tools>\n\n"
    "The output MUST strictly adhere to the following format, and NO other text MUST be included.\n"
    "The example format is as follows. Please make sure the parameter type is correct. If no function call is needed, "
    "please make the tool calls an empty list '[]'.\n"
    '<tool_call>[\n{{"name": "func_name1", "arguments": {{"argument1": "value1", "argument2": "value2"}}}},\n'
    "... (more tool calls as required)\n]</tool_call>"
)


def tool_definition(tool: Tool) -> dict[str, Any]:
    """The tool as chat templates and models know it (OpenAI's shape)."""
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def spell_out(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation without any tool message or call in it: definitions stand in the system message, calls in the
    assistant's text, results in a user's turn (one for all results of a turn, so that turns still alternate)."""
    told = _with_definitions(messages, tools) if tools else list(messages)
    return list(_plain_turns(told))


def _with_definitions(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    prompt = _PROMPT.format(tools=json.dumps([tool_definition(tool) for tool in tools], ensure_ascii=False))
    first = messages[0] if messages else None
    if first is None or first.role not in {"system", "developer"}:
        return [Message(role="system", content=prompt), *messages]
    return [Message(role="system", content=f"{first.text}\n\n{prompt}"), *messages[1:]]


def _plain_turns(messages: Iterable[Message]) -> Iterator[Message]:
    for is_result, turn in groupby(messages, key=lambda message: message.role == "tool"):
        if is_result:
            results = (f"<tool_response>\n{message.text}\n</tool_response>" for message in turn)
            yield Message(role="user", content="\n".join(results))
        else:
            yield from (_spelled(message) if message.tool_calls else message for message in turn)


def _spelled(message: Message) -> Message:
    calls = f"<tool_call>[{', '.join(map(_call, message.tool_calls))}]</tool_call>"
    return Message(role=message.role, content=f"{message.text}\n{calls}" if message.text else calls)


def _call(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}'
