"""An answer of Amazon Bedrock's Converse, whole or as the events of ConverseStream, as neutral events."""

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

# --- the wire ----------------------------------------------------------------------------------------------------


class WireReasoningText(msgspec.Struct, frozen=True):
    """A whole thought."""

    text: str = ""
    signature: str = ""


class WireReasoning(msgspec.Struct, frozen=True, rename="camel"):
    """A thought: whole (`reasoning_text`), or a piece of one. What is redacted is base64."""

    reasoning_text: WireReasoningText | None = None
    text: str = ""
    signature: str = ""
    redacted_content: str = ""


class WireCited(msgspec.Struct, frozen=True):
    """A piece of a text with citations."""

    text: str = ""


class WireCitations(msgspec.Struct, frozen=True):
    """A text with citations; the citations have no neutral form."""

    content: list[WireCited] = []


class WireToolUse(msgspec.Struct, frozen=True, rename="camel"):
    """A call: whole, its beginning (without `input`), or a piece of its input, which is then text."""

    tool_use_id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")
    type: str = ""


class WireBlock(msgspec.Struct, frozen=True, rename="camel"):
    """A block of a message, its beginning, or what it gained. Other members (tool results of Bedrock's own tools,
    pictures) have no neutral form."""

    text: str = ""
    tool_use: WireToolUse | None = None
    reasoning_content: WireReasoning | None = None
    citations_content: WireCitations | None = None


class WireBlockEvent(msgspec.Struct, frozen=True, rename="camel"):
    """`contentBlockStart` and `contentBlockDelta`."""

    content_block_index: int
    start: WireBlock = WireBlock()
    delta: WireBlock = WireBlock()


class WireStop(msgspec.Struct, frozen=True, rename="camel"):
    """`messageStop`."""

    stop_reason: str
    additional_model_response_fields: Any = None


class WireMessage(msgspec.Struct, frozen=True):
    """A whole message."""

    content: list[WireBlock]


class WireOutput(msgspec.Struct, frozen=True):
    """What a whole answer is about."""

    message: WireMessage


class WireMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """`metadata`, the last event. `metrics` and `trace` are for whoever looks into one request."""

    usage: Any = None
    service_tier: Any = None


class WireAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """An event of a stream under its name, or a whole answer. Exceptions are looked for by name."""

    message_start: Any = None
    content_block_start: WireBlockEvent | None = None
    content_block_delta: WireBlockEvent | None = None
    message_stop: WireStop | None = None
    metadata: WireMetadata | None = None
    output: WireOutput | None = None
    stop_reason: str | None = None
    additional_model_response_fields: Any = None
    usage: Any = None
    service_tier: Any = None


_decoder = msgspec.json.Decoder(WireAnswer)

