"""What becomes of each field of a request at each engine: kept, put in other words, left without use, or refused.

A request's fields have names here, such as `sampling.top_k` or `part.image.url`. Every engine has a table that says of
each name what becomes of it; `check_fields` holds a request against it before anything runs, so that nothing a caller
asked for is lost in silence. The page `docs/reference/translation.md` is made from the same tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import astuple

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
from interlace.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Kept:
    """It goes through with its meaning unchanged, under whatever name."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """It goes through in other words; `how` says which, as a phrase after "mapped:"."""

    how: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A wish beside the question that this engine has no use for. The answer is the same without it, and the header
    `x-interlace-unused` names it. `why` is a phrase."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A request with it gets a 400 that names the field; `why` is a whole sentence, with what to do."""

    why: str


@dataclass(frozen=True, slots=True)
class Native:
    """Kept in requests of the dialect that this provider speaks, refused in others."""

    dialect: str


Fate = Kept | Mapped | Unused | Refused | Native
Fields = Mapping[str, Fate]
"""The fate of every name in `NAMES`, at one engine."""

KEPT = Kept()
TEXT_ONLY = Refused("instructions are text there. Show pictures and documents in a message of the user.")
FOREIGN = Refused("only models of the provider that invented it know it. Leave it out, or choose another model.")
ASIDE = Unused("it is about how another provider's models work")

_SAMPLING = tuple(f"sampling.{name}" for name in Sampling.__struct_fields__)
_OPTIONS = tuple(f"options.{name}" for name in Options.__struct_fields__)
_REASONING = tuple(f"reasoning.{name}" for name in Reasoning.__struct_fields__)

NAMES: tuple[str, ...] = (
    "messages",
    "message.developer",  # a turn of that role
    "message.late_system",  # instructions after the conversation has begun
    "message.name",
    "message.is_error",
    "message.cache",
    "part.text.cache",
    "part.refusal",
    "part.thinking.text",
    "part.thinking.signature",
    "part.thinking.redacted",
    "part.thinking.summary",
    "part.image.data",
    "part.image.url",
    "part.image.detail",
    "part.image.cache",
    "part.image.in_result",  # a picture that a tool returned
    "part.file.data",
    "part.file.url",
    "part.file.text",
    "part.file.name",
    "part.file.cache",
    "part.in_instructions",  # a picture, a document or sound in a system's or developer's turn
    "part.audio",
    "part.audio.cache",
    "call",  # a tool call that the assistant made earlier, and its result
    "call.followed_by",  # something said after it in its turn
    "call.kind",  # it calls no function but what only one provider's models know, and its result
    "call.custom",  # it calls a tool that takes any text, and its result
    "call.signature",
    "call.cache",
    "prompt",
    "prompt_ids",
    "n",
    *_SAMPLING,
    "output.json_object",
    "output.json_schema",
    "output.lax",  # a schema that need not hold
    "output.description",
    "output.regex",
    "output.grammar",
    "tools",
    "tools.strict",
    "tools.cache",
    "tools.native",
    "tools.kind",
    "tools.custom",
    "tool_choice.none",
    "tool_choice.required",
    "tool_choice.function",
    "parallel_tool_calls",
    "prefill",
    *_REASONING,
    *_OPTIONS,
    "native",
    "native.aside",  # fields without a neutral form that ask for nothing in the answer itself
)

_PLAIN_SAMPLING, _PLAIN_OPTIONS = Sampling(), Options()
_PLAIN_VALUES = astuple(_PLAIN_SAMPLING)
_AFTER_SAMPLING = len("sampling.")
_THROUGH = frozenset({Kept, Mapped})
_SPEAKERS = frozenset({"user", "assistant"})


def table(default: Fate, **groups: Fate) -> dict[str, Fate]:
    """A table with `default` for every name that `groups` does not mention. A group is a name with `__` for each dot,
    and covers what begins with it: `part__image` covers `part.image.url`; the longest one wins.

    Raises `ValueError` for a group that covers nothing, which would be a slip of the pen.
    """
    prefixes = {group.replace("__", "."): fate for group, fate in groups.items()}
    made: dict[str, Fate] = {}
    used = set()
    for name in NAMES:
        fitting = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")]
        best = max(fitting, key=len, default=None)
        used.update(fitting)
        made[name] = default if best is None else prefixes[best]
    if slips := set(prefixes) - used:
        raise ValueError(f"no field is called {', '.join(sorted(slips))}")
    return made


ALL_KEPT: Fields = table(KEPT)


def fields_of(request: GenerateRequest) -> set[str]:
    """The names of everything the request says: what is at its default says nothing."""
    if request.messages is not None and _plain(request.messages):
        names = {"messages"}
    else:
        names = set(_fields_of_prompt(request))
    if request.n != 1:
        names.add("n")
    if request.sampling != _PLAIN_SAMPLING:
        said = zip(_SAMPLING, astuple(request.sampling), _PLAIN_VALUES, strict=True)
        names.update(
            [name for name, value, plain in said if value != plain and name[_AFTER_SAMPLING:] not in request.unset]
        )
    if request.output is not None:
        names.add(f"output.{request.output.kind}")
        if request.output.kind == "json_schema" and not request.output.strict:
            names.add("output.lax")
        if request.output.description:
            names.add("output.description")
    if request.tools:
        names.update(_fields_of_tools(request))
    if request.prefill:
        names.add("prefill")
    if request.reasoning is not None:
        names.update(f"reasoning.{name}" for name in Reasoning.__struct_fields__ if getattr(request.reasoning, name))
    if request.options != _PLAIN_OPTIONS:
        names.update(f"options.{name}" for name in Options.__struct_fields__ if getattr(request.options, name))
    if request.native and any(name not in request.asides for name in request.native):
        names.add("native")
    if request.asides:
        names.add("native.aside")
    return names


