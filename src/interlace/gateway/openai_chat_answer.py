"""`/v1/chat/completions`: neutral events as OpenAI's chat completion, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from interlace.engines.types import Delta, FinishReason, Thought, TokenLogprob, ToolCallDelta
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.openai_chat_body import ExtraContent, GoogleContent
from interlace.gateway.openai_fields import UsageBody, finite, token_text, usage_body
from interlace.gateway.rendering import SSE_DONE, write_event
from interlace.gateway.seals import named_seal
from interlace.gateway.wire import encode


class TopToken(msgspec.Struct, frozen=True):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(msgspec.Struct, frozen=True):
    """A chosen token and its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of a choice."""

    content: list[ChosenToken]
    refusal: None = None


class FunctionPiece(msgspec.Struct, frozen=True):
    """A piece of a call: the name comes first, arguments are JSON text."""

    arguments: str
    name: str | UnsetType = UNSET


class CustomPiece(msgspec.Struct, frozen=True):
    """A piece of a call of a custom tool: the name comes first, `input` is any text."""

    input: str
    name: str | UnsetType = UNSET


class ToolCallPiece(msgspec.Struct, frozen=True):
    """A piece of tool call number `index`."""

    index: int
    function: FunctionPiece | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET
    custom: CustomPiece | UnsetType = UNSET
    extra_content: ExtraContent | UnsetType = UNSET


class SaidThinkingBlock(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sealed thought, whole, to be sent back as it is. In a stream it has an `index`: OpenAI's SDK puts no list
    together without one."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a choice gained."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    thinking_blocks: list[SaidThinkingBlock] | UnsetType = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One server-sent event of a chat completion."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    service_tier: str | UnsetType = UNSET


class CalledFunctionBody(msgspec.Struct, frozen=True):
    """A finished call."""

    name: str
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True):
    """A finished tool call."""

    id: str
    function: CalledFunctionBody | UnsetType = UNSET
    type: Literal["function", "custom"] = "function"
    custom: CustomPiece | UnsetType = UNSET
    extra_content: ExtraContent | UnsetType = UNSET


class AnswerMessage(msgspec.Struct, frozen=True):
    """What the assistant said."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None
    tool_calls: list[ToolCallBody] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    thinking_blocks: list[SaidThinkingBlock] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One finished choice."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True):
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: str | UnsetType = UNSET


class _Call:
    """A tool call as it grows."""

    def __init__(self) -> None:
        self.id = self.name = self.signature = self.kind = ""
        self.arguments: list[str] = []

    def take(self, piece: ToolCallDelta) -> None:
        self.id = piece.id or self.id
        self.name = piece.name or self.name
        self.signature = piece.signature or self.signature
        self.kind = piece.kind or self.kind
        self.arguments.append(piece.arguments)

    def body(self) -> ToolCallBody:
        if self.kind:
            return ToolCallBody(self.id, type="custom", custom=CustomPiece("".join(self.arguments), self.name))
        function = CalledFunctionBody(self.name, "".join(self.arguments))
        return ToolCallBody(self.id, function, extra_content=_extra(self.signature))


class _Thoughts:
    """The thoughts of a choice as they come: a sealed one is shown as a block once it is whole."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.blocks: list[SaidThinkingBlock] = []
        self._begun: list[str] = []
        self._parted = False  # what comes next begins another summary

    def take(self, thought: Thought) -> tuple[str, SaidThinkingBlock | None]:
        """What a piece adds to the text, and the block that it completes."""
        text, block = thought.text, None
        if thought.redacted:
            block = SaidThinkingBlock("redacted_thinking", data=named_seal(thought.redacted, thought.id))
        else:
            if text:
                text = f"\n\n{text}" if self._parted and self._begun else text
                self.text.append(text)
                self._begun.append(text)
            self._parted = thought.summary and not text
            if thought.signature:
                seal = named_seal(thought.signature, thought.id)
                block = SaidThinkingBlock("thinking", "".join(self._begun), seal)
                self._begun.clear()
        if block is not None:
            self.blocks.append(block)
        return text, block


class _Choice:
    """A choice as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.thoughts = _Thoughts()
        self.calls: dict[int, _Call] = {}
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason = "stop"

    def take(self, delta: Delta) -> None:
        (self.refusal if delta.refused else self.text).append(delta.text)
        if delta.thought is not None:
            self.thoughts.take(delta.thought)
        self.logprobs += delta.logprobs
        for piece in delta.tool_calls:
            self.calls.setdefault(piece.index, _Call()).take(piece)
        self.finish = delta.finish_reason or self.finish

    def body(self, index: int, *, logprobs: bool) -> ChatChoice:
        content, refusal = "".join(self.text), "".join(self.refusal) or None
        calls = [self.calls[i].body() for i in sorted(self.calls)]
        message = AnswerMessage(
            content or (None if calls or refusal else ""),
            refusal=refusal,
            tool_calls=calls or UNSET,
            reasoning_content="".join(self.thoughts.text) or UNSET,
            thinking_blocks=self.thoughts.blocks or UNSET,
        )
        return ChatChoice(index, message, chat_logprobs(self.logprobs) if logprobs else None, self.finish)


