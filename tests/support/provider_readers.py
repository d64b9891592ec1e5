"""Requests as providers get them, read back into the neutral form.

What OpenAI and Anthropic get is read by the dialects callers speak, which is other code than what wrote it; what
Bedrock and Gemini get, by small readers here that follow their published schemas: a name that they do not know fails.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Part,
    Reasoning,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.gateway import responses
from interlace.gateway.anthropic_messages import parse_messages
from interlace.gateway.calls import Ask
from interlace.gateway.openai_chat import parse_chat
from interlace.gateway.openai_completions import parse_completion
from tests.support.neutral_form import parts, replace

ID = "0" * 24
Json = dict[str, Any]


def asked(dialect: str, body: Json | bytes) -> Ask:
    """A body read by the dialect itself."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    match dialect:
        case "openai.chat":
            return parse_chat(data, ID, 128)[0]
        case "openai.completions":
            return parse_completion(data, ID, 128)[0]
        case "anthropic.messages":
            return parse_messages(data, ID, 128)[0]
    return responses.ask_of(responses.read_body(data), ID, (), {})[0]


def read_openai(data: bytes) -> GenerateRequest:
    """What a server that speaks OpenAI's chat or text completions got."""
    body = json.loads(data)
    body.pop("store", None)
    if body.get("service_tier") == "on_demand":  # Groq's word
        body["service_tier"] = "default"
    if "random_seed" in body:  # Mistral's word
        body["seed"] = body.pop("random_seed")
    for turn in body.get("messages", ()):
        if "reasoning" in turn:
            assert turn.pop("reasoning") == turn["reasoning_content"]
    if "stream_options" in body:
        assert body.pop("stream_options") == {"include_usage": True}
    (request,) = asked("openai.chat" if "messages" in body else "openai.completions", body).generate
    return _nameless(request)


def read_responses(data: bytes) -> GenerateRequest:
    """What OpenAI's Responses API got."""
    (request,) = asked("openai.responses", data).generate
    return _nameless(request)


def _nameless(request: GenerateRequest) -> GenerateRequest:
    """Every document has a name there: `document` is what nobody gave one. What the dialect takes for text came as
    data, too."""

    def change(part: Part, _: Message) -> Part:
        if not isinstance(part, FilePart):
            return part
        data = part.data or base64.b64encode(part.text.encode()).decode()
        return replace(part, name="" if part.name.startswith("document.") else part.name, data=data, text="")

    return parts(request, change)


def read_anthropic(data: bytes) -> GenerateRequest:
    """What Anthropic got."""
    (request,) = asked("anthropic.messages", data).generate
    return request


# --- Bedrock -----------------------------------------------------------------------------------------------------


def read_bedrock(data: bytes) -> GenerateRequest:
    """What Converse got."""
    body = json.loads(data, parse_float=_Number, parse_int=_Number)
    plain = json.loads(data)
    inference = plain.pop("inferenceConfig", {})
    more = plain.pop("additionalModelRequestFields", {})
    output = plain.pop("outputConfig", {})
    config = plain.pop("toolConfig", {})
    top_k = more.pop("top_k", more.pop("inferenceConfig", {}).get("topK", 0))
    choice = more.pop("tool_choice", {})
    rule = output.pop("textFormat", None)
    if plain.pop("additionalModelResponseFieldPaths", None):
        assert inference["stopSequences"]
    messages = [Message("system", _marked(_blocks(plain.pop("system"))))] if "system" in plain else []
    for turn in body.pop("messages"):
        messages += _bedrock_turn(turn)
    plain.pop("messages")
    sampling, unset = _sampled(inference, max_tokens="maxTokens", top_p="topP", stop="stopSequences")
    tools, chosen = _bedrock_tools(config)
    request = GenerateRequest(
        "",
        messages=tuple(messages),
        prefill=messages[-1].role == "assistant",
        sampling=Sampling(**sampling, top_k=top_k),
        unset=unset,
        output=None if rule is None else _bedrock_rule(rule),
        tools=tools,
        tool_choice=chosen,
        parallel_tool_calls=not choice.get("disable_parallel_tool_use"),
        reasoning=_thinking(more.pop("thinking", None), output.pop("effort", "")),
        options=Options(
            service_tier=plain.pop("serviceTier", {}).get("type", ""), metadata=plain.pop("requestMetadata", {})
        ),
    )
    unknown = [inference, more, output, plain]
    assert unknown == [{}] * 4
    return request


class _Number(str):
    """A number as its digits stand."""

    __slots__ = ()


def _sampled(config: Json, **names: str) -> tuple[Json, tuple[str, ...]]:
    names = {"temperature": "temperature", **names}
    made = {ours: config.pop(theirs) for ours, theirs in names.items() if theirs in config}
    made["stop"] = tuple(made.get("stop", ()))
    return made, tuple(name for name in ("temperature", "top_p") if name not in made)