def check_fields(request: GenerateRequest, fields: Fields, wire: Mapping[str, str]) -> list[str]:
    """The names, as the caller wrote them, of what this engine has no use for. Raises `InvalidRequest` for the first
    field that it refuses. `wire` gives the caller's word for a name here."""
    if request.__dict__.get("kept_by") is fields:
        return []
    unused: list[str] = []
    names = [name for name in fields_of(request) if type(fields[name]) not in _THROUGH]
    for name in sorted(names):
        fate = at_home(name, fields[name], request.dialect)
        if isinstance(fate, Refused):
            own = (one for one in request.native if one not in request.asides)
            said = next(own) if name == "native" else wire.get(name, _common(name))
            raise InvalidRequest(f"'{said}' cannot be used here: {fate.why}", param=said, code="unsupported_parameter")
        if isinstance(fate, Unused):
            unused += request.asides if name == "native.aside" else [wire.get(name, _common(name))]
    if not unused:
        request.__dict__["kept_by"] = fields  # the pipeline asks, and an engine that is asked for itself asks again
    return unused


def at_home(name: str, fate: Fate, dialect: str) -> Fate:
    """What becomes of a field in a request of this dialect."""
    if not isinstance(fate, Native):
        return fate
    if fate.dialect == dialect:
        return KEPT
    return ASIDE if name == "native.aside" else FOREIGN


def _common(name: str) -> str:
    """What most dialects call a field that they have no word for."""
    return name.removeprefix("sampling.").removeprefix("options.")


def _plain(messages: Sequence[Message]) -> bool:
    """Whether the turns say nothing but who speaks and a text, instructions first: then there is no more to name."""
    begun = False
    for message in messages:
        if message.role in _SPEAKERS:
            begun = True
        elif begun or message.role != "system":
            return False
        if type(message.content) is not str or message.name is not None or message.tool_calls:
            return False
        if message.cache or message.is_error:
            return False
    return True


def _fields_of_prompt(request: GenerateRequest) -> Iterator[str]:
    if request.prompt is not None:
        yield "prompt"
    if request.prompt_ids is not None:
        yield "prompt_ids"
    if request.messages is None:
        return
    yield "messages"
    begun = False
    for message in request.messages:
        begun |= message.role not in {"system", "developer"}
        if begun and message.role in {"system", "developer"}:
            yield "message.late_system"
        yield from _fields_of_message(message)


def _fields_of_message(message: Message) -> Iterator[str]:
    if message.role == "developer":
        yield "message.developer"
    if message.name is not None:
        yield "message.name"
    if message.is_error:
        yield "message.is_error"
    if message.cache:
        yield "message.cache"
    if message.tool_calls or message.role == "tool":
        yield "call"
    for call in message.tool_calls:
        for name in ("signature", "cache", "followed_by"):
            if getattr(call, name):
                yield f"call.{name}"
    for kind in (message.kind, *(call.kind for call in message.tool_calls)):
        if kind:
            yield "call.custom" if kind == "custom" else "call.kind"
    if not isinstance(message.content, str):
        for part in message.content:
            yield from _fields_of_part(part)
            if message.role == "tool" and isinstance(part, ImagePart):
                yield "part.image.in_result"
            if message.role in {"system", "developer"} and not isinstance(part, TextPart):
                yield "part.in_instructions"


def _fields_of_part(part: Part) -> Iterator[str]:
    said: tuple[str, ...]
    match part:
        case TextPart():
            kind, said = "text", ("cache",)
        case RefusalPart():
            yield "part.refusal"
            return
        case AudioPart():
            yield "part.audio"
            if part.cache:
                yield "part.audio.cache"
            return
        case ThinkingPart():
            kind, said = "thinking", ("text", "signature", "redacted", "summary")
        case ImagePart():
            kind, said = "image", ("data", "url", "detail", "cache")
        case FilePart():
            kind, said = "file", ("data", "url", "text", "name", "cache")
    for name in said:
        if getattr(part, name):
            yield f"part.{kind}.{name}"


def _fields_of_tools(request: GenerateRequest) -> Iterator[str]:
    yield "tools"
    for tool in request.tools:
        for name in ("strict", "cache"):
            if getattr(tool, name):
                yield f"tools.{name}"
        if tool.kind:
            yield "tools.custom" if tool.kind == "custom" else "tools.kind"
        elif any(f"tools[].{name}" not in request.asides for name in tool.native):
            yield "tools.native"
    if request.tool_choice != "auto":
        yield f"tool_choice.{request.tool_choice.partition(':')[0]}"
    if not request.parallel_tool_calls:
        yield "parallel_tool_calls"
