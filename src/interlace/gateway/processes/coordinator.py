"""The coordinator: the one process of an installation that writes usage, has the engine hosts and tells of changes.

Workers connect over a Unix socket (`messages.py`). What it had not committed when it died, they send to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection

from interlace.config import ModelSettings, Settings
from interlace.engines.host import Failure, HostedEngine
from interlace.errors import ConfigError, InterlaceError, LedgerUnavailable, NotFound
from interlace.gateway.processes.answering import QUESTIONS
from interlace.gateway.processes.counters import Counters
from interlace.gateway.processes.desk import Desk
from interlace.gateway.processes.gathering import counted
from interlace.gateway.processes.messages import (
    NOTHING,
    Answer,
    Batches,
    Closed,
    Durable,
    EngineState,
    Events,
    Hello,
    Living,
    NewLoad,
    Polled,
    Question,
    Recall,
    Shout,
    ToCoordinator,
    ToWorker,
    Trouble,
    Welcome,
    changed,
)
from interlace.gateway.processes.passing import runner_of
from interlace.gateway.processes.places import RunFolder
from interlace.gateway.processes.shelves import Shelves
from interlace.gateway.reload_page import Reloaded
from interlace.gateway.reloading import Engines, Load, Loads, Reloader, Source, StartingEngine
from interlace.gateway.serve import make_pipeline, start_engines
from interlace.gateway.tls import Tls
from interlace.ledger import PlainWrite, Registry, Retention, UsageEvent, bank
from interlace.ledger.database import BATCHES, OneOfAll
from interlace.ledger.escrow import Fenced, Totals, Worker
from interlace.ledger.migrations import too_old
from interlace.models import try_lock

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # from one look at engines, trouble and the locks of workers that are gone to the next
SPREAD_SECONDS = 30.0  # how long a reload waits for every worker to serve by it
BATCHES_SECONDS = 1.0  # from one look at whether this machine is the one that runs batches to the next
RUNNER_SECONDS = 1.0  # how long whoever ran batches under a coordinator before us may take to come back
LEAVE_SECONDS = 10.0  # how long the end waits, beyond their draining, for workers that still send


@dataclass(eq=False)
class Coordinator:
    """See the module. `build` makes an engine: for a local model, one whose host also listens for workers."""

    registry: Registry
    run: RunFolder
    source: Source
    build: Callable[[ModelSettings, Path], StartingEngine]
    installation: str  # of this home, among all that share the database
    counters: Counters
    boot: str = field(default_factory=lambda: secrets.token_hex(8))
    shelves: Shelves = field(init=False)
    desks: dict[str, Desk] = field(default_factory=dict)
    first: asyncio.Event = field(default_factory=asyncio.Event)  # a worker has come
    _owners: dict[str, str] = field(default_factory=dict)  # usage event → worker
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _told: int = 0  # the load that workers were told of last
    _engines: dict[str, EngineState] = field(default_factory=dict)
    _missing: dict[str, Worker] = field(default_factory=dict)  # workers without a connection that may live
    _runner: str = ""  # the worker that runs batches
    counted: str = ""  # by workers that are gone
    _trouble: str | None = None
    wanting_until: float = 0.0  # by the loop's clock: somebody waited lately for what others hold
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _spread: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        settings = self.registry.settings
        engines = {model.name: self.build(model, settings.home) for model in settings.models}
        self.loads = Loads(self._make(self.source.first, settings, engines))
        self.deposits = self.loads.current.pipeline.deposits
        self.shelves = Shelves(lambda: self.loads.current.settings)
        tls = Tls.of(settings.tls)  # a reload looks at the certificate for all
        self.reloader = Reloader(self.registry, self.loads, self.source, self.build, self._make, lambda _: None, tls)
        self.loop = asyncio.get_running_loop()
        self._left_behind: asyncio.Future[None] = self.loop.create_future()  # the database needs a newer version
        self._began = self.loop.time()
        self._others = self.registry.several
        self._batches_are_ours = not self._others
        self._next_look_at_batches = 0.0
        if self._others:
            self._batches = OneOfAll(self.registry.store.engine, BATCHES)
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
        """Take connections until cancelled; then wait a little for workers that still send, and close. Raises
        `ConfigError` once the database needs a newer version than ours."""
        living = {runner_of(Worker(row.id, row.epoch)) for row in await self.patiently(bank.living)}
        await asyncio.to_thread(self.deposits.tidy, living)
        self._missing = await self.patiently(self._those_before)
        self.run.remove_socket()
        with self.run.socket() as path:
            server = await self.loop.create_unix_server(lambda: Desk(self), path)
        works = (start_engines(self.engines), self._look(), Retention(self.registry).keep())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await self._left_behind
        finally:
            await self._leave()
            server.close()
            for task in [*tasks, *self._tasks]:
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, self.reloader.close(), return_exceptions=True)
            for desk in list(self.desks.values()):
                desk.abort()
            if self._others:
                self._batches.leave()
            await self.loads.close()

    async def _leave(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.registry.settings.drain_seconds + LEAVE_SECONDS):
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
                self._keep(self._answer(desk, message))
            case Shout():
                self._tell_all(message, but=desk)
            case Living():
                self._hold(desk, message.loads)
            case Polled():
                desk.polled(message)
            case Hello():
                self._greet(desk, message)

    def _greet(self, desk: Desk, hello: Hello) -> None:
        if self._left_behind.done() and not self._left_behind.cancelled():
            return desk.abort()
        desk.worker = hello.worker
        if (before := self.desks.get(hello.worker)) is not None:
            before.abort()
        self.desks[hello.worker] = desk
        self._missing.pop(hello.worker, None)
        self._hold(desk, [self.loads.current.number])
        return self._keep(self._welcome(desk, hello))

    async def _welcome(self, desk: Desk, hello: Hello) -> None:
        """A worker that has just begun gets a place at the bank; one that comes back hears what it holds."""
        closed, holdings = False, Totals()
        while desk.at_bank is None:
            try:
                there, holdings = await self.patiently(lambda connection: self._enrol(connection, hello))
                await asyncio.to_thread(self.deposits.responses.fail_before, runner_of(there))
                desk.at_bank = there
            except Fenced:
                desk.at_bank, closed = Worker(self._place(hello.worker), hello.epoch), True
            except LedgerUnavailable as error:
                log.warning("a worker cannot begin: %s", error.message)
        if hello.batches and not self._runner:  # it goes on
            self._runner = hello.worker
        load = self.loads.current
        welcome = Welcome(
            worker=desk.at_bank,
            holdings=list(holdings.items()),
            load=load.number,
            settings=load.settings,
            trouble=self._trouble,
            engines=list(self._engines.values()),
            batches=self._runner == hello.worker and self._batches_are_ours,
        )
        self._hold(desk, [load.number, *desk.loads])
        desk.send(welcome)
        if closed:
            desk.send(Closed())
        desk.enrolled.set()
        self.first.set()

    def _enrol(self, connection: Connection, hello: Hello) -> tuple[Worker, Totals]:
        place, now = self._place(hello.worker), self.registry.clock.now()
        if hello.epoch:
            there = Worker(place, hello.epoch)
            return there, bank.holdings(connection, there)
        return bank.enrol(connection, place, machine=self.installation, boot=self.boot, pid=hello.pid, now=now), {}

    def _place(self, worker: str) -> str:
        return f"{self.installation}-{worker}"

    async def patiently(self, work: Callable[[Connection], T]) -> T:
        """Do it on the writing thread, in its turn. Raises `LedgerUnavailable`."""
        return await asyncio.to_thread(self.registry.store.write, work)

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, desk: Desk) -> None:
        """A connection has ended. Whether its worker has, its lock says."""
        for held in desk.loads.values():
            held.close()
        desk.loads.clear()
        if self.desks.get(desk.worker) is desk:
            del self.desks[desk.worker]
            self.counted = counted(self.counted, desk.metrics)
            if desk.at_bank is not None:
                self._missing[desk.worker] = desk.at_bank
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
        for usage, beside, draws in message.items:
            there = usage.id in self._owners  # it is on its way already: the worker has come back
            self._owners[usage.id] = desk.worker
            if not there:
                self.registry.store.record(usage, tuple(PlainWrite(one.sql, one.values) for one in beside), draws)

    def _durable_soon(self, events: Sequence[UsageEvent]) -> None:
        """On the writing thread."""
        ids = [event.id for event in events]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._durable, ids)

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
            self.loop.call_soon_threadsafe(lambda: self._tell_all(changed(entries)))

    async def _look(self) -> None:
        """Tell of what changes by itself, and notice the dead."""
        while True:
            if (trouble := self.registry.store.unable) != self._trouble:
                self._trouble = trouble
                self._tell_all(Trouble(trouble))
            self._look_at_engines()
            for worker in list(self._missing):
                await self._bury_if_dead(worker)
            if not self._runner and self.desks and self.loop.time() > self._began + RUNNER_SECONDS:
                self._name_runner()
            if self._others or self.loop.time() < self.wanting_until:
                await self._recall()
            if self._others:
                await self._look_at_others()
            await asyncio.sleep(LOOK_SECONDS)

    async def _recall(self) -> None:
        """Tell workers what others wait for, and when they wait no more."""
        try:
            called = await asyncio.to_thread(self.registry.store.read, self._recalls)
        except LedgerUnavailable:
            return  # nobody can be granted anything either
        for desk in self.desks.values():
            wanted = sorted(called.get(desk.at_bank, {}).items()) if desk.at_bank else []
            if wanted or desk.recalled:  # again while it lasts: the next that is lacking may be as much as the last
                desk.recalled = wanted
                desk.send(Recall(wanted))

    async def _look_at_others(self) -> None:
        """What machines that share the database have done: changes, and workers of ours that an operator closed while
        we could not be reached."""
        try:
            await asyncio.to_thread(self.registry.catch_up)
            there = await asyncio.to_thread(self.registry.store.read, self._those_before)
        except LedgerUnavailable:
            return
        for name, desk in self.desks.items():
            if desk.at_bank is not None and there.get(name) != desk.at_bank:
                desk.send(Closed())
        if self.loop.time() >= self._next_look_at_batches:
            self._next_look_at_batches = self.loop.time() + BATCHES_SECONDS
            await self._look_at_version()
            before, self._batches_are_ours = self._batches_are_ours, await asyncio.to_thread(self._batches.have)
            if before != self._batches_are_ours and self._runner in self.desks:
                self.desks[self._runner].send(Batches(yes=self._batches_are_ours))

    async def _look_at_version(self) -> None:
        """A database that has been changed for versions after ours is written no more: workers drain, and we leave."""
        why = await asyncio.to_thread(self.registry.store.read, too_old)
        if why and not self._left_behind.done():
            self._left_behind.set_exception(ConfigError(why))
            self._tell_all(Closed())

    def _recalls(self, connection: Connection) -> dict[Worker, Totals]:
        return bank.recalls(connection, now=self.registry.clock.now())

    def _those_before(self, connection: Connection) -> dict[str, Worker]:
        """Workers of this installation that are not closed: those of a coordinator before us."""
        ours = (row for row in bank.living(connection) if row.machine == self.installation)
        return {row.id.rpartition("-")[2]: Worker(row.id, row.epoch) for row in ours}

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

    def _name_runner(self) -> None:
        """Somebody else runs batches from now on."""
        self._runner = next((name for name, desk in self.desks.items() if desk.enrolled.is_set()), "")
        if self._runner:
            self.desks[self._runner].send(Batches(yes=self._batches_are_ours))

    async def _bury_if_dead(self, worker: str) -> None:
        """A worker whose lock is free is dead: the system frees it at no other time."""
        lock = try_lock(self.run.lock(worker))
        if lock is None:
            return
        self.counters.clear(worker)  # before the next one can begin in its place
        lock.release()  # the file stays: removing it would let two processes lock two files of one name
        dead = self._missing[worker]
        try:
            await asyncio.to_thread(self.deposits.responses.fail_all_of, runner_of(dead))
            await self.patiently(lambda c: bank.bury(c, dead, now=self.registry.clock.now(), why="it has died"))
        except LedgerUnavailable:
            return  # the next look tries again
        if self._missing.get(worker) == dead:
            del self._missing[worker]
        if self._runner == worker and worker not in self.desks:  # else it sits there again, and runs them
            self._runner = ""
            self._name_runner()

    # --- questions -----------------------------------------------------------------------------------------------

    async def _answer(self, desk: Desk, question: Question) -> None:
        await desk.enrolled.wait()
        try:
            answer = QUESTIONS.get(question.name)
            if answer is None:
                raise NotFound(f"This coordinator knows no question `{question.name}`: it is of another version.")
            desk.send(Answer(question.number, await answer(self, desk, question.body)))
        except InterlaceError as error:
            desk.send(Answer(question.number, NOTHING, Failure.of(error)))
        except Exception:
            log.exception("a worker's question met a bug of ours", extra={"fields": {"question": question.name}})
            failure = Failure.of(InterlaceError("The server had an error while processing your request."))
            desk.send(Answer(question.number, NOTHING, failure))

    async def poll(self, name: str, body: Any) -> dict[Desk, msgspec.Raw]:
        """What every worker answers that does in time."""
        desks = [desk for desk in self.desks.values() if desk.enrolled.is_set()]
        answers = await asyncio.gather(*(desk.poll(name, body) for desk in desks))
        return {desk: answer for desk, answer in zip(desks, answers, strict=True) if answer is not None}

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

        async def quietly() -> None:
            with contextlib.suppress(InterlaceError):
                await self.reload("SIGHUP")

        self._keep(quietly())


async def _no_app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
    raise AssertionError("the coordinator answers no requests")
