"""A neutral request in the words of Amazon Bedrock's Converse."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from interlace.engines.remote.providers.anthropic_request import DIALECT, refuse_unasked_prefill
from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Part,
    Reasoning,
    RefusalPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.errors import InvalidRequest

Json = dict[str, Any]

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_FILES = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "txt",
    "application/json": "txt",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9()\[\]-]+")
_DURATIONS = {"5m": "5m", "1h": "1h", "30m": "1h", "12h": "1h", "24h": "1h"}  # as long, or the longest
_TIERS = {"priority", "default", "flex", "reserved"}
_INSTRUCTIONS = {"system", "developer"}


def converse_body(request: GenerateRequest, family: str) -> Json:
    """The JSON body of a request; `family` as in `bedrock_fields`. Raises `InvalidRequest`, naming the field, for what
    Converse cannot say."""
    refuse_unasked_prefill(request)
    body = _prompt(request, family)
    if inference := _inference(request):
        body["inferenceConfig"] = inference
    if more := _more(request, family):
        body["additionalModelRequestFields"] = more
    if family == "anthropic" and request.sampling.stop:
        body["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
    if output := _output(request, family):
        body["outputConfig"] = output
    if request.options.service_tier in _TIERS:
        body["serviceTier"] = {"type": request.options.service_tier}
    if request.options.metadata:
        body["requestMetadata"] = dict(request.options.metadata)
    return body


def count_body(request: GenerateRequest, family: str) -> Json:
    """The JSON body of a question how many tokens a prompt has."""
    body = _prompt(request, family)
    if more := _more(request, family):
        body["additionalModelRequestFields"] = more
    return {"input": {"converse": body}}


def _prompt(request: GenerateRequest, family: str) -> Json:
    """What a model reads: instructions, turns, tools."""
    turns = _Turns(family)
    body: Json = {"messages": turns.of(request.messages or ())}
    if system := list(_system(request.messages or ())):
        body["system"] = system
    if request.tools and not _hidden(request):
        body["toolConfig"] = _tools(request)
    return body


# --- the conversation --------------------------------------------------------------------------------------------


def _system(messages: Iterable[Message]) -> Iterator[Json]:
    for message in messages:
        if message.role not in _INSTRUCTIONS:
            continue
        for part in message.parts:
            if not isinstance(part, TextPart):
                raise _wrong("Instructions are text.")
            yield {"text": part.text}
            yield from _point(part.cache)
        yield from _point(message.cache)


class _Turns:
    """The turns of one conversation. What one side says in a row is one turn, so that roles alternate, and results of
    calls stand together, as Bedrock wants them."""

    def __init__(self, family: str) -> None:
        self._unsigned = family != "anthropic"
        self._names: set[str] = set()

    def of(self, messages: Iterable[Message]) -> list[Json]:
        turns: list[Json] = []
        for message in messages:
            if message.role in _INSTRUCTIONS:
                continue
            role = "assistant" if message.role == "assistant" else "user"
            blocks = list(self._blocks(message))
            if not blocks:
                continue
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
        return turns

    def _blocks(self, message: Message) -> Iterator[Json]:
        mark = message.cache
        if message.role == "tool":
            yield self._result(message)  # which has no place for a mark inside
            mark = mark or next((mark for part in reversed(message.parts) if (mark := getattr(part, "cache", ""))), "")
        else:
            for one in message.sequence:
                if isinstance(one, ToolCall):
                    use = {"toolUseId": one.id, "name": one.name, "input": arguments_object(one.arguments)}
                    yield {"toolUse": use}
                else:
                    yield from self._block(one)
                yield from _point(getattr(one, "cache", ""))
        yield from _point(mark)

    def _result(self, message: Message) -> Json:
        content: list[Json] = []
        for part in message.parts:
            content += self._block(part)
        result: Json = {"toolUseId": message.tool_call_id or "", "content": content}
        if message.is_error:
            result["status"] = "error"
        return {"toolResult": result}

    def _block(self, part: Part) -> Iterator[Json]:
        match part:
            case TextPart() | RefusalPart():
                if part.text:
                    yield {"text": part.text}
            case ThinkingPart():
                yield from self._thought(part)
            case ImagePart():
                source = {"bytes": part.data}
                yield {"image": {"format": _format(_IMAGES, part.media_type), "source": source}}
            case FilePart():
                yield {"document": self._document(part)}
            case AudioPart():
                yield {"audio": {"format": part.format, "source": {"bytes": part.data}}}

    def _thought(self, part: ThinkingPart) -> Iterator[Json]:
        if part.redacted:
            yield {"reasoningContent": {"redactedContent": part.redacted}}
        text = part.text or "\n".join(part.summary)
        if part.signature:
            yield {"reasoningContent": {"reasoningText": {"text": text, "signature": part.signature}}}
        elif text and self._unsigned:
            yield {"reasoningContent": {"reasoningText": {"text": text}}}

    def _document(self, part: FilePart) -> Json:
        if part.text:
            kind, data = _FILES.get(part.media_type, "txt"), base64.b64encode(part.text.encode()).decode()
        else:
            kind, data = _format(_FILES, part.media_type), part.data
        return {"name": self._name(part.name), "format": kind, "source": {"bytes": data}}

    def _name(self, given: str) -> str:
        """A name of allowed characters that no other document here has."""
        plain = _NOT_IN_A_NAME.sub(" ", given).strip()[:180] or "document"
        name = next(name for name in itertools.chain([plain], _numbered(plain)) if name not in self._names)
        self._names.add(name)
        return name


def _numbered(plain: str) -> Iterator[str]:
    return (f"{plain} ({number})" for number in itertools.count(2))


def arguments_object(arguments: str) -> Any:
    """Arguments of a call as they are, once they are known to be a JSON object; digits and order stay."""
    raw = arguments.strip() or "{}"
    try:
        if isinstance(msgspec.json.decode(raw), dict):
            return msgspec.Raw(raw.encode())
    except (ValueError, RecursionError):
        pass
    raise _wrong("Arguments of a tool call are a JSON object.")


def _point(mark: str) -> Iterator[Json]:
    """A cache point, where a mark asks for one."""
    if not mark:
        return
    point = {"type": "default"}
    yield {"cachePoint": point | {"ttl": _DURATIONS[mark]} if mark in _DURATIONS else point}


def _format(known: dict[str, str], media_type: str) -> str:
    if media_type not in known:
        raise _wrong(f"The type {media_type[:80]!r} cannot be used here; use one of {', '.join(sorted(known))}.")
    return known[media_type]


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(what, param="messages", code="invalid_value")


# --- tools and wishes --------------------------------------------------------------------------------------------


def _hidden(request: GenerateRequest) -> bool:
    """Whether the tools are not shown. Converse has no word for "none", and wants them shown once calls were made."""
    if request.tool_choice != "none":
        return False
    if any(message.tool_calls or message.role == "tool" for message in request.messages or ()):
        raise InvalidRequest(
            "'tool_choice' cannot be none here once the conversation has tool calls in it. Use auto.",
            param="tool_choice",
            code="unsupported_parameter",
        )
    return True


def _tools(request: GenerateRequest) -> Json:
    config: Json = {"tools": [entry for tool in request.tools for entry in _tool(tool)]}
    kind, _, name = request.tool_choice.partition(":")
    if kind == "function":
        config["toolChoice"] = {"tool": {"name": name}}
    elif kind == "required":
        config["toolChoice"] = {"any": {}}
    return config


def _tool(tool: Tool) -> Iterator[Json]:
    schema = dict(tool.parameters) or {"type": "object", "properties": {}}
    spec: Json = {"name": tool.name, "inputSchema": {"json": schema}}
    if tool.description:
        spec["description"] = tool.description
    if tool.strict:
        spec["strict"] = True
    yield {"toolSpec": spec}
    yield from _point(tool.cache)


def _inference(request: GenerateRequest) -> Json:
    sampling = request.sampling
    config: Json = {}
    if sampling.max_tokens is not None:
        config["maxTokens"] = sampling.max_tokens
    if "temperature" not in request.unset:
        config["temperature"] = sampling.temperature
    if "top_p" not in request.unset:
        config["topP"] = sampling.top_p
    if sampling.stop:
        config["stopSequences"] = list(sampling.stop)
    return config


def _more(request: GenerateRequest, family: str) -> Json:
    """What only models of one family know."""
    more: Json = {}
    top_k = 0 if "top_k" in request.unset else request.sampling.top_k
    if family == "amazon" and top_k:
        more["inferenceConfig"] = {"topK": top_k}
    if family != "anthropic":
        return more
    if top_k:
        more["top_k"] = top_k
    if not request.parallel_tool_calls and request.tools and not _hidden(request):
        kind = {"required": "any", "function": "tool"}.get(request.tool_choice.partition(":")[0], "auto")
        more["tool_choice"] = {"type": kind, "disable_parallel_tool_use": True}
        if kind == "tool":
            more["tool_choice"]["name"] = request.tool_choice.partition(":")[2]
    if request.reasoning is not None and (thinking := _thinking(request.reasoning, own=request.dialect == DIALECT)):
        more["thinking"] = thinking
    return more


def _thinking(reasoning: Reasoning, *, own: bool) -> Json:
    """How one of Anthropic's models is to think. An effort says nothing of it in Anthropic's `own` dialect, and asks
    for it in others."""
    if reasoning.budget_tokens:
        thinking: Json = {"type": "enabled", "budget_tokens": reasoning.budget_tokens}
    elif reasoning.effort == "none":
        return {"type": "disabled"}
    elif reasoning.adaptive or (not own and (reasoning.effort or reasoning.summary)):
        thinking = {"type": "adaptive"}
    else:
        return {}
    if reasoning.summary:
        thinking["display"] = "omitted" if reasoning.summary in {"omitted", "none"} else "summarized"
    return thinking


def _output(request: GenerateRequest, family: str) -> Json:
    output: Json = {}
    effort = request.reasoning.effort if request.reasoning is not None else ""
    if effort and not (effort == "none" and family == "anthropic"):
        output["effort"] = "low" if effort in {"minimal", "none"} else effort
    if (rule := request.output) is not None and rule.kind == "json_schema":
        schema: Json = {"schema": rule.rule, "name": rule.name}
        if rule.description:
            schema["description"] = rule.description
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    return output
