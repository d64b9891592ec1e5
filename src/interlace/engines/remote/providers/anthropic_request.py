"""A neutral request in the words of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.providers.anthropic_turns import mark_of, turns_of
from interlace.engines.types import GenerateRequest, OutputRule, Reasoning, Sampling, Tool
from interlace.errors import InvalidRequest

DIALECT, BETA = "anthropic.messages", "anthropic-beta"
DEFAULT_MAX_TOKENS = 8192
"""The bound sent for a request without one: the API wants one, and all its models can say so much."""

_TIERS = dict.fromkeys(("auto", "priority", "fast", "ultrafast", "scale"), "auto")
_DISPLAYS = {"omitted": "omitted", "none": "omitted", "updates": "updates"}
_NOTHING = {"type": "object", "properties": {}}
_PLAIN = Sampling()
_COUNTED = (
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "speed",
    "context_management",
    "compaction",
    "user_profile_id",
    "workspace_id",
)


def message_body(request: GenerateRequest, settings: ModelSettings) -> dict[str, Any]:
    """The JSON body of a message. Raises `InvalidRequest`, naming the field, for what the API does not know."""
    _refuse(request)
    system, turns = turns_of(request.messages or ())
    body: dict[str, Any] = {"model": settings.model, "messages": turns}
    if system:
        body["system"] = system
    _add_sampling(body, request)
    _add_reasoning(body, request)
    _add_tools(body, request)
    if request.output is not None:
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": _schema(request.output)}
    _add_options(body, request)
    if settings.stream:
        body["stream"] = True
    if request.dialect == DIALECT:
        body.update({name: value for name, value in request.native.items() if name != BETA})
    return body


def betas_of(request: GenerateRequest) -> str:
    """What the caller switched on by Anthropic's header for that."""
    return str(request.native.get(BETA, "")) if request.dialect == DIALECT else ""


def count_body(request: GenerateRequest, settings: ModelSettings) -> dict[str, Any]:
    """The JSON body of a count: what of a message the model reads."""
    body = message_body(request, settings)
    return {name: body[name] for name in _COUNTED if name in body}


def _refuse(request: GenerateRequest) -> None:
    """What no field of the API can say, and what it would understand otherwise than it was meant."""
    if request.messages is None:
        raise InvalidRequest(
            "This model only takes conversations. Use 'messages'.", param="prompt", code="unsupported_parameter"
        )
    if request.n != 1:
        raise InvalidRequest("This model answers once: 'n' can only be 1.", param="n", code="unsupported_parameter")
    refuse_unasked_prefill(request)
    if request.prefill and request.output is not None:
        raise InvalidRequest(
            "This model cannot go on with an answer that has a format. Leave out the beginning of the answer, or the "
            "format.",
            param="messages",
            code="unsupported_parameter",
        )
    sampling = request.sampling
    if sampling.temperature > 1:
        raise InvalidRequest(
            f"This model takes temperatures from 0 to 1, not {sampling.temperature:g}.",
            param="temperature",
            code="invalid_value",
        )


def refuse_unasked_prefill(request: GenerateRequest) -> None:
    """Raise `InvalidRequest` for a last turn of the assistant's where the caller did not say to go on with it."""
    if request.messages and request.messages[-1].role == "assistant" and not request.prefill:
        raise InvalidRequest(
            "This model would go on with the last message, because it is the assistant's. Let a user's message be the "
            "last, or ask for the answer to go on ('continue_final_message').",
            param="messages",
        )


def _add_sampling(body: dict[str, Any], request: GenerateRequest) -> None:
    sampling = request.sampling
    most = sampling.max_tokens
    if most is None:
        thoughts = request.reasoning.budget_tokens if request.reasoning is not None else 0
        most = DEFAULT_MAX_TOKENS + thoughts
    body["max_tokens"] = most
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(sampling, name)
        if name not in request.unset and value != getattr(
            _PLAIN, name
        ):  # newer models refuse even what changes nothing
            body[name] = value
    if sampling.stop:
        body["stop_sequences"] = list(sampling.stop)


def _add_reasoning(body: dict[str, Any], request: GenerateRequest) -> None:
    reasoning = request.reasoning
    if reasoning is None:
        return
    if reasoning.effort not in ("", "none"):
        body["output_config"] = {"effort": "low" if reasoning.effort == "minimal" else reasoning.effort}
    forced = request.prefill or request.tool_choice.partition(":")[0] in {"required", "function"}
    thinking = _thinking(reasoning, willing=request.dialect != DIALECT and not forced)
    if thinking:
        if reasoning.summary and thinking["type"] != "disabled":
            thinking["display"] = _DISPLAYS.get(reasoning.summary, "summarized")
        body["thinking"] = thinking


def _thinking(reasoning: Reasoning, *, willing: bool) -> dict[str, Any]:
    """How the model is to think. `willing`: an effort alone asks for it, as it does in every dialect but Anthropic's;
    not where the answer's beginning is given or a tool is forced, because the API takes no thoughts there."""
    if reasoning.budget_tokens:
        return {"type": "enabled", "budget_tokens": reasoning.budget_tokens}
    if reasoning.effort == "none":
        return {"type": "disabled"}
    if reasoning.adaptive or (willing and (reasoning.effort or reasoning.summary)):
        return {"type": "adaptive"}
    return {}


def _add_tools(body: dict[str, Any], request: GenerateRequest) -> None:
    if not request.tools:
        return
    body["tools"] = [_tool(tool, own=request.dialect == DIALECT) for tool in request.tools]
    kind, _, name = request.tool_choice.partition(":")
    choice: dict[str, Any] = {"type": {"required": "any", "function": "tool"}.get(kind, kind)}
    if name:
        choice["name"] = name
    if not request.parallel_tool_calls and kind != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        body["tool_choice"] = choice


def _tool(tool: Tool, *, own: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": tool.name}
    if tool.kind:
        body["type"] = tool.kind
    else:
        body["input_schema"] = {"type": "object", **tool.parameters} if tool.parameters else _NOTHING
    if tool.description:
        body["description"] = tool.description
    if tool.strict:
        body["strict"] = True
    if tool.cache:
        body["cache_control"] = mark_of(tool.cache)
    return body | dict(tool.native) if own else body


def _schema(output: OutputRule) -> dict[str, Any]:
    """The schema as an object: text from a caller never goes into a body unread."""
    if output.kind != "json_schema":
        raise InvalidRequest(
            "This model's answers can only be held to a JSON schema.",
            param="response_format" if output.kind == "json_object" else "structured_outputs",
            code="unsupported_parameter",
        )
    try:
        schema = msgspec.json.decode(output.rule)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("The JSON schema is not a JSON object.", param="response_format", code="invalid_value")
    return schema


def _add_options(body: dict[str, Any], request: GenerateRequest) -> None:
    options = request.options
    if user := options.user or options.safety_identifier:
        body["metadata"] = {"user_id": user}
    if options.service_tier:
        body["service_tier"] = _TIERS.get(options.service_tier, "standard_only")
