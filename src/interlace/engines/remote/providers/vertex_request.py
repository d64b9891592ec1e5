"""A neutral request in the words of Gemini's generateContent."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from interlace.engines.remote.providers.anthropic_request import refuse_unasked_prefill
from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
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

# What Google's guide says to send with a call that the model did not make itself, such as one of another model.
UNSIGNED = "skip_thought_signature_validator"

_INSTRUCTIONS = {"system", "developer"}
_TIERS = {"flex": "flex", "priority": "priority", "default": "standard"}
_DETAILS = {"low": "MEDIA_RESOLUTION_LOW", "medium": "MEDIA_RESOLUTION_MEDIUM", "high": "MEDIA_RESOLUTION_HIGH"}
_LEVELS = {"none": "MINIMAL", "minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM"}
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192}  # as Google's own OpenAI endpoint takes them
_MOST_BUDGET = 24576


def generate_body(request: GenerateRequest, model: str) -> Json:
    """The JSON body of a request to `model`. Raises `InvalidRequest`, naming the field, for what Gemini cannot say."""
    refuse_unasked_prefill(request)
    body = prompt_body(request, model)
    if request.tools and (config := _tool_config(request)):
        body["toolConfig"] = {"functionCallingConfig": config}
    config = _generation(request)
    if resolution := _resolution(request.messages or ()):
        config["mediaResolution"] = resolution
    if request.output is not None:
        config |= _output(request.output)
    if request.reasoning is not None and (thinking := _thinking(request.reasoning, model)):
        config["thinkingConfig"] = thinking
    if config:
        body["generationConfig"] = config
    if tier := _TIERS.get(request.options.service_tier):
        body["serviceTier"] = tier
    return body


def prompt_body(request: GenerateRequest, model: str) -> Json:
    """What the model reads: contents, instructions, tools."""
    messages = request.messages or ()
    body: Json = {"contents": _Turns(messages, model).of(messages)}
    if system := list(_system(messages)):
        body["systemInstruction"] = {"parts": system}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_tool(tool) for tool in request.tools]}]
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


class _Turns:
    """The turns of one conversation. What one side says in a row is one turn, results of calls among it."""

    def __init__(self, messages: Iterable[Message], model: str) -> None:
        self._names = {call.id: call.name for message in messages for call in message.tool_calls}
        self._seals = not _is_second(model)

    def of(self, messages: Iterable[Message]) -> list[Json]:
        turns: list[Json] = []
        for message in messages:
            if message.role in _INSTRUCTIONS:
                continue
            role = "model" if message.role == "assistant" else "user"
            parts = list(self._parts(message))
            if not parts:
                continue
            if turns and turns[-1]["role"] == role:
                turns[-1]["parts"] += parts
            else:
                turns.append({"role": role, "parts": parts})
        return turns

    def _parts(self, message: Message) -> Iterator[Json]:
        if message.role == "tool":
            yield self._result(message)
            return
        for one in message.sequence:
            if not isinstance(one, ToolCall):
                yield from _part(one)
                continue
            made: Json = {"functionCall": {"id": one.id, "name": one.name, "args": _arguments(one.arguments)}}
            if one.signature:
                made["thoughtSignature"] = one.signature
            elif one is message.tool_calls[0] and self._seals:
                made["thoughtSignature"] = UNSIGNED
            yield made

    def _result(self, message: Message) -> Json:
        id = message.tool_call_id or ""
        if id not in self._names:
            raise _wrong(f"There is no call {id[:64]!r} that this result could be of.")
        texts: list[str] = []
        media: list[Json] = []
        for part in message.parts:
            if isinstance(part, ImagePart) or (isinstance(part, FilePart) and not part.text):
                media += _part(part)
            else:
                texts += [made["text"] for made in _part(part)]
        response: Json = {"id": id, "name": self._names[id]}
        response["response"] = {"error" if message.is_error else "output": "\n".join(texts)}
        if media:
            response["parts"] = media
        return {"functionResponse": response}


def _part(part: Part) -> Iterator[Json]:
    match part:
        case TextPart() | RefusalPart():
            if part.text:
                yield {"text": part.text}
        case ThinkingPart():
            yield from _thought(part)
        case ImagePart():
            yield _medium(part.data, part.media_type, part.url)
        case FilePart():
            if part.text:
                yield {"text": f"{part.name}:\n{part.text}" if part.name else part.text}
            else:
                yield _medium(part.data, part.media_type, part.url)
        case AudioPart():
            yield _medium(part.data, f"audio/{part.format}", "")


def _thought(part: ThinkingPart) -> Iterator[Json]:
    text = part.text or "\n".join(part.summary)
    if text:
        made: Json = {"text": text, "thought": True}
    elif part.signature:
        made = {"text": ""}
    else:
        return
    if part.signature:
        made["thoughtSignature"] = part.signature
    yield made


def _medium(data: str, media_type: str, url: str) -> Json:
    """A picture, document or sound, whole or by its address."""
    if not url:
        return {"inlineData": {"mimeType": media_type, "data": data}}
    told = media_type or mimetypes.guess_type(urlsplit(url).path)[0]
    if not told:
        raise _wrong("The address does not end in what it is, such as .png or .pdf. Send the content as a data URL.")
    return {"fileData": {"mimeType": told, "fileUri": url}}


def _arguments(arguments: str) -> Any:
    """Arguments of a call as they are, once they are known to be a JSON object; digits and order stay."""
    raw = arguments.strip() or "{}"
    try:
        if isinstance(msgspec.json.decode(raw), dict):
            return msgspec.Raw(raw.encode())
    except (ValueError, RecursionError):
        pass
    raise _wrong("Arguments of a tool call are a JSON object.")


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(what, param="messages", code="invalid_value")


# --- tools and wishes --------------------------------------------------------------------------------------------


def _tool(tool: Tool) -> Json:
    made: Json = {"name": tool.name}
    if tool.description:
        made["description"] = tool.description
    if tool.parameters:
        made["parametersJsonSchema"] = dict(tool.parameters)
    return made


def _tool_config(request: GenerateRequest) -> Json:
    kind, _, name = request.tool_choice.partition(":")
    if kind == "function":
        return {"mode": "ANY", "allowedFunctionNames": [name]}
    if kind in {"none", "required"}:
        return {"mode": "NONE" if kind == "none" else "ANY"}
    return {"mode": "VALIDATED"} if any(tool.strict for tool in request.tools) else {}


def _generation(request: GenerateRequest) -> Json:
    sampling = request.sampling
    config: Json = {}
    if sampling.max_tokens is not None:
        config["maxOutputTokens"] = sampling.max_tokens
    if "temperature" not in request.unset:
        config["temperature"] = sampling.temperature
    if "top_p" not in request.unset:
        config["topP"] = sampling.top_p
    if "top_k" not in request.unset and sampling.top_k:
        config["topK"] = sampling.top_k
    if sampling.presence_penalty:
        config["presencePenalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        config["frequencyPenalty"] = sampling.frequency_penalty
    if sampling.seed is not None:
        config["seed"] = sampling.seed
    if sampling.stop:
        config["stopSequences"] = list(sampling.stop)
    if sampling.logprobs is not None:
        config["responseLogprobs"] = True
        if sampling.logprobs:
            config["logprobs"] = sampling.logprobs
    if request.n != 1:
        config["candidateCount"] = request.n
    return config


def _resolution(messages: Iterable[Message]) -> str:
    asked = {part.detail for message in messages for part in message.parts if isinstance(part, ImagePart)}
    return next((_DETAILS[detail] for detail in ("high", "medium", "low") if detail in asked), "")


def _output(rule: OutputRule) -> Json:
    config: Json = {"responseMimeType": "application/json"}
    if rule.kind == "json_schema":
        config["responseJsonSchema"] = _schema(rule)
    return config


def _schema(rule: OutputRule) -> Mapping[str, Any]:
    try:
        schema = msgspec.json.decode(rule.rule)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("The JSON schema is not a JSON object.", param="response_format", code="invalid_value")
    return {"description": rule.description, **schema} if rule.description else schema


def _thinking(reasoning: Reasoning, model: str) -> Json:
    effort, config = reasoning.effort, Json()
    if reasoning.budget_tokens:
        config["thinkingBudget"] = reasoning.budget_tokens
    elif effort and _is_second(model):
        config["thinkingBudget"] = _BUDGETS.get(effort, _MOST_BUDGET)
    elif effort:
        config["thinkingLevel"] = _LEVELS.get(effort, "HIGH")
    elif reasoning.adaptive:
        config["thinkingBudget"] = -1
    shown = bool(reasoning.summary or reasoning.budget_tokens or reasoning.adaptive)
    if shown and reasoning.summary not in {"omitted", "none"}:
        config["includeThoughts"] = True
    return config


def _is_second(model: str) -> bool:
    """Whether it is of Gemini's second generation, which has budgets where later ones have levels, and demands no
    signatures."""
    return model.rpartition("/")[2].startswith("gemini-2")
