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
from interlace.engines.remote.usage import Seen, final_usage
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import Delta, Event, FinishReason, GenerateRequest, Started, Thought, ToolCallDelta, Usage
from interlace.errors import EngineFailed

# --- the wire ----------------------------------------------------------------------------------------------------


class WireFunction(msgspec.Struct, frozen=True):
    """Name and arguments of a call; arguments are text, from some servers an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class WireCustom(msgspec.Struct, frozen=True):
    """Name and input of a call of a custom tool."""

    name: str | None = None
    input: str | None = None


class WireGoogle(msgspec.Struct, frozen=True):
    """What Gemini's compatible endpoint adds to a call."""

    thought_signature: str | None = None


class WireExtra(msgspec.Struct, frozen=True):
    """Where providers put what OpenAI has no field for."""

    google: WireGoogle | None = None


class WireCall(msgspec.Struct, frozen=True):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None
    custom: WireCustom | None = None
    extra_content: WireExtra | None = None

    @property
    def signature(self) -> str:
        """What its provider wants back with it."""
        google = self.extra_content.google if self.extra_content else None
        return (google.thought_signature if google else "") or ""


class WireDelta(msgspec.Struct, frozen=True):
    """What a choice gained, or all of it. `reasoning_content` and `reasoning` are thoughts that some servers show."""

    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[WireCall] | None = None


class WireChoice(msgspec.Struct, frozen=True):
    """One choice of a chunk (`delta`), of a whole chat completion (`message`) or of a text completion (`text`)."""

    index: int = 0
    delta: WireDelta | None = None
    message: WireDelta | None = None
    text: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw()  # of many shapes; read where they were asked for
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM: the stop string that ended it, or a token's id


