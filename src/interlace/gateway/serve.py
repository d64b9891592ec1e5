"""`interlace serve`: bind first, listen at once, load meanwhile; drain on the first signal, leave on the second."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from interlace.config import VLLM, BreakerSettings, ModelSettings, RouteSettings, Settings
from interlace.deposits import Deposits
from interlace.engines.types import Capabilities, Engine
from interlace.errors import ConfigError
from interlace.gateway.adapters import adapted, bare, hold, walls
from interlace.gateway.admission import Admission
from interlace.gateway.app import State, make_app
from interlace.gateway.connection import Connection, Connections
from interlace.gateway.keys import ensure_key, key_file, read_key
from interlace.gateway.logs import set_up_logs
from interlace.gateway.metrics import Metrics
from interlace.gateway.notify import READY, STOPPING, notify
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.reloading import Engines, Load, Loads, Reloader, Source, StartingEngine
from interlace.gateway.routes import Routes
from interlace.gateway.routing import AnyBreaker, AnyMemory, FirstTokens, Live, Memory, Shadows
from interlace.gateway.tls import Tls
from interlace.ledger import Ledger, Registry, Retention, Shared
from interlace.safety import Guards

_log = logging.getLogger(__name__)


Build = Callable[[ModelSettings, Path], StartingEngine]


@dataclass(frozen=True, slots=True)
class Common:
    """What the routes of a worker share with those of others: a model's breaker, and what a route remembers, by these
    settings as a whole."""

    breaker: Callable[[ModelSettings], AnyBreaker]
    memory: Callable[[Settings, RouteSettings], AnyMemory]


def serve(
    settings: Settings,
    env: Mapping[str, str] | None = None,
    *,
    build: Build | None = None,
    announce: Callable[[str], None] = print,
    source: Source | None = None,
) -> int:
    """Serve until a signal; the exit code. `announce` gets the lines a person reads on standard output, and `source` is
    read again on SIGHUP; without one, what is read is what there is.

    Raises `ConfigError` when the address is taken or the home folder cannot be written.
    """
    env = os.environ if env is None else env
    source = source or Source(settings, lambda _: settings, lambda model, _: model)
    tls = Tls.of(settings.tls)
    bound = bind(settings.host, settings.port)
    set_up_logs(settings.log)
    greeting = functools.partial(announce, flush=True) if announce is print else announce
    with (
        contextlib.closing(open_registry(settings, env)) as registry,  # closed last: events are still being written
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        runner.run(_serve(registry, bound, build or functools.partial(build_engine, env=env), greeting, source, tls))
    return 0


def open_registry(settings: Settings, env: Mapping[str, str]) -> Registry:
    """The ledger's office, the server's own key known to it; raises `ConfigError`."""
    registry = Registry.open(settings, env)
    try:
        key = ensure_key(settings.home, env)
        registry.admit_first_key(key, from_environment=bool(env.get("INTERLACE_API_KEY", "").strip()))
    except OSError as error:
        registry.close()
        raise ConfigError(f"The home folder {settings.home} cannot be written: {error}. Set INTERLACE_HOME.") from error
    except BaseException:
        registry.close()
        raise
    return registry


def build_engine(model: ModelSettings, home: Path, env: Mapping[str, str] | None = None) -> StartingEngine:
    """The engine that settings name; the one place that knows how engines are made. Providers' keys come from `env`.

    Raises `ConfigError` when one is missing there.
    """
    if model.engine == VLLM:
        from interlace.engines.vllm import check_vllm

        check_vllm(model)
    if not model.runs_here:
        from interlace.engines.remote import RemoteEngine

        return RemoteEngine(model, env)
    return host_engine(model, home)


def host_engine(model: ModelSettings, home: Path, listen: Path | None = None) -> StartingEngine:
    """The engine of a model on this machine, in a host of its own, which is told of adapters rather than made for
    them. Raises `ConfigError`."""
    from interlace.engines.host import HostedEngine

    if model.engine == VLLM:
        from interlace.engines.vllm import VLLM_CORE, check_vllm, vllm_fields

        check_vllm(model)
        fields = vllm_fields(model)
        engine = HostedEngine(bare(model), home, core=VLLM_CORE, listen=listen, fields=fields, exact=False)
    else:
        engine = HostedEngine(bare(model), home, listen=listen)
    hold(engine, model.adapters)
    return engine


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is an error before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host!r}: {error.strerror or error}. Choose another --host.") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Stop what uses it, or choose another --port."
        ) from error
    bound.set_inheritable(False)
    return bound


def make_pipeline(
    registry: Registry,
    engines: Mapping[str, Engine],
    settings: Settings | None = None,
    before: Pipeline | None = None,
    shared: Shared | None = None,
    common: Common | None = None,
) -> Pipeline:
    """The pipeline over these engines, by `settings` (left out: the registry's). What counts for the whole process is
    taken from the pipeline `before` it, and left as it is. `shared` and `common`: where other processes share it."""
    settings = settings or registry.settings
    admission = before.admission if before else Admission(settings.limits.concurrency, settings.limits.queue)
    metrics = before.metrics if before else Metrics(admission, {})
    routes = make_routes(settings, engines, before.routes if before else None, common)
    if before is None:
        metrics.serve(engines, routes)
        metrics.watch(routes.watched)
    return Pipeline(
        ledger=before.ledger if before else Ledger(registry, shared),
        admission=admission,
        guards=Guards.from_settings(settings.guards, metrics.secret, engines),
        routes=routes,
        metrics=metrics,
        shadows=before.shadows if before else Shadows(metrics.routes),
        deposits=before.deposits if before else Deposits(registry),
        log_prompts=settings.log.prompts,
    )


def make_routes(
    settings: Settings,
    engines: Mapping[str, Engine],
    before: Routes | None = None,
    common: Common | None = None,
) -> Routes:
    """The served models, and the routes to them. How they do is known of engines that were there `before`, else not
    yet."""
    breakers = dict.fromkeys(engines, BreakerSettings()) | {model.name: model.breaker for model in settings.models}
    adapters = adapted(settings, engines)
    breakers |= {name: breakers[one.base] for name, one in adapters.items()}  # a broken adapter breaks no base
    live = {name: Live.of(each) for name, each in breakers.items()}
    if common is not None:
        live |= {model.name: Live(common.breaker(model), FirstTokens()) for model in settings.models}
    served = {**engines, **adapters}
    for name, engine in served.items():
        if before and before.engines.get(name) == engine and before.live[name].breaker.settings == breakers[name]:
            live[name] = before.live[name]
    return Routes(
        served,
        {model.name: model.engine for model in settings.models},
        {route.name: route for route in settings.routes},
        live,
        {
            route.name: Memory(route.reuse) if common is None else common.memory(settings, route)
            for route in settings.routes
            if route.reuse.seconds
        },
        walls(settings, adapters),
    )


class Server(uvicorn.Server):
    """uvicorn, with our signals: the first drains, and the exit code is ours to choose."""

    alone = True  # not one of several

    def __init__(self, app: ASGIApp, settings: Settings, state: State, tls: Tls | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ssl_context_factory=None if tls is None else lambda *_: tls.context,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type] # seconds, whole or not
            )
        )
        self.server_state = Connections()
        self.state = state
        self.had_terminal = os.isatty(0)
        self._batches: asyncio.Task[None] | None = None
        self._runs_batches = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own; then batches go on where they were, and the service manager hears that we listen."""
        await super().startup(sockets=sockets)
        self.may_run_batches(self._runs_batches)
        notify(READY)

    def may_run_batches(self, yes: bool) -> None:
        """Whether it is this process that runs them: one of an installation does."""
        self._runs_batches = yes
        if not self.started or self.state.batches is None:
            return
        if yes and self._batches is None:
            self._batches = asyncio.create_task(self.state.batches.keep())
        elif not yes and self._batches is not None:  # lines that run here begin anew where they run from now on
            self._batches.cancel()
            self._batches = None

    @property
    def runs_batches(self) -> bool:
        """Whether it does now."""
        return self._batches is not None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are handled by `drain`; uvicorn would raise them again and so end the process with their code."""
        yield

    def follow(self, load: Load) -> None:
        """Another load is current from now on."""
        settings = load.settings
        set_up_logs(settings.log)
        self.config.timeout_graceful_shutdown = settings.drain_seconds  # type: ignore[assignment] # as above

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, and then no connection is left: one that nobody reads from would stay for ever."""
        cast("Connections", self.server_state).draining = True
        async with self._batches_ending():
            seconds = self.config.timeout_graceful_shutdown or 0
            await asyncio.gather(super().shutdown(sockets), self.state.running.close(seconds))
        if self.server_state.tasks:  # cancelled after `drain_seconds`: they settle before their callers are cut off
            await asyncio.wait(self.server_state.tasks, timeout=5)
        for connection in list(self.server_state.connections):
            if (transport := connection.transport) is not None:
                transport.abort()

    def hang_up(self, reload: Callable[[], None]) -> None:
        """SIGHUP: reload, but drain where it means that the terminal we were started from is gone."""
        if self.had_terminal and not os.isatty(0):
            self.drain()
        elif not self.state.draining:
            reload()

    @contextlib.asynccontextmanager
    async def _batches_ending(self) -> AsyncGenerator[None, None]:
        """Lines of batches that run have the same time to finish as callers' requests."""
        if self.state.batches is None or self._batches is None:
            yield
            return
        stopping = asyncio.create_task(self.state.batches.stop(self.config.timeout_graceful_shutdown or 0))
        yield
        await stopping
        self._batches.cancel()
        await asyncio.gather(self._batches, return_exceptions=True)

    def drain(self) -> None:
        """Stop accepting, say so in `/readyz`, let running requests finish. A second time: leave at once. The service
        manager is told, unless others go on serving."""
        if self.state.draining:
            os._exit(130)  # engine hosts notice that we are gone and leave too
        self.state.draining = True
        self.should_exit = True
        if self.alone:
            notify(STOPPING)
        _log.info("draining")


async def _serve(
    registry: Registry,
    bound: socket.socket,
    build: Build,
    announce: Callable[[str], None],
    source: Source,
    tls: Tls | None,
) -> None:
    settings, state = registry.settings, State()
    engines = {model.name: build(model, settings.home) for model in settings.models}

    def make(read: Settings, settings: Settings, engines: Engines, before: Load | None = None) -> Load:
        pipeline = make_pipeline(registry, engines, settings, before.pipeline if before else None)
        return Load(read, settings, engines, pipeline, make_app(settings, pipeline, state))

    loads = Loads(make(source.first, settings, engines))
    assert state.batches is not None
    state.batches.held = loads.held
    server = Server(loads, settings, state, tls)
    reloader = Reloader(registry, loads, source, build, make, server.follow, tls)
    state.reload = reloader.reload
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.drain)
    loop.add_signal_handler(signal.SIGHUP, server.hang_up, reloader.reload_soon)
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(name, _log.warning, "one process alone cannot be renewed in place: restart it")
    greeter = asyncio.create_task(greet(registry, bound.getsockname(), engines, announce))
    starting = asyncio.create_task(start_engines(engines))
    beside = [asyncio.create_task(Retention(registry).keep())]
    if tls:
        loads.current.pipeline.metrics.show_certificate(tls.expires)
        beside.append(asyncio.create_task(tls.watch()))
    calm_collector()
    forget_generators()
    try:
        await server.serve(sockets=[bound])
    finally:
        for task in (greeter, starting, *beside):
            task.cancel()
        await asyncio.gather(greeter, starting, *beside, reloader.close(), return_exceptions=True)
        await loads.close()


