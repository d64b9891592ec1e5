"""`/v1/responses`: what callers send, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from interlace.gateway.openai_chat_body import CacheBreakpoint, FunctionName
from interlace.gateway.openai_fields import Count, Share
from interlace.gateway.wire import Body

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]

# --- items -------------------------------------------------------------------------------------------------------


class InputTextPart(Body, frozen=True, kw_only=True, omit_defaults=True, tag="input_text", tag_field="type"):
    """A piece of text that somebody else than the assistant said."""

    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputImagePart(Body, frozen=True, kw_only=True, tag="input_image", tag_field="type"):
    """A picture: a `data:` URL with the picture in it, or an address that the provider fetches."""

    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: str | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputDocumentPart(Body, frozen=True, kw_only=True, omit_defaults=True, tag="input_file", tag_field="type"):
    """A document: in a `data:` URL, or an address that the provider fetches."""

    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputTextPart(Body, frozen=True, kw_only=True, tag="output_text", tag_field="type"):
    """What the assistant said. The fields after `text` come back from clients that echo an answer."""

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class OutputRefusalPart(Body, frozen=True, kw_only=True, tag="refusal", tag_field="type"):
    """What the assistant said when it refused."""

    refusal: str


InputPart = InputTextPart | InputImagePart | InputDocumentPart
ItemPart = InputPart | OutputTextPart | OutputRefusalPart


class MessageItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="message", tag_field="type"):
    """What somebody said; `type` may be left out. The assistant's own come back with `id` and `status`."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ItemPart]
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class DirectCaller(Body, frozen=True, kw_only=True):
    """The model itself made the call."""

    type: Literal["direct"]


class FunctionCallItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="function_call", tag_field="type"):
    """A call that the assistant made earlier."""

    call_id: CallId
    name: FunctionName
    arguments: str
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None
    # Known, and refused unless they ask for nothing: clients echo them as null.
    asynchronous: bool | None = field(default=None, name="async")
    namespace: str | None = None


class FunctionOutputItem(
    Body, frozen=True, kw_only=True, omit_defaults=True, tag="function_call_output", tag_field="type"
):
    """What a called function returned."""

    call_id: CallId
    output: str | list[InputPart]
    id: Id | None = None
    status: Status | None = None
    name: str | None = None  # the call says it
    caller: DirectCaller | None = None
    namespace: str | None = None


class SummaryText(Body, frozen=True, kw_only=True, tag="summary_text", tag_field="type"):
    """A short version of a thought."""

    text: str


class ReasoningText(Body, frozen=True, kw_only=True, tag="reasoning_text", tag_field="type"):
    """A thought."""

    text: str


class ReasoningItem(Body, frozen=True, kw_only=True, tag="reasoning", tag_field="type"):
    """What the assistant thought; `encrypted_content` is sealed by whoever made it, and goes back as it came."""

    summary: tuple[SummaryText, ...] = ()
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: Id | None = None
    status: Status | None = None


class ReferenceItem(Body, frozen=True, kw_only=True, tag="item_reference", tag_field="type"):
    """An item of a stored response."""

    id: Id


class CustomCallItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="custom_tool_call", tag_field="type"):
    """A call of a custom tool that the assistant made earlier; `input` is any text."""

    call_id: CallId
    name: FunctionName
    input: str
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None
    # Known, and refused unless they ask for nothing.
    asynchronous: bool | None = field(default=None, name="async")
    namespace: str | None = None


class CustomOutputItem(
    Body, frozen=True, kw_only=True, omit_defaults=True, tag="custom_tool_call_output", tag_field="type"
):
    """What a custom tool returned."""

    call_id: CallId
    output: str | list[InputPart]
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None


class LocalShellCallItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="local_shell_call", tag_field="type"):
    """A command that the assistant wanted run."""

    call_id: CallId
    action: dict[str, Any]
    id: Id | None = None
    status: Status | None = None


class LocalShellOutputItem(
    Body, frozen=True, kw_only=True, omit_defaults=True, tag="local_shell_call_output", tag_field="type"
):
    """What came of it. Its call is named by `call_id`, or by `id`."""

    output: str
    call_id: CallId | None = None
    id: Id | None = None
    status: Status | None = None


class ShellCallItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="shell_call", tag_field="type"):
    """Commands that the assistant wanted run."""

    call_id: CallId
    action: dict[str, Any]
    environment: dict[str, Any] | None = None
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None


class ShellOutputItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="shell_call_output", tag_field="type"):
    """What came of them."""

    call_id: CallId
    output: list[dict[str, Any]]
    max_output_length: int | None = None
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None


class ApplyPatchCallItem(Body, frozen=True, kw_only=True, omit_defaults=True, tag="apply_patch_call", tag_field="type"):
    """A change of a file that the assistant wanted made."""

    call_id: CallId
    operation: dict[str, Any]
    id: Id | None = None
    status: Status | None = None
    caller: DirectCaller | None = None


class ApplyPatchOutputItem(
    Body, frozen=True, kw_only=True, omit_defaults=True, tag="apply_patch_call_output", tag_field="type"
):
    """What came of it."""

    call_id: CallId
    status: Literal["completed", "failed"]
    output: str | None = None
    id: Id | None = None
    caller: DirectCaller | None = None


NativeCall = LocalShellCallItem | ShellCallItem | ApplyPatchCallItem
NativeOutput = LocalShellOutputItem | ShellOutputItem | ApplyPatchOutputItem
CallItem = FunctionCallItem | CustomCallItem | NativeCall
OutputItem = FunctionOutputItem | CustomOutputItem | NativeOutput
Item = MessageItem | CallItem | OutputItem | ReasoningItem | ReferenceItem

# --- tools and output --------------------------------------------------------------------------------------------


class FunctionToolBody(Body, frozen=True, kw_only=True, tag="function", tag_field="type"):
    """A function the model may call. `strict` left out: where the schema is one that can be held to strictly."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    # Known, and refused unless they ask for nothing.
    allowed_callers: list[str] | None = None
    asynchronous: bool | None = field(default=None, name="async")
    defer_loading: bool | None = None
    output_schema: dict[str, Any] | None = None


class PlainText(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Any text."""


class GrammarText(Body, frozen=True, kw_only=True, tag="grammar", tag_field="type"):
    """Only texts of a grammar."""

    syntax: Literal["lark", "regex"]
    definition: str


class CustomToolBody(Body, frozen=True, kw_only=True, tag="custom", tag_field="type"):
    """A tool that takes a text, for models that know of such."""

    name: FunctionName
    description: str | None = None
    format: PlainText | GrammarText | None = None
    # Known, and refused unless they ask for nothing.
    allowed_callers: list[str] | None = None
    asynchronous: bool | None = field(default=None, name="async")
    defer_loading: bool | None = None


class LocalShellTool(Body, frozen=True, kw_only=True, tag="local_shell", tag_field="type"):
    """The caller runs commands for the model."""


class LocalEnvironment(Body, frozen=True, kw_only=True, omit_defaults=True):
    """The caller's own; others are OpenAI's."""

    type: Literal["local"]
    skills: list[dict[str, Any]] | None = None


class ShellTool(Body, frozen=True, kw_only=True, omit_defaults=True, tag="shell", tag_field="type"):
    """The caller runs commands for the model."""

    environment: LocalEnvironment | None = None
    allowed_callers: list[str] | None = None  # refused unless it asks for nothing


class ApplyPatchTool(Body, frozen=True, kw_only=True, omit_defaults=True, tag="apply_patch", tag_field="type"):
    """The caller changes files for the model."""

    allowed_callers: list[str] | None = None  # refused unless it asks for nothing


NativeTool = LocalShellTool | ShellTool | ApplyPatchTool
ToolBody = FunctionToolBody | CustomToolBody | NativeTool


class ChosenFunctionBody(Body, frozen=True, kw_only=True, tag="function", tag_field="type"):
    """The function that must be called."""

    name: FunctionName


class ChosenCustomBody(Body, frozen=True, kw_only=True, tag="custom", tag_field="type"):
    """The custom tool that must be called."""

    name: FunctionName


class ChosenShell(Body, frozen=True, kw_only=True, tag="shell", tag_field="type"):
    """The shell must be used."""


