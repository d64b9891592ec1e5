"""The coordinator's end of one worker's connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import Any, Protocol, cast

import msgspec

from interlace.engines.host import FrameError, FrameReader
from interlace.gateway.processes.messages import (
    Poll,
    Polled,
    ToCoordinator,
    ToWorker,
    body_of,
    frame,
    to_coordinator,
)
from interlace.ledger.book import AccountKey
from interlace.ledger.escrow import Worker

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # how long a worker may take to answer


class Takes(Protocol):
    """Who hears what workers say."""

    def take(self, desk: Desk, message: ToCoordinator) -> None:
        """One message of a worker."""
        ...

    def lost(self, desk: Desk) -> None:
        """A connection has ended."""
        ...


class Desk(asyncio.Protocol):
    """See the module."""

    def __init__(self, coordinator: Takes) -> None:
        self._coordinator = coordinator
        self._frames = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self.worker = ""
        self.at_bank: Worker | None = None
        self.enrolled = asyncio.Event()
        self.metrics = ""  # what it said last
        self._polls: dict[int, asyncio.Future[Polled]] = {}
        self._numbers = itertools.count()
        self.recalled: list[tuple[AccountKey, int]] = []  # what it was told last
        self.loads: dict[int, contextlib.ExitStack] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            for body in self._frames.feed(data):
                self._coordinator.take(self, to_coordinator(body))
        except FrameError:
            log.exception("a worker does not speak our protocol; its connection is closed")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio, last and once."""
        self._transport = None
        self._coordinator.lost(self)

    def send(self, message: ToWorker) -> None:
        """Never waits; what cannot be sent is lost with the connection."""
        if self._transport is not None:
            self._transport.write(frame(message))

    async def poll(self, name: str, body: Any) -> msgspec.Raw | None:
        """What the worker answers; None where it does not in time, or goes away."""
        number = next(self._numbers)
        answered = self._polls[number] = asyncio.get_running_loop().create_future()
        self.send(Poll(number, name, body_of(body)))
        await asyncio.wait((answered,), timeout=POLL_SECONDS)
        self._polls.pop(number, None)
        return answered.result().body if answered.done() else None

    def polled(self, message: Polled) -> None:
        """Its answer has come."""
        answered = self._polls.get(message.number)
        if answered is not None and not answered.done():
            answered.set_result(message)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
