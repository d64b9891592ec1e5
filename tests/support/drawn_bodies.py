"""Random requests in each dialect, as its published schema has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from interlace.gateway import anthropic_messages_body as anthropic
from interlace.gateway import openai_chat_body as chat
from interlace.gateway import responses_body as responses
from interlace.gateway.openai_completions import CompletionBody
from interlace.gateway.openai_fields import StreamOptions
from tests.support.drawing import NOTHING, Draw, Json, Own, info_of

MEDIA = ("image/png", "image/jpeg", "image/gif", "image/webp")
FILES = ("application/pdf", "text/plain", "text/markdown", "text/csv", "text/html", "application/json")


def _image_url(draw: Draw, _: str) -> str:
    if draw.chance(0.4):
        return f"https://example.com/{draw.name()}.png"
    return f"data:{draw.one(MEDIA)};base64,{draw.base64()}"


def _file_url(draw: Draw, _: str) -> str:
    return f"data:{draw.one(FILES)};base64,{draw.base64()}"


def _address(draw: Draw, _: str) -> str:
    return f"https://example.com/{draw.name()}.{draw.one(('png', 'pdf'))}?q={draw.name()}"


def _file_name(draw: Draw, _: str) -> str:
    return f"{draw.name()} é.{draw.one(('pdf', 'txt'))}"


def _bias(draw: Draw, _: str) -> Json:
    return {str(draw.random.randint(0, 50000)): draw.random.randint(-8, 8) / 2 or 1 for _ in range(2)}


def _stop(draw: Draw, _: str) -> Any:
    return draw.words() if draw.chance(0.5) else [draw.words() for _ in range(draw.random.randint(1, 4))]


def _structured(draw: Draw, _: str) -> Json:
    name = draw.one(("json", "regex", "grammar"))
    return {name: draw.schema() if name == "json" else draw.text()}


def _constant(value: Any) -> Own:
    return lambda _draw, _path: value


def _kind(of: str) -> Own:
    """A method of `Draw`."""
    return lambda draw, _: getattr(draw, of)()


def _parts(draw: Draw, path: str, kinds: tuple[type[msgspec.Struct], ...]) -> Any:
    """A text, or parts of these kinds, the first of which is a text's."""
    if draw.chance(0.4):
        count = draw.random.randint(1, 3)
        return [draw.struct(info_of(draw.one(kinds)), f"{path}[]") for _ in range(count)]
    return draw.text()


# --- chat completions --------------------------------------------------------------------------------------------

_CHAT_PARTS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "system": (chat.WireTextPart, chat.WireTextPart, chat.ImageUrlPart),
    "developer": (chat.WireTextPart,),
    "assistant": (chat.WireTextPart, chat.WireTextPart, chat.WireRefusalPart),
    "tool": (chat.WireTextPart, chat.WireTextPart, chat.ImageUrlPart),
    "user": (chat.WireTextPart, chat.ImageUrlPart, chat.InputFilePart, chat.InputAudioPart),
}
_CHAT_TURNS: dict[str, type[msgspec.Struct]] = {
    "system": chat.SystemMessage,
    "developer": chat.DeveloperMessage,
    "user": chat.UserMessage,
    "assistant": chat.AssistantMessage,
    "tool": chat.ToolMessage,
}


def _chat_turn(draw: Draw, role: str) -> Json:
    draw.role = role
    made = draw.struct(info_of(_CHAT_TURNS[role]), "messages[]")
    if role == "assistant":
        if not (made.get("tool_calls") or "content" in made or made.get("refusal")):
            made["content"] = draw.text()
        if "reasoning" in made or "reasoning_content" in made:
            # one thought under one name: sealed blocks go before bare text
            kept = draw.one(("reasoning", "reasoning_content"))
            thought = made.pop("reasoning", None) or made.pop("reasoning_content", None)
            made.pop("reasoning_content", None)
            if not made.get("thinking_blocks"):
                made[kept] = thought
    return made


def _chat_messages(draw: Draw, _: str) -> list[Json]:
    turns = [_chat_turn(draw, draw.one(("system", "developer")))] if draw.chance(0.3) else []
    for _step in range(draw.random.randint(0, 2)):
        role = draw.one(("user", "assistant", "assistant", "assistant", "system", "developer"))
        turns.append(turn := _chat_turn(draw, role))
        for call in turn.get("tool_calls") or ():
            turns.append(_chat_turn(draw, "tool") | {"tool_call_id": call["id"]})
    return [*turns, _chat_turn(draw, "user")]