def _bedrock_rule(rule: Json) -> OutputRule:
    assert rule["type"] == "json_schema"
    schema = rule["structure"]["jsonSchema"]
    return OutputRule("json_schema", schema["schema"], schema["name"], schema.get("description", ""))


def _bedrock_tools(config: Json) -> tuple[tuple[Tool, ...], str]:
    tools: list[Tool] = []
    for entry in config.get("tools", ()):
        if (point := entry.get("cachePoint")) is not None:
            last = tools.pop()
            tools.append(Tool(last.name, last.description, last.parameters, last.strict, _point(point)))
            continue
        spec = entry["toolSpec"]
        tools.append(
            Tool(spec["name"], spec.get("description", ""), spec["inputSchema"]["json"], spec.get("strict", False))
        )
    choice = config.get("toolChoice", {"auto": {}})
    ((kind, value),) = choice.items()
    return tuple(tools), {"auto": "auto", "any": "required"}.get(kind) or f"function:{value['name']}"


def _point(point: Json) -> str:
    assert point["type"] == "default"
    return point.get("ttl", "default")


_FORMATS = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "html": "text/html",
    "md": "text/markdown",
    "txt": "text/plain",
}


def _blocks(blocks: list[Json]) -> Iterator[Part | ToolCall | Message | str]:
    """Parts, calls and results; a cache point as its text."""
    for block in blocks:
        ((kind, value),) = block.items()
        match kind:
            case "text":
                yield TextPart(value)
            case "reasoningContent":
                if "redactedContent" in value:
                    yield ThinkingPart(redacted=value["redactedContent"])
                else:
                    text = value["reasoningText"]
                    yield ThinkingPart(text["text"], text.get("signature", ""))
            case "image":
                yield ImagePart(value["source"]["bytes"], f"image/{value['format']}")
            case "document":
                yield FilePart(value["source"]["bytes"], _FORMATS[value["format"]], name=value["name"])
            case "audio":
                yield AudioPart(value["source"]["bytes"], value["format"])
            case "toolUse":
                yield ToolCall(value["toolUseId"], value["name"], written(value["input"]))
            case "toolResult":
                content = tuple(
                    one for one in _blocks(value["content"]) if not isinstance(one, ToolCall | Message | str)
                )
                failed = value.get("status") == "error"
                yield Message("tool", content, tool_call_id=value["toolUseId"], is_error=failed)
            case "cachePoint":
                yield _point(value)
            case _:
                raise AssertionError(f"Converse knows no {kind}")


