"""What "mapped" means, field by field and provider by provider: each fate once more, as a function of its own.

`expected` says of a request what a provider should read of it, by nothing but its table and the functions here. None of
this is shared with what writes requests.
"""

from __future__ import annotations

import base64
import functools
import json
import mimetypes
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from interlace.engines.fields import NAMES, Fields, Mapped, Unused, at_home, fields_of
from interlace.engines.types import (
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Part,
    Reasoning,
    RefusalPart,
    TextPart,
    ThinkingPart,
)
from tests.support.neutral_form import changed, parts, replace, turns, without

Change = Callable[[GenerateRequest], GenerateRequest]
INSTRUCTIONS = {"system", "developer"}


def expected(request: GenerateRequest, fields: Fields, kind: str) -> GenerateRequest:
    """What is left of the request, in which words: unused fields are gone, mapped ones as their functions say. No field
    of it is refused."""
    for name in sorted(fields_of(request), key=NAMES.index):
        if isinstance(at_home(name, fields[name], request.dialect), Unused) and name in fields_of(request):
            request = without(request, name)
    said = fields_of(request)
    changes = {id(change): change for name, change in CHANGES[kind].items() if name in said & _mapped(fields)}
    for change in changes.values():
        request = change(request)
    return request if request.messages is None else ALWAYS[kind](request)


def _mapped(fields: Fields) -> set[str]:
    return {name for name, fate in fields.items() if isinstance(fate, Mapped)}


def mapped_names(kind: str) -> set[str]:
    """The names that have a function."""
    return set(CHANGES[kind])


# --- what several have in common ---------------------------------------------------------------------------------


def same(request: GenerateRequest) -> GenerateRequest:
    """Other words for the very same."""
    return request


def gone(name: str) -> Change:
    """Nothing is left of it: what it asks for holds anyway, or is told by the rest."""
    return lambda request: without(request, name) if name in fields_of(request) else request


def developers_as_system(request: GenerateRequest) -> GenerateRequest:
    """There is one role for instructions."""
    return turns(request, lambda turn: replace(turn, role="system") if turn.role == "developer" else turn)


def refusals_as_texts(request: GenerateRequest) -> GenerateRequest:
    """A refusal is what the assistant said."""
    return parts(request, lambda part, _: TextPart(part.text) if isinstance(part, RefusalPart) else part)


def names_before_texts(request: GenerateRequest, *texts: type[Part]) -> GenerateRequest:
    """`NAME: ` before the first text of the turn, or as a text of its own before what is none. `texts` are such."""

    def named(turn: Message) -> Message:
        if turn.name is None or not says_something(turn):
            return turn
        made = list(turn.parts)
        first = next((i for i, part in enumerate(made) if isinstance(part, (TextPart, *texts)) and part.text), None)
        if first is None:
            thoughts = sum(isinstance(part, ThinkingPart) for part in made)
            made.insert(thoughts, TextPart(f"{turn.name}:"))
        else:
            made[first] = replace(made[first], text=f"{turn.name}: {made[first].text}")
        return replace(turn, name=None, content=tuple(made))

    return turns(request, named)


def marks_on_last_parts(request: GenerateRequest) -> GenerateRequest:
    """The mark of a turn on its last part, unless that has one."""

    def marked(turn: Message) -> Message:
        *before, last = turn.parts or (None,)
        if not turn.cache or last is None:
            return replace(turn, cache="")
        mark = getattr(last, "cache", "") or turn.cache
        return replace(turn, cache="", content=(*before, replace(last, cache=mark)))

    return turns(request, marked)


def text_files_as_texts(request: GenerateRequest) -> GenerateRequest:
    """A text file is a text, under its name."""

    def change(part: Part, _: Message) -> Part:
        if not isinstance(part, FilePart) or not part.text:
            return part
        return TextPart(f"{part.name}:\n{part.text}" if part.name else part.text, part.cache)

    return parts(request, change)


def times(known: Mapping[str, str]) -> Change:
    """How long marks last, in the times that there are."""

    def change(request: GenerateRequest) -> GenerateRequest:
        def time(mark: str) -> str:
            return mark and known.get(mark, "default")

        def marked(turn: Message) -> Message:
            made = tuple(
                replace(part, cache=time(part.cache)) if hasattr(part, "cache") else part for part in turn.parts
            )
            calls = tuple(replace(call, cache=time(call.cache)) for call in turn.tool_calls)
            return replace(turn, content=made, tool_calls=calls, cache=time(turn.cache))

        tools = tuple(replace(tool, cache=time(tool.cache)) for tool in request.tools)
        return replace(turns(request, marked), tools=tools)

    return change


