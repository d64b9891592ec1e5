"""The coordinator: the one process of an installation that writes usage, has the engine hosts and tells of changes.

Workers connect to it over a Unix socket (`messages.py`). What they sent and it had not committed when it died, they
send again to the next one, so it keeps nothing that would have to be recovered but the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from interlace.config import ModelSettings, Settings
from interlace.engines.host import Failure, FrameError, FrameReader, HostedEngine
from interlace.errors import InterlaceError, NotFound
from interlace.gateway.processes.messages import (
    NOTHING,
    Answer,
    Batches,
    Durable,
    EngineState,
    Events,
    Hello,
    Living,
    NewLoad,
    Question,
    Shout,
    ToCoordinator,
    ToWorker,
    Trouble,
    Welcome,
    body_of,
    changed,
    frame,
    read_body,
    to_coordinator,
)
from interlace.gateway.processes.places import RunFolder
from interlace.gateway.reload_page import Reloaded
from interlace.gateway.reloading import Engines, Load, Loads, Reloader, Source, StartingEngine
from interlace.gateway.serve import make_pipeline, start_engines
from interlace.gateway.wire import convert
from interlace.ledger import PlainWrite, Registry, Retention, UsageEvent
from interlace.ledger.operations import OPERATIONS
from interlace.models import try_lock

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # from one look at engines, trouble and the locks of workers that are gone to the next
SPREAD_SECONDS = 30.0  # how long a reload waits for every worker to serve by it
LEAVE_SECONDS = 10.0  # how long the end waits for workers that still send


class Desk(asyncio.Protocol):
    """The coordinator's end of one worker's connection."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._frames = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self.worker = ""
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

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False)
class Coordinator:
    """See the module. `build` makes an engine: for a local model, one whose host also listens for workers."""

    registry: Registry
    run: RunFolder
    source: Source
    build: Callable[[ModelSettings, Path], StartingEngine]
    desks: dict[str, Desk] = field(default_factory=dict)
    first: asyncio.Event = field(default_factory=asyncio.Event)  # a worker has come
    _owners: dict[str, str] = field(default_factory=dict)  # usage event → worker
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _told: int = 0  # the load that workers were told of last
    _engines: dict[str, EngineState] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)  # workers without a connection that may live
    _runner: str = ""  # the worker that runs batches
    _trouble: str | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _spread: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        settings = self.registry.settings
        engines = {model.name: self.build(model, settings.home) for model in settings.models}
        self.loads = Loads(self._make(self.source.first, settings, engines))
        self.reloader = Reloader(self.registry, self.loads, self.source, self.build, self._make, lambda _: None)
        self._loop = asyncio.get_running_loop()
        self.registry.store.durable = self._durable_soon
        self.registry.tell = self._changed_soon

    @property
    def engines(self) -> Engines:
        """Those that are served now."""
        return self.loads.current.engines

    def _make(self, read: Settings, settings: Settings, engines: Engines, before: Load | None = None) -> Load:
        pipeline = make_pipeline(self.registry, engines, settings, before.pipeline if before else None)
        return Load(read, settings, engines, pipeline, _no_app, number=next(self._numbers))

    async def keep(self) -> None:
        """Take connections until cancelled; then wait a little for workers that still send, and close."""
        deposits = self.loads.current.pipeline.deposits
        await asyncio.to_thread(deposits.tidy)
        self._missing = set(self.run.workers())
        self.run.remove_socket()
        with self.run.socket() as path:
            server = await self._loop.create_unix_server(lambda: Desk(self), path)
        tasks = [
            asyncio.create_task(work)
            for work in (start_engines(self.engines), self._look(), Retention(self.registry).keep())
        ]
        try:
            await asyncio.Event().wait()
        finally:
            await self._leave()
            server.close()
            for task in [*tasks, *self._tasks]:
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, self.reloader.close(), return_exceptions=True)
            for desk in list(self.desks.values()):
                desk.abort()
            await self.loads.close()

    async def _leave(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                while self.desks:
                    self._spread.clear()
                    await self._spread.wait()

    # --- what workers say ----------------------------------------------------------------------------------------

    def take(self, desk: Desk, message: ToCoordinator) -> None:
        """One message of a worker."""
        match message:
            case Events():
                self._record(desk, message)
            case Question():
                task = asyncio.create_task(self._answer(desk, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Shout():
                self._tell_all(message, but=desk)
            case Living():
                self._hold(desk, message.loads)
            case Hello():
                self._greet(desk, message)

    def _greet(self, desk: Desk, hello: Hello) -> None:
        desk.worker = hello.worker
        if (before := self.desks.get(hello.worker)) is not None:
            before.abort()
        self.desks[hello.worker] = desk
        self._missing.discard(hello.worker)
        if not self._runner:
            self._runner = hello.worker
        load = self.loads.current
        self._hold(desk, [load.number])
        states, runs = list(self._engines.values()), self._runner == hello.worker
        desk.send(Welcome(load.number, load.settings, self._trouble, states, runs))
        self.first.set()

    def lost(self, desk: Desk) -> None:
        """A connection has ended. Whether its worker has, its lock says."""
        for held in desk.loads.values():
            held.close()
        desk.loads.clear()
        if self.desks.get(desk.worker) is desk:
            del self.desks[desk.worker]
            self._missing.add(desk.worker)
        self._spread.set()

    def _hold(self, desk: Desk, numbers: Sequence[int]) -> None:
        """Loads of the configuration that a worker has requests under keep their engines."""
        known = {load.number: load for load in self.loads.living}
        for number in numbers:
            if number in known and number not in desk.loads:
                desk.loads[number] = contextlib.ExitStack()
                desk.loads[number].enter_context(self.loads.held(known[number]))
        for number in set(desk.loads).difference(numbers):
            desk.loads.pop(number).close()
        self._spread.set()

    # --- usage ---------------------------------------------------------------------------------------------------

    def _record(self, desk: Desk, message: Events) -> None:
        for usage, beside in message.items:
            there = usage.id in self._owners  # it is on its way already: the worker has come back
            self._owners[usage.id] = desk.worker
            if not there:
                self.registry.store.record(usage, tuple(PlainWrite(one.sql, one.values) for one in beside))

    def _durable_soon(self, events: Sequence[UsageEvent]) -> None:
        """On the writing thread."""
        ids = [event.id for event in events]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._durable, ids)

    def _durable(self, ids: list[str]) -> None:
        by_worker: defaultdict[str, list[str]] = defaultdict(list)
        for id in ids:
            if (owner := self._owners.pop(id, None)) is not None:
                by_worker[owner].append(id)
        for worker, theirs in by_worker.items():
            if (desk := self.desks.get(worker)) is not None:
                desk.send(Durable(theirs))

    # --- news ----------------------------------------------------------------------------------------------------

    def _tell_all(self, message: ToWorker, but: Desk | None = None) -> None:
        for desk in self.desks.values():
            if desk is not but:
                desk.send(message)

    def _changed_soon(self, entries: list[Any]) -> None:
        """On whichever thread made the change; in the order of changes, and before anybody hears that it is made."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._tell_all(changed(entries)))

    async def _look(self) -> None:
        """Tell of what changes by itself, and notice the dead."""
        while True:
            if (trouble := self.registry.store.trouble) != self._trouble:
                self._trouble = trouble
                self._tell_all(Trouble(trouble))
            self._look_at_engines()
            for worker in list(self._missing):
                await self._bury_if_dead(worker)
            await asyncio.sleep(LOOK_SECONDS)

    def _look_at_engines(self) -> None:
        for name, engine in self.engines.items():
            if not isinstance(engine, HostedEngine) or engine.listen is None:
                continue
            health = engine.health()
            can = engine.capabilities() if health.state == "ready" else None
            state = EngineState(name, engine.listen.stem, health, can)
            if self._engines.get(name) != state:
                self._engines[name] = state
                self._tell_all(state)

    async def _bury_if_dead(self, worker: str) -> None:
        """A worker whose lock is free is dead: the system frees it at no other time."""
        lock = try_lock(self.run.lock(worker))
        if lock is None:
            return
        self._missing.discard(worker)
        lock.release()  # the file stays: removing it would let two processes lock two files of one name
        if self._runner == worker:
            self._runner = next(iter(self.desks), "")
            if self._runner:
                self.desks[self._runner].send(Batches(yes=True))

    # --- questions -----------------------------------------------------------------------------------------------

    async def _answer(self, desk: Desk, question: Question) -> None:
        try:
            answer = self._questions.get(question.name)
            if answer is None:
                raise NotFound(f"This coordinator knows no question `{question.name}`: it is of another version.")
            desk.send(Answer(question.number, await answer(self, desk, question.body)))
        except InterlaceError as error:
            desk.send(Answer(question.number, NOTHING, Failure.of(error)))
        except Exception:
            log.exception("a worker's question met a bug of ours", extra={"fields": {"question": question.name}})
            failure = Failure.of(InterlaceError("The server had an error while processing your request."))
            desk.send(Answer(question.number, NOTHING, failure))

    async def _operate(self, _: Desk, body: msgspec.Raw) -> msgspec.Raw:
        name, given = read_body(body, tuple[str, dict[str, Any]])
        operation = OPERATIONS[name]
        result = await asyncio.to_thread(operation.run, self.registry, convert(given, operation.input))
        return body_of(result)

    async def _reload(self, _: Desk, body: msgspec.Raw) -> msgspec.Raw:
        return body_of(await self.reload(read_body(body, str)))

    async def reload(self, by: str) -> Reloaded:
        """Read the configuration again and have every worker serve by it."""
        done = await self.reloader.reload(by)
        load = self.loads.current
        if load.number > self._told:
            self._told = load.number
            self._look_at_engines()
            self._tell_all(NewLoad(load.number, load.settings))
        with contextlib.suppress(TimeoutError):  # a worker that hangs must not hide that it is done
            async with asyncio.timeout(SPREAD_SECONDS):
                while not all(load.number in desk.loads for desk in self.desks.values()):
                    self._spread.clear()
                    await self._spread.wait()
        return done

    def reload_soon(self) -> None:
        """On SIGHUP; what came of it is in the log."""
        task = asyncio.create_task(self.reload("SIGHUP"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    _questions: Mapping[str, Callable[[Coordinator, Desk, msgspec.Raw], Awaitable[msgspec.Raw]]] = field(
        default_factory=lambda: {"operation": Coordinator._operate, "reload": Coordinator._reload}
    )


async def _no_app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
    raise AssertionError("the coordinator answers no requests")
