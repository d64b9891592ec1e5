"""`/v1/chat/completions`: what callers send, and how it becomes a neutral ask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from interlace.engines.types import GenerateRequest, Message, OutputRule, Tool, ToolCall
from interlace.errors import InvalidRequest
from interlace.gateway.openai_chat_answer import ChatRendering
from interlace.gateway.openai_fields import (
    Count,
    SampledBody,
    check_stream_options,
    left_open,
    sampling_of,
    structured_rule,
    wants_usage,
)
from interlace.gateway.pipeline import Ask
from interlace.gateway.wire import Body, decode

FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]

# --- messages ----------------------------------------------------------------------------------------------------


class TextPart(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """A piece of text."""

    text: str
    prompt_cache_breakpoint: Any = None


class RefusalPart(Body, frozen=True, kw_only=True, tag="refusal", tag_field="type"):
    """What an assistant said when it refused."""

    refusal: str


class ImagePart(Body, frozen=True, kw_only=True, tag="image_url", tag_field="type"):
    """Known, and refused: the models served here take text only."""

    image_url: Any


class AudioPart(Body, frozen=True, kw_only=True, tag="input_audio", tag_field="type"):
    """Known, and refused."""

    input_audio: Any


class FilePart(Body, frozen=True, kw_only=True, tag="file", tag_field="type"):
    """Known, and refused."""

    file: Any


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[Part]


class SystemMessage(Body, frozen=True, kw_only=True, tag="system", tag_field="role"):
    """Instructions."""

    content: Content
    name: str | None = None


class DeveloperMessage(Body, frozen=True, kw_only=True, tag="developer", tag_field="role"):
    """Instructions, in OpenAI's newer word."""

    content: Content
    name: str | None = None


class UserMessage(Body, frozen=True, kw_only=True, tag="user", tag_field="role"):
    """What the user says."""

    content: Content
    name: str | None = None


class CalledFunction(Body, frozen=True, kw_only=True):
    """Which function, and its arguments as JSON text."""

    name: FunctionName
    arguments: str


class AssistantToolCall(Body, frozen=True, kw_only=True):
    """A call the assistant made earlier. `index` is accepted because clients echo streamed calls."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class AssistantMessage(Body, frozen=True, kw_only=True, tag="assistant", tag_field="role"):
    """What the assistant said. The fields from `refusal` on come back from clients that echo an answer."""

    content: Content | None = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(Body, frozen=True, kw_only=True, tag="tool", tag_field="role"):
    """What a called function returned."""

    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage

# --- tools and output --------------------------------------------------------------------------------------------


class FunctionTool(Body, frozen=True, kw_only=True):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body, frozen=True, kw_only=True):
    """A tool; functions are the only kind here."""

    type: Literal["function"]
    function: FunctionTool


class ChosenFunction(Body, frozen=True, kw_only=True):
    """The function that must be called."""

    name: FunctionName


class ChosenTool(Body, frozen=True, kw_only=True):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class TextFormat(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Free text."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class JsonSchema(Body, frozen=True, kw_only=True):
    """A named JSON schema."""

    name: FunctionName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag="json_schema", tag_field="type"):
    """JSON that follows a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class ChatBody(SampledBody, frozen=True, kw_only=True):
    """The body of a chat completion."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    # Known, and without effect here.
    metadata: dict[str, str] | None = None
    prediction: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None
    # Known, and refused unless they ask for nothing.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, ChatRendering]:
    """Read a chat completion's body."""
    chat = decode(body, _decoder)
    _refuse_what_we_cannot(chat, max_sequences)
    check_stream_options(chat)
    logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    tools = tuple(_tool(tool) for tool in chat.tools or ())
    request = GenerateRequest(
        id=request_id,
        messages=tuple(_message(message, f"messages[{i}]") for i, message in enumerate(chat.messages)),
        n=chat.n or 1,
        sampling=sampling_of(chat, max_tokens=_max_tokens(chat), logprobs=logprobs, prompt_logprobs=False),
        unset=left_open(chat),
        output=_output_rule(chat),
        tools=tools,
        tool_choice=_tool_choice(chat),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
    )
    rendering = ChatRendering(
        request_id,
        chat.model,
        request.n,
        stream=bool(chat.stream),
        usage=wants_usage(chat),
        logprobs=bool(chat.logprobs),
    )
    ask = Ask(model=chat.model, generate=(request,), input_param="messages", conversation=chat.prompt_cache_key or None)
    return ask, rendering


