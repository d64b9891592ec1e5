"""A neutral request in the words of OpenAI's Responses API, which is told everything every time: nothing of the
conversation stays at the provider."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai_messages import breakpoint_of, file_as_text, name_of, url_of
from interlace.engines.remote.providers.openai_peculiar import peculiarities_of
from interlace.engines.remote.providers.openai_request import STANDARD_ONLY, effort_of, schema_of
from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.errors import InvalidRequest

DIALECT = "openai.responses"
RESPONSES = "/responses"
_SUMMARIES = {"auto": "auto", "concise": "concise", "detailed": "detailed", "summarized": "auto", "updates": "auto"}
_UNKNOWN = ("presence_penalty", "frequency_penalty", "stop", "logit_bias", "top_k", "min_p", "ignore_eos")

_SAID = ("output_text", "refusal")

Item = dict[str, Any]


def response_body(request: GenerateRequest, settings: ModelSettings) -> dict[str, Any]:
    """The JSON body of a response. Raises `InvalidRequest`, naming the field, for what the API does not know."""
    _refuse(request)
    own, marks = request.dialect == DIALECT, peculiarities_of(settings).manners.cache_marks
    body: dict[str, Any] = {
        "model": settings.model,
        "input": [item for message in request.messages or () for item in _items(message, own=own, marks=marks)],
        "store": settings.store,
        "include": ["reasoning.encrypted_content"],
    }
    _add_sampling(body, request)
    _add_tools(body, request)
    _add_text(body, request)
    _add_options(body, request, settings)
    if settings.stream:
        body["stream"] = True
    if own:
        for name, value in request.native.items():
            outer, _, inner = name.partition(".")
            if inner:
                body.setdefault(outer, {})[inner] = value
            else:
                body[name] = value
    return body


def _refuse(request: GenerateRequest) -> None:
    if request.messages is None:
        raise _unknown("prompt", "This model only takes conversations. Use 'messages'.")
    if request.n != 1:
        raise _unknown("n", "This model answers once: 'n' can only be 1.")
    if request.prefill:
        raise _unknown("messages", "This model does not go on with an answer that was begun.")
    plain = type(request.sampling)()
    for name in _UNKNOWN:
        if getattr(request.sampling, name) != getattr(plain, name):
            raise _unknown(name, f"The server behind this model does not know '{name}'. Leave it out.")


def _unknown(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_parameter")


# --- the conversation --------------------------------------------------------------------------------------------


def _items(message: Message, *, own: bool, marks: bool) -> Iterator[Item]:
    if message.role == "tool" and message.kind not in ("", "custom"):
        yield _native(f"{message.kind}_output", message.tool_call_id or "", message.text)
        return
    if message.role == "tool":
        yield {
            "type": "custom_tool_call_output" if message.kind else "function_call_output",
            "call_id": message.tool_call_id or "",
            "output": _content(message, marks=marks),
        }
        return
    if message.role != "assistant":
        yield {"type": "message", "role": message.role, "content": _content(message, marks=marks)}
        return
    for part in message.parts:
        if isinstance(part, ThinkingPart) and part.id and (seal := part.signature or part.redacted):
            yield _reasoning(part, seal, own=own)
    made = [item for one in message.sequence if (item := _said(one)) is not None]
    if message.name is not None and made:
        _put_name(made, message.name, "output_text")
    said: list[Item] = []
    for item in made:
        if item["type"] in _SAID:
            said.append(item)
            continue
        yield from _message(said)
        said = []
        yield item
    yield from _message(said)


def _reasoning(part: ThinkingPart, seal: str, *, own: bool) -> Item:
    """A sealed thought. What other dialects show of one is its summary: this API gives no more, and takes no more."""
    if not own and part.text:
        part = ThinkingPart(summary=part.summary or (part.text,), id=part.id)
    item: Item = {
        "type": "reasoning",
        "id": part.id,
        "summary": [{"type": "summary_text", "text": text} for text in part.summary],
        "encrypted_content": seal,
    }
    return item | {"content": [{"type": "reasoning_text", "text": part.text}]} if part.text else item


def _said(one: Part | ToolCall) -> Item | None:
    """A piece of what the assistant said, or a call."""
    match one:
        case TextPart(text=text) if text:
            return {"type": "output_text", "text": text}
        case RefusalPart():
            return {"type": "refusal", "refusal": one.text}
        case ToolCall(kind="custom"):
            return {"type": "custom_tool_call", "call_id": one.id, "name": one.name, "input": one.arguments}
        case ToolCall(kind=kind) if kind:
            return _native(kind, one.id, one.arguments) | {"status": "completed"}
        case ToolCall():
            return {"type": "function_call", "call_id": one.id, "name": one.name, "arguments": one.arguments}
    return None


def _native(kind: str, id: str, said: str) -> Item:
    """A call that only models of this API make, or what came of one."""
    try:
        fields = msgspec.json.decode(said or "{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest("A call or a result in the conversation is not a JSON object.", param="input")
    named = {"id": id} if kind.startswith("local_shell") else {}
    return {**fields, "type": kind, "call_id": id, **named}


def _message(said: list[Item]) -> Iterator[Item]:
    """What the assistant said in a row: one text, as every server knows it, or parts."""
    if len(said) == 1 and said[0]["type"] == "output_text":
        yield {"role": "assistant", "content": said[0]["text"]}
    elif said:
        yield {"type": "message", "role": "assistant", "content": said}


def _put_name(made: list[Item], name: str, kind: str) -> None:
    """The name before the first text, or as a text of its own before what is none."""
    if (first := next((one for one in made if one["type"] == kind), None)) is not None:
        first["text"] = f"{name}: {first['text']}"
    else:
        made.insert(0, {"type": kind, "text": f"{name}:"})


def _content(message: Message, *, marks: bool) -> str | list[Item]:
    """A text where that says it all, else parts."""
    mark = message.cache if marks else ""
    if isinstance(message.content, str) and not mark:
        return message.content if message.name is None else f"{message.name}: {message.content}"
    made = list(_parts(message.parts, marks=marks))
    if message.name is not None:
        _put_name(made, message.name, "input_text")
    if mark and made:
        made[-1].setdefault("prompt_cache_breakpoint", breakpoint_of(mark))
    return made or ""


def _parts(parts: Sequence[Part], *, marks: bool) -> Iterator[Item]:
    for part in parts:
        item = _part(part)
        if item is None:
            continue
        if marks and (mark := getattr(part, "cache", "")):
            item["prompt_cache_breakpoint"] = breakpoint_of(mark)
        yield item


def _part(part: Part) -> Item | None:
    match part:
        case TextPart() | RefusalPart():
            return {"type": "input_text", "text": part.text}
        case ImagePart():
            return {"type": "input_image", "image_url": url_of(part), "detail": part.detail or "auto"}
        case FilePart(text=text) if text:
            return {"type": "input_text", "text": file_as_text(part)}
        case FilePart(url=url) if url:
            item = {"type": "input_file", "file_url": url}
            return item | {"filename": part.name} if part.name else item
        case FilePart():
            return {"type": "input_file", "filename": name_of(part), "file_data": url_of(part)}
        case AudioPart():
            raise _unknown("messages", "This model reads no sound.")
        case ThinkingPart():
            return None


# --- the rest ----------------------------------------------------------------------------------------------------


def _add_sampling(body: dict[str, Any], request: GenerateRequest) -> None:
    sampling = request.sampling
    if sampling.max_tokens is not None:
        body["max_output_tokens"] = sampling.max_tokens
    for name in ("temperature", "top_p"):
        if name not in request.unset:
            body[name] = getattr(sampling, name)
    if sampling.logprobs is not None:
        body["include"].append("message.output_text.logprobs")
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs


def _add_tools(body: dict[str, Any], request: GenerateRequest) -> None:
    if not request.tools:
        return
    body["tools"] = [_tool(tool, own=request.dialect == DIALECT) for tool in request.tools]
    kind, _, name = request.tool_choice.partition(":")
    if kind == "function":
        kinds = {tool.name: tool.kind for tool in request.tools}
        chosen = {"type": kinds.get(name) or "function"}
        body["tool_choice"] = chosen | ({"name": name} if chosen["type"] in {"function", "custom"} else {})
    elif kind != "auto":
        body["tool_choice"] = kind
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False


def _tool(tool: Tool, *, own: bool) -> dict[str, Any]:
    if tool.kind == "custom":
        described = {"description": tool.description} if tool.description else {}
        return {"type": "custom", "name": tool.name, **described, **tool.native}
    if tool.kind:
        return {"type": tool.kind, **tool.native}
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    body: dict[str, Any] = {"type": "function", "name": tool.name, "parameters": parameters, "strict": tool.strict}
    if tool.description:
        body["description"] = tool.description
    return body | dict(tool.native) if own else body


def _add_text(body: dict[str, Any], request: GenerateRequest) -> None:
    text: dict[str, Any] = {}
    if request.output is not None:
        text["format"] = _format(request.output)
    if request.options.verbosity:
        text["verbosity"] = request.options.verbosity
    if text:
        body["text"] = text


def _format(output: OutputRule) -> dict[str, Any]:
    if output.kind == "json_object":
        return {"type": "json_object"}
    if output.kind != "json_schema":
        raise _unknown("structured_outputs", "This model's answers can only be held to a JSON schema.")
    made = {"type": "json_schema", "name": output.name, "schema": schema_of(output), "strict": output.strict}
    return made | {"description": output.description} if output.description else made


def _add_options(body: dict[str, Any], request: GenerateRequest, settings: ModelSettings) -> None:
    options = request.options
    for name in ("service_tier", "user", "safety_identifier"):
        if value := getattr(options, name):
            body[name] = "default" if value == STANDARD_ONLY else value
    for name in ("cache_key", "cache_retention"):
        if value := getattr(options, name):
            body[f"prompt_{name}"] = value
    if options.metadata and settings.store:
        body["metadata"] = dict(options.metadata)
    if request.reasoning is not None:
        reasoning = {}
        if effort := effort_of(request.reasoning):
            reasoning["effort"] = effort
        if summary := _SUMMARIES.get(request.reasoning.summary):
            reasoning["summary"] = summary
        if reasoning:
            body["reasoning"] = reasoning