def _chat_call(draw: Draw, path: str) -> Json:
    made = draw.struct(info_of(chat.AssistantToolCall), path) | {"id": draw.fresh("call")}
    function = draw.struct(info_of(chat.CalledFunction), f"{path}.function")
    for name in ("function", "custom", "type"):
        made.pop(name, None)
    if draw.chance(0.15):
        made.pop("extra_content", None)
        return made | {"type": "custom", "custom": draw.struct(info_of(chat.CalledCustom), f"{path}.custom")}
    return made | {"function": function} | ({"type": "function"} if draw.chance(0.8) else {})


def _thinking_block(draw: Draw, _: str) -> Json:
    place = {"index": draw.random.randint(0, 3)} if draw.chance(0.3) else {}
    if draw.chance(0.4):
        return {"type": "redacted_thinking", "data": draw.base64(), **place}
    return {"type": "thinking", "thinking": draw.text(), "signature": draw.base64(), **place}


_SAMPLED: dict[str, Own] = {
    "model": _constant("m"),
    "stop": _stop,
    "logit_bias": _bias,
    "structured_outputs": _structured,
    "metadata": lambda draw, _: {draw.name(): draw.text()},
    "max_tokens": lambda draw, _: draw.random.randint(1, 9000),
    "n": lambda draw, _: draw.random.randint(1, 4),
    "stream_options": lambda draw, path: draw.struct(info_of(StreamOptions), path, 0.5),
    "seed": lambda draw, _: draw.random.randint(-(1 << 62), 1 << 62),
}

CHAT: dict[str, Own] = _SAMPLED | {
    "messages": _chat_messages,
    "messages[].content": lambda draw, path: _parts(draw, path, _CHAT_PARTS[draw.role]),
    "messages[].content[].image_url.url": _image_url,
    "messages[].content[].input_audio.data": _kind("base64"),
    "messages[].content[].file": lambda draw, path: {
        "file_data": _file_url(draw, path),
        **({"filename": _file_name(draw, path)} if draw.chance(0.5) else {}),
    },
    "messages[].name": _kind("name"),
    "messages[].thinking_blocks[]": _thinking_block,
    "messages[].tool_calls[]": _chat_call,
    "messages[].tool_calls[].function.arguments": _kind("arguments"),
    "messages[].tool_calls[].extra_content.google.thought_signature": _kind("base64"),
    "messages[].tool_call_id": _constant("replaced"),
    "messages[].audio": _constant(NOTHING),
    "messages[].function_call": _constant(NOTHING),
    "tools[].function.name": lambda draw, _: draw.fresh("f"),
    "tools[].custom.name": lambda draw, _: draw.fresh("c"),
    "tools[].function.parameters": _kind("schema"),
    "response_format.json_schema.schema": _kind("schema"),
    "modalities": _constant(["text"]),
    "tool_choice": _constant("auto"),
    **{name: _constant(NOTHING) for name in ("audio", "function_call", "functions", "web_search_options")},
    "continue_final_message": _constant(NOTHING),
    "add_generation_prompt": lambda draw, _: draw.one((True, False)),
}
CHAT_DENIED: dict[str, Any] = {
    "audio": {"voice": "x"},
    "web_search_options": {},
    "functions": [],
    "function_call": "auto",
    "messages[].audio": {"id": "a"},
    "messages[].function_call": {"name": "f", "arguments": "{}"},
    "messages[].content[].file.file_id": "file-1",
}


def draw_chat(draw: Draw) -> Json:
    """A chat completion's body."""
    body = _with_tools(draw, draw.body(chat.ChatBody), chat.ToolBody)
    if "max_completion_tokens" in body:
        body.pop("max_tokens", None)
    if "top_logprobs" in body:
        body["logprobs"] = True
    if body.get("response_format", {}).get("type", "text") != "text":
        body.pop("structured_outputs", None)
        if (schema := body["response_format"].get("json_schema")) is not None:
            schema.setdefault("schema", draw.schema())
    _settle(body)
    if "tool_choice" in body:
        tools = body.get("tools") or []
        choices: list[Any] = []
        if tools and draw.chance(0.6):
            tools.append(draw.struct(info_of(chat.CustomToolBody), "tools[]"))
        if tools:
            kind = tools[-1]["type"]
            one = {"type": kind, kind: {"name": tools[-1][kind]["name"]}}
            allowed = {"mode": draw.one(("auto", "required")), "tools": [one]}
            choices = ["auto", "required", one, one, {"type": "allowed_tools", "allowed_tools": allowed}]
        body["tool_choice"] = draw.one([*choices, "none"])
    if draw.chance(0.1):
        body.pop("add_generation_prompt", None)
        body["messages"].append({"role": "assistant", "content": draw.words()})
        body["continue_final_message"] = True
    return body


