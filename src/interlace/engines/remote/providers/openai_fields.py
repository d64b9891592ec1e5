"""What becomes of a request's fields at a server that speaks OpenAI's API."""

from __future__ import annotations

import functools

from interlace.config import ModelSettings
from interlace.engines.fields import FOREIGN, KEPT, Fate, Fields, Mapped, Native, Refused, Unused, table
from interlace.engines.remote.providers.openai_peculiar import EXTENSIONS, PRESETS, peculiarities_of
from interlace.engines.types import Options

_EXTENSION = Refused("the server behind this model does not know it. Leave it out.")
_NO_MARKS: Fate = Unused("the server behind this model finds cached prefixes by itself")
_TIMES = "for 30m or 12h; how long otherwise is left to the server"
_MARKS: Fate = Mapped(_TIMES)
_OPTION = Unused("the server behind this model has no use for it")


@functools.lru_cache(maxsize=1024)
def fields_of_openai(settings: ModelSettings) -> Fields:
    """The table of chat completions and completions at this server."""
    peculiar = peculiarities_of(settings)
    manners, extension = peculiar.manners, KEPT if peculiar.structured else _EXTENSION
    marks = _MARKS if manners.cache_marks else _NO_MARKS
    made = table(
        KEPT,
        message__developer=KEPT if manners.developer else Mapped("as a system message"),
        message__is_error=Mapped("the result's text alone tells the model that the call failed"),
        message__cache=Mapped("as a mark of its last part, where it has one") if manners.cache_marks else _NO_MARKS,
        part__text__cache=marks,
        part__image__cache=marks,
        part__file__cache=marks,
        part__audio__cache=marks,
        call__followed_by=Mapped("what is said after it stands before it"),
        call__cache=Unused("only texts, pictures and files can be marked"),
        tools__cache=Unused("only texts, pictures and files can be marked"),
        part__refusal=Mapped("as refusal of its turn, after the text"),
        part__thinking=Unused("thoughts do not go back to this server"),
        part__thinking__text=Mapped("as reasoning_content")
        if manners.thoughts
        else Unused("thoughts do not go back to this server"),
        part__image__in_result=Mapped("in a turn of the user after the results"),
        part__file__data=Mapped("of a result in a turn of the user after the results; else as it is"),
        part__file__url=Refused("this server takes no addresses of files. Send the file itself."),
        part__file__text=Mapped("as text, under its name"),
        call__signature=Mapped("as extra_content.google.thought_signature")
        if manners.signatures
        else Unused("only the provider that made it can read it"),
        sampling__prompt_logprobs=Refused("this server cannot tell logprobs of the prompt. Leave it out."),
        output__regex=extension,
        output__grammar=extension,
        prefill=Mapped("as continue_final_message") if peculiar.prefill else _EXTENSION,
        reasoning=Unused("this server does not let callers choose it"),
        reasoning__effort=KEPT if peculiar.reasoning else _OPTION,
        reasoning__budget_tokens=Mapped("as an effort: low up to 4096 tokens, medium up to 16384, else high"),
        reasoning__adaptive=Mapped("the model decides unless an effort is given"),
        options=_OPTION,
        native=Native("openai.chat"),
        tools__kind=FOREIGN,
        call__kind=FOREIGN,
        tools__native=Refused("it belongs to another provider's models. Leave it out, or choose another model."),
    )
    made |= {f"sampling.{name}": KEPT if name in peculiar.sampling else _EXTENSION for name in EXTENSIONS}
    made |= {f"options.{name}": KEPT for name in Options.__struct_fields__ if name in peculiar.options}
    if "service_tier" in peculiar.options:
        made["options.service_tier"] = Mapped(f"standard_only as {peculiar.standard}")
    if not settings.store:
        made["options.metadata"] = Unused("nothing is stored at the provider, unless the setting `store` allows it")
    elif "metadata" in peculiar.options:
        made["options.metadata"] = Mapped("with store")
    if settings.engine in PRESETS:
        made |= {"tools.custom": FOREIGN, "call.custom": FOREIGN}
    for group in peculiar.refused:
        made |= {name: _EXTENSION for name in made if name == group or name.startswith(f"{group}.")}
    return made


@functools.lru_cache(maxsize=1024)
def fields_of_responses(settings: ModelSettings) -> Fields:
    """The table of the Responses API at this server."""
    marked = peculiarities_of(settings).manners.cache_marks
    marks = _MARKS if marked else _NO_MARKS
    sealed = Mapped("with the name and the seal that its provider gave it, else not")
    talks = Refused("this model only takes conversations. Use 'messages'.")
    unmarked = Unused("only texts, pictures and files can be marked")
    made = table(
        KEPT,
        message__name=Mapped("as 'NAME: ' before the text of its turn"),
        message__is_error=Mapped("the result's text alone tells the model that the call failed"),
        message__cache=Mapped("as a mark of its last part, where it has one") if marked else _NO_MARKS,
        part__text__cache=Mapped(f"{_TIMES}; not of what the assistant said, which has no marks")
        if marked
        else _NO_MARKS,
        part__image__cache=marks,
        part__file__cache=marks,
        call__cache=unmarked,
        tools__cache=unmarked,
        part__thinking=sealed,
        part__thinking__text=Mapped(
            "with the name and the seal that its provider gave it, else not; as its summary, where another dialect "
            "sends it back"
        ),
        part__file__text=Mapped("as text, under its name"),
        part__audio=Refused("this model reads no sound. Leave it out, or choose another model."),
        call__signature=Unused("only the provider that made it can read it"),
        prompt=talks,
        prompt_ids=talks,
        n=Refused("this model answers once. Ask again for another answer."),
        sampling=_EXTENSION,
        sampling__max_tokens=Mapped("as max_output_tokens"),
        sampling__temperature=KEPT,
        sampling__top_p=KEPT,
        sampling__logprobs=KEPT,
        sampling__seed=Unused("this API's answers are not repeatable"),
        output__regex=_EXTENSION,
        output__grammar=_EXTENSION,
        prefill=_EXTENSION,
        tools__native=Native("openai.responses"),
        tools__kind=Native("openai.responses"),
        call__kind=Native("openai.responses"),
        reasoning__budget_tokens=Mapped("as an effort: low up to 4096 tokens, medium up to 16384, else high"),
        reasoning__adaptive=Mapped("the model decides unless an effort is given"),
        reasoning__summary=Mapped("summarized and updates as auto, omitted as none"),
        options__service_tier=Mapped("standard_only as default"),
        native=Native("openai.responses"),
    )
    if not settings.store:
        made["options.metadata"] = Unused("nothing is stored at the provider, unless the setting `store` allows it")
    return made
