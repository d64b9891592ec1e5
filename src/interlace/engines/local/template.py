"""A conversation to a prompt, through the chat template a checkpoint brings.

What users wrote can never act as a control token. Before rendering, each control token inside a message (or a tool's
description) is fenced with two noncharacters; afterwards the text is cut at the fences, and what stood between two of
them is encoded by the encoder that knows no control tokens. All other text is rendered and encoded as ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta

from interlace.engines.local.checkpoint_text import template_sources
from interlace.engines.local.sandbox import Refused, Sandbox, render
from interlace.engines.local.tokenizer import Piece, Tokenizer
from interlace.engines.local.toolcalls import ToolFormat
from interlace.engines.local.toolprompt import spell_out, tool_definition
from interlace.engines.types import Message, Tool
from interlace.errors import CheckpointError, InvalidRequest

# Noncharacters: no text may contain them for interchange, so dropping them from users' text loses nothing.
_OPEN, _CLOSE, _HERE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_ANY_MARK = re.compile(f"[{_OPEN}{_CLOSE}{_HERE}]")
_ESCAPED = {json.dumps(mark)[1:-1]: mark for mark in (_OPEN, _CLOSE)}  # as tojson(ensure_ascii=true) writes them


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text, and in the pieces `Tokenizer.encode_pieces` takes."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The whole prompt, as transformers' `apply_chat_template` gives it."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class ChatTemplate:
    """Immutable and safe to share between threads. Made by `load_template`."""

    shows_tools: bool  # the template itself shows tools, in a form whose calls are understood
    tool_format: ToolFormat
    _default: Template
    _with_tools: Template
    _fence: re.Pattern[str]
    _cut_short: tuple[str, ...]
    _constants: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        prefill: bool = False,
    ) -> Rendered:
        """The prompt; with `prefill` it ends where the last message, the assistant's, ends, and that turn stays open.
        `InvalidRequest` when the template refuses the conversation or cannot take it."""
        if prefill:
            _check_prefill(messages)
            add_generation_prompt = False
        if not self.shows_tools:
            messages, tools = spell_out(messages, tools), ()
        seen = self._safe([_as_template_sees(message) for message in messages])
        if prefill:
            seen[-1]["content"] += _HERE  # no template trims it, so what stands before it stays as it is
        variables = {
            **self._constants,
            "messages": seen,
            "tools": self._safe([tool_definition(tool) for tool in tools]) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        rendered = self._run(self._with_tools if tools else self._default, variables)
        return Rendered(tuple(_pieces(_left_open(rendered) if prefill else rendered)))

    def _run(self, template: Template, variables: dict[str, Any]) -> str:
        try:
            return render(template, variables)
        except Refused as error:
            message = f"The model's chat template refuses this conversation: {error}"
            raise InvalidRequest(message, param="messages") from error
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            message = f"The model's chat template cannot render this conversation: {error}"
            raise InvalidRequest(message, param="messages") from error
        except (RecursionError, MemoryError) as error:
            raise InvalidRequest("The model's chat template nests too deeply.", param="messages") from error

    def _safe(self, value: Any) -> Any:
        """`value` with every control token in a string fenced."""
        if isinstance(value, str):
            return self._fenced(value)
        if isinstance(value, Mapping):
            return {self._fenced(key): self._safe(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._safe(item) for item in value]
        return value

    def _fenced(self, text: str) -> str:
        fenced = self._fence.sub(f"{_OPEN}\\g<0>{_CLOSE}", _ANY_MARK.sub("", text))
        # A lone fence after a token cut short: what follows (another message, the template) cannot complete it.
        return fenced + _CLOSE if text.endswith(self._cut_short) else fenced


def load_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a GGUF file or a folder, None when there is none; `CheckpointError` when it is broken.

    The tokenizer says which texts are control tokens, and names those a template uses (`bos_token`).
    """
    sources = template_sources(path)
    default = sources.get("default") or sources.get("tool_use")
    if default is None:
        return None
    sandbox = Sandbox()
    with_tools = sources.get("tool_use", default)
    # Only calls in this tag are understood; a template with another form is given tools in SmolLM2's way.
    shows_tools = "<tool_call>" in with_tools and "tools" in _variables(sandbox, with_tools, path)
    control = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return ChatTemplate(
        shows_tools=shows_tools,
        tool_format="object" if shows_tools else "list",
        _default=sandbox.from_string(_checked(sandbox, default, path)),
        _with_tools=sandbox.from_string(_checked(sandbox, with_tools, path)),
        _fence=re.compile("|".join(map(re.escape, control)) or "(?!)"),
        _cut_short=tuple({token[:size] for token in control for size in range(1, len(token))}),
        _constants={"bos_token": "", "eos_token": "", **tokenizer.named_tokens},
    )


def _variables(sandbox: Sandbox, source: str, path: Path) -> set[str]:
    try:
        return meta.find_undeclared_variables(sandbox.parse(source))
    except (TemplateSyntaxError, RecursionError) as error:
        raise CheckpointError(f"{path}: the chat template is broken: {error}") from error


def _checked(sandbox: Sandbox, source: str, path: Path) -> str:
    """The source, once it is known to compile."""
    try:
        sandbox.compile(source)
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise CheckpointError(f"{path}: the chat template is broken: {error}") from error
    return source


def _as_template_sees(message: Message) -> dict[str, Any]:
    """The message in the shape Hub templates are written for; a developer is a system to them."""
    seen: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    seen["content"] = message.text
    if message.name is not None:
        seen["name"] = message.name
    if message.tool_call_id is not None:
        seen["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = [(call.id, {"name": call.name, "arguments": _arguments(call.arguments)}) for call in message.tool_calls]
        seen["tool_calls"] = [{"id": call_id, "type": "function", "function": function} for call_id, function in calls]
    return seen


def _check_prefill(messages: Sequence[Message]) -> None:
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        raise InvalidRequest(
            "An answer can only go on where the last message is the assistant's and calls no tool.", param="messages"
        )


def _left_open(rendered: str) -> str:
    """The prompt up to where the last message ended."""
    before, mark, _ = rendered.rpartition(_HERE)
    if not mark:
        raise InvalidRequest(
            "This model's chat template cannot leave a turn open, so the last message must not be the assistant's.",
            param="messages",
        )
    return before


def _arguments(text: str) -> Any:
    """Templates expect an object; text that is none is shown as it is."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _pieces(rendered: str) -> list[Piece]:
    """The text cut at the fences, without them; only what stands between two of them is not special."""
    for escaped, mark in _ESCAPED.items():
        rendered = rendered.replace(escaped, mark)
    pieces, special, start = [], True, 0
    for match in _MARKS.finditer(rendered):
        pieces.append(Piece(rendered[start : match.start()], special))
        special, start = match[0] == _CLOSE, match.end()
    pieces.append(Piece(rendered[start:], special))
    return [piece for piece in pieces if piece.text]