def _refuse_what_we_cannot(chat: ChatBody, max_sequences: int) -> None:
    if (chat.n or 1) > max_sequences:
        raise InvalidRequest(f"At most {max_sequences} answers to one request; 'n' is {chat.n}.", param="n")
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise InvalidRequest("This model makes text only: 'modalities' can only be [\"text\"].", param="modalities")
    for name, mend in (
        ("audio", "This model makes text only."),
        ("web_search_options", "There is no web search here."),
        ("functions", "'functions' is OpenAI's retired way; use 'tools'."),
        ("function_call", "'function_call' is OpenAI's retired way; use 'tool_choice'."),
    ):
        if getattr(chat, name) is not None:
            raise InvalidRequest(mend, param=name, code="unsupported_parameter")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")


def _max_tokens(chat: ChatBody) -> int | None:
    if chat.max_tokens == 0:
        raise InvalidRequest("Invalid value for 'max_tokens': expected 1 or more.", param="max_tokens")
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise InvalidRequest(
            "Give 'max_completion_tokens' or the older 'max_tokens', not both.", param="max_completion_tokens"
        )
    return chat.max_completion_tokens if chat.max_tokens is None else chat.max_tokens


def _message(message: ChatMessage, where: str) -> Message:
    match message:
        case ToolMessage():
            content = _text(message.content, where)
            return Message(role="tool", content=content, name=message.name, tool_call_id=message.tool_call_id)
        case AssistantMessage():
            return _assistant(message, where)
        case SystemMessage():
            return Message(role="system", content=_text(message.content, where), name=message.name)
        case DeveloperMessage():
            return Message(role="developer", content=_text(message.content, where), name=message.name)
        case UserMessage():
            return Message(role="user", content=_text(message.content, where), name=message.name)


def _assistant(message: AssistantMessage, where: str) -> Message:
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise InvalidRequest(
                f"'{name}' cannot be used here.", param=f"{where}.{name}", code="unsupported_parameter"
            )
    if message.content is None and not message.tool_calls and message.refusal is None:
        raise InvalidRequest(
            "An assistant message needs 'content' or 'tool_calls'.", param=f"{where}.content", code="invalid_value"
        )
    content = message.refusal or "" if message.content is None else _text(message.content, where)
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    return Message(role="assistant", content=content, name=message.name, tool_calls=calls)


def _text(content: Content, where: str) -> str:
    """Parts as one text, a line each."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        else:
            raise InvalidRequest(
                "This model takes text only.", param=f"{where}.content[{i}]", code="unsupported_content"
            )
    return "\n".join(texts)


def _tool(tool: ToolBody) -> Tool:
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters or {}, bool(function.strict))


def _tool_choice(chat: ChatBody) -> str:
    names = [tool.function.name for tool in chat.tools or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("Each tool needs a name of its own.", param="tools")
    choice = chat.tool_choice
    if choice is None:
        return "auto" if names else "none"
    if not names and choice != "none":
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if isinstance(choice, str):
        return choice
    if choice.function.name not in names:
        raise InvalidRequest(f"There is no tool named '{choice.function.name}' in 'tools'.", param="tool_choice")
    return f"function:{choice.function.name}"


def _output_rule(chat: ChatBody) -> OutputRule | None:
    rule = structured_rule(chat.structured_outputs)
    wanted = chat.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return rule
    if rule is not None:
        raise InvalidRequest("Give 'response_format' or 'structured_outputs', not both.", param="structured_outputs")
    if isinstance(wanted, JsonObjectFormat):
        return OutputRule("json_object")
    schema = wanted.json_schema.schema
    if schema is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema.schema'.",
            param="response_format.json_schema.schema",
            code="missing_required_parameter",
        )
    return OutputRule(
        "json_schema",
        msgspec.json.encode(schema).decode(),
        name=wanted.json_schema.name,
        description=wanted.json_schema.description or "",
        strict=bool(wanted.json_schema.strict),
    )
