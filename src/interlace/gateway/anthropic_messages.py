"""`/v1/messages`: a body as a neutral ask, and what Anthropic's words are for the neutral form's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.types import Scope

from interlace.engines.types import GenerateRequest, Options, OutputRule, Reasoning, Sampling, Tool
from interlace.errors import InvalidRequest
from interlace.gateway.anthropic_messages_answer import MessageRendering
from interlace.gateway.anthropic_messages_body import (
    ChoiceAuto,
    ChoiceNone,
    ChoiceTool,
    CountBody,
    JsonOutput,
    MessagesBody,
    ThinkingAdaptive,
    ThinkingBetweenTools,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolParam,
)
from interlace.gateway.anthropic_tables import MESSAGES
from interlace.gateway.anthropic_turns import prefills, turns_of
from interlace.gateway.calls import Ask
from interlace.gateway.translation import Words, carriers_of
from interlace.gateway.wire import decode

DIALECT = "anthropic.messages"
NATIVE = (
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallbacks",
    "inference_geo",
    "thread",
    "user_profile_id",
    "workspace_id",
)
"""Fields without a neutral form, for a provider that speaks this dialect; so are `speed` and some of `thinking`."""
_ASIDES = ("context_management", "diagnostics", "speed")
_ASIDE_OF_TOOLS = "tools[].eager_input_streaming"
"""Those of them that ask for nothing in the answer itself. What Claude Code sends with every request is among them."""
BETA = "anthropic-beta"
_BETA = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_BETAS = 64
_RUN_BY_CALLERS = re.compile(r"(bash|computer|memory|text_editor)_[0-9]{8}")
"""Tools that Anthropic's models know and callers run, by their versions."""
_OF_KINDS = ("display_height_px", "display_number", "display_width_px", "enable_zoom", "max_characters")
_NATIVE_OF_TOOLS = ("defer_loading", "eager_input_streaming", "input_examples")

CARRIERS = carriers_of({path.replace("cache_control.type", "cache_control"): place for path, place in MESSAGES.items()})
"""Where callers say the fields of the neutral form; one that is missing has no word here."""

_messages_decoder = msgspec.json.Decoder(MessagesBody)
_count_decoder = msgspec.json.Decoder(CountBody)


def parse_messages(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, MessageRendering]:  # noqa: ARG001 - one answer is one sequence
    """Read a message's body."""
    asked = _read(body, _messages_decoder)
    left_open = tuple(name for name in ("temperature", "top_p", "top_k") if getattr(asked, name) is None)
    request = msgspec.structs.replace(
        _request(asked, request_id),
        sampling=_sampling(asked),
        unset=(*left_open, "min_p", "repetition_penalty"),
        options=Options(
            service_tier=asked.service_tier or "",
            user=(asked.metadata.user_id or "") if asked.metadata else "",
        ),
    )
    return _ask(asked, request), MessageRendering(request_id, asked.model, stream=bool(asked.stream))


def parse_count(body: bytes, request_id: str) -> Ask:
    """Read a count's body."""
    asked = _read(body, _count_decoder)
    return _ask(asked, _request(asked, request_id))


def with_betas(ask: Ask, scope: Scope) -> Ask:
    """The ask with what the header `anthropic-beta` switches on, for a provider that speaks this dialect. Raises
    `InvalidRequest` for a header that is no list of names."""
    given = b",".join(value for name, value in scope["headers"] if name == BETA.encode()).decode("latin-1")
    betas = list(dict.fromkeys(beta.strip() for beta in given.split(",") if beta.strip()))
    if not betas:
        return ask
    if len(betas) > _MOST_BETAS or not all(_BETA.fullmatch(beta) for beta in betas):
        raise InvalidRequest(
            f"The header {BETA} takes at most {_MOST_BETAS} names, separated by commas, of letters, digits and . _ -",
            param=BETA,
        )
    (request,) = ask.generate
    native, asides = {**request.native, BETA: ",".join(betas)}, (*request.asides, BETA)
    return msgspec.structs.replace(ask, generate=(msgspec.structs.replace(request, native=native, asides=asides),))


def _read(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        asked: CountBody = decode(body, decoder)
    except InvalidRequest as error:
        if error.param and error.param.startswith("tools["):
            _refuse_server_tools(body)
        raise
    if asked.mcp_servers:
        raise InvalidRequest(
            "'mcp_servers' cannot be used here: this server calls no others for a model. Call the tool yourself and "
            "offer it in 'tools'.",
            param="mcp_servers",
            code="unsupported_parameter",
        )
    return asked


def _refuse_server_tools(body: bytes) -> None:
    """Say of a tool that Anthropic runs that it is none of ours, rather than which of its fields is unknown."""
    for i, tool in enumerate(msgspec.json.decode(body)["tools"]):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str):
            _refuse_unless_run_by_callers(kind, i)


def _refuse_unless_run_by_callers(kind: str, index: int) -> None:
    if kind != "custom" and not _RUN_BY_CALLERS.fullmatch(kind):
        raise InvalidRequest(
            f"The tool type '{kind[:64]}' cannot be used here: tools are run by the caller. Describe it as a "
            "custom tool, with an input_schema.",
            param=f"tools[{index}].type",
            code="unsupported_parameter",
        )


def _ask(asked: CountBody, request: GenerateRequest) -> Ask:
    return Ask(asked.model, (request,), input_param="messages", words=Words(CARRIERS, asked))


