"""`/v1/chat/completions`: a body as a neutral ask."""

from __future__ import annotations

from typing import Any

import msgspec

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
    RefusalPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask
from interlace.gateway.media import IMAGE_TYPES, base64_text, data_url, document, file_id, file_name, remote_url
from interlace.gateway.openai_chat_answer import ChatRendering
from interlace.gateway.openai_chat_body import (
    AssistantMessage,
    AssistantToolCall,
    CalledCustom,
    ChatBody,
    ChatMessage,
    ChosenCustomTool,
    ChosenTool,
    Content,
    ContentPart,
    CustomToolBody,
    DeveloperMessage,
    GrammarFormat,
    ImageUrlPart,
    InputAudioPart,
    InputFile,
    InputFilePart,
    JsonObjectFormat,
    SystemMessage,
    TextFormat,
    ThinkingBlock,
    ToolBody,
    ToolMessage,
    ToolsAllowed,
    UserMessage,
    WireRefusalPart,
    WireTextPart,
)
from interlace.gateway.openai_fields import (
    check_stream_options,
    left_open,
    sampling_of,
    structured_rule,
    wants_usage,
)
from interlace.gateway.openai_tables import CHAT
from interlace.gateway.seals import unnamed_seal
from interlace.gateway.translation import Words, carriers_of
from interlace.gateway.wire import decode

DIALECT = "openai.chat"
NATIVE = ("moderation", "prediction", "prompt_cache_options")
"""Fields without a neutral form, for a provider that speaks this dialect."""
_ASIDES = ("prediction", "prompt_cache_options")
"""Those of them that ask for nothing in the answer itself."""

CARRIERS = carriers_of(CHAT)
"""Where callers say the fields of the neutral form; one that is missing goes by the same name."""

_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, ChatRendering]:
    """Read a chat completion's body."""
    chat = decode(body, _decoder)
    _refuse_what_we_cannot(chat, max_sequences)
    check_stream_options(chat)
    logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    tools, choice = _tools(chat)
    request = GenerateRequest(
        id=request_id,
        messages=_messages(chat),
        n=chat.n or 1,
        sampling=sampling_of(chat, max_tokens=_max_tokens(chat), logprobs=logprobs, prompt_logprobs=False),
        unset=left_open(chat),
        output=_output_rule(chat),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        prefill=_prefills(chat),
        reasoning=Reasoning(effort=chat.reasoning_effort) if chat.reasoning_effort else None,
        options=_options(chat),
        dialect=DIALECT,
        native=(native := {name: value for name in NATIVE if (value := getattr(chat, name)) is not None}),
        asides=tuple([name for name in _ASIDES if name in native]) if native else (),
    )
    rendering = ChatRendering(
        request_id,
        chat.model,
        request.n,
        stream=bool(chat.stream),
        usage=wants_usage(chat),
        logprobs=bool(chat.logprobs),
    )
    ask = Ask(
        chat.model,
        (request,),
        input_param="messages",
        words=Words(CARRIERS, chat),
        unused=("store",) if chat.store else (),
        conversation=chat.prompt_cache_key or None,
    )
    return ask, rendering


def _refuse_what_we_cannot(chat: ChatBody, max_sequences: int) -> None:
    if (chat.n or 1) > max_sequences:
        raise InvalidRequest(f"At most {max_sequences} answers to one request; 'n' is {chat.n}.", param="n")
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise InvalidRequest("This model makes text only: 'modalities' can only be [\"text\"].", param="modalities")
    for name, mend in _CANNOT:
        if getattr(chat, name) is not None:
            raise InvalidRequest(mend, param=name, code="unsupported_parameter")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")


_CANNOT = (
    ("audio", "This model makes text only."),
    ("web_search_options", "There is no web search here."),
    ("functions", "'functions' is OpenAI's retired way; use 'tools'."),
    ("function_call", "'function_call' is OpenAI's retired way; use 'tool_choice'."),
)


