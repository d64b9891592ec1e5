"""`/v1/responses`: a body as a neutral ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from interlace.engines.types import GenerateRequest, Message, Options, OutputRule, Reasoning, Sampling, Tool
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask
from interlace.gateway.responses_body import (
    CALL_FIELDS_ELSEWHERE,
    ENVIRONMENTS_ELSEWHERE,
    FIELDS_ELSEWHERE,
    ITEMS_ELSEWHERE,
    TOOL_FIELDS_ELSEWHERE,
    TOOLS_ELSEWHERE,
    AllowedTools,
    AnyObjectFormat,
    Chosen,
    CustomToolBody,
    FunctionToolBody,
    InputDocumentPart,
    Item,
    MessageItem,
    ReferenceItem,
    ResponsesBody,
    SchemaFormat,
    ToolBody,
)
from interlace.gateway.responses_ids import response_id
from interlace.gateway.responses_items import check_calls, messages_of
from interlace.gateway.responses_rendering import ResponseRendering
from interlace.gateway.responses_table import RESPONSES
from interlace.gateway.translation import Words, carriers_of
from interlace.gateway.wire import convert, decode

DIALECT = "openai.responses"
NATIVE = ("access_programs", "context_management", "image", "moderation", "prompt_cache_options")
"""Fields without a neutral form, for a provider that speaks this dialect."""

CARRIERS = carriers_of(RESPONSES)
"""Where callers say the fields of the neutral form; one that is missing goes by the same name."""

_any = msgspec.json.Decoder()


def read_body(body: bytes) -> ResponsesBody:
    """The body, with what runs at OpenAI only refused by its name; raises `InvalidRequest`."""
    value = decode(body, _any)
    if isinstance(value, dict):
        _refuse_elsewhere(value)
        value = {**value, "input": _typed(value.get("input"))} if "input" in value else value
    read = convert(value, ResponsesBody)
    if read.background and read.store is False:
        raise InvalidRequest(
            "Background mode needs 'store' to be true: nobody could ask for the answer.", param="store"
        )
    if read.stream_options is not None and not read.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    return read


def references_of(body: ResponsesBody) -> list[str]:
    """Ids of the items that are only named."""
    items = () if isinstance(body.input, str) else body.input
    return [item.id for item in items if isinstance(item, ReferenceItem)]


def ask_of(
    body: ResponsesBody, request_id: str, history: Sequence[Item], known: Mapping[str, Item]
) -> tuple[Ask, ResponseRendering]:
    """What the body asks: `history` are the items of the responses before it, `known` those that it refers to."""
    items: list[Item] = (
        [MessageItem(role="user", content=body.input)]
        if isinstance(body.input, str)
        else [known[item.id] if isinstance(item, ReferenceItem) else item for item in body.input]
    )
    instructions = (Message("system", body.instructions),) if body.instructions else ()
    given = messages_of(items)
    messages = (*instructions, *messages_of(history), *given)
    check_calls(messages)
    offered, choice = _tools(body)
    text, reasoning = body.text, body.reasoning
    request = GenerateRequest(
        id=request_id,
        messages=messages,
        sampling=Sampling(
            max_tokens=body.max_output_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0 means the single most likely token
            logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
        ),
        unset=_left_open(body),
        output=_output_rule(body),
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=None
        if reasoning is None
        else Reasoning(reasoning.effort or "", summary=reasoning.summary or reasoning.generate_summary or ""),
        options=Options(
            verbosity="" if text is None else text.verbosity or "",
            service_tier=body.service_tier or "",
            user=body.user or "",
            safety_identifier=body.safety_identifier or "",
            cache_key=body.prompt_cache_key or "",
            cache_retention=(body.prompt_cache_retention or "").replace("-", "_"),
            metadata=body.metadata or {},
        ),
        dialect=DIALECT,
        native=_native(body),
        asides=() if body.prompt_cache_options is None else ("prompt_cache_options",),
    )
    rendering = ResponseRendering.of(response_id(request_id), body, given=len(given))
    return Ask(
        body.model, (request,), input_param="input", words=Words(CARRIERS, body), unused=_unused(body, items)
    ), rendering


def _native(body: ResponsesBody) -> dict[str, Any]:
    native = {name: value for name in NATIVE if (value := getattr(body, name)) is not None}
    if body.reasoning is not None and body.reasoning.context not in (None, "auto"):
        native["reasoning.context"] = body.reasoning.context
    return native


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether the answer comes with logprobs."""
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _unused(body: ResponsesBody, items: Sequence[Item]) -> tuple[str, ...]:
    """What nothing here has a use for: no tool runs here, and phases of an answer are not told apart."""
    messages = [item for item in items if isinstance(item, MessageItem)]
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    unused = {
        "max_tool_calls": body.max_tool_calls is not None,
        "client_metadata": body.client_metadata is not None,
        "input[].phase": any(message.phase is not None for message in messages),
        "input[].content[].detail": any(isinstance(part, InputDocumentPart) and part.detail for part in parts),
    }
    return tuple(name for name, said in unused.items() if said)


def _left_open(body: ResponsesBody) -> tuple[str, ...]:
    open_here = tuple(name for name in ("temperature", "top_p") if getattr(body, name) is None)
    return (*open_here, "top_k", "min_p", "repetition_penalty")


# --- what runs at OpenAI -----------------------------------------------------------------------------------------


