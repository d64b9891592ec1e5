"""Anthropic's answer, whole or event by event, as neutral events.

Events and blocks of kinds not known here are passed over, as Anthropic's versioning asks clients to.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interlace.engines.remote.counting import likely_chunk_tokens
from interlace.engines.remote.usage import Seen, checked_usage, number_in
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import (
    Delta,
    Event,
    FinishReason,
    GenerateRequest,
    Started,
    Thought,
    ToolCallDelta,
    Usage,
)
from interlace.errors import EngineFailed


class WireBlock(msgspec.Struct, frozen=True):
    """One block of content, or a piece of one; `type` says what is in it."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: Any = None
    partial_json: str = ""
    stop_reason: str | None = None  # of the delta of a message
    stop_sequence: str | None = None


class WireMessage(msgspec.Struct, frozen=True):
    """A message, whole or as a stream begins it."""

    content: list[WireBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Any = None


class WireEvent(msgspec.Struct, frozen=True):
    """One event of a stream, or (`type` "message") a whole message."""

    type: str = ""
    index: int = 0
    message: WireMessage | None = None
    content_block: WireBlock | None = None
    delta: WireBlock | None = None
    content: list[WireBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(WireEvent)
_FINISH: dict[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _Call:
    """A tool_use block as it grows: a call without arguments has no pieces, and still an object."""

    __slots__ = ("given", "number", "pieces")

    def __init__(self, number: int, given: Any) -> None:
        self.number = number
        self.given = given
        self.pieces = False


class AnthropicAnswer:
    """Reads one answer. `progress` counts events, pings too: they are how this provider says that it is alive."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress = 0
        self.done = False
        self._prompt_tokens = prompt_tokens
        self._seen = Seen(request, prompt_tokens)
        self._started = False
        self._calls: dict[int, _Call] = {}  # by block
        self._finish: str | None = None
        self._stop: str | None = None
        self._usage: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether the message has its end."""
        return self._finish is not None

    def take(self, payload: bytes) -> list[Event]:
        """The events of one event, or of a whole message."""
        payload = payload.strip()
        if not payload or self.done:
            return []
        try:
            event = _decoder.decode(payload)
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        if event.error or event.type == "error":
            raise ErrorInside(payload)
        self.progress += 1
        match event.type:
            case "message":
                return self._whole(event)
            case "message_start":
                self._note(event.message.usage if event.message else None)
                return self._start()
            case "content_block_start" if event.content_block is not None:
                return [*self._start(), *self._begin(event.index, event.content_block)]
            case "content_block_delta" if event.delta is not None:
                return [*self._start(), *self._grow(event.index, event.delta)]
            case "content_block_stop":
                return self._close(event.index)
            case "message_delta":
                self._note(event.usage)
                if event.delta is not None and event.delta.stop_reason:
                    self._finish, self._stop = event.delta.stop_reason, event.delta.stop_sequence
                return []
            case "message_stop":
                return self.end(told=True)
        return []

    def end(self, *, told: bool) -> list[Event]:
        """The last events. Nothing is an answer that had no beginning, or no reason to end."""
        del told  # the reason to end says it all
        if self.done:
            return []
        if not self._started or not self.complete:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self.done = True
        finish = _FINISH.get(self._finish or "", "stop")
        stop = self._stop if self._finish == "stop_sequence" else None
        return [Delta(finish_reason=finish, stop=stop), self.usage()]

    def usage(self) -> Usage:
        """As the provider reports it. Its input_tokens leave out what came from the cache or went into it."""
        told = self._usage
        cached = number_in(told, "cache_read_input_tokens") or 0
        written = number_in(told, "cache_creation_input_tokens") or 0
        terms = told.get("cache_creation")
        hour = number_in(terms, "ephemeral_1h_input_tokens") if isinstance(terms, dict) else None
        prompt = number_in(told, "input_tokens")
        completion = number_in(told, "output_tokens")
        if not prompt and not cached and not written and not completion and self._seen.completion_tokens:
            prompt = completion = None  # it counts nothing
        details, tier = told.get("output_tokens_details"), told.get("service_tier")
        return checked_usage(
            self._seen,
            prompt=None if prompt is None else prompt + cached + written,
            completion=completion,
            cached=cached,
            cache_write=written,
            cache_write_1h=hour or 0,
            reasoning=(number_in(details, "thinking_tokens") or 0) if isinstance(details, dict) else 0,
            service_tier=tier if isinstance(tier, str) else "",
        )

    # --- pieces --------------------------------------------------------------------------------------------------

    def _note(self, usage: Any) -> None:
        """Usage is told twice, the second time in full but for what has not changed."""
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _start(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        told = self._usage
        prompt, cached = number_in(told, "input_tokens"), number_in(told, "cache_read_input_tokens") or 0
        written = number_in(told, "cache_creation_input_tokens") or 0
        whole = (prompt or 0) + cached + written or self._prompt_tokens
        return [Started(whole, cached, estimated=True)]  # if the answer is cut off, its length is our estimate

    def _whole(self, message: WireEvent) -> list[Event]:
        self._note(message.usage)
        events = self._start()
        for index, block in enumerate(message.content):
            events += self._begin(index, block)
            if block.type == "thinking" and block.signature:
                events.append(Delta(thought=Thought(signature=block.signature)))
            events += self._close(index)
        if not message.stop_reason:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self._finish, self._stop = message.stop_reason, message.stop_sequence
        return events

    def _begin(self, index: int, block: WireBlock) -> list[Event]:
        match block.type:
            case "text" if block.text:
                return [self._said(block.text)]
            case "thinking" if block.thinking:
                return [self._thought(block.thinking)]
            case "redacted_thinking":
                return [self._shown(Delta(tokens=1, thought=Thought(redacted=block.data)))]
            case "tool_use":
                if not block.name:
                    raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
                call = self._calls[index] = _Call(len(self._calls), block.input)
                begun = ToolCallDelta(call.number, block.id, block.name)
                return [self._shown(Delta(tokens=likely_chunk_tokens(block.name), tool_calls=(begun,)))]
        return []

    def _grow(self, index: int, piece: WireBlock) -> list[Event]:
        match piece.type:
            case "text_delta" if piece.text:
                return [self._said(piece.text)]
            case "thinking_delta" if piece.thinking:
                return [self._thought(piece.thinking)]
            case "signature_delta" if piece.signature:
                return [Delta(thought=Thought(signature=piece.signature))]
            case "input_json_delta" if piece.partial_json and index in self._calls:
                self._calls[index].pieces = True
                return [self._argued(self._calls[index], piece.partial_json)]
        return []

    def _close(self, index: int) -> list[Event]:
        call = self._calls.get(index)
        if call is None or call.pieces:
            return []
        call.pieces = True
        return [self._argued(call, msgspec.json.encode(call.given or {}).decode())]

    def _said(self, text: str) -> Delta:
        return self._shown(Delta(text=text, tokens=likely_chunk_tokens(text)))

    def _thought(self, text: str) -> Delta:
        return self._shown(Delta(tokens=likely_chunk_tokens(text), thought=Thought(text)))

    def _argued(self, call: _Call, text: str) -> Delta:
        piece = ToolCallDelta(call.number, arguments=text)
        return self._shown(Delta(tokens=likely_chunk_tokens(text), tool_calls=(piece,)))

    def _shown(self, delta: Delta) -> Delta:
        self._seen.add(delta)
        return delta
