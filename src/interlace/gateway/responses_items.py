"""Items of the Responses API as neutral turns, and neutral turns as items.

A turn of the assistant is what stands together of its thoughts, its text and its calls, in this order.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from interlace.engines.types import (
    FilePart,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)
from interlace.errors import InvalidRequest
from interlace.gateway.media import IMAGE_TYPES, data_url, document, file_id, file_name, remote_url
from interlace.gateway.openai_chat_body import CacheBreakpoint
from interlace.gateway.responses_body import (
    ApplyPatchCallItem,
    ApplyPatchOutputItem,
    CallItem,
    CustomCallItem,
    CustomOutputItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputDocumentPart,
    InputImagePart,
    InputPart,
    InputTextPart,
    Item,
    ItemPart,
    LocalShellCallItem,
    LocalShellOutputItem,
    MessageItem,
    NativeCall,
    NativeOutput,
    OutputItem,
    OutputRefusalPart,
    OutputTextPart,
    ReasoningItem,
    ReasoningText,
    ShellCallItem,
    ShellOutputItem,
    SummaryText,
)
from interlace.gateway.responses_ids import FIRST_OF_INPUT, item_id, read_item_id

_PREFIXES: dict[type, str] = {MessageItem: "msg", ReasoningItem: "rs", FunctionCallItem: "fc", CustomCallItem: "ctc"}
"""What ids of items begin with; those of results with `fco`."""

REDACTED = "interlace-redacted:"
"""Begins the `encrypted_content` of a thought that only its provider can read."""

CALL = "interlace-call:"
"""Begins the `encrypted_content` of what a call's provider wants back with it; the call's id and a line end follow."""


# --- items → turns -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turn:
    """A turn of the assistant as it is put together."""

    parts: list[Part] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    spoken: bool = False  # it holds more than thoughts
    _at: list[int] = field(default_factory=list)  # how many parts come before each call
    _places: dict[str, int] = field(default_factory=dict)  # of calls, by id

    def message(self) -> Message:
        calls = (
            msgspec.structs.replace(call, followed_by=len(self.parts) - at)
            for call, at in zip(self.calls, self._at, strict=True)
        )
        return Message("assistant", _plain(tuple(self.parts)), tool_calls=tuple(calls))

    @property
    def closed(self) -> bool:
        """Whether what is said next belongs to another turn: it has spoken, and since its last call, if any."""
        return self.spoken and not (self.calls and self._at[-1] == len(self.parts))

    def say(self, parts: Iterable[Part]) -> None:
        """Its next parts."""
        for part in parts:
            self.parts.append(part)
            self.spoken |= not isinstance(part, ThinkingPart)

    def call(self, call: ToolCall) -> None:
        """Its next call."""
        self._places[call.id] = len(self.calls)
        self.calls.append(call)
        self._at.append(len(self.parts))
        self.spoken = True

    def seal(self, id: str, signature: str) -> None:
        """What the provider of a call wants back with it."""
        if (place := self._places.get(id)) is not None:
            self.calls[place] = msgspec.structs.replace(self.calls[place], signature=signature)


def messages_of(items: Sequence[Item], where: str = "input") -> tuple[Message, ...]:
    """The turns that the items make; raises `InvalidRequest`. References have been resolved before."""
    turns: list[_Turn | Message] = []

    def turn(*, anew: bool) -> _Turn:
        last = turns[-1] if turns else None
        if isinstance(last, _Turn) and not anew:
            return last
        turns.append(made := _Turn())
        return made

    for number, item in enumerate(items):
        place = f"{where}[{number}]"
        last = turns[-1] if turns else None
        spoken = isinstance(last, _Turn) and last.closed
        match item:
            case ReasoningItem():
                if not _seals_call(item, last):
                    turn(anew=spoken).say([_thought(item)])
            case FunctionCallItem() | CustomCallItem() | LocalShellCallItem() | ShellCallItem() | ApplyPatchCallItem():
                turn(anew=False).call(_called(item))
            case MessageItem(role="assistant"):
                turn(anew=spoken).say(_parts(item.content, place, assistant=True))
            case MessageItem():
                turns.append(Message(item.role, _content(item.content, place)))
            case FunctionOutputItem() | CustomOutputItem():
                kind = "custom" if isinstance(item, CustomOutputItem) else ""
                turns.append(Message("tool", _output(item, place), tool_call_id=item.call_id, kind=kind))
            case LocalShellOutputItem() | ShellOutputItem() | ApplyPatchOutputItem():
                kind = str(item.__struct_config__.tag).removesuffix("_output")
                turns.append(Message("tool", _beside(item), tool_call_id=item.call_id or item.id or "", kind=kind))
            case _:
                raise AssertionError("references are resolved first")
    return tuple(turn.message() if isinstance(turn, _Turn) else turn for turn in turns)


def _called(item: CallItem) -> ToolCall:
    if isinstance(item, FunctionCallItem):
        return ToolCall(item.call_id, item.name, item.arguments)
    if isinstance(item, CustomCallItem):
        return ToolCall(item.call_id, item.name, item.input, kind="custom")
    kind = str(item.__struct_config__.tag)
    return ToolCall(item.call_id, kind.removesuffix("_call"), _beside(item), kind=kind)


def _beside(item: NativeCall | NativeOutput) -> str:
    """What an item says beside which one it is, as JSON text."""
    said = msgspec.to_builtins(item)
    kept = {"type", "id", "call_id", "caller"} | (set() if isinstance(item, NativeOutput) else {"status"})
    return msgspec.json.encode({name: value for name, value in said.items() if name not in kept}).decode()


def native_item(kind: str, call_id: str, said: str) -> dict[str, Any]:
    """The other way round: the item of a call or a result of that kind."""
    try:
        fields = msgspec.json.decode(said or "{}")
    except (ValueError, RecursionError):
        fields = {}
    return {**(fields if isinstance(fields, dict) else {}), "type": kind, "call_id": call_id}


def check_calls(messages: Sequence[Message]) -> None:
    """Raise `InvalidRequest` unless every call has its output, and every output its call."""
    open_calls: set[str] = set()
    for message in messages:
        open_calls.update(call.id for call in message.tool_calls)
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise InvalidRequest(
                    f"No tool call found for function call output with call_id {message.tool_call_id}.", param="input"
                )
            open_calls.remove(message.tool_call_id)
    if open_calls:
        raise InvalidRequest(f"No tool output found for function call {min(open_calls)}.", param="input")


def _seals_call(item: ReasoningItem, last: _Turn | Message | None) -> bool:
    """Whether the item is the seal of a call, which then has it."""
    sealed = item.encrypted_content or ""
    if not sealed.startswith(CALL):
        return False
    id, _, signature = sealed.removeprefix(CALL).partition("\n")
    if isinstance(last, _Turn):
        last.seal(id, signature)
    return True


def _thought(item: ReasoningItem) -> ThinkingPart:
    sealed = item.encrypted_content or ""
    known = read_item_id(item.id or "")
    return ThinkingPart(
        text="\n\n".join(part.text for part in item.content or ()),
        signature="" if sealed.startswith(REDACTED) else sealed,
        redacted=sealed.removeprefix(REDACTED) if sealed.startswith(REDACTED) else "",
        summary=tuple(part.text for part in item.summary),
        id=(item.id or "") if known is None else known.provider,
    )


def _content(content: str | list[ItemPart], where: str) -> str | tuple[Part, ...]:
    return _plain(tuple(_parts(content, where, assistant=False)))


def _plain(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    """Parts as content: a text by itself is a text."""
    if len(parts) == 1 and isinstance(parts[0], TextPart) and not parts[0].cache:
        return parts[0].text
    return parts or ""


def _output(item: FunctionOutputItem | CustomOutputItem, where: str) -> str | tuple[Part, ...]:
    if isinstance(item.output, str):
        return item.output
    return _plain(tuple(_input_part(part, f"{where}.output[{i}]") for i, part in enumerate(item.output)))


def _parts(content: str | list[ItemPart], where: str, *, assistant: bool) -> Iterator[Part]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    for number, part in enumerate(content):
        place = f"{where}.content[{number}]"
        said = isinstance(part, OutputTextPart | OutputRefusalPart)
        if said != assistant and not (assistant and isinstance(part, InputTextPart)):
            kinds = "'output_text' and 'refusal'" if assistant else "'input_text', 'input_image' and 'input_file'"
            raise InvalidRequest(
                f"Invalid value: '{part.__struct_config__.tag}'. Supported values here are: {kinds}.",
                param=f"{place}.type",
                code="invalid_value",
            )
        match part:
            case OutputTextPart():
                yield TextPart(part.text)
            case OutputRefusalPart():
                yield RefusalPart(part.refusal)
            case _:
                yield _input_part(part, place)


def _input_part(part: InputPart, where: str) -> Part:
    mark = part.prompt_cache_breakpoint
    cache = "" if mark is None else mark.ttl or "default"
    match part:
        case InputTextPart():
            return TextPart(part.text, cache)
        case InputImagePart():
            url, detail = part.image_url, "" if part.detail in {None, "auto"} else str(part.detail)
            if part.file_id is not None:
                return ImagePart(detail=detail, cache=cache, uploaded=file_id(part.file_id, f"{where}.file_id"))
            if url is None:
                raise _missing(f"{where}.image_url")
            if url[:5].lower() != "data:":
                return ImagePart(url=remote_url(url, f"{where}.image_url"), detail=detail, cache=cache)
            media_type, data = data_url(url, f"{where}.image_url", IMAGE_TYPES)
            return ImagePart(data, media_type, detail=detail, cache=cache)
        case InputDocumentPart():
            return _file(part, cache, where)


def _file(part: InputDocumentPart, cache: str, where: str) -> FilePart:
    name = file_name(part.filename or "", f"{where}.filename")
    if part.file_id is not None:
        return FilePart(name=name, cache=cache, uploaded=file_id(part.file_id, f"{where}.file_id"))
    if part.file_url is not None:
        return FilePart(url=remote_url(part.file_url, f"{where}.file_url"), name=name, cache=cache)
    if part.file_data is None:
        raise _missing(f"{where}.file_data")
    return document(part.file_data, f"{where}.file_data", name=name, cache=cache)


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


# --- turns → items -----------------------------------------------------------------------------------------------


def items_of(messages: Sequence[Message], response: str) -> list[dict[str, Any]]:
    """The turns as input items of a response, with ids and everything that is needed to read them again."""
    items: list[dict[str, Any]] = []
    for message in messages:
        for item in _items(message):
            prefix = _PREFIXES.get(type(item), "fco")
            provider = item.id or "" if isinstance(item, ReasoningItem) else ""
            number = FIRST_OF_INPUT + len(items)
            status = getattr(item, "status", None) or "completed"
            made: Any = msgspec.structs.replace(item, id=item_id(prefix, response, number, provider), status=status)
            items.append(_said(msgspec.to_builtins(made)))
    return items


def _said(value: Any) -> Any:
    """Without the fields that say nothing."""
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value


def _items(message: Message) -> Iterator[MessageItem | CallItem | OutputItem | ReasoningItem]:
    if message.role == "tool" and message.kind not in ("", "custom"):
        made = native_item(f"{message.kind}_output", message.tool_call_id or "", message.text)
        yield msgspec.convert(made, NativeOutput)
        return
    if message.role == "tool":
        output = message.content if isinstance(message.content, str) else [_wire(part) for part in message.content]
        item = CustomOutputItem if message.kind else FunctionOutputItem
        yield item(call_id=message.tool_call_id or "", output=output)
        return
    if message.role != "assistant":
        yield MessageItem(role=message.role, content=[_wire(part) for part in message.parts])
        return
    said: list[ItemPart] = []
    for part in message.sequence:
        match part:
            case RefusalPart():
                said.append(OutputRefusalPart(refusal=part.text))
            case TextPart():
                said.append(OutputTextPart(text=part.text, annotations=[], logprobs=[]))
            case ThinkingPart() | ToolCall():
                if said:
                    yield MessageItem(role="assistant", content=said)
                    said = []
                yield from _call_items(part) if isinstance(part, ToolCall) else (reasoning_item(part),)
    if said:
        yield MessageItem(role="assistant", content=said)


def _call_items(call: ToolCall) -> Iterator[CallItem | ReasoningItem]:
    if call.kind == "custom":
        yield CustomCallItem(call_id=call.id, name=call.name, input=call.arguments)
        return
    if call.kind:
        yield msgspec.convert(native_item(call.kind, call.id, call.arguments), NativeCall)
        return
    yield FunctionCallItem(call_id=call.id, name=call.name, arguments=call.arguments)
    if call.signature:
        yield ReasoningItem(encrypted_content=f"{CALL}{call.id}\n{call.signature}")


def reasoning_item(part: ThinkingPart) -> ReasoningItem:
    """A thought as an item; its `id` is the provider's."""
    return ReasoningItem(
        summary=tuple(SummaryText(text=text) for text in part.summary),
        content=[ReasoningText(text=part.text)] if part.text else None,
        encrypted_content=f"{REDACTED}{part.redacted}" if part.redacted else part.signature or None,
        id=part.id or None,
    )


def _wire(part: Part) -> InputPart:
    mark = getattr(part, "cache", "")
    ttl: Any = None if mark == "default" else mark
    cache = CacheBreakpoint(mode="explicit", ttl=ttl) if mark else None
    match part:
        case ImagePart():
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            detail: Any = part.detail or "auto"
            return InputImagePart(image_url=url, detail=detail, prompt_cache_breakpoint=cache)
        case FilePart():
            data = base64.b64encode(part.text.encode()).decode() if part.text else part.data
            return InputDocumentPart(
                file_data=f"data:{part.media_type};base64,{data}" if data else None,
                file_url=part.url or None,
                filename=part.name or None,
                prompt_cache_breakpoint=cache,
            )
        case TextPart():
            return InputTextPart(text=part.text, prompt_cache_breakpoint=cache)
    raise AssertionError(f"no item holds {part}")