def _refuse_elsewhere(value: dict[str, Any]) -> None:
    for name, mend in FIELDS_ELSEWHERE.items():
        if value.get(name) is not None:
            raise _unsupported(mend, name)
    if value.get("truncation") == "auto":
        raise _unsupported(
            "Nothing is dropped from a conversation here. Leave out 'truncation', and begin anew with a summary when "
            "the context is full.",
            "truncation",
        )
    for number, tool in enumerate(_dicts(value.get("tools"))):
        _refuse_tool(tool.get("type"), f"tools[{number}].type")
        _refuse_fields(tool, TOOL_FIELDS_ELSEWHERE, f"tools[{number}]")
        where = tool.get("environment")
        if isinstance(where, dict) and where.get("type") in ENVIRONMENTS_ELSEWHERE:
            raise _unsupported(
                "Containers run at OpenAI. Leave 'environment' out, and run the commands yourself.",
                f"tools[{number}].environment.type",
            )
    choice = value.get("tool_choice")
    if isinstance(choice, dict):
        _refuse_tool(choice.get("type"), "tool_choice.type")
        for number, tool in enumerate(_dicts(choice.get("tools"))):
            _refuse_tool(tool.get("type"), f"tool_choice.tools[{number}].type")
    for number, item in enumerate(_dicts(value.get("input"))):
        kind = item.get("type")
        if isinstance(kind, str) and kind in ITEMS_ELSEWHERE:
            raise _unsupported(
                f"Items of type '{kind}' belong to tools that run at OpenAI. Send what they hold as messages, or as "
                "calls of your own functions.",
                f"input[{number}].type",
            )
        _refuse_fields(item, CALL_FIELDS_ELSEWHERE, f"input[{number}]")


def _refuse_fields(value: dict[str, Any], elsewhere: Mapping[str, str], where: str) -> None:
    """Refuse these fields of an object, unless they ask for nothing."""
    for name, mend in elsewhere.items():
        if value.get(name) not in (None, False, ["direct"]):
            raise _unsupported(mend, f"{where}.{name}")


def _refuse_tool(kind: object, param: str) -> None:
    known = TOOLS_ELSEWHERE.get(kind) if isinstance(kind, str) else None
    if known is None and isinstance(kind, str):
        known = next((mend for name, mend in TOOLS_ELSEWHERE.items() if kind.startswith(f"{name}_2")), None)
    if known is not None:
        raise _unsupported(f"The tool '{kind}' runs at OpenAI, not here. {known}", param)


def _typed(given: Any) -> Any:
    """Items with their type, where it may be left out."""
    if not isinstance(given, list):
        return given
    return [_with_type(item) if isinstance(item, dict) and item.get("type") is None else item for item in given]


def _with_type(item: dict[str, Any]) -> dict[str, Any]:
    if "role" in item or "content" in item:
        return {**item, "type": "message"}
    return {**item, "type": "item_reference"} if set(item) <= {"id", "type"} else item


def _dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; an empty object in place of anything else, so that numbers stay right."""
    return [one if isinstance(one, dict) else {} for one in value] if isinstance(value, list) else []


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' cannot be used here: {message}", param=param, code="unsupported_parameter")


# --- tools and output --------------------------------------------------------------------------------------------


def _tools(body: ResponsesBody) -> tuple[tuple[Tool, ...], str]:
    """The tools that are offered, and how the model is to choose."""
    tools = {tool.name: tool for tool in map(_tool, body.tools or ())}
    if len(tools) != len(body.tools or ()):
        raise InvalidRequest("Each tool needs a name of its own.", param="tools")
    choice = body.tool_choice
    if choice is None:
        choice = "auto"
    elif not tools and (choice == "required" or not isinstance(choice, str)):
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if isinstance(choice, AllowedTools):
        names = [_known(one, tools) for one in choice.tools]
        return tuple(tools[name] for name in dict.fromkeys(names)), choice.mode
    offered = tuple(tools.values())
    if isinstance(choice, str):
        return offered, choice if tools else "none"
    return offered, f"function:{_known(choice, tools)}"


def _known(chosen: Chosen, tools: Mapping[str, Tool]) -> str:
    name = getattr(chosen, "name", None) or str(chosen.__struct_config__.tag)
    if name not in tools:
        raise InvalidRequest(f"There is no tool named '{name}' in 'tools'.", param="tool_choice")
    return name


def _tool(tool: ToolBody) -> Tool:
    if isinstance(tool, CustomToolBody):
        native = {} if tool.format is None else {"format": msgspec.to_builtins(tool.format)}
        return Tool(tool.name, tool.description or "", native=native, kind="custom")
    if not isinstance(tool, FunctionToolBody):
        kind = str(tool.__struct_config__.tag)
        said = {
            name: value for name, value in msgspec.to_builtins(tool).items() if name not in {"type", "allowed_callers"}
        }
        return Tool(kind, native=said, kind=kind)
    parameters = tool.parameters or {}
    strict = _can_be_strict(parameters) if tool.strict is None else tool.strict
    return Tool(tool.name, tool.description or "", parameters, strict)


def _can_be_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object in it names all it may have, and requires it."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            if not _names_all(one):
                return False
            waiting += one.values()
    return True


def _names_all(schema: dict[str, Any]) -> bool:
    if schema.get("type") != "object" and "properties" not in schema:
        return True
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
        return False
    return isinstance(required, list) and not set(properties) - {name for name in required if isinstance(name, str)}


def _output_rule(body: ResponsesBody) -> OutputRule | None:
    wanted = None if body.text is None else body.text.format
    if isinstance(wanted, AnyObjectFormat):
        return OutputRule("json_object")
    if not isinstance(wanted, SchemaFormat):
        return None
    return OutputRule(
        "json_schema",
        msgspec.json.encode(wanted.schema).decode(),
        name=wanted.name,
        description=wanted.description or "",
        strict=bool(wanted.strict),
    )