def deny_chat(draw: Draw, body: Json, path: str) -> None:
    """The body with a field that is refused."""
    name, value = path.rpartition(".")[2], CHAT_DENIED[path]
    if path.startswith("messages[].content"):
        body["messages"][-1] = {"role": "user", "content": [{"type": "file", "file": {"file_id": value}}]}
    elif path.startswith("messages"):
        body["messages"].insert(0, {"role": "assistant", "content": "a", name: value})
    else:
        body[name] = value


def _settle(body: Json) -> None:
    if "stream_options" in body:
        body["stream"] = True


def _with_tools(draw: Draw, body: Json, tool: type[msgspec.Struct]) -> Json:
    """A choice has something to choose from, most times."""
    chosen = {"tool_choice", "parallel_tool_calls"} & set(body)
    if chosen and "tools" not in body and draw.chance(0.8):
        body["tools"] = [draw.struct(info_of(tool), "tools[]") for _ in range(draw.random.randint(1, 2))]
    return body


# --- completions -------------------------------------------------------------------------------------------------

COMPLETIONS: dict[str, Own] = _SAMPLED | {
    "prompt": lambda draw, _: draw.text() if draw.chance(0.6) else [draw.random.randint(0, 50000) for _ in range(3)],
    "best_of": _constant(NOTHING),
    "suffix": _constant(NOTHING),
}


def draw_completion(draw: Draw) -> Json:
    """A completion's body."""
    body = draw.body(CompletionBody)
    if draw.chance(0.1):
        body["best_of"] = body.get("n", 1)
    if draw.chance(0.3):
        body |= {"echo": True, "logprobs": draw.random.randint(0, 5)}
    _settle(body)
    return body


def deny_completion(draw: Draw, body: Json, path: str) -> None:
    """The body with a field that is refused."""
    body[path] = draw.text()


# --- responses ---------------------------------------------------------------------------------------------------

_RESPONSE_PARTS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "system": (responses.InputTextPart,),
    "developer": (responses.InputTextPart, responses.InputTextPart, responses.InputImagePart),
    "assistant": (responses.OutputTextPart, responses.OutputTextPart, responses.OutputRefusalPart),
    "user": (responses.InputTextPart, responses.InputImagePart, responses.InputDocumentPart),
}


def _message_item(draw: Draw, role: str) -> Json:
    draw.role = role
    made = draw.struct(info_of(responses.MessageItem), "input[]") | {"role": role}
    if draw.chance(0.2):
        made.pop("type")
    return made


def _items(draw: Draw, _: str) -> Any:
    if draw.chance(0.2):
        return draw.text()
    items: list[Json] = []
    for _step in range(draw.random.randint(0, 2)):
        match draw.random.randint(0, 5):
            case 0:
                items.append(_message_item(draw, draw.one(("user", "system", "developer"))))
            case 1:
                items.append(_message_item(draw, "assistant"))
            case 2 | 3:
                items.append(_reasoning_item(draw))
                items.append(_message_item(draw, "assistant"))
            case 4:
                items += _calls(draw)
            case _:
                items += _other_calls(draw)
    return [*items, _message_item(draw, "user")]


def _reasoning_item(draw: Draw) -> Json:
    draw.role = ""
    made = draw.struct(info_of(responses.ReasoningItem), "input[]", 0.6)
    said = made.get("summary") or made.get("content") or made.get("encrypted_content")
    return made if said else made | {"encrypted_content": draw.base64()}


def _calls(draw: Draw) -> list[Json]:
    calls, results = [], []
    for _ in range(draw.random.randint(1, 2)):
        calls.append(call := draw.struct(info_of(responses.FunctionCallItem), "input[]"))
        if draw.chance(0.3):
            seal = f"interlace-call:{call['call_id']}\n{draw.base64()}"
            calls.append({"type": "reasoning", "summary": [], "encrypted_content": seal})
        draw.role = "result"
        result = draw.struct(info_of(responses.FunctionOutputItem), "input[]")
        results.append(result | {"call_id": call["call_id"]})
    return calls + results