class WireAnswer(msgspec.Struct, frozen=True):
    """A chunk or a whole completion. `error` is there when something went wrong after a status of 200; `object` is
    "error" in the manner of some servers, the error then being this object itself."""

    choices: list[WireChoice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    service_tier: Any = None


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

    __slots__ = ("_by_place", "_customs", "_ids", "finish", "seen", "stop")

    def __init__(self) -> None:
        self.seen = False
        self.finish: str | None = None
        self.stop: str | None = None
        self._by_place: dict[int, int] = {}  # the server's index of a call → ours
        self._ids: list[str] = []  # by our index
        self._customs: set[int] = set()  # those that call custom tools

    def finish_reason(self) -> FinishReason:
        finish = _FINISH.get((self.finish or "stop").lower(), "stop")
        return "tool_calls" if finish == "stop" and self._ids else finish

    def calls(self, pieces: list[WireCall]) -> tuple[ToolCallDelta, ...]:
        """Pieces of calls under indices of our own, which count each call once."""
        deltas: list[ToolCallDelta] = []
        for place, piece in enumerate(pieces):
            function = piece.function or WireFunction()
            if piece.custom is not None:
                function = WireFunction(piece.custom.name, piece.custom.input)
            index, new = self._index(piece, place, function)
            if piece.custom is not None:
                self._customs.add(index)
            kind = "custom" if index in self._customs else ""
            arguments = function.arguments or ""
            if not isinstance(arguments, str):
                arguments = msgspec.json.encode(arguments).decode()
            if new:
                if not function.name:
                    raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
                deltas.append(ToolCallDelta(index, self._ids[index], function.name, arguments, piece.signature, kind))
            elif arguments or piece.signature:
                deltas.append(ToolCallDelta(index, arguments=arguments, signature=piece.signature, kind=kind))
        return tuple(deltas)

    def _index(self, piece: WireCall, place: int, function: WireFunction) -> tuple[int, bool]:
        """Which call a piece belongs to, and whether it begins it: another id at the same place is another call."""
        at = place if piece.index is None else piece.index
        if piece.id and piece.id in self._ids:
            return self._ids.index(piece.id), False
        known = self._by_place.get(at)
        begins = piece.id and function.name
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
        self._seen = Seen(request, prompt_tokens)
        self._prompt_tokens = prompt_tokens  # our estimate
        self._stops = request.sampling.stop
        self._logprobs = request.sampling.logprobs
        self._choices = [_Choice() for _ in range(request.n)]
        self._usage: dict[str, Any] | None = None
        self._tier = ""
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
        if isinstance(chunk.service_tier, str):
            self._tier = chunk.service_tier
        if chunk.choices is None:
            return []
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(self._prompt_tokens, estimated=True))
        for choice in chunk.choices:
            events += self._deltas(choice)
        return events

    def end(self, *, told: bool) -> list[Event]:
        """The last events. `told`: the server said that this is the end, or the completion came whole; if not, the
        connection ended, which is only good where every choice had ended."""
        if self.done:
            return []
        if not self._started or not (self.complete or told) or not all(choice.seen for choice in self._choices):
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self.done = True
        events: list[Event] = [
            Delta(i, finish_reason=one.finish_reason(), stop=one.stop) for i, one in enumerate(self._choices)
        ]
        return [*events, self.usage()]

    def usage(self) -> Usage:
        """As the provider reports it, else as counted here."""
        return final_usage(self._usage, self._seen, self._tier)

    def _deltas(self, wire: WireChoice) -> list[Delta]:
        """What a choice gained: one delta, and one more where it both answers and refuses."""
        if not 0 <= wire.index < len(self._choices):
            raise EngineFailed("The server behind this model answered more often than asked. Try again.")
        choice = self._choices[wire.index]
        choice.seen = True
        if wire.finish_reason:
            if wire.finish_reason == "error":
                raise EngineFailed("The server behind this model failed under this request. Try again.")
            choice.finish = wire.finish_reason
            if isinstance(wire.stop_reason, str) and wire.stop_reason in self._stops:
                choice.stop = wire.stop_reason
            self.progress += 1
        gained = wire.delta or wire.message or WireDelta()
        thought, text = _thought_of(gained), wire.text or ""
        if gained.content:
            text += gained.content if isinstance(gained.content, str) else _text_of_parts(gained.content)
        calls = choice.calls(gained.tool_calls) if gained.tool_calls else ()
        logprobs = () if self._logprobs is None or not wire.logprobs else read_logprobs(wire.logprobs)
        tokens = likely_chunk_tokens(text) + likely_chunk_tokens(thought)
        for call in calls:
            tokens += likely_chunk_tokens((call.name or "") + call.arguments)
        if logprobs and not gained.refusal:
            tokens = max(tokens, len(logprobs))
        made: list[Delta] = []
        if tokens or calls:
            shown = Thought(thought) if thought else None
            told = () if gained.refusal and not text else logprobs
            made.append(Delta(wire.index, text=text, tokens=tokens, logprobs=told, tool_calls=calls, thought=shown))
        if gained.refusal:
            told = () if text else logprobs
            tokens = max(likely_chunk_tokens(gained.refusal), len(told))
            made.append(Delta(wire.index, text=gained.refusal, tokens=tokens, logprobs=told, refused=True))
        for delta in made:
            self.progress += 1
            self._seen.add(delta)
        return made


def _thought_of(gained: WireDelta) -> str:
    """What it thinks, by whichever name the server has for it; a server that is between two names sends both."""
    for value in (gained.reasoning_content, gained.reasoning):
        if isinstance(value, str) and value:
            return value
    if not isinstance(gained.content, list):
        return ""
    thinking = [part for part in gained.content if isinstance(part, dict) and part.get("type") == "thinking"]
    pieces = [part["thinking"] for part in thinking if isinstance(part.get("thinking"), str | list)]
    return "".join(piece if isinstance(piece, str) else _text_of_parts(piece) for piece in pieces)


def _text_of_parts(parts: list[Any]) -> str:
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
