"""The output of a response as it grows: neutral deltas become items and parts, and each step an event.

    output_item.added → (content_part.added → deltas → done → content_part.done)* → output_item.done

One thought or message is open at a time. Calls stay open until their arguments are whole JSON, so that calls may arrive
interleaved, as some providers send them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from interlace.engines.types import Delta, FinishReason, Thought, TokenLogprob, ToolCallDelta
from interlace.gateway.responses_answer import (
    ItemStatus,
    OutputCall,
    OutputCustomCall,
    OutputItem,
    OutputMessage,
    OutputNativeCall,
    OutputReasoning,
    OutputRefusal,
    OutputText,
    ReasoningPart,
    SummaryPart,
    event_logprobs,
    part_logprobs,
)
from interlace.gateway.responses_ids import item_id
from interlace.gateway.responses_items import CALL, REDACTED, native_item

Tell = Callable[[str, dict[str, Any]], None]
"""Takes the type of an event, without `response.`, and its fields."""


class _Item(ABC):
    """An item that grows. `place` are the fields that say of an event where it belongs."""

    def __init__(self, id: str, index: int, tell: Tell) -> None:
        self.id = id
        self.index = index
        self.status: ItemStatus = "in_progress"
        self.tell = tell

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index}

    @abstractmethod
    def body(self) -> OutputItem:
        """The item so far."""

    @abstractmethod
    def end(self) -> None:
        """Tell the end of what is open inside."""

    def open(self) -> None:
        self.tell("output_item.added", {"output_index": self.index, "item": self.body()})

    def close(self, status: ItemStatus) -> None:
        if self.status == "in_progress":
            self.end()
            self.status = status
            self.tell("output_item.done", {"output_index": self.index, "item": self.body()})


class _Message(_Item):
    """What the model says: parts of text and of refusal."""

    def __init__(self, id: str, index: int, tell: Tell) -> None:
        super().__init__(id, index, tell)
        self._parts: list[OutputText | OutputRefusal] = []
        self._texts: list[str] = []  # of the open part
        self._logprobs: list[TokenLogprob] = []
        self._refuses: bool | None = None  # what part is open; None: none

    def body(self) -> OutputMessage:
        """The item so far."""
        parts = self._parts if self._refuses is None else [*self._parts, self._part()]
        return OutputMessage(id=self.id, status=self.status, content=list(parts))

    def say(self, text: str, logprobs: tuple[TokenLogprob, ...], *, refuses: bool) -> None:
        """Add to the open part, or open another."""
        if self._refuses != refuses:
            self.end()
            self._refuses = refuses
            part = OutputRefusal() if refuses else OutputText()
            self.tell("content_part.added", {**self._at, "part": part})
        self._texts.append(text)
        self._logprobs += logprobs
        if refuses:
            self.tell("refusal.delta", {**self._at, "delta": text})
        elif text or logprobs:
            told = event_logprobs(part_logprobs(logprobs)) if logprobs else []
            self.tell("output_text.delta", {**self._at, "delta": text, "logprobs": told})

    def end(self) -> None:
        """Of the open part."""
        if self._refuses is None:
            return
        text, part = "".join(self._texts), self._part()
        if isinstance(part, OutputRefusal):
            self.tell("refusal.done", {**self._at, "refusal": text})
        else:
            self.tell("output_text.done", {**self._at, "text": text, "logprobs": event_logprobs(part.logprobs)})
        self.tell("content_part.done", {**self._at, "part": part})
        self._parts.append(part)
        self._texts, self._logprobs, self._refuses = [], [], None

    def _part(self) -> OutputText | OutputRefusal:
        """The open part."""
        text = "".join(self._texts)
        return OutputRefusal(text) if self._refuses else OutputText(text, logprobs=part_logprobs(self._logprobs))

    @property
    def _at(self) -> dict[str, Any]:
        return {**self.place, "content_index": len(self._parts)}


class _Reasoning(_Item):
    """What the model thinks: one text, and short versions of it, whichever came."""

    def __init__(self, id: str, index: int, tell: Tell, provider: str = "") -> None:
        super().__init__(id, index, tell)
        self.provider = provider  # its provider's name for it
        self.sealed = False
        self._seal: str | None = None
        self._text: list[str] = []
        self._summaries: list[str] = []
        self._open = ""  # "text" or "summary"
        self._summary: list[str] = []

    def body(self) -> OutputReasoning:
        """The item so far, with its seal, whether or not that is shown."""
        text = "".join(self._text)
        summaries = [*self._summaries, "".join(self._summary)] if self._summary else self._summaries
        return OutputReasoning(
            id=self.id,
            status=self.status,
            summary=[SummaryPart(summary) for summary in summaries],
            content=[ReasoningPart(text)] if text else UNSET,
            encrypted_content=UNSET if self._seal is None else self._seal,
        )

    def think(self, thought: Thought) -> None:
        """Add a piece; an empty piece of a summary parts it from the next."""
        if thought.text:
            if thought.summary:
                self._summarise(thought.text)
            else:
                self._think(thought.text)
        elif thought.summary and self._open == "summary":
            self.end()
        if thought.signature or thought.redacted:
            self.seal(f"{REDACTED}{thought.redacted}" if thought.redacted else thought.signature)

    def seal(self, seal: str) -> None:
        """It is over, and this is what its provider knows it by."""
        self.end()
        self._seal, self.sealed = seal, True

    def _think(self, text: str) -> None:
        if self._open != "text":
            self.end()
            self._open = "text"
            self.tell("content_part.added", {**self._at, "part": ReasoningPart()})
        self._text.append(text)
        self.tell("reasoning_text.delta", {**self._at, "delta": text})

    def _summarise(self, text: str) -> None:
        if self._open != "summary":
            self.end()
            self._open = "summary"
            self.tell("reasoning_summary_part.added", {**self._summary_at, "part": SummaryPart()})
        self._summary.append(text)
        self.tell("reasoning_summary_text.delta", {**self._summary_at, "delta": text})

    def end(self) -> None:
        """Of the open part."""
        if self._open == "text":
            text = "".join(self._text)
            self.tell("reasoning_text.done", {**self._at, "text": text})
            self.tell("content_part.done", {**self._at, "part": ReasoningPart(text)})
        elif self._open == "summary":
            text = "".join(self._summary)
            self.tell("reasoning_summary_text.done", {**self._summary_at, "text": text})
            self.tell("reasoning_summary_part.done", {**self._summary_at, "part": SummaryPart(text)})
            self._summaries.append(text)
            self._summary = []
        self._open = ""

    @property
    def _at(self) -> dict[str, Any]:
        return {**self.place, "content_index": 0}

    @property
    def _summary_at(self) -> dict[str, Any]:
        return {**self.place, "summary_index": len(self._summaries)}


class _Call(_Item):
    """A call of a function."""

    def __init__(self, id: str, index: int, tell: Tell, first: ToolCallDelta) -> None:
        super().__init__(id, index, tell)
        self.call_id = first.id or item_id("call", id, index)
        self.name = first.name or ""
        self.signature = ""
        self._arguments: list[str] = []

    @property
    def arguments(self) -> str:
        """So far."""
        return "".join(self._arguments)

    @property
    def whole(self) -> bool:
        """Whether the arguments are JSON already: then nothing can follow."""
        arguments = self.arguments
        try:
            msgspec.json.decode(arguments)
        except ValueError:
            return False
        return arguments.endswith("}")

    def body(self) -> OutputCall:
        """The item so far; arguments are told once they are whole."""
        arguments = "" if self.status == "in_progress" else self.arguments
        return OutputCall(id=self.id, status=self.status, call_id=self.call_id, name=self.name, arguments=arguments)

    def take(self, piece: ToolCallDelta) -> None:
        """Add a piece; to whole arguments nothing but white space is ever added."""
        self.signature = piece.signature or self.signature
        if piece.arguments and self.status == "in_progress":
            self._arguments.append(piece.arguments)
            self.tell("function_call_arguments.delta", {**self.place, "delta": piece.arguments})

    def end(self) -> None:
        """Of the arguments."""
        self.tell("function_call_arguments.done", {**self.place, "name": self.name, "arguments": self.arguments})


class _CustomCall(_Call):
    """A call of a custom tool."""

    @property
    def whole(self) -> bool:
        """Any text may go on."""
        return False

    def body(self) -> OutputCustomCall:  # type: ignore[override] # another item, with the same life
        """The item so far; its input is told once it is whole."""
        said = "" if self.status == "in_progress" else self.arguments
        return OutputCustomCall(id=self.id, status=self.status, call_id=self.call_id, name=self.name, input=said)

    def take(self, piece: ToolCallDelta) -> None:
        """Add a piece."""
        if piece.arguments:
            self._arguments.append(piece.arguments)
            self.tell("custom_tool_call_input.delta", {**self.place, "delta": piece.arguments})

    def end(self) -> None:
        """Of the input."""
        self.tell("custom_tool_call_input.done", {**self.place, "input": self.arguments})


class _NativeCall(_Call):
    """A call that only OpenAI's models make. It comes whole."""

    def __init__(self, id: str, index: int, tell: Tell, first: ToolCallDelta) -> None:
        super().__init__(id, index, tell, first)
        self.kind = first.kind
        self._arguments.append(first.arguments)
        self._begun = True

    def body(self) -> OutputNativeCall:  # type: ignore[override] # another item, with the same life
        """The item."""
        said = native_item(self.kind, self.call_id, self.arguments if self.whole else "")
        made: OutputNativeCall = msgspec.convert({**said, "id": self.id, "status": self.status}, OutputNativeCall)
        return made

    def take(self, piece: ToolCallDelta) -> None:
        """Add a piece; the first is there."""
        if not self._begun:
            self._arguments.append(piece.arguments)
        self._begun = False

    def end(self) -> None:
        """There is nothing inside."""


