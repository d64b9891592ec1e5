"""`/v1/chat/completions`: what callers send, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from interlace.gateway.openai_fields import Count, SampledBody
from interlace.gateway.wire import Body

FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]

# --- messages ----------------------------------------------------------------------------------------------------


class CacheBreakpoint(Body, frozen=True, kw_only=True):
    """A prompt cache may end here."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class WireTextPart(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """A piece of text."""

    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class WireRefusalPart(Body, frozen=True, kw_only=True, tag="refusal", tag_field="type"):
    """What an assistant said when it refused."""

    refusal: str


class ImageUrl(Body, frozen=True, kw_only=True):
    """Where a picture is: a `data:` URL with the picture in it, or an address that the provider fetches."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImageUrlPart(Body, frozen=True, kw_only=True, tag="image_url", tag_field="type"):
    """A picture."""

    image_url: ImageUrl
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputAudio(Body, frozen=True, kw_only=True):
    """Sound in base64."""

    data: str
    format: Literal["wav", "mp3"]


class InputAudioPart(Body, frozen=True, kw_only=True, tag="input_audio", tag_field="type"):
    """Sound."""

    input_audio: InputAudio
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputFile(Body, frozen=True, kw_only=True):
    """A document in a `data:` URL, or one that was uploaded."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class InputFilePart(Body, frozen=True, kw_only=True, tag="file", tag_field="type"):
    """A document."""

    file: InputFile
    prompt_cache_breakpoint: CacheBreakpoint | None = None


ContentPart = WireTextPart | WireRefusalPart | ImageUrlPart | InputAudioPart | InputFilePart
Content = str | list[ContentPart]


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


class CalledCustom(Body, frozen=True, kw_only=True):
    """Which custom tool, and what it got: any text."""

    name: FunctionName
    input: str


class GoogleContent(Body, frozen=True, kw_only=True):
    """What Gemini wants back with a call."""

    thought_signature: str


class ExtraContent(Body, frozen=True, kw_only=True):
    """A provider's own, under its name, as Gemini's OpenAI-compatible endpoint has it."""

    google: GoogleContent


class ThinkingBlock(Body, frozen=True, kw_only=True):
    """A sealed thought that goes back to its provider as it came; LiteLLM's extension, in Anthropic's words."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    index: int | None = None  # clients echo streamed blocks


class AssistantToolCall(Body, frozen=True, kw_only=True):
    """A call the assistant made earlier. `index` is accepted because clients echo streamed calls."""

    id: str
    function: CalledFunction | None = None
    custom: CalledCustom | None = None
    type: Literal["function", "custom"] = "function"
    index: int | None = None
    extra_content: ExtraContent | None = None


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
    thinking_blocks: list[ThinkingBlock] | None = None


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


class ToolBody(Body, frozen=True, kw_only=True, tag="function", tag_field="type"):
    """A function."""

    function: FunctionTool


class Grammar(Body, frozen=True, kw_only=True):
    """What texts a custom tool takes."""

    syntax: Literal["lark", "regex"]
    definition: str


class GrammarFormat(Body, frozen=True, kw_only=True, tag="grammar", tag_field="type"):
    """Only texts of a grammar."""

    grammar: Grammar


class AnyTextFormat(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """Any text."""


class CustomTool(Body, frozen=True, kw_only=True):
    """A tool that takes a text."""

    name: FunctionName
    description: str | None = None
    format: AnyTextFormat | GrammarFormat | None = None


class CustomToolBody(Body, frozen=True, kw_only=True, tag="custom", tag_field="type"):
    """A tool that takes a text, for models that know of such."""

    custom: CustomTool


class ChosenFunction(Body, frozen=True, kw_only=True):
    """The function that must be called."""

    name: FunctionName


class ChosenTool(Body, frozen=True, kw_only=True, tag="function", tag_field="type"):
    """The tool that must be called."""

    function: ChosenFunction


class ChosenCustomTool(Body, frozen=True, kw_only=True, tag="custom", tag_field="type"):
    """The custom tool that must be called."""

    custom: ChosenFunction


class AllowedTools(Body, frozen=True, kw_only=True):
    """Those of the tools that may be called this time."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool | ChosenCustomTool], Meta(min_length=1)]


class ToolsAllowed(Body, frozen=True, kw_only=True, tag="allowed_tools", tag_field="type"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


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
    tools: Annotated[list[ToolBody | CustomToolBody], Meta(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | ChosenCustomTool | ToolsAllowed | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    continue_final_message: bool | None = None  # vLLM's extension: the answer goes on where the last message ends
    add_generation_prompt: bool | None = None  # vLLM's, of no meaning beside it
    # Of OpenAI's own models; others refuse them.
    moderation: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    # Known, and refused unless they ask for nothing.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None
