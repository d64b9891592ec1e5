"""Masks or refuses secrets in what a caller sends, before an engine sees it.

What a model reads as text is masked: messages, names of those who speak, arguments of earlier calls, descriptions of
tools, prompts, texts to embed. Where a mask would change what the request means (names of functions, ids, JSON schemas,
output rules, stop sequences), and where a secret is only there for whoever puts pieces together, it is refused,
whatever the setting says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeVar

import msgspec

from interlace.engines.texts import inner_texts_of, names_of, text_in, texts_of
from interlace.engines.types import (
    AudioPart,
    EmbedRequest,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.errors import ContentFiltered
from interlace.safety.redactor import Action, Redactor, Search, whole
from interlace.safety.secrets import NAMES, Kind

Work = TypeVar("Work", GenerateRequest, EmbedRequest)
_replace = msgspec.structs.replace


class Cleaner:
    """Cleans the requests of one ask; `param` names the field they came from in refusals."""

    def __init__(self, search: Search, seen: Callable[[Kind, Action], None], param: str) -> None:
        self._search = search
        self._seen = seen
        self._param = param

    def clean(self, work: Work) -> Work:
        """The request with its secrets masked, or the very same where it has none. Raises `ContentFiltered`."""
        if isinstance(work, EmbedRequest):
            texts, query = tuple(map(self.text, work.texts)), work.query and self.text(work.query)
            return work if (texts, query) == (work.texts, work.query) else _replace(work, texts=texts, query=query)
        messages = None if work.messages is None else tuple(map(self._message, work.messages))
        prompt = None if work.prompt is None else self.text(work.prompt)
        tools = tuple(map(self._tool, work.tools))
        if work.output is not None:
            for text in (work.output.rule, work.output.name, work.output.description):
                self.check(text, "an output rule")
        for text in work.sampling.stop:
            self.check(text, "a stop sequence")
        for text in names_of(work):
            self.check(text, "what the caller calls itself")
        if work.native:
            self.check(msgspec.json.encode(work.native).decode(), "a provider's own field")
        if work.options.metadata:
            self.check(msgspec.json.encode(work.options.metadata).decode(), "metadata")
        if (messages, prompt, tools) != (work.messages, work.prompt, work.tools):
            work = _replace(work, messages=messages, prompt=prompt, tools=tools)
        for text in inner_texts_of(work):
            self.check(text, "several pieces, or in escapes")
        return work

    def text(self, text: str, *, json: bool = False) -> str:
        """The text with its secrets masked."""
        redactor = self._read(text, json=json)
        for kind in redactor.found:
            self._seen(kind, self._search.actions[kind])
        if redactor.refused:
            raise ContentFiltered(
                f"The input holds what looks like {_a(redactor.refused)}, which this server refuses. Remove it and try "
                "again.",
                param=self._param,
            )
        return redactor.render(text, 0)[0]

    def check(self, text: str, place: str) -> None:
        """Refuse a secret where it cannot be masked."""
        redactor = self._read(text)
        if redactor.found:
            self._seen(redactor.found[0], "refuse")
            raise ContentFiltered(
                f"The input holds what looks like {_a(redactor.found[0])} in {place}, where it cannot be masked. "
                "Remove it and try again.",
                param=self._param,
            )

    def _read(self, text: str, *, json: bool = False) -> Redactor:
        return whole(self._search, text, json=json)

    def _message(self, message: Message) -> Message:
        content = self._content(message)
        self.check(message.tool_call_id or "", "the id of a call")
        name = message.name and self.text(message.name)
        calls = tuple(map(self._call, message.tool_calls))
        if (content, name, calls) == (message.content, message.name, message.tool_calls):
            return message
        return _replace(message, content=content, name=name, tool_calls=calls)

    def _content(self, message: Message) -> str | tuple[Part, ...]:
        """A secret in an address is refused: masked, it would lead elsewhere."""
        if isinstance(message.content, str):
            return self.text(message.content)
        return tuple(map(self._part, message.content))

    def _part(self, part: Part) -> Part:
        match part:
            case TextPart() | RefusalPart():
                return _replace(part, text=self.text(part.text))
            case ThinkingPart():
                return _replace(part, text=self.text(part.text), summary=tuple(map(self.text, part.summary)))
            case FilePart():
                self.check(part.url, "the address of a file")
                data, text = part.data, text_in(part)
                if (shown := self.text(text)) != text:
                    data = base64.b64encode(shown.encode()).decode()
                return _replace(part, text=self.text(part.text), name=self.text(part.name), data=data)
            case ImagePart():
                self.check(part.url, "the address of a picture")
                return part
            case AudioPart():
                return part

    def _call(self, call: ToolCall) -> ToolCall:
        self.check(call.id, "the id of a call")
        self.check(call.name, "the name of a function")
        return _replace(call, arguments=self.text(call.arguments, json=call.kind != "custom"))

    def _tool(self, tool: Tool) -> Tool:
        self.check(tool.name, "the name of a function")
        self.check(msgspec.json.encode(tool.parameters).decode(), "the parameters of a function")
        if tool.native:
            self.check(msgspec.json.encode(tool.native).decode(), "a provider's own field of a tool")
        return _replace(tool, description=self.text(tool.description))


def size_of(work: GenerateRequest | EmbedRequest) -> int:
    """About how many characters there are to look at."""
    if isinstance(work, EmbedRequest):
        return sum(map(len, work.read))
    return sum(map(len, texts_of(work)))


def _a(kind: Kind) -> str:
    name = NAMES[kind]
    return f"{'an' if name[0] in 'aeiouA' else 'a'} {name}"