def budgets_as_efforts(request: GenerateRequest) -> GenerateRequest:
    """An effort that takes about as many tokens, unless one is told."""
    reasoning = request.reasoning or Reasoning()
    about = "low" if reasoning.budget_tokens <= 4096 else "medium" if reasoning.budget_tokens <= 16384 else "high"
    return replace(request, reasoning=replace(reasoning, effort=reasoning.effort or about, budget_tokens=0))


def schemas_hold(request: GenerateRequest) -> GenerateRequest:
    """A schema always holds."""
    assert request.output is not None
    return replace(request, output=replace(request.output, strict=True))


def joined(request: GenerateRequest, roles: set[str]) -> GenerateRequest:
    """What one side says in a row is one turn; turns that say nothing are none."""
    made: list[Message] = []
    for turn in request.messages or ():
        last = made[-1] if made else None
        if last is not None and turn.role in roles and last.role == turn.role:
            made[-1] = one_turn(last, turn)
        elif says_something(turn):
            made.append(turn)
    return replace(request, messages=tuple(made))


def one_turn(before: Message, after: Message) -> Message:
    """What two turns say, in its order."""
    early = (replace(call, followed_by=call.followed_by + len(after.parts)) for call in before.tool_calls)
    return replace(before, content=(*before.parts, *after.parts), tool_calls=(*early, *after.tool_calls))


def says_something(turn: Message) -> bool:
    """Whether a turn is more than nothing."""
    said = any(not isinstance(part, TextPart | RefusalPart) or part.text for part in turn.parts)
    return turn.role == "tool" or bool(turn.tool_calls) or said


def instructions_first(request: GenerateRequest) -> GenerateRequest:
    """All instructions in one turn before the conversation."""
    messages = request.messages or ()
    said = tuple(part for turn in messages if turn.role in INSTRUCTIONS for part in turn.parts)
    rest = tuple(turn for turn in messages if turn.role not in INSTRUCTIONS)
    return replace(request, messages=(*((Message("system", said),) if said else ()), *rest))


def nameless_schema(request: GenerateRequest) -> GenerateRequest:
    """A schema has no name there."""
    return request if request.output is None else replace(request, output=replace(request.output, name="answer"))


# --- OpenAI's chat and text completions --------------------------------------------------------------------------

_BREAKPOINTS = {"30m": "30m", "12h": "12h"}


def thoughts_as_one_text(request: GenerateRequest) -> GenerateRequest:
    """The bare texts of a turn's thoughts, a line each, before what it says."""

    def change(turn: Message) -> Message:
        thought = "\n".join(part.text for part in turn.parts if isinstance(part, ThinkingPart) and part.text)
        rest = tuple(part for part in turn.parts if not isinstance(part, ThinkingPart))
        return replace(turn, content=((ThinkingPart(thought),) if thought else ()) + rest)

    return turns(request, change)


def refusals_last(request: GenerateRequest) -> GenerateRequest:
    """All refusals of a turn, a line each, after what it says."""

    def change(turn: Message) -> Message:
        refusals = [part.text for part in turn.parts if isinstance(part, RefusalPart)]
        rest = tuple(part for part in turn.parts if not isinstance(part, RefusalPart))
        return replace(turn, content=rest + ((RefusalPart("\n".join(refusals)),) if refusals else ()))

    return turns(request, change)


def pictures_after_results(request: GenerateRequest) -> GenerateRequest:
    """What tools returned beside text comes after their results, in a turn of the user."""
    made: list[Message] = []
    shown: list[Part] = []
    for turn in request.messages or ():
        if shown and turn.role != "tool":
            made.append(Message("user", tuple(shown)))
            shown = []
        if turn.role == "tool":
            shown += [part for part in turn.parts if not isinstance(part, TextPart)]
            turn = replace(turn, content=tuple(part for part in turn.parts if isinstance(part, TextPart)))  # noqa: PLW2901
        made.append(turn)
    return replace(request, messages=(*made, *((Message("user", tuple(shown)),) if shown else ())))


