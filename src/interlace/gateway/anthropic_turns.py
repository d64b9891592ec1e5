"""The turns of a conversation in Anthropic's words as neutral ones.

A neutral turn of role "tool" holds one result, so a user's turn with results is cut into several. Consecutive turns of
one role become one, as Anthropic's API reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from interlace.engines.types import FilePart, ImagePart, Message, Part, TextPart, ThinkingPart, ToolCall
from interlace.errors import InvalidRequest
from interlace.gateway.anthropic_messages_body import (
    AssistantParam,
    Base64ImageSource,
    Base64PdfSource,
    CacheControl,
    ContentSource,
    CountBody,
    DocumentBlockParam,
    FileSource,
    ImageBlockParam,
    MessageParam,
    PlainTextSource,
    RedactedThinkingBlockParam,
    TextBlockParam,
    ThinkingBlockParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
    UrlSource,
    UserParam,
)
from interlace.gateway.media import base64_text, file_id, remote_url
from interlace.gateway.seals import unnamed_seal, unsealed_id


def prefills(messages: Sequence[MessageParam]) -> bool:
    """Whether the last turn is the beginning of the answer."""
    last = messages[-1]
    return isinstance(last, AssistantParam) and bool(last.content)


def turns_of(asked: CountBody) -> tuple[Message, ...]:
    """The conversation, instructions first; raises `InvalidRequest`, naming the block, for what has no neutral form."""
    runs = [[Message("system", _texts(asked.system))]] if asked.system else []  # of turns that become one
    last = len(asked.messages) - 1
    for i, message in enumerate(asked.messages):
        where = f"messages[{i}]"
        if isinstance(message, AssistantParam):
            if not message.content:
                if i != last:
                    raise InvalidRequest(
                        "Only the last message, the assistant's, may be empty.", param=f"{where}.content"
                    )
                continue  # an answer that begins with nothing begins as ever
            made = [_assistant(message, where, begins_answer=i == last)]
        elif isinstance(message, UserParam):
            made = list(_user(message, where))
        else:
            made = [Message("system", _texts(message.content))]
        for turn in made:
            if runs and runs[-1][0].role == turn.role and turn.role in {"user", "assistant"}:
                runs[-1].append(turn)
            else:
                runs.append([turn])
    turns = [run[0] if len(run) == 1 else _joined(run) for run in runs]
    if all(turn.role == "system" for turn in turns):
        raise InvalidRequest("There is nothing to answer: give a user's message.", param="messages")
    if asked.cache_control is not None:
        turns[-1] = _marked(turns[-1], _mark(asked.cache_control))
    return tuple(turns)


def _mark(control: CacheControl | None) -> str:
    return "" if control is None else control.ttl or "default"


def _texts(content: str | Sequence[TextBlockParam]) -> str | tuple[Part, ...]:
    return content if isinstance(content, str) else tuple(TextPart(b.text, _mark(b.cache_control)) for b in content)


def _joined(run: Sequence[Message]) -> Message:
    parts, calls = tuple(part for turn in run for part in turn.parts), list[ToolCall]()
    after = len(parts)
    for turn in run:
        after -= len(turn.parts)
        calls += [msgspec.structs.replace(call, followed_by=call.followed_by + after) for call in turn.tool_calls]
    return msgspec.structs.replace(run[0], content=parts, tool_calls=tuple(calls))


def _marked(turn: Message, mark: str) -> Message:
    """The turn with the mark on its last part, unless that has one of its own."""
    if turn.role == "tool":
        return msgspec.structs.replace(turn, cache=turn.cache or mark)
    last = turn.sequence[-1]
    if isinstance(last, ToolCall):
        marked = msgspec.structs.replace(last, cache=last.cache or mark)
        return msgspec.structs.replace(turn, tool_calls=(*turn.tool_calls[:-1], marked))
    *before, part = turn.parts
    if not isinstance(part, TextPart | ImagePart | FilePart):
        return turn  # thoughts end no cache
    part = msgspec.structs.replace(part, cache=part.cache or mark)
    return msgspec.structs.replace(turn, content=(*before, part))


# --- the assistant -----------------------------------------------------------------------------------------------


def _assistant(message: AssistantParam, where: str, *, begins_answer: bool) -> Message:
    if isinstance(message.content, str):
        turn = Message("assistant", message.content)
    else:
        parts: list[Part] = []
        calls: list[tuple[ToolCall, int]] = []  # with how many parts come before it
        for i, block in enumerate(message.content):
            match block:
                case TextBlockParam():
                    parts.append(TextPart(block.text, _mark(block.cache_control)))
                case ThinkingBlockParam():
                    signature, id = unnamed_seal(block.signature)
                    parts.append(ThinkingPart(block.thinking, signature, id=id))
                case RedactedThinkingBlockParam():
                    redacted, id = unnamed_seal(block.data)
                    parts.append(ThinkingPart(redacted=redacted, id=id))
                case ToolUseBlockParam():
                    calls.append((_call(block, f"{where}.content[{i}]"), len(parts)))
        placed = (msgspec.structs.replace(call, followed_by=len(parts) - before) for call, before in calls)
        turn = Message("assistant", tuple(parts), tool_calls=tuple(placed))
    if begins_answer:
        _check_beginning(turn, where)
    return turn


def _check_beginning(turn: Message, where: str) -> None:
    if turn.tool_calls:
        raise InvalidRequest(
            "The last message has a tool_use without its tool_result. Send the result in a user's message.", param=where
        )
    if not turn.parts or not isinstance(turn.parts[-1], TextPart):
        raise InvalidRequest("The beginning of an answer ends with text.", param=f"{where}.content")
    if turn.text != turn.text.rstrip():
        raise InvalidRequest(
            "The beginning of an answer cannot end with white space: the answer brings its own.",
            param=f"{where}.content",
        )


def _call(block: ToolUseBlockParam, where: str) -> ToolCall:
    _refuse(block.toolset_name, f"{where}.toolset_name", "Toolsets are run by Anthropic; name a tool of your own.")
    id, signature = unsealed_id(block.id)
    arguments = bytes(block.input).decode()
    if not arguments.startswith("{"):
        raise InvalidRequest(
            "Invalid type for 'input': expected an object.", param=f"{where}.input", code="invalid_type"
        )
    return ToolCall(id, block.name, arguments, signature, _mark(block.cache_control))


# --- the user ----------------------------------------------------------------------------------------------------


def _user(message: UserParam, where: str) -> Iterator[Message]:
    if isinstance(message.content, str):
        yield Message("user", message.content)
        return
    parts: list[Part] = []
    for i, block in enumerate(message.content):
        place = f"{where}.content[{i}]"
        if not isinstance(block, ToolResultBlockParam):
            parts.append(_part(block, place))
            continue
        if parts:
            yield Message("user", tuple(parts))
            parts = []
        yield _result(block, place)
    if parts:
        yield Message("user", tuple(parts))


def _result(block: ToolResultBlockParam, where: str) -> Message:
    _refuse(block.toolset_name, f"{where}.toolset_name", "Toolsets are run by Anthropic; name a tool of your own.")
    given = block.content or ""
    if not isinstance(given, str):
        content: str | tuple[Part, ...] = tuple(_part(b, f"{where}.content[{i}]") for i, b in enumerate(given))
    else:
        content = given
    return Message(
        "tool",
        content,
        tool_call_id=unsealed_id(block.tool_use_id)[0],
        is_error=bool(block.is_error),
        cache=_mark(block.cache_control),
    )


def _part(block: TextBlockParam | ImageBlockParam | DocumentBlockParam, where: str) -> Part:
    mark = _mark(block.cache_control)
    match block:
        case TextBlockParam():
            if not block.text:
                raise InvalidRequest("A text block cannot be empty: leave it out.", param=f"{where}.text")
            return TextPart(block.text, mark)
        case ImageBlockParam():
            _refuse(block.transformations, f"{where}.transformations", "Pictures are passed on as they are.")
            match block.source:
                case Base64ImageSource(data=data, media_type=media_type):
                    return ImagePart(base64_text(data, f"{where}.source.data"), media_type, cache=mark)
                case UrlSource(url=url):
                    return ImagePart(url=remote_url(url, f"{where}.source.url"), cache=mark)
                case FileSource(file_id=id):
                    return ImagePart(cache=mark, uploaded=file_id(id, f"{where}.source.file_id"))
        case DocumentBlockParam():
            return _document(block, where, mark)


def _document(block: DocumentBlockParam, where: str, mark: str) -> FilePart:
    _refuse(block.context, f"{where}.context", "Say in a text block what the document is.")
    if block.citations is not None and block.citations.enabled:
        raise InvalidRequest(
            "Answers here do not cite: leave 'citations' out.",
            param=f"{where}.citations.enabled",
            code="unsupported_parameter",
        )
    name = block.title or ""
    match block.source:
        case Base64PdfSource(data=data, media_type=kind):
            return FilePart(base64_text(data, f"{where}.source.data"), kind, name=name, cache=mark)
        case PlainTextSource(data=text, media_type=kind):
            if not text:
                raise InvalidRequest("A document cannot be empty: leave it out.", param=f"{where}.source.data")
            return FilePart(media_type=kind, text=text, name=name, cache=mark)
        case UrlSource(url=url):
            return FilePart(url=remote_url(url, f"{where}.source.url"), name=name, cache=mark)
        case FileSource(file_id=id):
            return FilePart(name=name, cache=mark, uploaded=file_id(id, f"{where}.source.file_id"))
        case ContentSource():
            raise InvalidRequest(
                "Documents of type 'content' cannot be used here: send them as type 'text'.",
                param=f"{where}.source.content",
                code="unsupported_parameter",
            )


def _refuse(value: object, param: str, mend: str) -> None:
    if value is not None:
        name = param.rpartition(".")[2]
        raise InvalidRequest(f"'{name}' cannot be used here. {mend}", param=param, code="unsupported_parameter")