_OTHERS: tuple[tuple[type[msgspec.Struct], type[msgspec.Struct]], ...] = (
    (responses.CustomCallItem, responses.CustomOutputItem),
    (responses.LocalShellCallItem, responses.LocalShellOutputItem),
    (responses.ShellCallItem, responses.ShellOutputItem),
    (responses.ApplyPatchCallItem, responses.ApplyPatchOutputItem),
)


def _other_calls(draw: Draw) -> list[Json]:
    call, output = draw.one(_OTHERS)
    called = draw.struct(info_of(call), "input[]")
    draw.role = "result" if output is responses.CustomOutputItem else output.__name__
    result = draw.struct(info_of(output), "input[]") | {"call_id": called["call_id"]}
    return [called, result]


def _result(draw: Draw, path: str) -> Any:
    if draw.role == responses.ShellOutputItem.__name__:
        outcome = draw.one(({"type": "timeout"}, {"type": "exit", "exit_code": draw.random.randint(0, 2)}))
        return [{"stdout": draw.text(), "stderr": draw.text(), "outcome": outcome}]
    if draw.role in {responses.LocalShellOutputItem.__name__, responses.ApplyPatchOutputItem.__name__}:
        return draw.text()
    return _parts(draw, path, (responses.InputTextPart, responses.InputImagePart, responses.InputDocumentPart))


def _sealed(draw: Draw, _: str) -> str:
    return ("interlace-redacted:" if draw.chance(0.3) else "") + draw.base64()


def _picture(draw: Draw, path: str) -> Any:
    """What one part of a picture or document says of where it is."""
    return _image_url(draw, path)


RESPONSES: dict[str, Own] = {
    "model": _constant("m"),
    "input": _items,
    "input[].content": lambda draw, path: (
        _parts(draw, path, _RESPONSE_PARTS[draw.role])
        if draw.role
        else [{"type": "reasoning_text", "text": draw.text()}]
    ),
    "input[].output": _result,
    "input[].call_id": lambda draw, _: draw.fresh("call"),
    "input[].arguments": _kind("arguments"),
    "input[].id": lambda draw, _: draw.fresh("item"),
    "input[].encrypted_content": _sealed,
    "metadata": lambda draw, _: {draw.name(): draw.text()},
    "tools[].name": lambda draw, _: draw.fresh("f"),
    "tools[].parameters": _kind("schema"),
    "tools[].environment.skills": lambda draw, _: [{"name": draw.name()}],
    "text": lambda draw, path: draw.struct(info_of(responses.TextBody), path, 0.7),
    "text.format.schema": _kind("schema"),
    "tool_choice": _constant("auto"),
    **{name: _constant(NOTHING) for name in ("input[].async", "input[].namespace", "tools[].async")},
    **{f"tools[].{name}": _constant(NOTHING) for name in ("allowed_callers", "defer_loading", "output_schema")},
}
for _where in ("input[].content[]", "input[].output[]"):
    RESPONSES |= {
        f"{_where}.image_url": _picture,
        f"{_where}.file_data": _file_url,
        f"{_where}.file_url": _address,
        f"{_where}.filename": _file_name,
        f"{_where}.file_id": _constant(NOTHING),
    }


def draw_responses(draw: Draw) -> Json:
    """A response's body."""
    body = _with_tools(draw, draw.body(responses.ResponsesBody), responses.FunctionToolBody)
    if "tools" in body:  # of those without a name there is one of a kind
        body["tools"] = list({tool.get("name", tool["type"]): tool for tool in body["tools"]}.values())
    _settle(body)
    if body.get("background"):
        body.pop("store", None)
    if "tool_choice" in body:
        tools = [{name: tool[name] for name in ("type", "name") if name in tool} for tool in body.get("tools") or ()]
        choices: list[Any] = ["auto", "none"]
        if tools:
            allowed = {"type": "allowed_tools", "mode": draw.one(("auto", "required")), "tools": [tools[-1]]}
            choices += ["required", tools[0], allowed]
        body["tool_choice"] = draw.one(choices)
    for item in body["input"] if isinstance(body["input"], list) else ():
        for part in [*_listed(item.get("content")), *_listed(item.get("output"))]:
            if "type" in part:
                _place(draw, part)
    return body


def _listed(value: Any) -> list[Json]:
    return value if isinstance(value, list) else []


def _place(draw: Draw, part: Json) -> None:
    """A picture or document lies in one place."""
    if part["type"] == "input_image":
        part.setdefault("image_url", _image_url(draw, ""))
    if part["type"] == "input_file":
        if "file_url" in part:
            part.pop("file_data", None)
        else:
            part.setdefault("file_data", _file_url(draw, ""))