def _max_tokens(chat: ChatBody) -> int | None:
    if chat.max_tokens == 0:
        raise InvalidRequest("Invalid value for 'max_tokens': expected 1 or more.", param="max_tokens")
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise InvalidRequest(
            "Give 'max_completion_tokens' or the older 'max_tokens', not both.", param="max_completion_tokens"
        )
    return chat.max_completion_tokens if chat.max_tokens is None else chat.max_tokens


def _prefills(chat: ChatBody) -> bool:
    """Whether the answer goes on where the last message ends, which then is the assistant's."""
    if not chat.continue_final_message:
        return False
    if chat.add_generation_prompt:
        raise InvalidRequest(
            "Give 'continue_final_message' or 'add_generation_prompt', not both.", param="add_generation_prompt"
        )
    last = chat.messages[-1]
    if not isinstance(last, AssistantMessage) or last.tool_calls:
        raise InvalidRequest(
            "An answer can only go on where the last message is the assistant's and calls no tool.",
            param="continue_final_message",
        )
    return True


_NO_OPTIONS = Options()


def _options(chat: ChatBody) -> Options:
    if not (
        chat.verbosity or chat.service_tier or chat.user or chat.safety_identifier
        or chat.prompt_cache_key or chat.prompt_cache_retention or chat.metadata
    ):  # fmt: skip
        return _NO_OPTIONS  # as most
    return Options(
        verbosity=chat.verbosity or "",
        service_tier=chat.service_tier or "",
        user=chat.user or "",
        safety_identifier=chat.safety_identifier or "",
        cache_key=chat.prompt_cache_key or "",
        cache_retention=(chat.prompt_cache_retention or "").replace("-", "_"),
        metadata=chat.metadata or {},
    )


def _messages(chat: ChatBody) -> tuple[Message, ...]:
    """The turns; a result is of the kind that its call is."""
    messages = tuple([_message(message, i) for i, message in enumerate(chat.messages)])
    calls = [call for message in messages if message.tool_calls for call in message.tool_calls]
    kinds = {call.id: call.kind for call in calls if call.kind}
    if not kinds:
        return messages
    return tuple(msgspec.structs.replace(one, kind=kinds.get(one.tool_call_id or "", "")) for one in messages)


def _message(message: ChatMessage, place: int) -> Message:
    if type(message.content) is str:  # as of most
        if type(message) is UserMessage:
            return Message("user", message.content, message.name)
        if type(message) is SystemMessage:
            return Message("system", message.content, message.name)
    where = f"messages[{place}]"
    match message:
        case ToolMessage():
            content = _content(message.content, where)
            return Message(role="tool", content=content, tool_call_id=message.tool_call_id)  # the call says its name
        case AssistantMessage():
            return _assistant(message, where)
        case SystemMessage():
            return Message(role="system", content=_content(message.content, where), name=message.name)
        case DeveloperMessage():
            return Message(role="developer", content=_content(message.content, where), name=message.name)
        case UserMessage():
            return Message(role="user", content=_content(message.content, where), name=message.name)


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
    content = "" if message.content is None else _content(message.content, where)
    before = _thoughts(message)
    after = () if message.refusal is None else (RefusalPart(message.refusal),)
    if before or after:
        said = (TextPart(content),) if isinstance(content, str) and content else content or ()
        content = (*before, *(part for part in said if not isinstance(part, str)), *after)
    calls = (_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls or ()))
    return Message("assistant", content, message.name, tuple(calls))


def _thoughts(message: AssistantMessage) -> tuple[ThinkingPart, ...]:
    """What an assistant thought: sealed blocks where there are any, else the bare text."""
    if message.thinking_blocks:
        return tuple(map(_thought, message.thinking_blocks))
    text = message.reasoning_content or message.reasoning
    return (ThinkingPart(text),) if text else ()


def _thought(block: ThinkingBlock) -> ThinkingPart:
    signature, id = unnamed_seal(block.signature or "")
    redacted, id_of_redacted = unnamed_seal(block.data or "")
    return ThinkingPart(block.thinking or "", signature, redacted, id=id or id_of_redacted)