def standard_tier(request: GenerateRequest) -> GenerateRequest:
    """Anthropic's word for the tier that everybody gets."""
    tier = request.options.service_tier.replace("standard_only", "default")
    return replace(request, options=replace(request.options, service_tier=tier))


def _always_openai(request: GenerateRequest) -> GenerateRequest:
    """A result is text; documents without a name get one."""
    return pictures_after_results(_thoughtless(request))


def _thoughtless(request: GenerateRequest) -> GenerateRequest:
    """Of thoughts only their text is told, so the name of one is not."""
    return parts(request, lambda part, _: replace(part, id="") if isinstance(part, ThinkingPart) else part)


def marks_where_results_end(request: GenerateRequest) -> GenerateRequest:
    """The mark of a turn on its last part; of a result, on the last that will follow it."""

    def reordered(turn: Message) -> Message:
        if turn.role != "tool":
            return turn
        texts = tuple(part for part in turn.parts if _is_text(part))
        return replace(turn, content=texts + tuple(part for part in turn.parts if not _is_text(part)))

    return times(_BREAKPOINTS)(marks_on_last_parts(turns(request, reordered)))


def _is_text(part: Part) -> bool:
    return isinstance(part, TextPart) or (isinstance(part, FilePart) and bool(part.text))


_OPENAI: dict[str, Change] = {
    "message.developer": developers_as_system,
    "message.is_error": gone("message.is_error"),
    "message.cache": marks_where_results_end,
    "part.text.cache": times(_BREAKPOINTS),
    "part.image.cache": times(_BREAKPOINTS),
    "part.file.cache": times(_BREAKPOINTS),
    "part.audio.cache": times(_BREAKPOINTS),
    "part.refusal": refusals_last,
    "part.thinking.text": thoughts_as_one_text,
    "part.file.text": text_files_as_texts,
    "part.file.data": pictures_after_results,
    "part.image.in_result": pictures_after_results,
    "call.followed_by": gone("call.followed_by"),
    "call.signature": same,
    "prefill": same,
    "reasoning.budget_tokens": budgets_as_efforts,
    "reasoning.adaptive": gone("reasoning.adaptive"),
    "options.metadata": same,
    "options.service_tier": standard_tier,
}

# --- OpenAI's Responses ------------------------------------------------------------------------------------------


def sealed_thoughts_first(request: GenerateRequest) -> GenerateRequest:
    """Thoughts with the name and the seal of their provider, before what is said; no others. What another dialect shows
    of one is its summary."""
    own = request.dialect == "openai.responses"

    def change(turn: Message) -> Message:
        thoughts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, ThinkingPart) and part.id and (part.signature or part.redacted):
                sealed = replace(part, signature=part.signature or part.redacted, redacted="")
                shown = {} if own or not part.text else {"text": "", "summary": part.summary or (part.text,)}
                thoughts.append(replace(sealed, **shown))
        rest = changed(turn, lambda part: None if isinstance(part, ThinkingPart) else part)
        return replace(rest, content=(*thoughts, *rest.parts))

    return turns(request, change)


def summaries_as_openai(request: GenerateRequest) -> GenerateRequest:
    """`summarized` is Anthropic's word for `auto`; thoughts that are not to be shown are not asked for."""
    assert request.reasoning is not None
    known = {"summarized": "auto", "updates": "auto", "omitted": ""}
    summary = known.get(request.reasoning.summary, request.reasoning.summary)
    return replace(request, reasoning=replace(request.reasoning, summary=summary))


def assistants_without_marks(request: GenerateRequest) -> GenerateRequest:
    """What the assistant said has no marks."""
    return parts(request, lambda part, _: replace(part, cache="") if isinstance(part, TextPart) else part, "assistant")


def _always_responses(request: GenerateRequest) -> GenerateRequest:
    """Items of the assistant make one turn up to the next thing that is said; `auto` is how pictures are looked at."""
    request = parts(
        request,
        lambda part, _: replace(part, detail="") if isinstance(part, ImagePart) and part.detail == "auto" else part,
    )
    request = sealed_thoughts_first(request)
    made: list[Message] = []
    for turn in request.messages or ():
        last = made[-1] if made and made[-1].role == "assistant" == turn.role else None
        if turn.role == "assistant" and not says_something(turn):
            continue
        if last is not None and (_only_thinks(last) or not any(_spoken(turn))):
            made[-1] = one_turn(last, turn)
        else:
            made.append(turn)
    return replace(request, messages=tuple(made))


