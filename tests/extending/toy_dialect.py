"""Toy's API as a dialect: a question comes in, and its answer goes out, whole or as one event for each piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from interlace.engines.types import Delta, GenerateRequest, Message, Sampling
from interlace.gateway.calls import Ask, Done, Happening
from interlace.gateway.dialects import Spoken
from interlace.gateway.rendering import SSE_DONE, write_event
from interlace.gateway.translation import Carried, Here, Table, Words, carried, carriers_of
from interlace.gateway.wire import decode, encode

TABLE: Table = {
    "model": Here("chooses the model or route"),
    "question": Carried(),
    "most": carried("sampling.max_tokens"),
    "stream": Here("chooses how the answer comes"),
}


class ToyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What callers send."""

    model: str
    question: str
    most: Annotated[int, Meta(ge=1)] | None = None
    stream: bool = False


class ToyAnswer(msgspec.Struct, frozen=True):
    """What they get."""

    words: str
    read: int
    written: int


class ToyRendering:
    """One answer, rendered."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._words: list[str] = []

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """Streaming: an event for each piece."""
        out = bytearray()
        for happening in batch:
            if isinstance(happening, Delta) and happening.text:
                write_event(out, {"words": happening.text})
        return bytes(out)

    def last_chunks(self, done: Done) -> bytes:
        """Streaming: what it took, and the end."""
        out = bytearray()
        write_event(out, {"read": done.usage.prompt_tokens, "written": done.usage.completion_tokens})
        return bytes(out + SSE_DONE)

    def take(self, batch: Sequence[Happening]) -> None:
        """Not streaming: collect."""
        self._words += [happening.text for happening in batch if isinstance(happening, Delta)]

    def whole(self, done: Done) -> bytes:
        """Not streaming: the answer."""
        return encode(ToyAnswer("".join(self._words), done.usage.prompt_tokens, done.usage.completion_tokens))


CARRIERS = carriers_of(TABLE)
_decoder = msgspec.json.Decoder(ToyBody)


def parse_toy(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, ToyRendering]:
    """Read a body; raises `InvalidRequest`, naming the field."""
    del max_sequences  # one answer is one sequence
    read = decode(body, _decoder)
    request = GenerateRequest(
        id=request_id,
        messages=(Message("user", read.question),),
        sampling=Sampling(max_tokens=read.most),
        dialect="toy",
    )
    ask = Ask(read.model, (request,), input_param="question", words=Words(CARRIERS, read))
    return ask, ToyRendering(stream=read.stream)


TOY = Spoken(
    title="Toy",
    about="Answer a question.",
    name="toy",
    path="/v1/toy",
    body=ToyBody,
    answer=ToyAnswer,
    table=TABLE,
    parse=parse_toy,
)