def _call_of(kind: str) -> type[_Call]:
    return _Call if not kind else _CustomCall if kind == "custom" else _NativeCall


T = TypeVar("T", bound=_Item)


class Output:
    """All items of one response, in order; `tell` hears each event. `show_seals`: `include` asks for sealed thoughts.

    What `items` gives always has its seals; what is told has them only with `show_seals`.
    """

    def __init__(self, response: str, tell: Tell, *, show_seals: bool) -> None:
        self._response = response
        self._tell = tell if show_seals else lambda kind, fields: tell(kind, _unsealed(fields))
        self._items: list[_Item] = []
        self._calls: dict[int, _Call] = {}
        self.finish: FinishReason | None = None

    def items(self) -> list[OutputItem]:
        """All items so far."""
        return [item.body() for item in self._items]

    def take(self, delta: Delta) -> None:
        """One delta, in its own order: thought, text, calls, end."""
        if delta.thought is not None:
            self._thoughts(delta.thought).think(delta.thought)
        if delta.text or delta.logprobs:
            self._message().say(delta.text, delta.logprobs, refuses=delta.refused)
        for piece in delta.tool_calls:
            self._call(piece).take(piece)
        if delta.finish_reason is not None:
            self._end(delta.finish_reason)

    def interrupt(self) -> None:
        """The answer ends in the middle: what is open stays incomplete, and nobody is told."""
        self._tell = lambda _, __: None
        for item in self._items:
            item.tell = self._tell
            item.close("incomplete")

    def _end(self, reason: FinishReason) -> None:
        self.finish = reason
        if reason == "stop" and not self._items:
            self._message().say("", (), refuses=False)
        status: ItemStatus = "incomplete" if reason in {"length", "content_filter"} else "completed"
        for item in self._items:
            whole = isinstance(item, _Call) and item.whole
            item.close("completed" if whole else status)
        for call in [call for call in self._calls.values() if call.signature]:
            seal = self._add(lambda name, index: _Reasoning(name, index, self._tell), "rs")
            seal.seal(f"{CALL}{call.call_id}\n{call.signature}")
            seal.close("completed")

    def _message(self) -> _Message:
        last = self._last
        if isinstance(last, _Message):
            return last
        self._close_open()
        return self._add(lambda name, index: _Message(name, index, self._tell), "msg")

    def _thoughts(self, thought: Thought) -> _Reasoning:
        last = self._last
        if isinstance(last, _Reasoning) and not last.sealed and thought.id in {"", last.provider}:
            return last
        self._close_open()
        return self._add(lambda name, index: _Reasoning(name, index, self._tell, thought.id), "rs", thought.id)

    def _call(self, piece: ToolCallDelta) -> _Call:
        call = self._calls.get(piece.index)
        if call is None:
            self._close_open()
            prefix = "fc" if not piece.kind else "ctc" if piece.kind == "custom" else "sh"
            make = _call_of(piece.kind)
            call = self._add(lambda name, index: make(name, index, self._tell, piece), prefix)
            self._calls[piece.index] = call
        return call

    @property
    def _last(self) -> _Item | None:
        last = self._items[-1] if self._items else None
        return last if last is not None and last.status == "in_progress" else None

    def _close_open(self) -> None:
        """Another item begins."""
        for item in self._items:
            if not isinstance(item, _Call) or item.whole:
                item.close("completed")

    def _add(self, make: Callable[[str, int], T], prefix: str, provider: str = "") -> T:
        index = len(self._items)
        item = make(item_id(prefix, self._response, index, provider), index)
        self._items.append(item)
        item.open()
        return item


def _unsealed(fields: dict[str, Any]) -> dict[str, Any]:
    item = fields.get("item")
    if not isinstance(item, OutputReasoning) or item.encrypted_content is UNSET:
        return fields
    return {**fields, "item": msgspec.structs.replace(item, encrypted_content=UNSET)}
