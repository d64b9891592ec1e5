"""`/v1/messages` and `/v1/messages/count_tokens`: what callers send, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw

from interlace.gateway.wire import Body

_LARGEST = (1 << 31) - 1

Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,128}$")]
CallId = Annotated[str, Meta(min_length=1)]  # whatever a model's provider calls it
StopText = Annotated[str, Meta(pattern=r"\S")]

# --- blocks ------------------------------------------------------------------------------------------------------


class CacheControl(Body, frozen=True, kw_only=True):
    """A prompt cache may end here, and lives so long."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlockParam(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """A piece of text. `citations` come back from clients that echo an answer."""

    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class Base64ImageSource(Body, frozen=True, kw_only=True, tag="base64", tag_field="type"):
    """The picture itself."""

    data: str
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]


class UrlSource(Body, frozen=True, kw_only=True, tag="url", tag_field="type"):
    """The address of something that the provider fetches."""

    url: str


class FileSource(Body, frozen=True, kw_only=True, tag="file", tag_field="type"):
    """Something that was uploaded."""

    file_id: str


class ImageBlockParam(Body, frozen=True, kw_only=True, tag="image", tag_field="type"):
    """A picture."""

    source: Base64ImageSource | UrlSource | FileSource
    cache_control: CacheControl | None = None
    transformations: dict[str, Any] | None = None


class Base64PdfSource(Body, frozen=True, kw_only=True, tag="base64", tag_field="type"):
    """The document itself."""

    data: str
    media_type: Literal["application/pdf"]


class PlainTextSource(Body, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """A document that is text."""

    data: str
    media_type: Literal["text/plain"]


class ContentSource(Body, frozen=True, kw_only=True, tag="content", tag_field="type"):
    """A document in pieces that can be cited."""

    content: str | list[Any]


class Citations(Body, frozen=True, kw_only=True):
    """Whether the answer is to cite the document."""

    enabled: bool | None = None


class DocumentBlockParam(Body, frozen=True, kw_only=True, tag="document", tag_field="type"):
    """A document."""

    source: Base64PdfSource | PlainTextSource | ContentSource | UrlSource | FileSource
    cache_control: CacheControl | None = None
    citations: Citations | None = None
    context: str | None = None
    title: str | None = None


class ThinkingBlockParam(Body, frozen=True, kw_only=True, tag="thinking", tag_field="type"):
    """What the assistant thought, as it came."""

    thinking: str
    signature: str


class RedactedThinkingBlockParam(Body, frozen=True, kw_only=True, tag="redacted_thinking", tag_field="type"):
    """A thought that only its provider can read, as it came."""

    data: str


class DirectCaller(Body, frozen=True, kw_only=True):
    """The model itself made the call."""

    type: Literal["direct"]


class ToolUseBlockParam(Body, frozen=True, kw_only=True, tag="tool_use", tag_field="type"):
    """A call the assistant made."""

    id: CallId
    name: Name
    input: Raw  # every digit of it: an object, which whoever reads it checks
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: str | None = None


ResultBlock = TextBlockParam | ImageBlockParam | DocumentBlockParam


class ToolResultBlockParam(Body, frozen=True, kw_only=True, tag="tool_result", tag_field="type"):
    """What a call returned."""

    tool_use_id: CallId
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: str | None = None


UserBlock = TextBlockParam | ImageBlockParam | DocumentBlockParam | ToolResultBlockParam
AssistantBlock = TextBlockParam | ThinkingBlockParam | RedactedThinkingBlockParam | ToolUseBlockParam

# --- turns -------------------------------------------------------------------------------------------------------


class UserParam(Body, frozen=True, kw_only=True, tag="user", tag_field="role"):
    """What the user says, and what tools returned."""

    content: Annotated[str, Meta(min_length=1)] | Annotated[list[UserBlock], Meta(min_length=1)]


class AssistantParam(Body, frozen=True, kw_only=True, tag="assistant", tag_field="role"):
    """What the assistant said. As the last turn: how its answer begins."""

    content: str | list[AssistantBlock]


class SystemParam(Body, frozen=True, kw_only=True, tag="system", tag_field="role"):
    """Instructions in the middle of a conversation."""

    content: Annotated[str, Meta(min_length=1)] | Annotated[list[TextBlockParam], Meta(min_length=1)]


MessageParam = UserParam | AssistantParam | SystemParam

# --- tools and output --------------------------------------------------------------------------------------------


class ToolParam(Body, frozen=True, kw_only=True):
    """A function the model may call, or (`type`) a tool that Anthropic's models know and the caller runs."""

    name: Name
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    type: Annotated[str, Meta(max_length=64)] | None = None
    cache_control: CacheControl | None = None
    # Of tools that Anthropic's models know.
    display_height_px: int | None = None
    display_number: int | None = None
    display_width_px: int | None = None
    enable_zoom: bool | None = None
    max_characters: int | None = None
    # Of Anthropic's own models; others refuse them.
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None


class ChoiceAuto(Body, frozen=True, kw_only=True, tag="auto", tag_field="type"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class ChoiceAny(Body, frozen=True, kw_only=True, tag="any", tag_field="type"):
    """Some tool must be called."""

    disable_parallel_tool_use: bool | None = None


class ChoiceTool(Body, frozen=True, kw_only=True, tag="tool", tag_field="type"):
    """This tool must be called."""

    name: str
    disable_parallel_tool_use: bool | None = None


class ChoiceNone(Body, frozen=True, kw_only=True, tag="none", tag_field="type"):
    """No tool may be called."""


class ThinkingEnabled(Body, frozen=True, kw_only=True, tag="enabled", tag_field="type"):
    """The model thinks first, for so many tokens at most."""

    budget_tokens: Annotated[int, Meta(ge=1024, le=_LARGEST)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Body, frozen=True, kw_only=True, tag="adaptive", tag_field="type"):
    """The model decides how long it thinks."""

    display: Literal["summarized", "omitted", "updates"] | None = None


class ThinkingBetweenTools(Body, frozen=True, kw_only=True, tag="between_tools", tag_field="type"):
    """The model thinks between calls of tools."""


class ThinkingDisabled(Body, frozen=True, kw_only=True, tag="disabled", tag_field="type"):
    """The model does not think first."""


class JsonOutput(Body, frozen=True, kw_only=True):
    """The answer is JSON that follows a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Body, frozen=True, kw_only=True):
    """The shape of the answer, and how much work goes into it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutput | None = None


class Metadata(Body, frozen=True, kw_only=True):
    """Who asks, as an opaque name."""

    user_id: Annotated[str, Meta(max_length=256)] | None = None


class CountBody(Body, frozen=True, kw_only=True):
    """The body of a count: what of a message's body is read by the model."""

    model: str
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=100_000)]
    system: str | list[TextBlockParam] | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=1024)] | None = None
    tool_choice: ChoiceAuto | ChoiceAny | ChoiceTool | ChoiceNone | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingBetweenTools | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutput | None = None  # the older word for output_config.format
    cache_control: CacheControl | None = None
    # Of Anthropic's own models; others refuse them.
    compaction: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    speed: Literal["standard", "fast"] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    # Known, and refused unless they ask for nothing.
    mcp_servers: list[Any] | None = None


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """The body of a message."""

    max_tokens: Annotated[int, Meta(ge=1, le=_LARGEST)]
    stream: bool | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=256)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=_LARGEST)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Of Anthropic's own models; others refuse them.
    container: str | dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    fallbacks: Any = None
    inference_geo: str | None = None
    thread: dict[str, Any] | None = None
