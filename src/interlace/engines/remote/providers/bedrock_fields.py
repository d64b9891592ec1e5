"""What becomes of a request's fields at Amazon Bedrock's Converse."""

from __future__ import annotations

import functools

from interlace.engines.fields import ASIDE, FOREIGN, KEPT, TEXT_ONLY, Fields, Mapped, Refused, Unused, table

_UNKNOWN = Refused("Bedrock does not know it. Leave it out, or choose another model.")
_THIS_MODEL = Refused("this model on Bedrock does not know it. Leave it out, or choose another model.")
_DATA_ONLY = Refused("Bedrock fetches nothing from the web. Send the content itself as a data URL.")
_POINT = Mapped("as a cachePoint after it, or after the tool's result it stands in; for how long: 5m or 1h")
_NO_USE = "Bedrock has no such field"


@functools.cache
def fields_of_bedrock(family: str) -> Fields:
    """The table for models of one `family`: "anthropic", "amazon", or another publisher's."""
    anthropic = family == "anthropic"
    top_k = {
        "anthropic": Mapped("as top_k in additionalModelRequestFields"),
        "amazon": Mapped("as inferenceConfig.topK in additionalModelRequestFields"),
    }.get(family, _THIS_MODEL)
    thinking = Unused("this model takes an effort only")
    return table(
        KEPT,
        message__developer=Mapped("as system"),
        part__in_instructions=TEXT_ONLY,
        message__late_system=Mapped("joined to the instructions before the conversation, in their order"),
        message__name=Unused(_NO_USE),
        message__cache=Mapped("as a cachePoint after the turn; for how long: 5m or 1h"),
        part__text__cache=_POINT,
        part__refusal=Mapped("as what the assistant said"),
        part__thinking__text=Mapped("as reasoningText; left out where it has no signature, which the model wants back")
        if anthropic
        else Mapped("as reasoningText"),
        part__thinking__signature=Mapped("as signature of reasoningText"),
        part__thinking__redacted=Mapped("as redactedContent"),
        part__thinking__summary=Mapped("as the thought's text, where it has no other"),
        part__image__url=_DATA_ONLY,
        part__image__detail=Unused(_NO_USE),
        part__image__cache=_POINT,
        part__file__url=_DATA_ONLY,
        part__file__text=Mapped("as a document of plain text"),
        part__file__name=Mapped(
            "with a space for what may not stand in a document's name, and a number where it is taken"
        ),
        part__file__cache=_POINT,
        part__audio__cache=_POINT,
        call__signature=Unused("Bedrock gives calls no signature"),
        call__cache=_POINT,
        prompt=Refused("Bedrock takes conversations only. Use 'messages'."),
        prompt_ids=Refused("Bedrock takes conversations only. Use 'messages'."),
        n=Refused("Bedrock answers once. Ask several times."),
        sampling__top_k=top_k,
        sampling__min_p=_UNKNOWN,
        sampling__repetition_penalty=_UNKNOWN,
        sampling__presence_penalty=_UNKNOWN,
        sampling__frequency_penalty=_UNKNOWN,
        sampling__seed=Unused("answers of models on Bedrock are not repeatable"),
        sampling__ignore_eos=_UNKNOWN,
        sampling__logit_bias=_UNKNOWN,
        sampling__logprobs=_UNKNOWN,
        sampling__prompt_logprobs=_UNKNOWN,
        output__json_object=Refused("Bedrock follows JSON schemas only. Send the schema, as json_schema."),
        output__json_schema=Mapped("as outputConfig.textFormat"),
        output__lax=Mapped("the schema always holds"),
        output__regex=_UNKNOWN,
        output__grammar=_UNKNOWN,
        tools__cache=_POINT,
        tools__native=_UNKNOWN,
        tools__kind=FOREIGN,
        tools__custom=FOREIGN,
        call__kind=FOREIGN,
        call__custom=FOREIGN,
        tool_choice__none=Mapped("the tools are not shown; refused once the conversation has calls in it"),
        tool_choice__required=Mapped("as any"),
        parallel_tool_calls=Mapped("as tool_choice.disable_parallel_tool_use in additionalModelRequestFields")
        if anthropic
        else _THIS_MODEL,
        reasoning__effort=Mapped(
            "as outputConfig.effort, minimal as low; none as thinking of type disabled; in dialects other than "
            "Anthropic's it asks for adaptive thinking too"
        )
        if anthropic
        else Mapped("as outputConfig.effort; none and minimal as low"),
        reasoning__budget_tokens=Mapped("as thinking.budget_tokens in additionalModelRequestFields")
        if anthropic
        else thinking,
        reasoning__adaptive=Mapped("as thinking of type adaptive in additionalModelRequestFields")
        if anthropic
        else thinking,
        reasoning__summary=Mapped("as thinking.display, omitted or summarized, where the model thinks")
        if anthropic
        else Unused("this model decides how its thoughts are shown"),
        options__verbosity=Unused(_NO_USE),
        options__service_tier=Mapped("priority, default, flex and reserved; others leave the choice to Bedrock"),
        options__user=Unused("tags go into metadata"),
        options__safety_identifier=Unused(_NO_USE),
        options__cache_key=Unused(_NO_USE),
        options__cache_retention=Unused("cache marks say for how long"),
        options__metadata=Mapped("as requestMetadata"),
        native__aside=ASIDE,
        native=_UNKNOWN,
    )


def family_of(model: str, publisher: str) -> str:
    """Whose model it is: what the settings say, else what its id says, such as `us.anthropic.claude-...`; "" where an
    ARN hides it."""
    if publisher:
        return publisher
    name = model.rpartition("/")[2]
    return next((known for known in ("anthropic", "amazon") if f"{known}." in name), "")
