"""What becomes of a request's fields at Gemini, on Vertex AI or by its own API."""

from __future__ import annotations

from interlace.engines.fields import ASIDE, FOREIGN, KEPT, TEXT_ONLY, Fields, Mapped, Refused, Unused, table

_UNKNOWN = Refused("Gemini does not know it. Leave it out, or choose another model.")
_NO_USE = "Gemini has no such field"
_CACHE = "Gemini finds cached prefixes by what they hold"
_CONVERSATION = Refused("Gemini takes conversations only. Use 'messages'.")

VERTEX_FIELDS: Fields = table(
    KEPT,
    message__developer=Mapped("as systemInstruction"),
    part__in_instructions=TEXT_ONLY,
    message__late_system=Mapped("joined to the instructions before the conversation, in their order"),
    message__name=Unused(_NO_USE),
    message__is_error=Mapped("as error in the functionResponse, in place of output"),
    message__cache=Unused(_CACHE),
    part__text__cache=Unused(_CACHE),
    part__refusal=Mapped("as what the assistant said"),
    part__thinking__text=Mapped("as a part marked thought"),
    part__thinking__signature=Mapped(
        "as thoughtSignature of its part, which is an empty text where nothing was thought"
    ),
    part__thinking__redacted=Unused("only the provider that made it can read it"),
    part__thinking__summary=Mapped("as the thought's text, where it has no other"),
    part__image__data=Mapped("as inlineData"),
    part__image__url=Mapped("as fileData; its type is told by the address's ending"),
    part__image__detail=Mapped("as mediaResolution of the whole request, the highest asked for"),
    part__image__cache=Unused(_CACHE),
    part__file__data=Mapped("as inlineData"),
    part__file__url=Mapped("as fileData; its type is told by the address's ending"),
    part__file__text=Mapped("as text, under its name"),
    part__file__name=Mapped("as a line before a text; of other files it has no use"),
    part__file__cache=Unused(_CACHE),
    part__audio=Mapped("as inlineData"),
    part__audio__cache=Unused(_CACHE),
    call=Mapped("as functionCall and functionResponse, the result's text under output"),
    call__followed_by=KEPT,
    call__signature=Mapped(
        "as thoughtSignature; where a turn's first call has none, Gemini 3 is told not to look for it"
    ),
    call__cache=Unused(_CACHE),
    prompt=_CONVERSATION,
    prompt_ids=_CONVERSATION,
    n=Mapped("as candidateCount"),
    sampling__min_p=_UNKNOWN,
    sampling__repetition_penalty=_UNKNOWN,
    sampling__ignore_eos=_UNKNOWN,
    sampling__logit_bias=_UNKNOWN,
    sampling__logprobs=Mapped("as responseLogprobs and logprobs"),
    sampling__prompt_logprobs=_UNKNOWN,
    output__json_object=Mapped("as responseMimeType application/json"),
    output__json_schema=Mapped("as responseJsonSchema"),
    output__lax=Mapped("the schema always holds"),
    output__description=Mapped("as description of the schema, where it has none"),
    output__regex=_UNKNOWN,
    output__grammar=_UNKNOWN,
    tools=Mapped("as functionDeclarations"),
    tools__strict=Mapped("as mode VALIDATED, for all tools, unless one must be called"),
    tools__cache=Unused(_CACHE),
    tools__native=_UNKNOWN,
    tools__kind=FOREIGN,
    tools__custom=FOREIGN,
    call__kind=FOREIGN,
    call__custom=FOREIGN,
    tool_choice__none=Mapped("as mode NONE"),
    tool_choice__required=Mapped("as mode ANY"),
    tool_choice__function=Mapped("as mode ANY with one allowed name"),
    parallel_tool_calls=Refused("Gemini decides by itself how many tools it calls at once. Leave it out."),
    reasoning__effort=Mapped(
        "as thinkingLevel, xhigh and max as HIGH, none as MINIMAL; for Gemini 2 as thinkingBudget: none 0, minimal and "
        "low 1024, medium 8192, others 24576"
    ),
    reasoning__budget_tokens=Mapped("as thinkingBudget"),
    reasoning__adaptive=Mapped("as thinkingBudget -1, where no effort is said"),
    reasoning__summary=Mapped("omitted hides thoughts; else they are shown"),
    options__verbosity=Unused("say in the prompt how long the answer should be"),
    options__service_tier=Mapped("flex, priority, and default as standard; others leave the choice to Google"),
    options__user=Unused(_NO_USE),
    options__safety_identifier=Unused(_NO_USE),
    options__cache_key=Unused(_CACHE),
    options__cache_retention=Unused(_CACHE),
    options__metadata=Unused("tags go into x-interlace-tags"),
    native__aside=ASIDE,
    native=_UNKNOWN,
)