def _call(call: AssistantToolCall, where: str) -> ToolCall:
    called = call.function if call.type == "function" else call.custom
    other = call.custom if call.type == "function" else call.function
    if called is None or other is not None:
        raise InvalidRequest(
            f"A call of type '{call.type}' needs '{call.type}', and nothing else.", param=f"{where}.{call.type}"
        )
    if isinstance(called, CalledCustom):
        return ToolCall(call.id, called.name, called.input, kind="custom")
    signature = call.extra_content.google.thought_signature if call.extra_content else ""
    return ToolCall(call.id, called.name, called.arguments, signature)


def _content(content: Content, where: str) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    return tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, where: str) -> Part:
    if isinstance(part, WireRefusalPart):
        return RefusalPart(part.refusal)
    mark = part.prompt_cache_breakpoint
    cache = "" if mark is None else mark.ttl or "default"
    match part:
        case WireTextPart():
            return TextPart(part.text, cache)
        case ImageUrlPart():
            url, detail = part.image_url.url, part.image_url.detail or ""
            if url[:5].lower() != "data:":
                return ImagePart(url=remote_url(url, f"{where}.image_url.url"), detail=detail, cache=cache)
            media_type, data = data_url(url, f"{where}.image_url.url", IMAGE_TYPES)
            return ImagePart(data, media_type, detail=detail, cache=cache)
        case InputAudioPart():
            data = base64_text(part.input_audio.data, f"{where}.input_audio.data")
            return AudioPart(data, part.input_audio.format, cache)
        case InputFilePart():
            return _file(part.file, cache, where)


def _file(file: InputFile, cache: str, where: str) -> FilePart:
    name = file_name(file.filename or "", f"{where}.file.filename")
    if (file.file_id is None) == (file.file_data is None):
        raise InvalidRequest("A file needs either 'file_data' or 'file_id'.", param=f"{where}.file")
    if file.file_id is not None:
        return FilePart(name=name, cache=cache, uploaded=file_id(file.file_id, f"{where}.file.file_id"))
    return document(file.file_data or "", f"{where}.file.file_data", name=name, cache=cache)


def _tool(tool: ToolBody | CustomToolBody) -> Tool:
    if isinstance(tool, CustomToolBody):
        given, wanted = tool.custom, tool.custom.format
        native: dict[str, Any] = {}
        if isinstance(wanted, GrammarFormat):
            native["format"] = {"type": "grammar", **msgspec.to_builtins(wanted.grammar)}
        elif wanted is not None:
            native["format"] = {"type": "text"}
        return Tool(given.name, given.description or "", native=native, kind="custom")
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters or {}, bool(function.strict))


def _chosen(choice: ChosenTool | ChosenCustomTool) -> str:
    return choice.custom.name if isinstance(choice, ChosenCustomTool) else choice.function.name


def _tools(chat: ChatBody) -> tuple[tuple[Tool, ...], str]:
    """The tools that are offered, and how the model is to choose."""
    if chat.tools is None and chat.tool_choice is None:
        return (), "none"
    tools = {tool.name: tool for tool in map(_tool, chat.tools or ())}
    if len(tools) != len(chat.tools or ()):
        raise InvalidRequest("Each tool needs a name of its own.", param="tools")
    choice, offered = chat.tool_choice, tuple(tools.values())
    if choice is None:
        return offered, "auto" if tools else "none"
    if not tools and choice != "none":
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if isinstance(choice, str):
        return offered, choice
    named = choice.allowed_tools.tools if isinstance(choice, ToolsAllowed) else [choice]
    for name in map(_chosen, named):
        if name not in tools:
            raise InvalidRequest(f"There is no tool named '{name}' in 'tools'.", param="tool_choice")
    if isinstance(choice, ToolsAllowed):
        names = dict.fromkeys(map(_chosen, named))
        return tuple(tools[name] for name in names), choice.allowed_tools.mode
    return offered, f"function:{_chosen(choice)}"


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