_FINISH: dict[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_BROKEN = {
    "malformed_model_output": "wrote what is no answer",
    "malformed_tool_use": "called a tool in a way that cannot be read",
}

# --- reading -----------------------------------------------------------------------------------------------------


class ConverseAnswer:
    """Reads one answer; see `wire.Answer`."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress = 0
        self.done = False
        self._seen = Seen(request, prompt_tokens)
        self._stops = request.sampling.stop
        self._calls: dict[int, int] = {}  # block → call, both by index
        self._foreign: set[int] = set()  # blocks of calls that are not for the caller
        self._inputs: set[int] = set()  # calls of which some input came
        self._started = False
        self._finish: Delta | None = None
        self._usage: Any = None
        self._tier = ""

    @property
    def complete(self) -> bool:
        """Whether the reason to stop is known."""
        return self._finish is not None

    def take(self, payload: bytes) -> list[Event]:
        """The events of one message of the stream, or of a whole answer."""
        if self.done:
            return []
        try:
            wire = _decoder.decode(payload)
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        if wire.output is not None:
            return self._whole(wire)
        events: list[Event] = []
        if wire.message_start is not None:
            events += self._begun()
        elif (begins := wire.content_block_start) is not None:
            events += self._begun()
            events += self._gained(begins.start, begins.content_block_index)
        elif (gains := wire.content_block_delta) is not None:
            events += self._begun()
            events += self._gained(gains.delta, gains.content_block_index)
        elif (stop := wire.message_stop) is not None:
            events += self._begun()
            self._stopped(stop.stop_reason, stop.additional_model_response_fields)
        elif (metadata := wire.metadata) is not None:
            self._usage, self._tier = metadata.usage, _tier(metadata.service_tier)
            if self._finish is not None:
                events += self.end(told=True)
        elif _is_error(payload):
            raise ErrorInside(payload)
        return events

    def end(self, *, told: bool) -> list[Event]:
        """The reason to stop, what was used."""
        if self.done:
            return []
        if not self._started or self._finish is None:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        del told
        self.done = True
        # A call without input takes an empty object: no piece of it is ever sent.
        empty = [ToolCallDelta(call, arguments="{}") for call in self._calls.values() if call not in self._inputs]
        filled: list[Event] = [Delta(tool_calls=tuple(empty))] if empty else []
        return [*filled, self._finish, self._used()]

    def _begun(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        return [Started(self._seen.prompt_tokens, estimated=True)]

    def _whole(self, wire: WireAnswer) -> list[Event]:
        assert wire.output is not None
        events = self._begun()
        for index, block in enumerate(wire.output.message.content):
            events += self._gained(block, index)
        self._usage, self._tier = wire.usage, _tier(wire.service_tier)
        if wire.stop_reason is not None:
            self._stopped(wire.stop_reason, wire.additional_model_response_fields)
        return events

    def _stopped(self, reason: str, more: Any) -> None:
        if reason in _BROKEN:
            raise EngineFailed(f"The model {_BROKEN[reason]}. Try again.")
        self.progress += 1
        finish = _FINISH.get(reason, "tool_calls" if self._calls and reason != "stop_sequence" else "stop")
        stop = None
        if reason == "stop_sequence":
            told = more.get("stop_sequence") if isinstance(more, dict) else None
            stop = told if isinstance(told, str) else self._stops[0] if len(self._stops) == 1 else None
        self._finish = Delta(finish_reason=finish, stop=stop)

    def _gained(self, block: WireBlock, index: int) -> list[Event]:
        text = block.text
        if block.citations_content is not None:
            text += "".join(piece.text for piece in block.citations_content.content)
        thoughts = [] if block.reasoning_content is None else _thoughts(block.reasoning_content)
        call = None
        if block.tool_use is not None and block.tool_use.type == "server_tool_use":
            self._foreign.add(index)  # a tool that Bedrock runs itself
        elif block.tool_use is not None and index not in self._foreign:
            call = self._call(block.tool_use, index)
        if not text and not thoughts and call is None:
            return []
        self.progress += 1
        gained = "".join(thought.text for thought in thoughts)
        tokens = likely_chunk_tokens(text) + likely_chunk_tokens(gained)
        if call is not None:
            tokens += likely_chunk_tokens((call.name or "") + call.arguments)
        last = thoughts.pop() if thoughts else None
        deltas = [Delta(thought=thought) for thought in thoughts]
        deltas.append(Delta(text=text, tokens=tokens, thought=last, tool_calls=() if call is None else (call,)))
        for delta in deltas:
            self._seen.add(delta)
        return [*deltas]

    def _call(self, use: WireToolUse, index: int) -> ToolCallDelta | None:
        """A call's beginning, a piece of its input, or all of it."""
        arguments = _input(use.input)
        if use.name:
            if not use.tool_use_id:
                raise EngineFailed("The server behind this model called a tool without an id. Try again.")
            call = self._calls[index] = len(self._calls)
        elif index in self._calls:
            call = self._calls[index]
        elif not arguments:
            return None
        else:
            raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
        if arguments:
            self._inputs.add(call)
        return ToolCallDelta(call, use.tool_use_id or None, use.name or None, arguments)

    def _used(self) -> Usage:
        """Tokens of the cache stand beside `inputTokens`, unless the total says that they are in them."""
        usage = self._usage if isinstance(self._usage, dict) else {}
        prompt, completion, total = (number_in(usage, name) for name in ("inputTokens", "outputTokens", "totalTokens"))
        read, written = (number_in(usage, f"cache{kind}InputTokens") or 0 for kind in ("Read", "Write"))
        if prompt is not None and total != prompt + (completion or 0):
            prompt += read + written
        return checked_usage(
            self._seen,
            prompt=prompt,
            completion=completion,
            cached=read,
            cache_write=written,
            cache_write_1h=_for_an_hour(usage.get("cacheDetails")),
            disputed=total is not None and total != (prompt or 0) + (completion or 0),
            service_tier=self._tier,
        )


def _for_an_hour(details: Any) -> int:
    """Of what was written to the cache, the tokens that stay for an hour."""
    if not isinstance(details, list):
        return 0
    hours = [one for one in details if isinstance(one, dict) and one.get("ttl") == "1h"]
    return sum(number_in(one, "inputTokens") or 0 for one in hours)


def _thoughts(wire: WireReasoning) -> list[Thought]:
    whole = wire.reasoning_text or WireReasoningText()
    text, signature = wire.text or whole.text, wire.signature or whole.signature
    found = [Thought(text=text, signature=signature)] if text or signature else []
    if wire.redacted_content:
        found.append(Thought(redacted=wire.redacted_content))
    return found


def _input(raw: msgspec.Raw) -> str:
    """Input as JSON text: an object of a whole answer as it stands, pieces of a stream as their text."""
    if not raw:
        return ""
    value = msgspec.json.decode(raw)
    return value if isinstance(value, str) else bytes(raw).decode()


def _is_error(payload: bytes) -> bool:
    value = msgspec.json.decode(payload)
    return any(name == "error" or name.endswith("Exception") for name in value)


def _tier(told: Any) -> str:
    kind = told.get("type") if isinstance(told, dict) else None
    return kind if isinstance(kind, str) else ""
