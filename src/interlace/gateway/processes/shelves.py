"""What routes remember, kept by the coordinator for all workers, so that any of them finds what another was told.

Only requests of routes that reuse answers ask it. Answers are kept as bytes and bounded as with one process: so many of
a route, in all workers together. They belong to the configuration under which they passed the guards: a worker names
it by its digest, and at every load all of them are forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from interlace.config import RouteSettings, Settings
from interlace.engines.types import Delta, Embeddings, Usage
from interlace.errors import LedgerUnavailable
from interlace.gateway.calls import PartStarted
from interlace.gateway.processes.link import Link
from interlace.gateway.processes.messages import NOTHING, body_of, read_body
from interlace.gateway.routing import Kept, Shelf, fits

_settings = msgspec.msgpack.Encoder(enc_hook=str, order="deterministic")


class _Answer(msgspec.Struct, array_like=True):
    """As `Kept`; events of its kinds alone are left of an answer."""

    model: str
    events: tuple[PartStarted | Delta | Embeddings, ...]
    usage: Usage
    unused: frozenset[str]


_answer = msgspec.msgpack.Decoder(_Answer)


def bytes_of(kept: Kept) -> bytes:
    """An answer, to be kept elsewhere."""
    return msgspec.msgpack.encode((kept.model, kept.events, kept.usage, sorted(kept.unused)))


def answer_of(data: bytes) -> Kept:
    """The answer again; raises `DecodeError` for what is none."""
    answer = _answer.decode(data)
    return Kept(answer.model, answer.events, answer.usage, answer.unused)


def digest_of(settings: Settings) -> bytes:
    """The same for the same configuration, in every process."""
    return hashlib.blake2b(_settings.encode(settings), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class FarMemory:
    """Of one route at a worker; an `AnyMemory`. While the coordinator is away nothing is remembered."""

    link: Link
    route: RouteSettings
    digest: bytes

    async def find(self, key: bytes) -> Kept | None:
        """As `AnyMemory` has it."""
        try:
            found = await self.link.ask("find", (self.digest, self.route.name, key), bytes | None)
        except LedgerUnavailable:
            return None
        return None if found is None else answer_of(found)

    async def keep(self, key: bytes, kept: Kept) -> None:
        """As `AnyMemory` has it."""
        if not fits(kept, self.route.reuse):
            return
        try:
            await self.link.ask("keep", (self.digest, self.route.name, key, bytes_of(kept)), None)
        except LedgerUnavailable:
            return


@dataclass
class Shelves:
    """The coordinator's: of the configuration that is served by now."""

    current: Callable[[], Settings]
    _of: Settings | None = None
    _digest: bytes = b""
    _shelves: dict[str, Shelf[bytes]] = field(default_factory=dict)

    async def find(self, body: msgspec.Raw) -> msgspec.Raw:
        """An answer's bytes, or nil."""
        digest, route, key = read_body(body, tuple[bytes, str, bytes])
        shelf = self._shelf(digest, route)
        return NOTHING if shelf is None else body_of(shelf.find(key))

    async def keep(self, body: msgspec.Raw) -> msgspec.Raw:
        """Put it there, unless the configuration has changed meanwhile."""
        digest, route, key, data = read_body(body, tuple[bytes, str, bytes, bytes])
        shelf = self._shelf(digest, route)
        if shelf is not None:
            shelf.keep(key, data)
        return NOTHING

    def _shelf(self, digest: bytes, route: str) -> Shelf[bytes] | None:
        if (settings := self.current()) is not self._of:
            self._of, self._digest = settings, digest_of(settings)
            self._shelves = {one.name: Shelf(one.reuse) for one in settings.routes if one.reuse.seconds}
        return self._shelves.get(route) if digest == self._digest else None