class ChatRendering:
    """One chat completion, rendered."""

    def __init__(self, request_id: str, model: str, n: int, *, stream: bool, usage: bool, logprobs: bool) -> None:
        self.stream = stream
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._created = int(time.time())
        self._choices = [_Choice() for _ in range(n)]
        self._logprobs = logprobs
        self._usage = usage
        self._no_usage = None if usage else UNSET  # with usage wanted, every chunk but the last says null

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """One event for each delta that shows something."""
        out = bytearray()
        for happening in batch:
            if isinstance(happening, Delta):
                self._write_delta(out, happening)
            elif isinstance(happening, PartStarted):
                for index in range(len(self._choices)):
                    self._write(out, ChunkChoice(index, ChatDelta(role="assistant", content="")))
        return bytes(out)

    def last_chunks(self, done: Done) -> bytes:
        """The usage where it was wanted, and the end."""
        out = bytearray()
        if self._usage:
            tier = done.usage.service_tier or UNSET
            usage = usage_body(done.usage)
            write_event(out, ChatChunk(self._id, self._created, self._model, [], usage, service_tier=tier))
        return bytes(out + SSE_DONE)

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect."""
        for happening in batch:
            if isinstance(happening, Delta):
                self._choices[happening.index].take(happening)

    def whole(self, done: Done) -> bytes:
        """The chat completion."""
        choices = [choice.body(i, logprobs=self._logprobs) for i, choice in enumerate(self._choices)]
        usage, tier = usage_body(done.usage), done.usage.service_tier or UNSET
        return encode(ChatCompletion(self._id, self._created, self._model, choices, usage, service_tier=tier))

    def _write_delta(self, out: bytearray, delta: Delta) -> None:
        """Thoughts first, then content, the end in a chunk of its own with an empty delta, as OpenAI sends it."""
        if delta.thought is not None:
            self._write_thought(out, delta.index, delta.thought)
        if delta.text or delta.logprobs or delta.tool_calls:
            logprobs = chat_logprobs(delta.logprobs) if delta.logprobs else None
            calls = [_piece(piece) for piece in delta.tool_calls] if delta.tool_calls else UNSET
            text = UNSET if delta.tool_calls and not delta.text else delta.text
            said = ChatDelta(refusal=text) if delta.refused else ChatDelta(content=text)
            self._write(out, ChunkChoice(delta.index, msgspec.structs.replace(said, tool_calls=calls), logprobs))
        if delta.finish_reason is not None:
            self._write(out, ChunkChoice(delta.index, ChatDelta(), None, delta.finish_reason))

    def _write_thought(self, out: bytearray, index: int, thought: Thought) -> None:
        text, block = self._choices[index].thoughts.take(thought)
        blocks: list[SaidThinkingBlock] | UnsetType = UNSET
        if block is not None:
            place = len(self._choices[index].thoughts.blocks) - 1
            blocks = [msgspec.structs.replace(block, index=place)]
        gained = ChatDelta(reasoning_content=text or UNSET, thinking_blocks=blocks)
        if gained != ChatDelta():
            self._write(out, ChunkChoice(index, gained))

    def _write(self, out: bytearray, choice: ChunkChoice) -> None:
        write_event(out, ChatChunk(self._id, self._created, self._model, [choice], self._no_usage))


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Logprobs in the chat endpoint's shape."""
    return ChatLogprobs(
        [
            ChosenToken(
                token_text(token.bytes),
                finite(token.logprob or 0.0),
                list(token.bytes),
                [TopToken(token_text(top.bytes), finite(top.logprob), list(top.bytes)) for top in token.top],
            )
            for token in tokens
        ]
    )


def _piece(piece: ToolCallDelta) -> ToolCallPiece:
    if piece.kind:
        custom = CustomPiece(piece.arguments, UNSET if piece.name is None else piece.name)
        if piece.id is None:
            return ToolCallPiece(piece.index, custom=custom)
        return ToolCallPiece(piece.index, id=piece.id, type="custom", custom=custom)
    function = FunctionPiece(piece.arguments, UNSET if piece.name is None else piece.name)
    extra = _extra(piece.signature)
    if piece.id is None:
        return ToolCallPiece(piece.index, function, extra_content=extra)
    return ToolCallPiece(piece.index, function, piece.id, "function", extra_content=extra)


def _extra(signature: str) -> ExtraContent | UnsetType:
    return ExtraContent(google=GoogleContent(thought_signature=signature)) if signature else UNSET
