"""`/v1/messages`: neutral events as Anthropic's message, whole or as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from interlace.engines.types import Delta, Thought, ToolCallDelta, Usage
from interlace.gateway.bounds import tokens_of
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.rendering import write_named_event
from interlace.gateway.seals import named_seal, sealed_id
from interlace.gateway.wire import encode

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class TextBlock(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """A piece of text."""

    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking", tag_field="type"):
    """A thought; the signature is empty where its model gives none."""

    thinking: str
    signature: str


class RedactedThinkingBlock(msgspec.Struct, frozen=True, tag="redacted_thinking", tag_field="type"):
    """A thought that only its provider can read."""

    data: str


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use", tag_field="type"):
    """A call; `input` is an object."""

    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock


class OutputDetails(msgspec.Struct, frozen=True):
    """Of the output tokens, those that were thoughts."""

    thinking_tokens: int


class CacheCreation(msgspec.Struct, frozen=True):
    """What was written to a cache, by how long it stays: five minutes, or an hour."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """What is billed. `input_tokens` leaves out what was read from a cache or written to one. `cache_creation` only
    of a whole message, and where something was written for an hour."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: OutputDetails | UnsetType = UNSET
    service_tier: Literal["standard", "priority", "batch"] | UnsetType = UNSET
    cache_creation: CacheCreation | UnsetType = UNSET


class StopDetails(msgspec.Struct, frozen=True):
    """More on a refusal."""

    type: Literal["refusal"] = "refusal"
    category: None = None
    explanation: str | None = None


class MessageBody(msgspec.Struct, frozen=True):
    """The whole answer; also what its stream begins with."""

    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | UnsetType = UNSET
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class StopPart(msgspec.Struct, frozen=True):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: StopDetails | UnsetType = UNSET


def usage_of(usage: Usage) -> MessageUsage:
    """The usage in Anthropic's words: the very numbers that are billed."""
    tokens = tokens_of(usage, embedding=False)
    hour = tokens.cache_write_1h
    tier: Any = usage.service_tier if usage.service_tier in {"standard", "priority", "batch"} else UNSET
    return MessageUsage(
        input_tokens=tokens.prompt - tokens.cached - tokens.cache_write,
        output_tokens=tokens.completion,
        cache_creation_input_tokens=tokens.cache_write,
        cache_read_input_tokens=tokens.cached,
        output_tokens_details=OutputDetails(tokens.reasoning) if tokens.reasoning else UNSET,
        service_tier=tier,
        cache_creation=CacheCreation(tokens.cache_write - hour, hour) if hour else UNSET,
    )


class _End:
    """Why the answer ended, as far as it is known."""

    def __init__(self) -> None:
        self.delta = Delta(finish_reason="stop")
        self.refused = False

    def take(self, delta: Delta) -> None:
        self.refused |= delta.refused
        if delta.finish_reason is not None:
            self.delta = delta

    def part(self) -> StopPart:
        reason: StopReason = "end_turn"
        if self.refused or self.delta.finish_reason == "content_filter":
            return StopPart("refusal", None, StopDetails())
        match self.delta.finish_reason:
            case "length":
                reason = "max_tokens"
            case "tool_calls":
                reason = "tool_use"
            case "stop" if self.delta.stop is not None:
                return StopPart("stop_sequence", self.delta.stop)
        return StopPart(reason, None)


class _Growing:
    """A block as it grows; what it is follows from its kind: "text", "thinking", "redacted_thinking", "tool_use"."""

    def __init__(self, kind: str, call: int = -1) -> None:
        self.kind = kind
        self.call = call
        self.place = 0
        self.id = self.name = self.seal = ""
        self.text: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether a call's arguments are an object by now."""
        return bool(self.text) and "INVALID_JSON" not in _input("".join(self.text))

    def block(self) -> Block:
        text = "".join(self.text)
        match self.kind:
            case "text":
                return TextBlock(text)
            case "thinking":
                return ThinkingBlock(text, self.seal)
            case "redacted_thinking":
                return RedactedThinkingBlock(self.seal)
        return ToolUseBlock(sealed_id(self.id, self.seal), self.name, _input(text))


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object. What is none, such as one that was cut off, comes as Anthropic says to send it
    back: under the name INVALID_JSON."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


