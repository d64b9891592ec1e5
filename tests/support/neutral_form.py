"""The neutral form as tests compare it: one way to write each meaning, and requests without one of their fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    Part,
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    ThinkingPart,
)

replace = msgspec.structs.replace
TOLD = ("temperature", "top_p")  # to say their defaults is something else than to say nothing


def canonical(request: GenerateRequest) -> GenerateRequest:
    """The meaning of a request, whoever says it.

    A text is one part; a part or thought that says nothing is none; without tools, or where none may be called, nothing
    is said of their use; a field that was left open is at its default; ids and dialect of the request are not the
    question.
    """
    plain = Sampling()
    sampling = request.sampling
    for name in request.unset:
        sampling = replace(sampling, **{name: getattr(plain, name)})
    tools = request.tools
    return replace(
        request,
        id="",
        dialect="",
        asides=(),
        messages=None if request.messages is None else tuple(map(_message, request.messages)),
        sampling=sampling,
        unset=tuple(name for name in TOLD if name in request.unset),
        tools=tuple(replace(tool, parameters=_schema(tool.parameters)) for tool in tools),
        tool_choice=request.tool_choice if tools else "auto",
        parallel_tool_calls=request.parallel_tool_calls if tools and request.tool_choice != "none" else True,
        reasoning=None if request.reasoning == Reasoning() else request.reasoning,
    )


def normal(request: GenerateRequest) -> dict[str, Any]:
    """The same as plain values that can be compared: JSON in it as what it says, not as it is spaced."""
    made, plain = canonical(request), Sampling()
    built: dict[str, Any] = msgspec.to_builtins(made)
    built.pop("id")
    told = {name: value for name, value in built.pop("sampling", {}).items() if value != getattr(plain, name)}
    built["sampling"] = told
    if request.output is not None:
        built["output"] |= {"name": request.output.name, "strict": request.output.strict}
    for message in built.get("messages") or ():
        for call in message.get("tool_calls", ()):
            call["arguments"] = said_by(call["arguments"])
    if built.get("output", {}).get("kind") == "json_schema":
        built["output"]["rule"] = json.loads(built["output"]["rule"])
    return built


def said_by(arguments: str) -> Any:
    """What arguments say: JSON, every digit of it, or the text itself."""
    try:
        return json.loads(arguments or "{}", parse_float=_digits, parse_int=_digits)
    except ValueError:
        return arguments


def _digits(text: str) -> str:
    return f"number {float(text)!r}" if len(text) < 16 else f"number {text}"


def _schema(schema: Any) -> Any:
    return {} if schema == {"type": "object", "properties": {}} else schema


def _message(message: Message) -> Message:
    return changed(message, _part)


def _part(part: Part) -> Part | None:
    if isinstance(part, TextPart) and not part.text:
        return None
    if isinstance(part, ThinkingPart) and not (part.text or part.signature or part.redacted or part.summary):
        return None
    return part


# --- without -----------------------------------------------------------------------------------------------------


def parts(request: GenerateRequest, change: Callable[[Part, Message], Part | None], where: str = "") -> GenerateRequest:
    """The request with each part as `change` makes it; None takes it away. `where`: only in turns of that role."""
    messages = []
    for message in request.messages or ():
        if where and message.role != where:
            messages.append(message)
            continue
        messages.append(changed(message, lambda part, message=message: change(part, message)))  # type: ignore[misc]
    return replace(request, messages=None if request.messages is None else tuple(messages))


def changed(turn: Message, change: Callable[[Part], Part | None]) -> Message:
    """The turn with each part as `change` makes it; calls stay in their places."""
    made = [change(part) for part in turn.parts]
    calls = tuple(
        replace(call, followed_by=sum(part is not None for part in made[len(made) - call.followed_by :]))
        for call in turn.tool_calls
    )
    return replace(turn, content=tuple(part for part in made if part is not None), tool_calls=calls)


def turns(request: GenerateRequest, change: Callable[[Message], Message]) -> GenerateRequest:
    """The request with each turn as `change` makes it."""
    messages = request.messages
    return request if messages is None else replace(request, messages=tuple(map(change, messages)))


def calls(request: GenerateRequest, **fields: Any) -> GenerateRequest:
    """The request with these fields of every call."""
    return turns(
        request, lambda turn: replace(turn, tool_calls=tuple(replace(call, **fields) for call in turn.tool_calls))
    )


_KINDS: dict[str, type[Any]] = {
    "text": TextPart,
    "refusal": RefusalPart,
    "thinking": ThinkingPart,
    "image": ImagePart,
    "file": FilePart,
    "audio": AudioPart,
}
_WHOLE = {"part.image.data", "part.image.url", "part.file.data", "part.file.url", "part.file.text"}


def without(request: GenerateRequest, name: str) -> GenerateRequest:
    """The request as if nobody had said the field `name` of `engines.fields.NAMES`."""
    head, _, rest = name.partition(".")
    match head:
        case "sampling":
            plain = getattr(Sampling(), rest)
            sampling = replace(request.sampling, **{rest: plain})
            if rest == "logprobs":
                sampling = replace(sampling, prompt_logprobs=False)
            return replace(request, sampling=sampling, unset=(*request.unset, rest))
        case "options":
            return replace(request, options=replace(request.options, **{rest: getattr(Options(), rest)}))
        case "reasoning":
            assert request.reasoning is not None
            return replace(request, reasoning=replace(request.reasoning, **{rest: getattr(Reasoning(), rest)}))
        case "part":
            return _without_part(request, name)
        case "output":
            if name == "output.description":
                assert request.output is not None
                return replace(request, output=replace(request.output, description=""))
            return replace(request, output=None)
        case "tools" if rest in {"kind", "custom"}:
            left = tuple(tool for tool in request.tools if not _is(tool.kind, custom=rest == "custom"))
            named = {f"function:{tool.name}" for tool in request.tools} - {f"function:{tool.name}" for tool in left}
            return replace(
                request, tools=left, tool_choice="auto" if request.tool_choice in named else request.tool_choice
            )
        case "tools" if rest == "native":
            return _with_natives(request, lambda name: f"tools[].{name}" in request.asides)
        case "tools":
            if not rest:
                return replace(request, tools=())
            empty = {"strict": False, "cache": ""}[rest]
            return replace(request, tools=tuple(replace(tool, **{rest: empty}) for tool in request.tools))
        case "tool_choice":
            return replace(request, tool_choice="auto")
        case "call" if rest in {"kind", "custom"}:
            return _without_kinds(request, custom=rest == "custom")
        case "call":
            return calls(request, **{rest: 0 if rest == "followed_by" else ""})
        case "message":
            return _without_of_turns(request, rest)
        case "n":
            return replace(request, n=1)
        case "parallel_tool_calls":
            return replace(request, parallel_tool_calls=True)
        case "native" if rest == "aside":
            left = {one: value for one, value in request.native.items() if one not in request.asides}
            kept = _with_natives(request, lambda name: f"tools[].{name}" not in request.asides)
            return replace(kept, native=left, asides=())
        case "native":
            left = {one: value for one, value in request.native.items() if one in request.asides}
            return replace(request, native=left)
        case "prefill":
            return replace(request, prefill=False, messages=(request.messages or ())[:-1])
    raise AssertionError(f"a request cannot be without {name}")


def _is(kind: str, *, custom: bool) -> bool:
    return kind == "custom" if custom else kind not in ("", "custom")


def _without_kinds(request: GenerateRequest, *, custom: bool) -> GenerateRequest:
    turns = []
    for turn in request.messages or ():
        if not _is(turn.kind, custom=custom):
            calls = tuple(call for call in turn.tool_calls if not _is(call.kind, custom=custom))
            turns.append(replace(turn, tool_calls=calls))
    return replace(request, messages=tuple(turns))


def _with_natives(request: GenerateRequest, kept: Callable[[str], bool]) -> GenerateRequest:
    tools = (
        replace(tool, native={name: value for name, value in tool.native.items() if kept(name)})
        for tool in request.tools
    )
    return replace(request, tools=tuple(tools))


def _without_of_turns(request: GenerateRequest, rest: str) -> GenerateRequest:
    empty: Any = {"name": None, "is_error": False, "cache": ""}[rest]
    return turns(request, lambda turn: replace(turn, **{rest: empty}))


def _texts_of_instructions(turn: Message) -> Message:
    if turn.role not in {"system", "developer"}:
        return turn
    return replace(turn, content=tuple(part for part in turn.parts if isinstance(part, TextPart)))


def _without_part(request: GenerateRequest, name: str) -> GenerateRequest:
    if name == "part.in_instructions":
        return turns(request, _texts_of_instructions)
    _, kind, *rest = name.split(".")
    wanted = _KINDS[kind]
    if name == "part.image.in_result":
        return parts(request, lambda part, _: None if isinstance(part, ImagePart) else part, "tool")

    def change(part: Part, _: Message) -> Part | None:
        if not isinstance(part, wanted):
            return part
        if not rest:
            return None
        if name in _WHOLE:
            return None if getattr(part, rest[0]) else part
        assert rest[0] in part.__struct_fields__
        return replace(part, **{rest[0]: () if rest[0] == "summary" else ""})

    return parts(request, change)