def deny_responses(draw: Draw, body: Json, path: str) -> None:
    """The body with a field that is refused."""
    del draw
    part = {"type": "input_file", "file_id": "file-1"}
    if path.startswith("input[].output"):
        call = {"type": "function_call", "call_id": "denied", "name": "f", "arguments": "{}"}
        body["input"] = [call, {"type": "function_call_output", "call_id": "denied", "output": [part]}]
    else:
        body["input"] = [{"role": "user", "content": [part]}]


# --- messages ----------------------------------------------------------------------------------------------------

_USER = (anthropic.TextBlockParam, anthropic.ImageBlockParam, anthropic.DocumentBlockParam)
_SAID = (anthropic.TextBlockParam, anthropic.ThinkingBlockParam, anthropic.RedactedThinkingBlockParam)


def _blocks(draw: Draw, kinds: tuple[type[msgspec.Struct], ...], least: int = 1) -> list[Json]:
    count = draw.random.randint(least, 3)
    return [draw.struct(info_of(draw.one(kinds)), "messages[].content[]") for _ in range(count)]


def _user_turn(draw: Draw, calls: list[str]) -> Json:
    results = [
        draw.struct(info_of(anthropic.ToolResultBlockParam), "messages[].content[]") | {"tool_use_id": id}
        for id in calls
    ]
    if calls or draw.chance(0.5):
        return {"role": "user", "content": [*results, *_blocks(draw, _USER, 0 if calls else 1)]}
    return {"role": "user", "content": draw.text()}


def _anthropic_messages(draw: Draw, _: str) -> list[Json]:
    turns: list[Json] = []
    open_calls: list[str] = []
    for _step in range(draw.random.randint(0, 2)):
        turns.append(_user_turn(draw, open_calls))
        open_calls = []
        if draw.chance(0.1):
            turns.append({"role": "system", "content": draw.text()})
        if draw.chance(0.7):
            turns.append(turn := {"role": "assistant", "content": _blocks(draw, _SAID)})
            if draw.chance(0.5):
                calls = _blocks(draw, (anthropic.ToolUseBlockParam,))
                turn["content"] += calls
                if draw.chance(0.2):
                    turn["content"] += _blocks(draw, (anthropic.TextBlockParam,))
                open_calls = [call["id"] for call in calls]
    return [*turns, _user_turn(draw, open_calls)]


def _source(draw: Draw, path: str) -> Json:
    del path
    return draw.one(
        (
            {"type": "base64", "media_type": draw.one(MEDIA), "data": draw.base64()},
            {"type": "url", "url": _address(draw, "")},
        )
    )


def _document(draw: Draw) -> Json:
    return draw.one(
        (
            {"type": "text", "media_type": "text/plain", "data": draw.text()},
            {"type": "base64", "media_type": "application/pdf", "data": draw.base64()},
            {"type": "url", "url": _address(draw, "")},
        )
    )


_OF_KINDS = ("display_height_px", "display_number", "display_width_px", "enable_zoom", "max_characters")


def _known_tool(draw: Draw, tool: Json) -> Json:
    """A tool that Anthropic's models know."""
    kept = {name: tool[name] for name in ("name", "cache_control", "strict") if name in tool}
    kind = draw.one(("bash_20250124", "computer_20250124", "memory_20250818", "text_editor_20250728"))
    size = {"display_height_px": 768, "display_width_px": 1024, "display_number": 1, "enable_zoom": True}
    more: Json = {"computer_20250124": size, "text_editor_20250728": {"max_characters": 99}}.get(kind, {})
    return kept | {"type": kind} | more