class _Blocks:
    """The blocks of an answer, cut from its deltas: each piece goes to the block it belongs to, or begins one.

    `new` and `more` hear of each: a stream writes events, a whole answer has nothing to do.
    """

    def __init__(self) -> None:
        self.blocks: list[_Growing] = []
        self._open: _Growing | None = None
        self._parted = False  # what is thought next begins another summary

    def take(self, delta: Delta) -> None:
        if delta.thought is not None:
            self._think(delta.thought)
        if delta.text:
            self._more(self._at("text"), delta.text)
        for piece in delta.tool_calls:
            self._call(piece)

    def close(self) -> None:
        if self._open is not None:
            self.ended(self._open)
        self._open = None

    def began(self, block: _Growing) -> None:
        """A block began."""

    def grew(self, block: _Growing, text: str) -> None:
        """A block gained text."""

    def sealed(self, block: _Growing) -> None:
        """A thought has its signature."""

    def ended(self, block: _Growing) -> None:
        """A block is complete."""

    def _think(self, thought: Thought) -> None:
        if thought.redacted:
            self._begin(_Growing("redacted_thinking"), seal=named_seal(thought.redacted, thought.id))
            self.close()
            return
        if not (thought.text or thought.signature):
            self._parted |= thought.summary
            return
        block = self._at("thinking")
        if thought.text:
            self._more(block, f"\n\n{thought.text}" if self._parted and block.text else thought.text)
            self._parted = False
        if thought.signature:
            block.seal = named_seal(thought.signature, thought.id)
            self.sealed(block)
            self.close()

    def _call(self, piece: ToolCallDelta) -> None:
        block = self._open
        if block is None or block.call != piece.index:
            block = self._earlier(piece.index)
        if block is None:
            block = _Growing("tool_use", piece.index)
            block.id, block.name = piece.id or "", piece.name or ""
            self._begin(block, seal=piece.signature)
        block.seal = piece.signature or block.seal
        if piece.arguments:
            self._more(block, piece.arguments)

    def _earlier(self, call: int) -> _Growing | None:
        return next((block for block in self.blocks if block.call == call), None)

    def _at(self, kind: str) -> _Growing:
        if self._open is None or self._open.kind != kind:
            self._begin(_Growing(kind))
        assert self._open is not None
        return self._open

    def _begin(self, block: _Growing, seal: str = "") -> None:
        self.close()
        block.seal, block.place = seal, len(self.blocks)
        self.blocks.append(block)
        self._open = block
        self.began(block)

    def _more(self, block: _Growing, text: str) -> None:
        block.text.append(text)
        self.grew(block, text)


class _StreamedBlocks(_Blocks):
    """Blocks as events. One is open at a time: a call that begins while another one's arguments are not complete waits
    for them, or for the answer's end."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self._waiting: list[ToolCallDelta] = []

    def took(self) -> bytes:
        out, self.out = bytes(self.out), bytearray()
        return out

    def finish(self) -> None:
        """The answer has ended: nothing waits any longer."""
        for piece in sorted(self._waiting, key=lambda piece: piece.index):
            super()._call(piece)
        self.close()

    def _call(self, piece: ToolCallDelta) -> None:
        block = self._open
        if block is not None and block.kind == "tool_use" and block.call != piece.index and not block.complete:
            self._waiting.append(piece)
            return
        if self._earlier(piece.index) in (None, block):  # a call that was complete gains nothing
            super()._call(piece)
        if self._waiting and self._open is not None and self._open.complete:
            waiting, self._waiting = sorted(self._waiting, key=lambda piece: piece.index), []
            for other in waiting:
                self._call(other)

    def began(self, block: _Growing) -> None:
        self._write("content_block_start", index=block.place, content_block=block.block())
        if block.place == 0:
            self._write("ping")

    def grew(self, block: _Growing, text: str) -> None:
        match block.kind:
            case "text":
                delta = {"type": "text_delta", "text": text}
            case "thinking":
                delta = {"type": "thinking_delta", "thinking": text}
            case _:
                delta = {"type": "input_json_delta", "partial_json": text}
        self._write("content_block_delta", index=block.place, delta=delta)

    def sealed(self, block: _Growing) -> None:
        delta = {"type": "signature_delta", "signature": block.seal}
        self._write("content_block_delta", index=block.place, delta=delta)

    def ended(self, block: _Growing) -> None:
        self._write("content_block_stop", index=block.place)

    def _write(self, name: str, **fields: Any) -> None:
        write_named_event(self.out, name, fields)


class MessageRendering:
    """One message, rendered."""

    def __init__(self, request_id: str, model: str, *, stream: bool) -> None:
        self.stream = stream
        self._id = f"msg_{request_id}"
        self._model = model
        self._blocks = _StreamedBlocks() if stream else _Blocks()
        self._end = _End()

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """The events of a batch."""
        blocks = self._blocks
        assert isinstance(blocks, _StreamedBlocks)
        for happening in batch:
            if isinstance(happening, PartStarted):
                started = happening.started
                usage = usage_of(Usage(started.prompt_tokens, 0, started.cached_tokens))
                message = MessageBody(self._id, self._model, [], usage)
                write_named_event(blocks.out, "message_start", {"message": message})
        self.take(batch)
        return blocks.took()

    def last_chunks(self, done: Done) -> bytes:
        """Why it ended, what is billed, and the end."""
        blocks = self._blocks
        assert isinstance(blocks, _StreamedBlocks)
        blocks.finish()
        usage = msgspec.structs.replace(usage_of(done.usage), service_tier=UNSET, cache_creation=UNSET)
        write_named_event(blocks.out, "message_delta", {"delta": self._end.part(), "usage": usage})
        write_named_event(blocks.out, "message_stop", {})
        return blocks.took()

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect."""
        for happening in batch:
            if isinstance(happening, Delta):
                self._blocks.take(happening)
                self._end.take(happening)

    def whole(self, done: Done) -> bytes:
        """The message."""
        end = self._end.part()
        return encode(
            MessageBody(
                self._id,
                self._model,
                [block.block() for block in self._blocks.blocks],
                usage_of(done.usage),
                end.stop_reason,
                end.stop_sequence,
                end.stop_details,
            )
        )
