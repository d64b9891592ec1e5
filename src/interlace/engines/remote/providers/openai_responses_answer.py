"""A response of OpenAI's Responses API, whole or event by event, as neutral events.

Items and events of kinds not known here are passed over: they may come at any time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interlace.engines.remote.counting import likely_chunk_tokens
from interlace.engines.remote.providers.openai_logprobs import read_tokens
from interlace.engines.remote.usage import Seen, checked_usage, number_in
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import (
    Delta,
    Event,
    FinishReason,
    GenerateRequest,
    Started,
    Thought,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from interlace.errors import EngineFailed


class WirePart(msgspec.Struct, frozen=True):
    """A piece of a message, a summary or a thought."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()


class WireItem(msgspec.Struct, frozen=True):
    """An item of the output."""

    type: str = ""
    id: str | None = None
    content: list[WirePart] | None = None
    summary: list[WirePart] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    action: Any = None
    environment: Any = None
    operation: Any = None


class WireDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: str | None = None


class WireResponse(msgspec.Struct, frozen=True):
    """A response."""

    status: str | None = None
    error: Any = None
    incomplete_details: WireDetails | None = None
    output: list[WireItem] = []
    usage: Any = None
    service_tier: Any = None


class WireEvent(msgspec.Struct, frozen=True):
    """One event of a stream; of a whole response only `object` is set."""

    type: str = ""
    object: str = ""
    response: WireResponse | None = None
    output_index: int = 0
    item: WireItem | None = None
    item_id: str | None = None
    delta: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()
    error: Any = None


_events = msgspec.json.Decoder(WireEvent)
_whole = msgspec.json.Decoder(WireResponse)
_CUSTOM = ("custom_tool_call",)
_CALLS = ("function_call", *_CUSTOM)
_SAID = ("action", "environment", "operation")
_FINISH: dict[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}


class _Call:
    """A call as it grows."""

    __slots__ = ("kind", "number", "pieces")

    def __init__(self, number: int, kind: str) -> None:
        self.number = number
        self.kind = kind
        self.pieces = False