def _only_thinks(turn: Message) -> bool:
    return not turn.tool_calls and all(isinstance(part, ThinkingPart) for part in turn.parts)


def _spoken(turn: Message) -> list[bool]:
    return [True for part in turn.parts if isinstance(part, ThinkingPart) or part.text]  # type: ignore[union-attr]


_RESPONSES: dict[str, Change] = {
    "message.is_error": gone("message.is_error"),
    "message.cache": lambda request: times(_BREAKPOINTS)(marks_on_last_parts(request)),
    "part.text.cache": lambda request: assistants_without_marks(times(_BREAKPOINTS)(request)),
    "part.image.cache": times(_BREAKPOINTS),
    "part.file.cache": times(_BREAKPOINTS),
    "part.thinking.text": sealed_thoughts_first,
    "part.thinking.signature": sealed_thoughts_first,
    "part.thinking.redacted": sealed_thoughts_first,
    "part.thinking.summary": sealed_thoughts_first,
    "part.file.text": text_files_as_texts,
    "message.name": names_before_texts,
    "sampling.max_tokens": same,
    "reasoning.budget_tokens": budgets_as_efforts,
    "reasoning.adaptive": gone("reasoning.adaptive"),
    "reasoning.summary": summaries_as_openai,
    "options.service_tier": standard_tier,
}

# --- Anthropic ---------------------------------------------------------------------------------------------------

_TIMES = {"5m": "5m", "1h": "1h", "30m": "1h", "12h": "1h", "24h": "1h"}


def signed_thoughts(request: GenerateRequest) -> GenerateRequest:
    """Thoughts that have their seal, and no others."""

    def change(part: Part, _: Message) -> Part | None:
        if not isinstance(part, ThinkingPart):
            return part
        if part.redacted:
            return ThinkingPart(redacted=part.redacted)
        return replace(part, id="") if part.signature else None

    return parts(request, change)


def texts_as_plain(request: GenerateRequest) -> GenerateRequest:
    """A file that is text is a document of plain text."""

    def change(part: Part, _: Message) -> Part:
        if not isinstance(part, FilePart) or part.url or part.media_type == "application/pdf":
            return part
        text = part.text or base64.b64decode(part.data).decode()
        return replace(part, data="", text=text, media_type="text/plain")

    return parts(request, change)


def anthropic_thinking(request: GenerateRequest, *, converse: bool = False) -> GenerateRequest:
    """An effort asks for thinking as well, but not in Anthropic's own words, nor where its own API takes none; thoughts
    are shown or not."""
    reasoning = request.reasoning
    assert reasoning is not None
    effort = {"minimal": "low"}.get(reasoning.effort, reasoning.effort)
    own = request.dialect == "anthropic.messages"
    if not converse:
        own |= request.prefill or request.tool_choice.partition(":")[0] in {"required", "function"}
    adaptive = not reasoning.budget_tokens and effort != "none"
    adaptive &= reasoning.adaptive or (not own and bool(effort or reasoning.summary))
    thinks = adaptive or bool(reasoning.budget_tokens)
    shown = "omitted" if reasoning.summary in {"omitted", "none"} else "summarized"
    shown = "updates" if reasoning.summary == "updates" and not converse else shown
    summary = shown if reasoning.summary and thinks else ""
    return replace(request, reasoning=Reasoning(effort, reasoning.budget_tokens, adaptive, summary))


def anthropic_options(request: GenerateRequest) -> GenerateRequest:
    """A user, whatever he is called, and whether to go first."""
    options = request.options
    tier = "auto" if options.service_tier in {"auto", "priority", "fast", "ultrafast", "scale"} else "standard_only"
    return replace(
        request,
        options=Options(
            user=options.user or options.safety_identifier, service_tier=tier if options.service_tier else ""
        ),
    )