MESSAGES: dict[str, Own] = {
    "model": _constant("m"),
    "messages": _anthropic_messages,
    "messages[].content[].id": lambda draw, _: draw.fresh("toolu"),
    "messages[].content[].tool_use_id": _constant("replaced"),
    "messages[].content[].signature": _kind("base64"),
    "messages[].content[].data": _kind("base64"),
    "messages[].content[].input": lambda draw, _: (
        draw.object() | ({"n": 123456789012345678901234567890} if draw.chance(0.1) else {})
    ),
    "messages[].content[].citations.enabled": _constant(False),
    "messages[].content[].content[].citations.enabled": _constant(False),
    "tools[].name": lambda draw, _: draw.fresh("f"),
    "tools[].input_schema": _kind("schema"),
    "tools[].type": _constant("custom"),
    **{f"tools[].{name}": _constant(NOTHING) for name in _OF_KINDS},
    "tools[].allowed_callers": lambda draw, _: draw.one((["direct"], ["direct", "code_execution_20250825"])),
    "output_config.format.schema": _kind("schema"),
    "output_format.schema": _kind("schema"),
    "tool_choice": lambda draw, _: {"type": "auto"},
    "stop_sequences": lambda draw, _: [draw.words() for _ in range(draw.random.randint(1, 4))],
    "mcp_servers": _constant([]),
}
for _where in ("messages[].content[]", "messages[].content[].content[]"):
    MESSAGES |= {
        f"{_where}.source": _source,
        f"{_where}.title": _file_name,
        **{f"{_where}.{name}": _constant(NOTHING) for name in ("transformations", "context", "toolset_name")},
    }

MESSAGES_DENIED: dict[str, Any] = {
    "source.file_id": {"type": "image", "source": {"type": "file", "file_id": "f"}},
    "source.content": {"type": "document", "source": {"type": "content", "content": "a"}},
    "context": {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "a"},
        "context": "c",
    },
    "citations.enabled": {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "a"},
        "citations": {"enabled": True},
    },
    "transformations": {
        "type": "image",
        "source": {"type": "url", "url": "https://example.com/a.png"},
        "transformations": {"a": 1},
    },
}


def draw_messages(draw: Draw) -> Json:
    """A message's body."""
    body = _with_tools(draw, draw.body(anthropic.MessagesBody), anthropic.ToolParam)
    for message in body["messages"]:
        for block in _listed(message["content"]):
            for one in (block, *_listed(block.get("content"))):
                if one["type"] == "document":
                    one["source"] = _document(draw)
    if "output_config" in body and "format" in body["output_config"]:
        body.pop("output_format", None)
    for at, tool in enumerate(body.get("tools") or ()):
        tool.setdefault("input_schema", draw.schema())
        if draw.chance(0.2):
            body["tools"][at] = _known_tool(draw, tool)
    names = [tool["name"] for tool in body.get("tools") or ()]
    if "tool_choice" in body:
        many = {"disable_parallel_tool_use": draw.one((True, False))} if draw.chance(0.4) else {}
        choices = [{"type": "none"}]
        if names:
            choices += [{"type": "auto"} | many, {"type": "any"} | many, {"type": "tool", "name": names[0]} | many]
        body["tool_choice"] = draw.one(choices)
    if not body.get("output_format") and "format" not in body.get("output_config", {}) and draw.chance(0.1):
        body["messages"].append({"role": "assistant", "content": draw.words()})
    return body


def deny_messages(draw: Draw, body: Json, path: str) -> None:
    """The body with a field that is refused."""
    del draw
    name = path.removeprefix("messages[].content[].").removeprefix("content[].")
    if path == "mcp_servers":
        body["mcp_servers"] = [{"url": "https://example.com"}]
        return
    if name == "toolset_name":
        use = {"type": "tool_use", "id": "denied", "name": "f", "input": {}, "toolset_name": "t"}
        body["messages"] = [
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "denied"}]},
        ]
        return
    block = MESSAGES_DENIED[name]
    if path.startswith("messages[].content[].content[]"):
        use = {"type": "tool_use", "id": "denied", "name": "f", "input": {}}
        body["messages"] = [
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "denied", "content": [block]}]},
        ]
    else:
        body["messages"] = [{"role": "user", "content": [block]}]


# --- all ---------------------------------------------------------------------------------------------------------

Write = Callable[[Draw], Json]
Deny = Callable[[Draw, Json, str], None]

DRAWN: Mapping[str, tuple[Mapping[str, Own], Write, Deny]] = {
    "openai.chat": (CHAT, draw_chat, deny_chat),
    "openai.completions": (COMPLETIONS, draw_completion, deny_completion),
    "openai.responses": (RESPONSES, draw_responses, deny_responses),
    "anthropic.messages": (MESSAGES, draw_messages, deny_messages),
}


def drawn(dialect: str, random: Random, likely: float = 0.12) -> Json:
    """A random body of a dialect that its endpoint takes."""
    own, write, _ = DRAWN[dialect]
    return write(Draw(random, own, likely))


def denied(dialect: str, random: Random, path: str) -> Json:
    """The same, with a field that is refused."""
    own, write, deny = DRAWN[dialect]
    draw = Draw(random, own)
    body = write(draw)
    deny(draw, body, path)
    return body