class ResponsesAnswer:
    """Reads one response."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress = 0
        self.done = False
        self._seen = Seen(request, prompt_tokens)
        self._logprobs = request.sampling.logprobs is not None
        self._started = False
        self._calls: dict[int, _Call] = {}  # by output index
        self._told: set[int] = set()  # items of which pieces have come
        self._end: WireResponse | None = None

    @property
    def complete(self) -> bool:
        """Whether the response has its end; it brings the usage with it."""
        return self._end is not None

    def take(self, payload: bytes) -> list[Event]:
        """The events of one event, or of a whole response."""
        payload = payload.strip()
        if payload == b"[DONE]":
            return self.end(told=True)
        if not payload or self.done:
            return []
        try:
            event = _events.decode(payload)
            response = _whole.decode(payload) if event.object == "response" else event.response
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        if event.type == "error" or (event.error and response is None):
            raise ErrorInside(payload)
        if response is not None and response.error:
            raise ErrorInside(msgspec.json.encode({"error": response.error}))
        self.progress += 1
        if event.object == "response" and response is not None:
            return self._all(response)
        if event.type in {"response.completed", "response.incomplete", "response.failed"}:
            if response is None or event.type == "response.failed":
                raise EngineFailed("The server behind this model failed under this request. Try again.")
            self._end = response
            return [*self._start(), *self.end(told=True)]
        return [*self._start(), *self._piece(event)] if event.type.startswith("response.") else []

    def end(self, *, told: bool) -> list[Event]:
        """The last events; without the response's own end there is none."""
        del told
        if self.done:
            return []
        if self._end is None:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self.done = True
        reason = self._end.incomplete_details.reason if self._end.incomplete_details else None
        finish: FinishReason = "tool_calls" if self._calls else "stop"
        if self._end.status == "incomplete" or reason:
            finish = _FINISH.get(reason or "", "length")
        return [Delta(finish_reason=finish), self.usage(self._end)]

    def usage(self, response: WireResponse) -> Usage:
        """As the provider reports it."""
        told = response.usage if isinstance(response.usage, dict) else {}
        prompt, completion = number_in(told, "input_tokens"), number_in(told, "output_tokens")
        if prompt == 0 == completion and self._seen.completion_tokens:
            prompt = completion = None
        read, written = told.get("input_tokens_details"), told.get("output_tokens_details")
        total = number_in(told, "total_tokens")
        adds_up = not total or prompt is None or completion is None or total == prompt + completion
        return checked_usage(
            self._seen,
            prompt=prompt,
            completion=completion,
            cached=_number(read, "cached_tokens"),
            cache_write=_number(read, "cache_write_tokens"),
            reasoning=_number(written, "reasoning_tokens"),
            disputed=not adds_up,
            service_tier=response.service_tier if isinstance(response.service_tier, str) else "",
        )

    # --- pieces --------------------------------------------------------------------------------------------------

    def _start(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        return [Started(self._seen.prompt_tokens, estimated=True)]

    def _piece(self, event: WireEvent) -> list[Event]:
        at, text = event.output_index, event.delta or ""
        match event.type:
            case "response.output_item.added" if event.item is not None and event.item.type in _CALLS:
                return [self._called(at, event.item)]
            case "response.output_text.delta" if text:
                return [self._said(at, text, self._tokens(event.logprobs))]
            case "response.refusal.delta" if text:
                return [self._refused(at, text)]
            case "response.reasoning_text.delta" if text:
                return [self._thought(at, Thought(text, id=event.item_id or ""))]
            case "response.reasoning_summary_text.delta" if text:
                return [self._thought(at, Thought(text, summary=True, id=event.item_id or ""))]
            case "response.reasoning_summary_part.done":
                return [Delta(thought=Thought(summary=True, id=event.item_id or ""))]
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" if (
                text and at in self._calls
            ):
                return [self._argued(self._calls[at], text)]
            case "response.output_item.done" if event.item is not None:
                return self._item(at, event.item)
        return []

    def _all(self, response: WireResponse) -> list[Event]:
        events = self._start()
        for at, item in enumerate(response.output):
            events += self._item(at, item)
        if response.status not in {"completed", "incomplete"}:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self._end = response
        return events

    def _item(self, at: int, item: WireItem) -> list[Event]:
        """A finished item: what of it has not come in pieces."""
        match item.type:
            case "message" if at not in self._told:
                return [self._part(at, part) for part in item.content or () if part.text or part.refusal]
            case "reasoning":
                return list(self._reasoned(at, item))
            case "function_call" | "custom_tool_call":
                begun = [] if at in self._calls else [self._called(at, item)]
                call, said = self._calls[at], item.input or "" if item.type in _CUSTOM else item.arguments or "{}"
                return [*begun, *([] if call.pieces else [self._argued(call, said)])]
            case "local_shell_call" | "shell_call" | "apply_patch_call":
                return [self._native(at, item)]
        return []

    def _part(self, at: int, part: WirePart) -> Delta:
        if part.refusal:
            return self._refused(at, part.refusal)
        return self._said(at, part.text or "", self._tokens(part.logprobs))

    def _reasoned(self, at: int, item: WireItem) -> list[Delta]:
        id, made = item.id or "", list[Delta]()
        if at not in self._told:
            for part in item.content or ():
                made.append(self._thought(at, Thought(part.text or "", id=id)))
            for part in item.summary or ():
                made.append(self._thought(at, Thought(part.text or "", summary=True, id=id)))
                made.append(Delta(thought=Thought(summary=True, id=id)))
        if item.encrypted_content:
            made.append(Delta(thought=Thought(signature=item.encrypted_content, id=id)))
        return made

    def _called(self, at: int, item: WireItem) -> Delta:
        if not item.name:
            raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
        kind = "custom" if item.type in _CUSTOM else ""
        call = self._calls[at] = _Call(len(self._calls), kind)
        begun = ToolCallDelta(call.number, item.call_id or item.id or f"call_{call.number}", item.name, kind=kind)
        return self._shown(Delta(tokens=likely_chunk_tokens(item.name), tool_calls=(begun,)))

    def _native(self, at: int, item: WireItem) -> Delta:
        """A call of one of this API's own tools, whole."""
        call = self._calls[at] = _Call(len(self._calls), item.type)
        fields = {name: value for name in _SAID if (value := getattr(item, name)) is not None}
        id, name = item.call_id or item.id or f"call_{call.number}", item.type.removesuffix("_call")
        said = msgspec.json.encode(fields).decode()
        piece = ToolCallDelta(call.number, id, name, said, kind=item.type)
        return self._shown(Delta(tokens=likely_chunk_tokens(name + said), tool_calls=(piece,)))

    def _argued(self, call: _Call, text: str) -> Delta:
        call.pieces = True
        piece = ToolCallDelta(call.number, arguments=text, kind=call.kind)
        return self._shown(Delta(tokens=likely_chunk_tokens(text), tool_calls=(piece,)))

    def _said(self, at: int, text: str, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        self._told.add(at)
        return self._shown(Delta(text=text, tokens=max(likely_chunk_tokens(text), len(logprobs)), logprobs=logprobs))

    def _refused(self, at: int, text: str) -> Delta:
        self._told.add(at)
        return self._shown(Delta(text=text, tokens=likely_chunk_tokens(text), refused=True))

    def _thought(self, at: int, thought: Thought) -> Delta:
        self._told.add(at)
        return self._shown(Delta(tokens=likely_chunk_tokens(thought.text), thought=thought))

    def _tokens(self, raw: msgspec.Raw) -> tuple[TokenLogprob, ...]:
        return read_tokens(raw) if self._logprobs and raw else ()

    def _shown(self, delta: Delta) -> Delta:
        self._seen.add(delta)
        return delta


def _number(details: Any, name: str) -> int:
    return (number_in(details, name) or 0) if isinstance(details, dict) else 0
