"""What the Anthropic of loopback says when it answers what is asked."""

from __future__ import annotations

import json
from typing import Any

from tests.providers.servers.anthropic import USAGE, said
from tests.providers.servers.http import Told
from tests.providers.servers.sensible import Question, reply


def sensible(body: dict[str, Any]) -> Told:
    """What the conversation asks for."""
    turns = [turn["content"] for turn in body["messages"] if turn["role"] == "user"]
    blocks = turns[-1] if isinstance(turns[-1], list) else [{"type": "text", "text": turns[-1]}]
    results = [block["content"] for block in blocks if block["type"] == "tool_result"]
    form = (body.get("output_config") or {}).get("format")
    made = reply(
        Question(
            " ".join(block["text"] for block in blocks if block["type"] == "text"),
            [tool["name"] for tool in body.get("tools", ())],
            [one if isinstance(one, str) else "".join(block["text"] for block in one) for one in results],
            form["schema"] if form else None,
            any(block["type"] == "image" for block in blocks),
            body.get("stop_sequences", ()),
        ),
        len(json.dumps(body["messages"])),
    )
    usage = {**USAGE, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    usage |= {"input_tokens": made.prompt_tokens, "output_tokens": made.completion_tokens}
    content: list[dict[str, Any]] = [
        {"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": given}
        for i, (name, given) in enumerate(made.calls)
    ]
    if content:
        return said(body, content, "tool_use", usage=usage)
    return said(body, [{"type": "text", "text": made.text}] if made.text else [], usage=usage)
