"""A request on its way through the pipeline: what is asked, by which call, and what comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from interlace.engines.texts import inner_texts_of, texts_of
from interlace.engines.types import Delta, Embeddings, EmbedRequest, Engine, GenerateRequest, Started, Usage
from interlace.gateway.batches import Pace
from interlace.gateway.meter import Meter
from interlace.ledger import Left, Outcome, Price, Write


class Ask(msgspec.Struct, frozen=True):
    """What a caller wants, in neutral words: one model, and generation of some prompts or one embedding."""

    model: str
    generate: tuple[GenerateRequest, ...] = ()
    embed: EmbedRequest | None = None
    dimensions: int | None = None  # the length of embedding the caller expects
    input_param: str = "messages"  # the wire's word for the input, named in refusals
    words: Mapping[str, str] = msgspec.field(default_factory=dict)  # the wire's word for each of `engines.fields.NAMES`
    unused: tuple[str, ...] = ()  # fields that nothing here has a use for, whatever the engine
    conversation: str | None = None  # what the caller calls the conversation that this belongs to

    @property
    def works(self) -> tuple[GenerateRequest | EmbedRequest, ...]:
        """What an engine is asked for."""
        return self.generate if self.embed is None else (self.embed,)

    def owned(self, tenant: str, priority: int) -> Ask:
        """The same, its embedding marked with whose it is, for the engine's queue."""
        if self.embed is None:
            return self
        return msgspec.structs.replace(
            self, embed=msgspec.structs.replace(self.embed, tenant=tenant, priority=priority)
        )


@dataclass(frozen=True, slots=True)
class BatchLine:
    """What a call that is a line of a batch has instead of a caller who waits: the key in whose name it runs, and
    `beside`, which says what is written together with its usage event, once it is known how the line ended."""

    key_id: str
    beside: Callable[[Outcome, BaseException | None], tuple[Write, ...]]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One arriving request. `read` gives the ask once the caller is known: strangers' bodies are not even read.
    `tell_limits` hears what is left of the caller's rates, `tell_unused` which fields of the request the engine has no
    use for, `tell_route` which model of a route answers and why: all go into the answer's headers. `streams`: whether
    the answer is read as it comes. `conversation`: as in `Ask`, but of a header. `accepted` hears the ask as guards let
    it pass, once it is about to run, and `beside` says what is written together with the usage event, once it is known
    how the request ended. `pace`: whether the answer is taken as quickly as it comes."""

    id: str
    endpoint: str
    credential: str | None
    read: Callable[[], Awaitable[Ask]]
    client_gone: Callable[[], bool]
    meter: Meter
    tags: tuple[str, ...] = ()
    tell_limits: Callable[[dict[str, Left]], None] = lambda _: None
    tell_unused: Callable[[Iterable[str]], None] = lambda _: None
    accepted: Callable[[Ask], Awaitable[None]] | None = None
    beside: Callable[[Outcome, BaseException | None], tuple[Write, ...]] | None = None
    batch: BatchLine | None = None  # then it pays the batch price, and runs in idle capacity only
    tell_route: Callable[[str, str], None] = lambda _model, _why: None
    streams: Callable[[], bool] = lambda: True
    conversation: str | None = None
    pace: Pace | None = None  # None: whoever reads may be slow, and no one will say so


class Work(msgspec.Struct, frozen=True):
    """An ask that is about to run. `open_ended`: nobody said how long the answer may be, and it can be stopped."""

    ask: Ask
    model: str
    requests: tuple[GenerateRequest, ...]  # of the ask, as plan and tenant have them
    engine: Engine
    price: Price
    open_ended: bool
    unused: frozenset[str] = frozenset()  # fields of the ask, as its caller wrote them, that the engine has no use for

    def numbered(self, attempt: int) -> Work:
        """The same work under ids of its own: attempts at one request may run at once, on one engine."""
        if not attempt:
            return self
        rename = msgspec.structs.replace
        embed = None if self.ask.embed is None else rename(self.ask.embed, id=f"{self.ask.embed.id}~{attempt}")
        requests = tuple(rename(request, id=f"{request.id}~{attempt}") for request in self.requests)
        return rename(self, ask=rename(self.ask, embed=embed), requests=requests)


@dataclass(frozen=True, slots=True)
class Counted:
    """Prompt tokens; `estimated`: about so many, because neither engine nor provider counts them beforehand."""

    tokens: int
    estimated: bool


class PartStarted(msgspec.Struct, frozen=True, tag="part"):
    """The prompt of part number `part` is accepted; `prompt` is its text, as guards let it pass, where it was text."""

    part: int
    started: Started
    prompt: str | None = None


class Done(msgspec.Struct, frozen=True):
    """The last event, after settlement."""

    usage: Usage


Happening = PartStarted | Delta | Embeddings | Done
"""What comes out. The `index` of a `Delta` counts through all parts: part number times `n`, plus the choice."""


def input_texts(ask: Ask) -> list[str]:
    """Every text of the ask that a model would read, or that shapes what it writes."""
    if ask.embed is None and len(ask.generate) == 1:
        return texts_of(ask.generate[0])
    texts = [] if ask.embed is None else [*ask.embed.read]
    for request in ask.generate:
        texts += texts_of(request)
    return texts


def inner_input_texts(ask: Ask) -> list[str]:
    """The same as they are read once more: out of their escapes, and put together."""
    return [text for request in ask.generate for text in inner_texts_of(request)]