def _always_anthropic(request: GenerateRequest) -> GenerateRequest:
    """It wants a bound, reads turns of one role in a row as one, and is not told what changes nothing."""
    plain = tuple(name for name in ("temperature", "top_p") if getattr(request.sampling, name) == 1)
    request = replace(request, unset=tuple(dict.fromkeys((*request.unset, *plain))))
    if request.sampling.max_tokens is None:
        budget = request.reasoning.budget_tokens if request.reasoning is not None else 0
        request = replace(request, sampling=replace(request.sampling, max_tokens=8192 + budget))
    return nameless_schema(joined(signed_thoughts(request), {"system", "user", "assistant"}))


_ANTHROPIC: dict[str, Change] = {
    "message.developer": developers_as_system,
    "message.cache": times(_TIMES),
    "call.cache": times(_TIMES),
    "part.text.cache": times(_TIMES),
    "part.image.cache": times(_TIMES),
    "part.file.cache": times(_TIMES),
    "tools.cache": times(_TIMES),
    "part.refusal": refusals_as_texts,
    "part.thinking.text": signed_thoughts,
    "message.name": names_before_texts,
    "part.file.data": texts_as_plain,
    "part.file.text": texts_as_plain,
    "part.file.name": same,
    "sampling.temperature": same,
    "output.lax": schemas_hold,
    "reasoning.effort": anthropic_thinking,
    "reasoning.summary": anthropic_thinking,
    "options.service_tier": anthropic_options,
    "options.user": anthropic_options,
    "options.safety_identifier": anthropic_options,
}

# --- Bedrock -----------------------------------------------------------------------------------------------------

_FORMATS = {"application/json": "text/plain"}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9()\[\]-]+")


def bedrock_thoughts(request: GenerateRequest, *, unsigned: bool) -> GenerateRequest:
    """Seal and text, or a short version of it where there is none; what only its provider can read stands apart."""

    def change(turn: Message) -> Message:
        made: list[Part] = []
        for part in turn.parts:
            if not isinstance(part, ThinkingPart):
                made.append(part)
                continue
            if part.redacted:
                made.append(ThinkingPart(redacted=part.redacted))
            text = part.text or "\n".join(part.summary)
            if part.signature or (text and unsigned):
                made.append(ThinkingPart(text, part.signature))
        return replace(turn, content=tuple(made))

    return turns(request, change)


def bedrock_documents(request: GenerateRequest) -> GenerateRequest:
    """Documents have a format and a name of their own."""
    taken: set[str] = set()

    def change(part: Part, _: Message) -> Part:
        if not isinstance(part, FilePart):
            return part
        plain = _NOT_IN_A_NAME.sub(" ", part.name).strip() or "document"
        name, number = plain, 1
        while name in taken:
            number += 1
            name = f"{plain} ({number})"
        taken.add(name)
        data = part.data or base64.b64encode(part.text.encode()).decode()
        kind = _FORMATS.get(part.media_type, part.media_type)
        return FilePart(data, kind, name=name, cache=part.cache)

    return parts(request, change)


def points_after_results(request: GenerateRequest) -> GenerateRequest:
    """A result has no marks inside: the last of them stands after it."""

    def change(turn: Message) -> Message:
        if turn.role != "tool":
            return turn
        marks = [mark for part in turn.parts if (mark := getattr(part, "cache", ""))]
        bare = tuple(replace(part, cache="") if hasattr(part, "cache") else part for part in turn.parts)
        return replace(turn, content=bare, cache=turn.cache or (marks[-1] if marks else ""))

    return turns(request, change)


def bedrock_tier(request: GenerateRequest) -> GenerateRequest:
    """One of Bedrock's, or none."""
    tier = request.options.service_tier
    known = tier if tier in {"priority", "default", "flex", "reserved"} else ""
    return replace(request, options=replace(request.options, service_tier=known))


def bedrock_effort(request: GenerateRequest) -> GenerateRequest:
    """Efforts that other models than Anthropic's have."""
    assert request.reasoning is not None
    effort = request.reasoning.effort
    return replace(
        request,
        reasoning=replace(request.reasoning, effort={"none": "low", "minimal": "low"}.get(effort, effort)),
    )


def tools_hidden(request: GenerateRequest) -> GenerateRequest:
    """Without tools none is called."""
    return replace(request, tools=())


def _always_bedrock(request: GenerateRequest, *, anthropic: bool) -> GenerateRequest:
    """Turns of one role in a row are one; instructions stand before them; every document has a name."""
    request = bedrock_documents(bedrock_thoughts(points_after_results(request), unsigned=not anthropic))
    return joined(instructions_first(request), {"user", "assistant"})


