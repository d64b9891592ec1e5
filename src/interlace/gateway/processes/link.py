"""A worker's end of its connection to the coordinator: it comes back by itself when the coordinator was restarted.

Usage events are sent together, once per turn of the event loop, and kept until the coordinator says that they are
durable; after a new connection they are sent again. One that was committed before is not committed twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from interlace.engines.host import FrameError, FrameReader
from interlace.errors import LedgerUnavailable
from interlace.gateway.processes.messages import (
    Answer,
    Batches,
    Beside,
    Changed,
    Closed,
    Durable,
    EngineState,
    Events,
    Hello,
    Living,
    NewLoad,
    Poll,
    Polled,
    Question,
    Recall,
    Shout,
    ToCoordinator,
    ToWorker,
    Trouble,
    Welcome,
    body_of,
    frame,
    read_body,
    to_worker,
)
from interlace.gateway.processes.places import RunFolder
from interlace.ledger import PlainWrite, UsageEvent
from interlace.ledger.escrow import Draws

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.05  # from one try to reach the coordinator to the next
PATIENCE_SECONDS = 3.0  # how long it may be away before new requests are refused
EVENTS_AT_ONCE = 128  # in one frame
AWAY = "the coordinator of this installation is away"


class _Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self, take: Callable[[ToWorker], None]) -> None:
        self._take = take
        self._frames = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            for body in self._frames.feed(data):
                self._take(to_worker(body))
        except FrameError:
            log.exception("the coordinator does not speak our protocol; the connection is closed")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio, last and once."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, message: ToCoordinator) -> None:
        """Never waits; what cannot be sent is lost with the connection."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False)
class Link:
    """See the module. Callbacks are set before `keep` runs, and called on the event loop."""

    run: RunFolder
    worker: str
    welcomed: Callable[[Welcome], None] = lambda _: None
    durable: Callable[[list[str]], None] = lambda _: None
    changed: Callable[[Changed], None] = lambda _: None
    loaded: Callable[[NewLoad], None] = lambda _: None
    trouble: Callable[[str | None], None] = lambda _: None
    engine: Callable[[EngineState], None] = lambda _: None
    batches: Callable[[bool], None] = lambda _: None
    recalled: Callable[[Recall], None] = lambda _: None
    closed: Callable[[], None] = lambda: None
    answers: dict[str, Callable[[msgspec.Raw], Any]] = field(default_factory=dict)  # to polls, by name
    runs_batches: Callable[[], bool] = lambda: False
    epoch: int = 0  # that this process has as a worker; 0: none yet
    living: Callable[[], list[int]] = list
    _heard: defaultdict[str, list[Callable[[Any], None]]] = field(default_factory=lambda: defaultdict(list))
    _kinds: dict[str, Any] = field(default_factory=dict)
    _wire: _Wire | None = None
    _unwritten: dict[str, tuple[UsageEvent, list[Beside], Draws | None]] = field(default_factory=dict)
    _outbox: list[tuple[UsageEvent, list[Beside], Draws | None]] = field(default_factory=list)
    _questions: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # something has become durable

    # --- what a worker says ------------------------------------------------------------------------------------------

    def record(self, usage: UsageEvent, beside: list[PlainWrite], draws: Draws | None) -> None:
        """Send a usage event with the next turn of the loop; `durable` hears of it. On the event loop."""
        item = usage, [Beside(write.sql, write.values) for write in beside], draws
        self._unwritten[usage.id] = item
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(item)

    async def ask(self, name: str, body: Any, kind: Any) -> Any:
        """What the coordinator answers; raises what it raises, and `LedgerUnavailable` where it goes away meanwhile."""
        wire = self._wire
        if wire is None:
            raise LedgerUnavailable(f"This cannot be done now: {AWAY}. Try again soon.", retry_after_seconds=1)
        number = next(self._numbers)
        answered = self._questions[number] = asyncio.get_running_loop().create_future()
        wire.send(Question(number, name, body_of(body)))
        try:
            answer = await answered
        finally:
            self._questions.pop(number, None)
        if answer.failure is not None:
            raise answer.failure.error()
        return read_body(answer.body, kind)

    def shout(self, topic: str, body: Any) -> None:
        """Tell all other workers; nobody says whether they heard."""
        if self._wire is not None:
            self._wire.send(Shout(topic, body_of(body)))

    def hear(self, topic: str, kind: Any, listener: Callable[[Any], None]) -> None:
        """Call `listener` with what others shout on that topic."""
        self._kinds[topic] = kind
        self._heard[topic].append(listener)

    def tell_living(self) -> None:
        """Which loads of the configuration have requests here."""
        if self._wire is not None:
            self._wire.send(Living(self.living()))

    async def all_durable(self) -> None:
        """Return once nothing waits to be recorded."""
        while self._unwritten:
            self._news.clear()
            await self._news.wait()

    # --- the connection ----------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Be connected, again and again, until cancelled."""
        away_since = time.monotonic()
        while True:
            try:
                with self.run.socket() as path:
                    _, wire = await asyncio.get_running_loop().create_unix_connection(lambda: _Wire(self._take), path)
            except OSError:
                if time.monotonic() - away_since > PATIENCE_SECONDS:
                    self.trouble(AWAY)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            wire.send(Hello(self.worker, os.getpid(), self.epoch, self.runs_batches()))
            self._wire = wire
            self._outbox = []
            self._send(list(self._unwritten.values()))
            self.tell_living()
            try:
                await wire.closed
            finally:
                wire.abort()
                self._lose()
            away_since = time.monotonic()

    def _lose(self) -> None:
        self._wire = None
        lost = LedgerUnavailable(f"This cannot be done now: {AWAY}. Try again soon.", retry_after_seconds=1)
        for question in self._questions.values():
            if not question.done():
                question.set_exception(lost)

    def _flush(self) -> None:
        items, self._outbox = self._outbox, []
        self._send(items)

    def _send(self, items: list[tuple[UsageEvent, list[Beside], Draws | None]]) -> None:
        """A few together: what is stored beside an event may be large, and a frame has a bound."""
        if self._wire is None:
            return
        for at in range(0, len(items), EVENTS_AT_ONCE):
            some = items[at : at + EVENTS_AT_ONCE]
            try:
                self._wire.send(Events(some))
            except FrameError:
                for item in some:
                    self._wire.send(Events([item]))

    def _take(self, message: ToWorker) -> None:
        match message:
            case Durable():
                for id in message.ids:
                    self._unwritten.pop(id, None)
                self.durable(message.ids)
                self._news.set()
            case Answer():
                question = self._questions.get(message.number)
                if question is not None and not question.done():
                    question.set_result(message)
            case Shout():
                self._spread(message)
            case Changed():
                self.changed(message)
            case Welcome():
                self.epoch = message.worker.epoch
                self.welcomed(message)
            case NewLoad():
                self.loaded(message)
            case Trouble():
                self.trouble(message.text)
            case EngineState():
                self.engine(message)
            case Poll():
                answer = self.answers.get(message.name)
                if self._wire is not None:
                    self._wire.send(Polled(message.number, body_of(answer(message.body) if answer else None)))
            case Closed():
                self.closed()
            case Recall():
                self.recalled(message)
            case Batches():
                self.batches(message.yes)

    def _spread(self, message: Shout) -> None:
        if (kind := self._kinds.get(message.topic)) is not None:
            body = read_body(message.body, kind)
            for listener in self._heard[message.topic]:
                listener(body)


def reachable(run: RunFolder) -> bool:
    """Whether a coordinator answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, run.socket() as path:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
