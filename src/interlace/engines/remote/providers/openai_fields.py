"""What becomes of a request's fields at a server that speaks OpenAI's API."""

from __future__ import annotations

import functools

from interlace.engines.fields import KEPT, Fields, Refused, Unused, table

_NOT_YET = Refused("this model takes text only. Leave it out, or choose another model.")
_EXTENSION = Refused("the server behind this model does not know it. Leave it out.")


@functools.cache
def fields_of_openai(*, extensions: bool) -> Fields:
    """The table; `extensions`: the server knows vLLM's fields beyond OpenAI's."""
    extension = KEPT if extensions else _EXTENSION
    return table(
        KEPT,
        part__image=_NOT_YET,
        part__file=_NOT_YET,
        part__audio=_NOT_YET,
        part__thinking=Unused("thoughts do not go back"),
        sampling__top_k=extension,
        sampling__min_p=extension,
        sampling__repetition_penalty=extension,
        sampling__ignore_eos=extension,
        output__regex=extension,
        output__grammar=extension,
        prefill=extension,
        reasoning=Unused("it is not passed on"),
        options=Unused("it is not passed on"),
        native=_NOT_YET,
        tools__native=_NOT_YET,
    )