def _request(asked: CountBody, request_id: str) -> GenerateRequest:
    """What the model reads, and how it is to answer, without what only a message says."""
    prefill = prefills(asked.messages)
    output = _output_rule(asked)
    if prefill and output is not None:
        raise InvalidRequest(
            "The last message cannot be the assistant's where the answer has a format: leave out its beginning, or "
            "'output_config.format'.",
            param="messages",
        )
    tools = tuple(_tool(tool, i) for i, tool in enumerate(asked.tools or ()))
    native = _native(asked)
    return GenerateRequest(
        id=request_id,
        messages=turns_of(asked),
        output=output,
        tools=tools,
        tool_choice=_tool_choice(asked),
        parallel_tool_calls=not getattr(asked.tool_choice, "disable_parallel_tool_use", None),
        prefill=prefill,
        reasoning=_reasoning(asked),
        dialect=DIALECT,
        native=native,
        asides=_asides(asked, native, tools),
    )


def _sampling(asked: MessagesBody) -> Sampling:
    return Sampling(
        max_tokens=asked.max_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else max(asked.top_p, 1e-9),  # 0 means the single most likely token
        top_k=asked.top_k or 0,
        stop=tuple(asked.stop_sequences or ()),
    )


def _native(asked: CountBody) -> Mapping[str, Any]:
    native = {name: value for name in NATIVE if (value := getattr(asked, name, None)) is not None}
    if asked.speed == "fast":  # the other speed is what everybody gets
        native["speed"] = asked.speed
    thinking = asked.thinking
    if isinstance(thinking, ThinkingBetweenTools) or (isinstance(thinking, ThinkingDisabled) and _effort(asked)):
        native["thinking"] = msgspec.to_builtins(thinking)
    return native


def _asides(asked: CountBody, native: Mapping[str, Any], tools: Sequence[Tool]) -> tuple[str, ...]:
    """What of `native`, and of the tools' own, is about how Anthropic's models go about it."""
    asides = [name for name in _ASIDES if name in native]
    if "thinking" in native and isinstance(asked.thinking, ThinkingDisabled):
        asides.append("thinking")
    if any("eager_input_streaming" in tool.native for tool in tools):
        asides.append(_ASIDE_OF_TOOLS)
    return tuple(asides)


def _effort(asked: CountBody) -> str:
    return (asked.output_config.effort or "") if asked.output_config else ""


def _reasoning(asked: CountBody) -> Reasoning | None:
    effort = _effort(asked)
    match asked.thinking:
        case ThinkingEnabled(budget_tokens=budget, display=display):
            return Reasoning(effort, budget_tokens=budget, summary=display or "")
        case ThinkingAdaptive(display=display):
            return Reasoning(effort, adaptive=True, summary=display or "")
        case ThinkingDisabled():
            return Reasoning(effort or "none")
    return Reasoning(effort) if effort else None


def _output_rule(asked: CountBody) -> OutputRule | None:
    wanted: JsonOutput | None = asked.output_config.format if asked.output_config else None
    if wanted is not None and asked.output_format is not None:
        raise InvalidRequest(
            "Give 'output_config.format' or the older 'output_format', not both.", param="output_format"
        )
    wanted = wanted or asked.output_format
    return None if wanted is None else OutputRule("json_schema", msgspec.json.encode(wanted.schema).decode())


def _tool(tool: ToolParam, index: int) -> Tool:
    native = {name: value for name in _NATIVE_OF_TOOLS if (value := getattr(tool, name))}
    if tool.allowed_callers not in (None, ["direct"]):
        native["allowed_callers"] = tool.allowed_callers
    cache = "" if tool.cache_control is None else tool.cache_control.ttl or "default"
    kind = tool.type or "custom"
    _refuse_unless_run_by_callers(kind, index)
    own = {name: value for name in _OF_KINDS if (value := getattr(tool, name)) is not None}
    if kind != "custom":
        for name in ("input_schema", "description"):
            if getattr(tool, name) is not None:
                raise InvalidRequest(f"A tool of type '{kind}' has its own '{name}'.", param=f"tools[{index}].{name}")
        return Tool(tool.name, strict=bool(tool.strict), cache=cache, native=native | own, kind=kind)
    for name in own:
        raise InvalidRequest(f"Unknown parameter of a custom tool: '{name}'.", param=f"tools[{index}].{name}")
    if tool.input_schema is None:
        raise InvalidRequest(
            "A custom tool needs an 'input_schema'.",
            param=f"tools[{index}].input_schema",
            code="missing_required_parameter",
        )
    if tool.input_schema.get("type", "object") != "object":
        raise InvalidRequest(
            "A tool's input is an object: its schema needs type 'object'.", param=f"tools[{index}].input_schema.type"
        )
    return Tool(tool.name, tool.description or "", tool.input_schema, bool(tool.strict), cache, native)


def _tool_choice(asked: CountBody) -> str:
    names = [tool.name for tool in asked.tools or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("Each tool needs a name of its own.", param="tools")
    choice = asked.tool_choice
    if choice is None or isinstance(choice, ChoiceNone):
        return "none" if choice is not None or not names else "auto"
    if not names:
        raise InvalidRequest("'tool_choice' may only be given together with 'tools'.", param="tool_choice")
    if isinstance(choice, ChoiceAuto):
        return "auto"
    if not isinstance(choice, ChoiceTool):
        return "required"
    if choice.name not in names:
        raise InvalidRequest(f"There is no tool named '{choice.name[:128]}' in 'tools'.", param="tool_choice.name")
    return f"function:{choice.name}"