def written(value: Any) -> str:
    """Arguments as JSON again, numbers digit by digit."""
    if isinstance(value, _Number):
        return str.__str__(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def _marked(blocks: Iterator[Part | ToolCall | Message | str]) -> tuple[Part, ...]:
    """Parts, each with the cache point after it."""
    made: list[Any] = []
    for block in blocks:
        if isinstance(block, str):
            if made:
                made[-1] = _with_mark(made[-1], block)
        else:
            made.append(block)
    return tuple(made)


def _with_mark(block: Any, mark: str) -> Any:
    # an earlier point at the same place is this one
    return replace(block, cache=mark) if hasattr(block, "cache") else block


def _bedrock_turn(turn: Json) -> Iterator[Message]:
    made: Any = _marked(_blocks(turn["content"]))
    if turn["role"] == "assistant":
        yield placed(made)
        return
    yield from _apart(made)


def placed(made: Sequence[Part | ToolCall]) -> Message:
    """A turn of the assistant's, its calls where they stand."""
    said = tuple(one for one in made if not isinstance(one, ToolCall))
    calls = [
        replace(one, followed_by=sum(not isinstance(other, ToolCall) for other in made[place:]))
        for place, one in enumerate(made)
        if isinstance(one, ToolCall)
    ]
    return Message("assistant", said, tool_calls=tuple(calls))


def _apart(made: Any) -> Iterator[Message]:
    """A user's turn, and results among it as turns of their own."""
    said: list[Part] = []
    for one in made:
        if not isinstance(one, Message):
            said.append(one)
            continue
        if said:
            yield Message("user", tuple(said))
            said = []
        yield one
    if said:
        yield Message("user", tuple(said))


def _thinking(thinking: Json | None, effort: str) -> Reasoning | None:
    if thinking is None:
        return Reasoning(effort) if effort else None
    summary = thinking.get("display", "")
    match thinking["type"]:
        case "disabled":
            return Reasoning("none")
        case "enabled":
            return Reasoning(effort, thinking["budget_tokens"], summary=summary)
    assert thinking["type"] == "adaptive"
    return Reasoning(effort, adaptive=True, summary=summary)


# --- Gemini ------------------------------------------------------------------------------------------------------


def read_gemini(data: bytes) -> GenerateRequest:
    """What generateContent got."""
    plain = json.loads(data)
    contents = json.loads(data, parse_float=_Number, parse_int=_Number)["contents"]
    plain.pop("contents")
    system = tuple(TextPart(part["text"]) for part in plain.pop("systemInstruction", {}).get("parts", ()))
    config = plain.pop("generationConfig", {})
    calling = plain.pop("toolConfig", {}).get("functionCallingConfig", {"mode": "AUTO"})
    tools = tuple(
        Tool(
            one["name"], one.get("description", ""), one.get("parametersJsonSchema", {}), calling["mode"] == "VALIDATED"
        )
        for entry in plain.pop("tools", ())
        for one in entry["functionDeclarations"]
    )
    logprobs = config.pop("logprobs", 0) if config.pop("responseLogprobs", False) else None
    sampling, unset = _sampled(config, max_tokens="maxOutputTokens", top_p="topP", stop="stopSequences")
    for ours, theirs in (
        ("top_k", "topK"),
        ("presence_penalty", "presencePenalty"),
        ("frequency_penalty", "frequencyPenalty"),
        ("seed", "seed"),
    ):
        if theirs in config:
            sampling[ours] = config.pop(theirs)
    messages = [Message("system", system)] if system else []
    detail = config.pop("mediaResolution", "")
    for turn in contents:
        messages += _gemini_turn(turn, detail.removeprefix("MEDIA_RESOLUTION_").lower())
    request = GenerateRequest(
        "",
        messages=tuple(messages),
        prefill=messages[-1].role == "assistant",
        n=config.pop("candidateCount", 1),
        sampling=Sampling(**sampling, logprobs=logprobs),
        unset=unset,
        output=_gemini_rule(config),
        tools=tools,
        tool_choice=_gemini_choice(calling),
        reasoning=_gemini_thinking(config.pop("thinkingConfig", None)),
        options=Options(service_tier=plain.pop("serviceTier", "")),
    )
    unknown = [config, plain]
    assert unknown == [{}] * 2
    return request


def _gemini_rule(config: Json) -> OutputRule | None:
    kind, schema = config.pop("responseMimeType", None), config.pop("responseJsonSchema", None)
    if kind is None:
        return None
    assert kind == "application/json"
    return OutputRule("json_object") if schema is None else OutputRule("json_schema", json.dumps(schema))


def _gemini_choice(calling: Json) -> str:
    names = calling.get("allowedFunctionNames")
    if names:
        assert calling["mode"] == "ANY"
        return f"function:{names[0]}"
    return {"AUTO": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none"}[calling["mode"]]


def _gemini_thinking(config: Json | None) -> Reasoning | None:
    """Levels as efforts, budgets as budgets, and -1 as the model's own; shown thoughts as a summary."""
    if config is None:
        return None
    budget = config.get("thinkingBudget")
    return Reasoning(
        config.get("thinkingLevel", "").lower(),
        budget_tokens=budget if budget and budget > 0 else 0,
        adaptive=budget == -1,
        summary="shown" if config.get("includeThoughts") else "",
    )


def _gemini_turn(turn: Json, detail: str) -> Iterator[Message]:
    if turn["role"] == "model":
        said: list[Part | ToolCall] = []
        for part in turn["parts"]:
            seal = part.get("thoughtSignature", "")
            if (call := part.get("functionCall")) is not None:
                said.append(ToolCall(call["id"], call["name"], written(call["args"]), seal))
            elif part.get("thought") or seal:
                said.append(ThinkingPart(part["text"], seal))
            else:
                said.append(_gemini_part(part, detail))
        yield placed(said)
        return
    yield from _apart([_gemini_part(part, detail) for part in turn["parts"]])


def _gemini_part(part: Json, detail: str) -> Any:
    ((kind, value),) = part.items()
    match kind:
        case "text":
            return TextPart(value)
        case "inlineData" | "fileData":
            where = {"data": value["data"]} if kind == "inlineData" else {"url": value["fileUri"]}
            family, _, sub = value["mimeType"].partition("/")
            if family == "audio":
                return AudioPart(value["data"], sub)
            if family == "image":
                return ImagePart(**where, media_type=value["mimeType"], detail=detail)
            return FilePart(**where, media_type=value["mimeType"])
    assert kind == "functionResponse"
    ((outcome, text),) = value["response"].items()
    media = tuple(_gemini_part(one, detail) for one in value.get("parts", ()))
    content = ((TextPart(text),) if text else ()) + media
    return Message("tool", content, tool_call_id=value["id"], is_error=outcome == "error")