def forget_generators() -> None:
    """Tell asyncio not to keep a list of the generators that run, three to a request: all of ours are closed where
    they are used. One that is forgotten after all is closed when it is collected, as ever."""
    sys.set_asyncgen_hooks(firstiter=None)


def calm_collector() -> None:
    """Tell the garbage collector that what is there stays: thousands of keys need no walk at every collection, and
    requests, which leave few cycles behind, no collection at every third of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def start_engines(engines: Mapping[str, StartingEngine]) -> None:
    """Start every engine; one that cannot start says so in its health and leaves the others alone."""
    results = await asyncio.gather(*(engine.start() for engine in engines.values()), return_exceptions=True)
    for name, result in zip(engines, results, strict=True):
        if isinstance(result, Exception):
            _log.error("an engine could not be started", extra={"fields": {"model": name, "error": str(result)}})


async def greet(
    registry: Registry,
    address: tuple[object, ...],
    engines: Mapping[str, Engine],
    announce: Callable[[str], None],
) -> None:
    """Say where it listens, and, once models are ready, how to ask the first one."""
    url = _url(address, secure=registry.settings.tls.certificate is not None)
    announce(f"Interlace listens on {url}; loading {', '.join(engines)} …")
    began = time.monotonic()
    waiting = dict(engines)
    while waiting:
        await asyncio.sleep(0.1)
        for name, engine in list(waiting.items()):
            health = engine.health()
            if health.state == "ready":
                announce(f"{name} is ready after {time.monotonic() - began:.1f} s")
                del waiting[name]
            elif health.state in {"failed", "closed"}:
                announce(f"{name} could not be loaded: {health.detail}")
                del waiting[name]
    for name in engines:
        if registry.directory.price(name, registry.clock.now()) is None:
            announce(f"{name} has no price, so it is not served yet: interlace prices create {name} --prompt 0 ...")
    announce(_instructions(registry.settings, url, engines))


def _instructions(settings: Settings, url: str, engines: Mapping[str, Engine]) -> str:
    """URL, key, and one line to paste, for the first model that can answer.

    The key itself is shown to a person at a terminal only: elsewhere standard output ends up in a log.
    """
    from_env = bool(os.environ.get("INTERLACE_API_KEY"))
    key = "$INTERLACE_API_KEY" if from_env else f"$(cat {shlex.quote(str(key_file(settings.home)))})"
    where = "from INTERLACE_API_KEY" if from_env else f"in {key_file(settings.home)}"
    shown = f"{read_key(settings.home)} ({where})" if sys.stdout.isatty() else where
    lines = ["", f"  URL      {url}/v1", f"  API key  {shown}"]
    for name, engine in engines.items():
        if engine.health().state == "ready":
            paste = _curl(url, key, name, engine.capabilities())
            if settings.tls.certificate is not None:  # curl would need a host name and an authority we do not know
                paste = f"interlace chat {name}"
            lines += ["", "Try it:", "", paste]
            break
    return "\n".join(lines)


def _curl(url: str, key: str, model: str, can: Capabilities) -> str:
    question = "What is the capital of France?"
    if can.embed or can.labels:
        path, body = ("embeddings" if can.embed else "classify"), f'"input": "{question}"'
    else:
        path, body = "chat/completions", f'"temperature": 0, "messages": [{{"role": "user", "content": "{question}"}}]'
    headers = f'-H "Authorization: Bearer {key}" -H "Content-Type: application/json"'
    return f'curl {url}/v1/{path} {headers} -d \'{{"model": "{model}", {body}}}\''


def _url(address: tuple[object, ...], *, secure: bool) -> str:
    host, port = str(address[0]), address[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only shown; curl needs a real address
    place = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
    return f"https://{place}" if secure else f"http://{place}"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return None
    return uvloop.new_event_loop
