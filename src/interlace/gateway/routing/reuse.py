"""Answers from memory: the very same request, of the same project, by the same route, within the time that is set.

Nothing that comes near the same is taken for it: all that shapes an answer is in the key, with the project, and plan
and tags, which decide who answers. Only whole answers are kept, as guards let them pass; memory is bounded by their
number and size.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from interlace.config import ReuseSettings, RouteSettings
from interlace.engines.types import Usage
from interlace.gateway.bounds import tokens_of
from interlace.gateway.meter import Meter
from interlace.gateway.routing.live import Clock
from interlace.ledger import Bound, Caller, Hold, Price, Tried

if TYPE_CHECKING:
    from interlace.gateway.calls import Ask, Happening, Work

T = TypeVar("T")

EVENT_BYTES = 200  # about, of an event beside what it holds


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer. `unused`: fields of the request that its model had no use for."""

    model: str
    events: tuple[Happening, ...]
    usage: Usage
    unused: frozenset[str] = frozenset()


@dataclass
class Shelf(Generic[T]):
    """What a route keeps, bounded in number and time. `clock` gives monotonic seconds."""

    settings: ReuseSettings
    clock: Clock = time.monotonic
    _kept: OrderedDict[bytes, tuple[T, float]] = field(default_factory=OrderedDict)

    def find(self, key: bytes) -> T | None:
        """What lies there under that key, if its time is not over."""
        kept, until = self._kept.get(key, (None, 0.0))
        if kept is None:
            return None
        if until <= self.clock():
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: bytes, kept: T) -> None:
        """Put it there; who was not asked for longest is forgotten for it."""
        self._kept[key] = kept, self.clock() + self.settings.seconds
        self._kept.move_to_end(key)
        while len(self._kept) > self.settings.entries:
            self._kept.popitem(last=False)


class AnyMemory(Protocol):
    """The answers that a route remembers, in this process or for several."""

    async def find(self, key: bytes) -> Kept | None:
        """The answer to that request, if it is still known."""
        ...

    async def keep(self, key: bytes, kept: Kept) -> None:
        """Remember an answer, unless it is too long."""
        ...


class Memory:
    """In this process; an `AnyMemory`."""

    def __init__(self, settings: ReuseSettings, clock: Clock = time.monotonic) -> None:
        self._shelf: Shelf[Kept] = Shelf(settings, clock)

    async def find(self, key: bytes) -> Kept | None:
        """As `AnyMemory` has it."""
        return self._shelf.find(key)

    async def keep(self, key: bytes, kept: Kept) -> None:
        """As `AnyMemory` has it."""
        if fits(kept, self._shelf.settings):
            self._shelf.keep(key, kept)


def fits(kept: Kept, settings: ReuseSettings) -> bool:
    """Whether an answer is short enough to be kept."""
    return sum(map(_bytes_of, kept.events)) <= settings.entry_bytes


def key_of(route: RouteSettings, ask: Ask, caller: Caller, tags: Iterable[str]) -> bytes:
    """What makes two requests the same: whose they are, and everything that shapes the answer or says which models may
    give it. Of the tags, those that the route asks for: others, such as a request's own number, change nothing."""
    nameless = tuple(msgspec.structs.replace(request, id="", tenant="") for request in ask.generate)
    embed = None if ask.embed is None else msgspec.structs.replace(ask.embed, id="")
    plan = caller.plan
    conditions = (*(one.when for one in route.models), *(one.when for one in route.fallbacks))
    asked_for = {tag for when in conditions for tag in when.tags}
    by = (plan.name, plan.default_max_tokens, plan.largest_max_tokens, sorted(asked_for.intersection(tags)))
    whole = (caller.project.id, by, ask.model, nameless, embed)
    return hashlib.blake2b(msgspec.msgpack.encode(whole), digest_size=32).digest()


@dataclass
class Remembered:
    """A request that is answered from memory: as `Attempts` to the pipeline. `work`: of the model that had answered, at
    the part of its price that is held."""

    route: RouteSettings
    ask: Ask
    work: Work
    price: Price
    kept: Kept
    kind: str
    meter: Meter
    served: Callable[[str, str], None]

    async def first(self) -> tuple[Work, Bound]:
        """What is held: exactly what was used."""
        usage, embedding = self.kept.usage, self.ask.embed is not None
        return self.work, Bound(usage.prompt_tokens, 0 if embedding else usage.completion_tokens, embedding=embedding)

    async def run(self, hold: Hold) -> AsyncGenerator[list[Happening], None]:  # noqa: ARG002 - as of `Attempts`
        """The answer, at once."""
        self.meter.see(0, self.kept.usage)
        self.served(self.kept.model, "reused")
        yield list(self.kept.events)

    def told(self) -> tuple[Tried, ...]:
        """As an attempt of the model that had answered."""
        tokens = tokens_of(self.kept.usage, embedding=self.ask.embed is not None)
        return (
            Tried(
                model=self.kept.model,
                engine=self.kind,
                price=self.price,
                why="reused",
                end="reused",
                tokens=tokens,
                latency_us=round(self.meter.latency_seconds() * 1e6),
                estimated=self.kept.usage.estimated,
                percent=self.route.reuse.percent,
            ),
        )


def _bytes_of(event: Happening) -> int:
    """With all that it holds: prompts that are echoed, thoughts and logprobs can be longer than any text."""
    return EVENT_BYTES + len(msgspec.msgpack.encode(event))
