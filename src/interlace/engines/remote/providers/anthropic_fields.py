"""What becomes of a request's fields at Anthropic."""

from __future__ import annotations

from interlace.engines.fields import FOREIGN, KEPT, TEXT_ONLY, Fields, Mapped, Native, Refused, Unused, table

_UNKNOWN = Refused("this model does not know it. Leave it out, or choose another model.")
_TIMES = Mapped("for 5m or 1h: the shortest that lasts as long, or else the longest")
_SEALED = "only with the signature that its provider gave it"

ANTHROPIC_FIELDS: Fields = table(
    KEPT,
    message__developer=Mapped("as instructions (system)"),
    part__in_instructions=TEXT_ONLY,
    message__name=Mapped("as 'NAME: ' before the text of its turn"),
    message__cache=Mapped("as a mark of its last block, or of the result; for 5m or 1h"),
    part__text__cache=_TIMES,
    part__image__cache=_TIMES,
    part__file__cache=_TIMES,
    call__cache=_TIMES,
    tools__cache=_TIMES,
    part__refusal=Mapped("as what the assistant said"),
    part__thinking__text=Mapped(_SEALED),
    part__thinking__summary=Unused("short versions of thoughts do not go back"),
    part__image__detail=Unused("pictures are looked at as closely as their size allows"),
    part__file__data=Mapped("a PDF as it is, what is text as plain text; others are refused"),
    part__file__text=Mapped("as plain text"),
    part__file__name=Mapped("as the document's title"),
    part__audio=Refused("this model reads no sound. Leave it out, or choose another model."),
    call__signature=Unused("only the provider that made it can read it"),
    prompt=Refused("this model only takes conversations. Use 'messages'."),
    prompt_ids=Refused("this model only takes conversations. Use 'messages'."),
    n=Refused("this model answers once. Ask again for another answer."),
    sampling__max_tokens=KEPT,
    sampling__temperature=Mapped("from 0 to 1; more is refused"),
    sampling__min_p=_UNKNOWN,
    sampling__repetition_penalty=_UNKNOWN,
    sampling__presence_penalty=_UNKNOWN,
    sampling__frequency_penalty=_UNKNOWN,
    sampling__seed=Unused("this provider's answers are not repeatable"),
    sampling__ignore_eos=_UNKNOWN,
    sampling__logit_bias=_UNKNOWN,
    sampling__logprobs=_UNKNOWN,
    sampling__prompt_logprobs=_UNKNOWN,
    output__json_object=Refused("this model's answers can only be held to a schema. Give a 'json_schema'."),
    output__lax=Mapped("the schema always holds"),
    output__description=Unused("the schema alone is sent"),
    output__regex=Refused("this model's answers can only be held to a JSON schema."),
    output__grammar=Refused("this model's answers can only be held to a JSON schema."),
    tools__native=Native("anthropic.messages"),
    tools__kind=Native("anthropic.messages"),
    tools__custom=FOREIGN,
    call__kind=FOREIGN,
    call__custom=FOREIGN,
    reasoning__effort=Mapped(
        "as output_config.effort, minimal as low, with adaptive thinking unless asked in Anthropic's dialect, or a "
        "tool is forced; none as no thinking"
    ),
    reasoning__summary=Mapped("as thinking.display: omitted, updates, else summarized"),
    options__verbosity=Unused("say in the prompt how long the answer should be"),
    options__service_tier=Mapped("auto, priority, fast, ultrafast and scale as auto, others as standard_only"),
    options__user=Mapped("as metadata.user_id"),
    options__safety_identifier=Mapped("as metadata.user_id, unless there is a user"),
    options__cache_key=Unused("cached prefixes are found by what they hold"),
    options__cache_retention=Unused("each cache mark says how long"),
    options__metadata=Unused("this provider keeps no tags"),
    native=Native("anthropic.messages"),
)
