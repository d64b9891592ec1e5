"""What becomes of a request's fields at an engine on this machine."""

from __future__ import annotations

from interlace.engines.fields import ASIDE, FOREIGN, KEPT, Fields, Mapped, Refused, Unused, table

_TEXT_ONLY = Refused("this model reads and writes text only. Leave it out, or choose another model.")
_NO_THOUGHTS = "this model does not think apart from its answer"

LOCAL_FIELDS: Fields = table(
    KEPT,
    message__developer=Mapped("as a system message, unless the chat template knows developers"),
    message__is_error=Mapped("the result's text alone tells the model that the call failed"),
    message__cache=Unused("cached prefixes are found by what they hold"),
    part__text__cache=Unused("cached prefixes are found by what they hold"),
    call__followed_by=Mapped("what is said after it stands before it"),
    call__cache=Unused("cached prefixes are found by what they hold"),
    tools__cache=Unused("cached prefixes are found by what they hold"),
    part__refusal=Mapped("as what the assistant said"),
    part__thinking=Unused(_NO_THOUGHTS),
    part__image=_TEXT_ONLY,
    part__file=_TEXT_ONLY,
    part__file__text=Mapped("as text, under its name"),
    part__file__name=Mapped("as a line before the text"),
    part__file__cache=Unused("cached prefixes are found by what they hold"),
    part__audio=_TEXT_ONLY,
    call__signature=Unused("only the provider that made it can read it"),
    output__lax=Mapped("the schema always holds"),
    output__description=Unused("the model follows the schema itself"),
    tools__native=Refused("it belongs to another provider's models. Leave it out, or choose another model."),
    tools__kind=FOREIGN,
    tools__custom=FOREIGN,
    call__kind=FOREIGN,
    call__custom=FOREIGN,
    reasoning=Unused(_NO_THOUGHTS),
    options__verbosity=Unused("say in the prompt how long the answer should be"),
    options__service_tier=Unused("the plan of the API key decides who goes first"),
    options__user=Unused("usage is recorded by API key; tags go into x-interlace-tags"),
    options__safety_identifier=Unused("usage is recorded by API key"),
    options__cache_key=Unused("cached prefixes are found by what they hold"),
    options__cache_retention=Unused("cached prefixes are found by what they hold"),
    options__metadata=Unused("tags go into x-interlace-tags"),
    native__aside=ASIDE,
    native=Refused("it belongs to another provider's models. Leave it out, or choose another model."),
)