class ChosenLocalShell(Body, frozen=True, kw_only=True, tag="local_shell", tag_field="type"):
    """The shell must be used."""


class ChosenApplyPatch(Body, frozen=True, kw_only=True, tag="apply_patch", tag_field="type"):
    """A patch must be made."""


Chosen = ChosenFunctionBody | ChosenCustomBody | ChosenShell | ChosenLocalShell | ChosenApplyPatch


class AllowedTools(Body, frozen=True, kw_only=True, tag="allowed_tools", tag_field="type"):
    """Those of the tools that may be called this time."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[Chosen], Meta(min_length=1)]


class PlainFormat(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Free text."""


class AnyObjectFormat(Body, frozen=True, kw_only=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaFormat(Body, frozen=True, kw_only=True, omit_defaults=True, tag="json_schema", tag_field="type"):
    """JSON that follows a schema."""

    name: FunctionName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextBody(Body, frozen=True, kw_only=True):
    """What shape the text has, and how long it should be."""

    format: PlainFormat | AnyObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


Summary = Literal["auto", "concise", "detailed"]


class ReasoningBody(Body, frozen=True, kw_only=True):
    """How much the model thinks, and how its thoughts are shown. `generate_summary` is the older word."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class StreamBody(Body, frozen=True, kw_only=True):
    """`include_obfuscation` is accepted; nothing is padded."""

    include_obfuscation: bool | None = None


Include = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ResponsesBody(Body, frozen=True, kw_only=True):
    """The body of a response to be made."""

    model: str
    input: str | Annotated[list[Item], Meta(min_length=1)]
    background: bool | None = None
    client_metadata: dict[str, str] | None = None  # what Codex says of itself
    include: list[Include] | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Id | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    reasoning: ReasoningBody | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamBody | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    text: TextBody | None = None
    tool_choice: Literal["auto", "none", "required"] | Chosen | AllowedTools | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=128)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Share | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    # Of OpenAI's own models; others refuse them.
    access_programs: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None
    image: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None


# --- known, and refused ------------------------------------------------------------------------------------------

TOOLS_ELSEWHERE = {
    "code_interpreter": "Offer a function of your own that runs code.",
    "computer": "Offer functions of your own that click and type.",
    "computer_use": "Offer functions of your own that click and type.",
    "computer_use_preview": "Offer functions of your own that click and type.",
    "file_search": "Search yourself, and put what you find into 'input'; or offer a function that searches.",
    "image_generation": "This endpoint makes text only.",
    "mcp": "Call the MCP server yourself, and offer its tools as functions.",
    "namespace": "List its functions one by one.",
    "programmatic_tool_calling": "Offer functions of your own.",
    "tool_search": "List all tools in 'tools'.",
    "web_search": "Offer a function of your own that searches the web.",
    "web_search_preview": "Offer a function of your own that searches the web.",
}
"""The kinds of tools that run at OpenAI, and what to do instead."""

ENVIRONMENTS_ELSEWHERE = ("container_auto", "container_reference")
"""Where a shell's commands would run at OpenAI."""

ITEMS_ELSEWHERE = (
    "additional_tools",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "configuration_update",
    "file_search_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "program_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)
"""Items of tools that run at OpenAI."""

TOOL_FIELDS_ELSEWHERE = {
    "allowed_callers": "Only the model itself calls tools here: leave it out.",
    "async": "A call waits for its output: leave it out.",
    "defer_loading": "All tools are read at once: leave it out.",
    "output_schema": "Say in 'description' what the function returns.",
}
"""Fields of a tool that belong to tools that run at OpenAI."""

CALL_FIELDS_ELSEWHERE = {
    "async": "A call waits for its output: leave it out.",
    "namespace": "Namespaces of tools are not known here: leave it out.",
}
"""The same of a call, and of its output."""

FIELDS_ELSEWHERE = {
    "background_options": "Only 'background' itself is known here.",
    "conversation": "Conversations are not kept here. Continue one with 'previous_response_id', or send its items.",
    "prompt": "Prompt templates are not kept here. Send the text in 'instructions' and 'input'.",
}
"""Fields of the request that name what is kept at OpenAI."""