def _bedrock(*, anthropic: bool) -> dict[str, Change]:
    thoughts = functools.partial(bedrock_thoughts, unsigned=not anthropic)
    made: dict[str, Change] = {
        "message.developer": developers_as_system,
        "message.late_system": instructions_first,
        "message.cache": times(_TIMES),
        "part.text.cache": times(_TIMES),
        "part.image.cache": times(_TIMES),
        "part.file.cache": times(_TIMES),
        "part.audio.cache": times(_TIMES),
        "call.cache": times(_TIMES),
        "tools.cache": times(_TIMES),
        "part.refusal": refusals_as_texts,
        "part.thinking.text": thoughts,
        "part.thinking.signature": thoughts,
        "part.thinking.redacted": thoughts,
        "part.thinking.summary": thoughts,
        "part.file.text": bedrock_documents,
        "part.file.name": bedrock_documents,
        "output.json_schema": same,
        "output.lax": schemas_hold,
        "tool_choice.none": tools_hidden,
        "tool_choice.required": same,
        "options.service_tier": bedrock_tier,
        "options.metadata": same,
        "sampling.top_k": same,
    }
    if anthropic:
        thinking = functools.partial(anthropic_thinking, converse=True)
        return made | {
            "parallel_tool_calls": same,
            "reasoning.effort": thinking,
            "reasoning.budget_tokens": thinking,
            "reasoning.adaptive": thinking,
            "reasoning.summary": thinking,
        }
    return made | {"reasoning.effort": bedrock_effort}


# --- Gemini ------------------------------------------------------------------------------------------------------


def gemini_thoughts(request: GenerateRequest) -> GenerateRequest:
    """The text of a thought, or the short version of it, with its seal."""

    def change(part: Part, _: Message) -> Part | None:
        if not isinstance(part, ThinkingPart):
            return part
        text = part.text or "\n".join(part.summary)
        return ThinkingPart(text, part.signature) if text or part.signature else None

    return parts(request, change)


def typed_addresses(request: GenerateRequest) -> GenerateRequest:
    """The type of what lies at an address is told by its ending."""

    def change(part: Part, _: Message) -> Part:
        if not isinstance(part, ImagePart | FilePart) or not part.url:
            return part
        told = part.media_type or mimetypes.guess_type(urlsplit(part.url).path)[0] or ""
        if told.startswith("image/"):
            return ImagePart(url=part.url, media_type=told, detail=getattr(part, "detail", ""))
        return FilePart(url=part.url, media_type=told)

    return parts(request, change)


def gemini_detail(request: GenerateRequest) -> GenerateRequest:
    """Every picture is looked at as closely as the one that is looked at most closely."""
    asked = {part.detail for turn in request.messages or () for part in turn.parts if isinstance(part, ImagePart)}
    most = next((detail for detail in ("high", "medium", "low") if detail in asked), "")
    return parts(request, lambda part, _: replace(part, detail=most) if isinstance(part, ImagePart) else part)


def gemini_results(request: GenerateRequest) -> GenerateRequest:
    """A result is one text, a line for each of its texts, and what is none."""

    def change(turn: Message) -> Message:
        if turn.role != "tool":
            return turn
        texts = [part.text for part in turn.parts if isinstance(part, TextPart) and part.text]
        media = tuple(part for part in turn.parts if not isinstance(part, TextPart))
        return replace(turn, content=((TextPart("\n".join(texts)),) if texts else ()) + media)

    return turns(request, change)


def seals_on_first_calls(request: GenerateRequest) -> GenerateRequest:
    """Gemini 3 is told not to look for the seal of a turn's first call."""

    def change(turn: Message) -> Message:
        calls = list(turn.tool_calls)
        if calls and not calls[0].signature:
            calls[0] = replace(calls[0], signature="skip_thought_signature_validator")
        return replace(turn, tool_calls=tuple(calls))

    return turns(request, change)


def nameless_files(request: GenerateRequest) -> GenerateRequest:
    """Files other than text have no name."""
    return parts(request, lambda part, _: replace(part, name="") if isinstance(part, FilePart) else part)


