"""`/v1/responses`: what callers get, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from interlace.engines.types import TokenLogprob, Usage
from interlace.errors import InterlaceError, InvalidRequest
from interlace.gateway.openai_chat_answer import ChosenToken, chat_logprobs

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

ENDED: frozenset[str] = frozenset({"completed", "incomplete", "failed", "cancelled"})
TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})


class OutputText(msgspec.Struct, frozen=True, tag="output_text", tag_field="type"):
    """What the model said."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ChosenToken] = []


class OutputRefusal(msgspec.Struct, frozen=True, tag="refusal", tag_field="type"):
    """Why the model will not answer."""

    refusal: str = ""


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning_text", tag_field="type"):
    """A thought."""

    text: str = ""


class SummaryPart(msgspec.Struct, frozen=True, tag="summary_text", tag_field="type"):
    """A short version of a thought."""

    text: str = ""


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    """An answer."""

    id: str
    status: ItemStatus
    content: list[OutputText | OutputRefusal]
    role: Literal["assistant"] = "assistant"


class OutputCall(msgspec.Struct, frozen=True, kw_only=True, tag="function_call", tag_field="type"):
    """A call of a function; `arguments` is JSON text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class OutputCustomCall(msgspec.Struct, frozen=True, kw_only=True, tag="custom_tool_call", tag_field="type"):
    """A call of a custom tool; `input` is any text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str


class OutputLocalShellCall(msgspec.Struct, frozen=True, kw_only=True, tag="local_shell_call", tag_field="type"):
    """A command that the model wants run."""

    id: str
    status: ItemStatus
    call_id: str
    action: dict[str, Any] = {}


class OutputShellCall(msgspec.Struct, frozen=True, kw_only=True, tag="shell_call", tag_field="type"):
    """Commands that the model wants run."""

    id: str
    status: ItemStatus
    call_id: str
    action: dict[str, Any] = {}
    environment: dict[str, Any] | None = None


class OutputApplyPatchCall(msgspec.Struct, frozen=True, kw_only=True, tag="apply_patch_call", tag_field="type"):
    """A change of a file that the model wants made."""

    id: str
    status: ItemStatus
    call_id: str
    operation: dict[str, Any] = {}


OutputNativeCall = OutputLocalShellCall | OutputShellCall | OutputApplyPatchCall


class OutputReasoning(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning", tag_field="type"):
    """What the model thought. `encrypted_content` is shown where `include` asks for it."""

    id: str
    status: ItemStatus
    summary: list[SummaryPart]
    content: list[ReasoningPart] | UnsetType = UNSET
    encrypted_content: str | UnsetType | None = UNSET


OutputItem = OutputMessage | OutputCall | OutputCustomCall | OutputNativeCall | OutputReasoning


class InputDetails(msgspec.Struct, frozen=True):
    """Of the input tokens, those read from a cache and written to one."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """Of the output tokens, those of thoughts."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """What was used."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response. What the caller asked for comes back as it was taken; null where nothing was said."""

    id: str
    created_at: int
    status: Status
    model: str
    object: Literal["response"] = "response"
    output: list[OutputItem] = []
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, str | None] = {}
    safety_identifier: str | None = None
    service_tier: str = "auto"
    temperature: float | None = None
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class ItemList(msgspec.Struct, frozen=True):
    """A page of items."""

    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class DeletedResponse(msgspec.Struct, frozen=True):
    """A response that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def response_usage(usage: Usage) -> ResponseUsage:
    """The usage of a request in the words of this endpoint."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(usage.cached_tokens, usage.cache_write_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def response_error(error: InterlaceError) -> ResponseError:
    """Why a response failed, in the few codes that the API has for it."""
    if error.status == 429:
        return ResponseError("rate_limit_exceeded", error.message)
    return ResponseError("invalid_prompt" if isinstance(error, InvalidRequest) else "server_error", error.message)


def part_logprobs(tokens: Sequence[TokenLogprob]) -> list[ChosenToken]:
    """Logprobs as a part of an answer has them."""
    return chat_logprobs(tokens).content


def event_logprobs(tokens: Sequence[ChosenToken]) -> list[dict[str, Any]]:
    """Logprobs as events have them: without bytes."""
    return [
        {
            "token": token.token,
            "logprob": token.logprob,
            "top_logprobs": [{"token": top.token, "logprob": top.logprob} for top in token.top_logprobs],
        }
        for token in tokens
    ]
