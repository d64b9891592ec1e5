"""A worker: the gateway as it is with one process, but that its ledger writes through the coordinator.

lock → connect → settings → directory → serve → drain → wait until all is durable → leave
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from interlace.config import VLLM, ModelSettings, Settings
from interlace.engines.host import AttachedEngine
from interlace.errors import InterlaceError
from interlace.gateway.app import State, make_app
from interlace.gateway.logs import set_up_logs
from interlace.gateway.processes.across import Across
from interlace.gateway.processes.at_bank import AtBank
from interlace.gateway.processes.counters import Counters
from interlace.gateway.processes.link import Link
from interlace.gateway.processes.messages import Changed, EngineState, NewLoad, Welcome
from interlace.gateway.processes.passing import Passing, runner_of
from interlace.gateway.processes.places import RunFolder
from interlace.gateway.processes.shelves import FarMemory, digest_of
from interlace.gateway.reload_page import Reloaded
from interlace.gateway.reloading import Engines, Load, Loads, Reloader, Source, StartingEngine
from interlace.gateway.serve import Common, Server, calm_collector, make_pipeline, start_engines
from interlace.gateway.tls import Tls
from interlace.ledger import LinkedRegistry, Shared
from interlace.ledger.operations import OPERATIONS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02
LAST_SECONDS = 30.0  # how long the end waits until the last usage event is durable


@dataclass(eq=False)
class Worker:
    """See the module."""

    run: RunFolder
    name: str
    bound: socket.socket
    env: Mapping[str, str]
    counters: Counters
    incoming: Settings | None = None  # of a load that the coordinator told of
    attached: dict[str, AttachedEngine] = field(default_factory=dict)  # engines of local models
    states: dict[str, EngineState] = field(default_factory=dict)
    _early: list[Changed] = field(default_factory=list)  # changes that came while the directory was read
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self) -> None:
        """From the first connection to the last usage event."""
        self.link = link = Link(self.run, self.name)
        first: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        link.welcomed = first.set_result
        link.changed = self._early.append
        link.engine = self._engine_changed
        keeping = asyncio.create_task(link.keep())
        try:
            await self._serve(await first)
        finally:
            for task in (keeping, *self._tasks):
                task.cancel()
            await asyncio.gather(keeping, *self._tasks, return_exceptions=True)

    async def _serve(self, welcome: Welcome) -> None:
        settings, link = welcome.settings, self.link
        set_up_logs(settings.log)
        self.registry = registry = LinkedRegistry.link(settings, link.record, self.env)
        await asyncio.to_thread(registry.load)
        for change in self._early:
            self._changed(change)
        link.changed = self._changed
        for host in welcome.engines:
            self._engine_changed(host)
        engines = {model.name: self._build(model, settings.home) for model in settings.models}
        self.bank = AtBank(link, registry)
        across = await Across.open(settings, self.env, registry, self.counters, welcome.worker)
        far = None if across is None else across.limits
        shared = Shared(welcome.worker, self.bank.teller, self.bank.taken, self.counters.limits, far)
        common = (
            Common(self.counters.breakers.breaker, lambda read, route: FarMemory(link, route, digest_of(read)))
            if across is None
            else Common(across.breakers.breaker, across.memory)
        )
        state = State()
        state.reload = self._ask_to_reload

        def make(read: Settings, settings: Settings, engines: Engines, before: Load | None = None) -> Load:
            earlier = before.pipeline if before else None
            pipeline = make_pipeline(registry, engines, settings, earlier, shared, common)
            pipeline.ledger.operate = self._operate
            return Load(read, settings, engines, pipeline, make_app(settings, pipeline, state))

        self.loads = loads = Loads(make(settings, settings, engines))
        loads.current.number = welcome.load
        ledger = loads.current.pipeline.ledger
        link.durable = ledger.made_durable
        link.trouble = self._trouble
        self._trouble(welcome.trouble)
        link.living = self._living
        runner = state.batches
        assert runner is not None
        runner.held, runner.tidies = loads.held, False
        runner.told = self._batches_changed = partial(link.shout, "batches", None)
        self._look_at_batches = runner.stir
        link.hear("batches", None, lambda _: runner.stir())
        tls = Tls.of(settings.tls)
        server = Server(loads, settings, state, tls)
        server.alone = False
        link.batches, link.runs_batches = server.may_run_batches, lambda: server.runs_batches
        server.may_run_batches(welcome.batches)
        source = Source(settings, lambda _: self.incoming or settings, lambda model, _: model)
        self.reloader = Reloader(registry, loads, source, self._build, make, server.follow, tls)
        self._finished = loads.finished
        loads.finished = self._a_load_has_ended
        link.loaded, link.welcomed = self._load, self._welcomed_again
        link.recalled = self.bank.recalled
        link.answers["reserved"] = self.bank.reserved
        link.answers["metrics"] = lambda _: loads.current.pipeline.metrics.text().decode()
        state.metrics = self._metrics
        if across is not None:
            across.show(loads.current.pipeline.metrics.registry)
        link.tell_living()
        passing = Passing(self.run, welcome.worker, loads)
        state.running.runner, state.running.pass_on = runner_of(welcome.worker), passing.pass_on
        state.running.counts = self.counters.limits
        self._on_signals(server)
        self.bank.ended = link.closed = partial(self._closed, server)
        self._keep(self.bank.tick())
        if tls:
            loads.current.pipeline.metrics.show_certificate(tls.expires)
            self._keep(tls.watch())
        starting = asyncio.create_task(start_engines(engines))
        calm_collector()
        try:
            async with passing.listening():
                await server.serve(sockets=[self.bound])
        finally:
            starting.cancel()
            await asyncio.gather(starting, self.reloader.close(), return_exceptions=True)
            await loads.close()
            await self._until_all_is_durable()
            if across is not None:
                await across.close()
            with contextlib.suppress(InterlaceError):  # then our lock says it
                await link.ask("leave", None, None)
            registry.close()

    def _on_signals(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, server.drain)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def supervisor_gone() -> None:
            if not os.read(0, 1):
                loop.remove_reader(0)
                if not server.state.draining:
                    server.drain()

        loop.add_reader(0, supervisor_gone)

    def _closed(self, server: Server) -> None:
        """The bank has closed us: what runs is finished and recorded, and another worker takes our place."""
        if not server.state.draining:
            log.error("this worker was closed by an operator; it ends")
            self.bank.teller.fence()
            server.drain()

    async def _until_all_is_durable(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.link.all_durable()

    # --- engines -----------------------------------------------------------------------------------------------------

    def _build(self, model: ModelSettings, _: Path) -> StartingEngine:
        if not model.runs_here:
            from interlace.engines.remote import RemoteEngine

            return RemoteEngine(model, self.env)
        if model.engine == VLLM:
            from interlace.engines.vllm import vllm_fields

            engine = AttachedEngine(model.name, self.run.socket, fields=vllm_fields(model), exact=False)
        else:
            engine = AttachedEngine(model.name, self.run.socket)
        self.attached[model.name] = engine
        if (state := self.states.get(model.name)) is not None:
            engine.told(state.socket, state.health, state.capabilities)
        return engine

    def _engine_changed(self, state: EngineState) -> None:
        self.states[state.name] = state
        if (engine := self.attached.get(state.name)) is not None:
            engine.told(state.socket, state.health, state.capabilities)

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _changed(self, change: Changed) -> None:
        self.registry.put(
            [*change.organisations, *change.projects, *change.plans, *change.keys, *change.prices]  # owners first
        )

    def _trouble(self, text: str | None) -> None:
        self.registry.store.trouble = text

    async def _operate(self, name: str, given: msgspec.Struct) -> Any:
        """An administrator's change, made by the coordinator, and known here before this returns."""
        return await self.link.ask("operation", (name, msgspec.to_builtins(given)), OPERATIONS[name].output)

    async def _metrics(self) -> bytes:
        """Of all processes; of this one while the coordinator is away."""
        try:
            told: bytes = await self.link.ask("metrics", None, bytes)
        except InterlaceError:
            return self.loads.current.pipeline.metrics.text()
        return told

    # --- the configuration -------------------------------------------------------------------------------------------

    async def _ask_to_reload(self, by: str) -> Reloaded:
        done: Reloaded = await self.link.ask("reload", by, Reloaded)
        return done

    def _load(self, load: NewLoad) -> None:
        self._keep(self._follow(load.number, load.settings))

    def _welcomed_again(self, welcome: Welcome) -> None:
        """The coordinator was restarted: numbers begin again."""
        self._trouble(welcome.trouble)
        for state in welcome.engines:
            self._engine_changed(state)
        self.link.batches(welcome.batches)
        self._look_at_batches()  # what was said of them meanwhile, here and elsewhere, nobody heard
        self._batches_changed()
        self.bank.teller.reconnected(dict(welcome.holdings))
        self._keep(self._renewed(welcome))

    async def _renewed(self, welcome: Welcome) -> None:
        for load in self.loads.living:
            load.number = 0  # what it was under the coordinator before
        if welcome.settings == self.loads.current.settings:
            self.loads.current.number = welcome.load
            self.link.tell_living()
        else:
            await self._follow(welcome.load, welcome.settings)
        await asyncio.to_thread(self.registry.load)  # changes may have been made while nobody told us
        self.registry.changed()

    async def _follow(self, number: int, settings: Settings) -> None:
        self.incoming = settings
        try:
            await self.reloader.reload("coordinator")
        finally:
            self.loads.current.number = number  # where it failed the log says why, and what runs goes on
            self.link.tell_living()

    def _living(self) -> list[int]:
        return [load.number for load in self.loads.living if load.number]

    def _a_load_has_ended(self) -> None:
        self._finished()
        self.link.tell_living()

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