def described_schema(request: GenerateRequest) -> GenerateRequest:
    """The description of the schema in the schema."""
    output = request.output
    assert output is not None
    rule = {"description": output.description, **json.loads(output.rule)}
    return replace(request, output=replace(output, rule=json.dumps(rule), description=""))


def strict_for_all(request: GenerateRequest) -> GenerateRequest:
    """One strict tool makes all of them strict, unless one must be called."""
    strict = any(tool.strict for tool in request.tools) and request.tool_choice == "auto"
    return replace(request, tools=tuple(replace(tool, strict=strict) for tool in request.tools))


def gemini_thinking(request: GenerateRequest, *, second: bool) -> GenerateRequest:
    """Levels, or budgets where the second generation has none; shown where somebody asked for thoughts."""
    asked = request.reasoning
    assert asked is not None
    budget, level, adaptive = asked.budget_tokens, "", False
    if not budget and asked.effort and second:
        budget = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192}.get(asked.effort, 24576)
    elif not budget and asked.effort:
        level = {"none": "minimal", "minimal": "minimal", "low": "low", "medium": "medium"}.get(asked.effort, "high")
    elif not budget:
        adaptive = asked.adaptive
    wanted = bool(asked.summary or asked.budget_tokens or asked.adaptive)
    shown = "shown" if wanted and asked.summary not in {"omitted", "none"} else ""
    return replace(request, reasoning=Reasoning(level, budget, adaptive, shown))


def gemini_tier(request: GenerateRequest) -> GenerateRequest:
    """One of Google's, or none."""
    known = {"flex": "flex", "priority": "priority", "default": "standard"}
    tier = known.get(request.options.service_tier, "")
    return replace(request, options=replace(request.options, service_tier=tier))


def _always_gemini(request: GenerateRequest, *, second: bool) -> GenerateRequest:
    """One side in a row is one turn, instructions before it; results are one text."""
    request = gemini_detail(gemini_results(gemini_thoughts(request)))
    if not second:
        request = seals_on_first_calls(request)
    if request.output is not None and request.output.kind == "json_object":
        request = replace(request, output=OutputRule("json_object"))
    return nameless_schema(joined(instructions_first(request), {"user", "assistant"}))


def _gemini(*, second: bool) -> dict[str, Change]:
    thinking = functools.partial(gemini_thinking, second=second)
    return {
        "message.developer": developers_as_system,
        "message.late_system": instructions_first,
        "message.is_error": same,
        "part.refusal": refusals_as_texts,
        "part.thinking.text": gemini_thoughts,
        "part.thinking.signature": gemini_thoughts,
        "part.thinking.summary": gemini_thoughts,
        "part.image.data": same,
        "part.image.url": typed_addresses,
        "part.image.detail": gemini_detail,
        "part.file.data": same,
        "part.file.url": typed_addresses,
        "part.file.text": text_files_as_texts,
        "part.file.name": nameless_files,
        "part.audio": same,
        "call": same,
        "call.signature": same,
        "n": same,
        "sampling.logprobs": same,
        "output.json_object": same,
        "output.json_schema": same,
        "output.lax": schemas_hold,
        "output.description": described_schema,
        "tools": same,
        "tools.strict": strict_for_all,
        "tool_choice.none": same,
        "tool_choice.required": same,
        "tool_choice.function": same,
        "reasoning.effort": thinking,
        "reasoning.budget_tokens": thinking,
        "reasoning.adaptive": thinking,
        "reasoning.summary": thinking,
        "options.service_tier": gemini_tier,
    }


CHANGES: dict[str, dict[str, Change]] = {
    "local": {},
    "openai": _OPENAI,
    "responses": _RESPONSES,
    "anthropic": _ANTHROPIC,
    "bedrock": _bedrock(anthropic=False),
    "bedrock, Anthropic's": _bedrock(anthropic=True),
    "gemini": _gemini(second=False),
    "gemini 2": _gemini(second=True),
}
ALWAYS: dict[str, Change] = {
    "local": same,
    "openai": _always_openai,
    "responses": _always_responses,
    "anthropic": _always_anthropic,
    "bedrock": functools.partial(_always_bedrock, anthropic=False),
    "bedrock, Anthropic's": functools.partial(_always_bedrock, anthropic=True),
    "gemini": functools.partial(_always_gemini, second=False),
    "gemini 2": functools.partial(_always_gemini, second=True),
}
