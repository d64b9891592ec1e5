"""A provider's answer, chunk by chunk, as neutral events.

Servers that call themselves compatible differ in small ways; what is met in the wild and can be read without doubt is
read: no usage, usage in an earlier chunk, `finish_reason` in every chunk or as "stop" after tool calls, tool calls
without `index`, all with `index` 0, or with their name repeated, arguments as an object. What cannot be read without
doubt fails.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from interlace.engines.remote.counting import likely_chunk_tokens
from interlace.engines.remote.providers.openai_logprobs import read_logprobs
from interlace.engines.remote.usage import final_usage
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import Delta, Event, FinishReason, GenerateRequest, Started, ToolCallDelta, Usage
from interlace.errors import EngineFailed

# --- the wire ----------------------------------------------------------------------------------------------------


class WireFunction(msgspec.Struct, frozen=True):
    """Name and arguments of a call; arguments are text, from some servers an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class WireCall(msgspec.Struct, frozen=True):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None


class WireDelta(msgspec.Struct, frozen=True):
    """What a choice gained, or all of it. `reasoning_content` and `reasoning` are thoughts that some servers show."""

    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireCall] | None = None


class WireChoice(msgspec.Struct, frozen=True):
    """One choice of a chunk (`delta`), of a whole chat completion (`message`) or of a text completion (`text`)."""

    index: int = 0
    delta: WireDelta | None = None
    message: WireDelta | None = None
    text: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()  # of many shapes; read where they were asked for
    finish_reason: str | None = None


class WireAnswer(msgspec.Struct, frozen=True):
    """A chunk or a whole completion. `error` is there when something went wrong after a status of 200; `object` is
    "error" in the manner of some servers, the error then being this object itself."""

    choices: list[WireChoice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None


_decoder = msgspec.json.Decoder(WireAnswer)


_FINISH: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
}

# --- reading -----------------------------------------------------------------------------------------------------


class _Choice:
    """One choice as it grows. Its end is told when the whole answer ends: some servers give a reason in every chunk."""

    __slots__ = ("_by_place", "_ids", "finish", "seen")

    def __init__(self) -> None:
        self.seen = False
        self.finish: str | None = None
        self._by_place: dict[int, int] = {}  # the server's index of a call → ours
        self._ids: list[str] = []  # by our index

    def finish_reason(self) -> FinishReason:
        finish = _FINISH.get((self.finish or "stop").lower(), "stop")
        return "tool_calls" if finish == "stop" and self._ids else finish

    def calls(self, pieces: list[WireCall]) -> tuple[ToolCallDelta, ...]:
        """Pieces of calls under indices of our own, which count each call once."""
        deltas: list[ToolCallDelta] = []
        for place, piece in enumerate(pieces):
            function = piece.function or WireFunction()
            index, new = self._index(piece, place)
            arguments = function.arguments or ""
            if not isinstance(arguments, str):
                arguments = msgspec.json.encode(arguments).decode()
            if new:
                if not function.name:
                    raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
                deltas.append(ToolCallDelta(index, self._ids[index], function.name, arguments))
            elif arguments:
                deltas.append(ToolCallDelta(index, arguments=arguments))
        return tuple(deltas)

    def _index(self, piece: WireCall, place: int) -> tuple[int, bool]:
        """Which call a piece belongs to, and whether it begins it: another id at the same place is another call."""
        at = place if piece.index is None else piece.index
        if piece.id and piece.id in self._ids:
            return self._ids.index(piece.id), False
        known = self._by_place.get(at)
        begins = piece.id and piece.function is not None and piece.function.name
        if known is not None and not begins:
            return known, False
        self._by_place[at] = len(self._ids)
        self._ids.append(piece.id or f"call_{uuid.uuid4().hex[:24]}")
        return len(self._ids) - 1, True


class OpenAIAnswer:
    """Reads one answer. `progress` counts chunks that brought something; `done` once the end has been told."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress = 0
        self.done = False
        self._prompt_tokens = prompt_tokens  # our estimate
        self._completion_tokens = 0
        self._logprobs = request.sampling.logprobs
        self._choices = [_Choice() for _ in range(request.n)]
        self._usage: dict[str, Any] | None = None
        self._started = False

    @property
    def complete(self) -> bool:
        """Whether every choice has its end, so that nothing but the usage can be missing."""
        return all(choice.finish is not None for choice in self._choices)

    def take(self, payload: bytes) -> list[Event]:
        """The events of one chunk, or of a whole completion. Raises `EngineFailed` for what cannot be read and
        `ErrorInside` for an error told inside the answer."""
        payload = payload.strip()
        if payload == b"[DONE]":
            return self.end(told=True)
        if not payload or self.done:
            return []
        try:
            chunk = _decoder.decode(payload)
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        if chunk.error or chunk.object == "error":
            raise ErrorInside(payload)
        if chunk.usage and isinstance(chunk.usage, dict):
            self._usage = chunk.usage
        if chunk.choices is None:
            return []
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(self._prompt_tokens, estimated=True))
        events += [delta for choice in chunk.choices if (delta := self._delta(choice)) is not None]
        return events

    def end(self, *, told: bool) -> list[Event]:
        """The last events. `told`: the server said that this is the end, or the completion came whole; if not, the
        connection ended, which is only good where every choice had ended."""
        if self.done:
            return []
        if not self._started or not (self.complete or told) or not all(choice.seen for choice in self._choices):
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self.done = True
        events: list[Event] = [Delta(i, finish_reason=one.finish_reason()) for i, one in enumerate(self._choices)]
        return [*events, self.usage()]

    def usage(self) -> Usage:
        """As the provider reports it, else as counted here."""
        return final_usage(self._usage, self._prompt_tokens, self._completion_tokens)

    def _delta(self, wire: WireChoice) -> Delta | None:
        if not 0 <= wire.index < len(self._choices):
            raise EngineFailed("The server behind this model answered more often than asked. Try again.")
        choice = self._choices[wire.index]
        choice.seen = True
        if wire.finish_reason:
            if wire.finish_reason == "error":
                raise EngineFailed("The server behind this model failed under this request. Try again.")
            choice.finish = wire.finish_reason
            self.progress += 1
        gained = wire.delta or wire.message or WireDelta()
        text = wire.text or ""
        if gained.content:
            text += gained.content if isinstance(gained.content, str) else _text_of_parts(gained.content)
        if gained.refusal:
            text += gained.refusal
        calls = choice.calls(gained.tool_calls) if gained.tool_calls else ()
        logprobs = () if self._logprobs is None or not wire.logprobs else read_logprobs(wire.logprobs)
        tokens = likely_chunk_tokens(text) + likely_chunk_tokens(gained.reasoning_content or gained.reasoning or "")
        for call in calls:
            tokens += likely_chunk_tokens((call.name or "") + call.arguments)
        tokens = max(tokens, len(logprobs))
        if not tokens and not calls:
            return None
        self.progress += 1
        self._completion_tokens += tokens
        return Delta(index=wire.index, text=text, tokens=tokens, logprobs=logprobs, tool_calls=calls)


def _text_of_parts(parts: list[Any]) -> str:
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
