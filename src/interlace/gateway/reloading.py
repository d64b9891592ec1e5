"""The configuration, read again while requests run.

    read → compare → fetch checkpoints → start new engines, until they are ready → plans and prices → swap

Nothing is changed before the swap, which is one assignment: a request lives its whole life under the load it began
under, with that load's guards, routes and limits. What the ledger counts, the queue and the metrics are the process'
own and pass from load to load. An engine is closed when no load that has it is current or has requests left.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from interlace.config import Faults, ModelSettings, Settings
from interlace.engines.types import Engine
from interlace.errors import CheckpointError, ConfigError, InterlaceError, InvalidRequest
from interlace.gateway.adapters import Held, arriving, bare, let_go, told
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.reload_page import Reloaded
from interlace.gateway.tls import Tls
from interlace.ledger import Registry

_log = logging.getLogger(__name__)

FIXED = (
    "home", "host", "port", "workers", "tls.certificate", "tls.key", "ledger.url", "ledger.time_zone", "redis.url",
    "redis.timeout_seconds",
)  # fmt: skip
"""What a running server cannot change: where it listens, and what its ledger is. The certificate's files may change."""

_LOOK_SECONDS = 0.05  # from one look at a loading engine's health to the next


class StartingEngine(Engine, Protocol):
    """An engine that still has to be started; `start` returns at once and weights load behind it."""

    async def start(self) -> None:
        """Begin to load."""
        ...


Engines = Mapping[str, StartingEngine]


# --- serving -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Load:
    """One load of the configuration. `read` is what the file says, `settings` the same with checkpoints fetched."""

    read: Settings
    settings: Settings
    engines: Engines
    pipeline: Pipeline
    app: ASGIApp
    running: int = 0
    number: int = 0  # that all processes of an installation know it by


class Loads:
    """The application that is served: each request goes to the load that is current when it begins."""

    def __init__(self, first: Load) -> None:
        self.current = first
        self.finished: Callable[[], None] = lambda: None  # told when an earlier load has no requests any more
        self._living = [first]
        self._closing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        load = self.current
        load.running += 1
        try:
            scope["interlace.hold"] = partial(self.held, load)
            await load.app(scope, receive, send)
        finally:
            self._leave(load)

    @contextmanager
    def held(self, load: Load | None = None) -> Iterator[Load]:
        """The current load, or that one, whose engines stay open meanwhile: for every request, and for work that
        outlives one."""
        load = self.current if load is None else load
        load.running += 1
        try:
            yield load
        finally:
            self._leave(load)

    def _leave(self, load: Load) -> None:
        load.running -= 1
        if not load.running and load is not self.current:
            self._end(load)

    def swap(self, load: Load) -> None:
        """What begins from now on goes to `load`."""
        before, self.current = self.current, load
        self._living.append(load)
        if not before.running:
            self._end(before)

    @property
    def living(self) -> tuple[Load, ...]:
        """Those that are current or have requests left, the current one last."""
        return tuple(self._living)

    @property
    def models(self) -> frozenset[str]:
        """Names of all models, adapters among them, that somebody is being answered by, or can be."""
        return frozenset(name for load in self._living for name in load.pipeline.routes.engines)

    @property
    def adapters(self) -> Held:
        """The same of adapters, as their engines know them."""
        return frozenset().union(*(told(load.settings.models, load.engines) for load in self._living))

    async def close(self) -> None:
        """Close every engine there is."""
        every = {id(engine): engine for load in self._living for engine in load.engines.values()}
        await asyncio.gather(*(engine.close() for engine in every.values()))
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _end(self, load: Load) -> None:
        self._living.remove(load)
        let_go(load.settings.models, load.engines, self.adapters)
        left = {id(engine) for other in self._living for engine in other.engines.values()}
        for name, engine in load.engines.items():
            if id(engine) not in left:
                task = asyncio.create_task(self._close(name, engine))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self.finished()

    async def _close(self, name: str, engine: StartingEngine) -> None:
        try:
            await engine.close()
        except Exception:  # noqa: BLE001 - nobody waits for it: logged
            _log.exception("an engine could not be closed", extra={"fields": {"model": name}})
        else:
            _log.info("an engine is closed, its last request done", extra={"fields": {"model": name}})


# --- reloading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from. `first` is what was read at the start; `complete` brings a model's checkpoint onto the
    disk and returns the model as it is served; it raises `CheckpointError` and `OSError`."""

    first: Settings
    read: Callable[[Faults], Settings]
    complete: Callable[[ModelSettings, Path], ModelSettings]


@dataclass
class Reloader:
    """Reads the configuration again, one time after the other, however many ask at once.

    `build` makes an engine, `make` a load that does nothing yet, `applied` hears of one that is current from now on.
    """

    registry: Registry
    loads: Loads
    source: Source
    build: Callable[[ModelSettings, Path], StartingEngine]
    make: Callable[[Settings, Settings, Engines, Load], Load]
    applied: Callable[[Load], None]
    tls: Tls | None = None

    def __post_init__(self) -> None:
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[Reloaded] | None = None  # has not read the file yet
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leftover: frozenset[str] = frozenset()  # models of earlier loads whose prices are kept for their requests
        self.loads.finished = self._retire_prices_soon

    async def reload(self, by: str) -> Reloaded:
        """Read the configuration and serve it. Whoever asks while one reload waits for another gets its result: what
        it will read is newer than the question. Raises `InterlaceError` with nothing changed."""
        if self._next is None:
            self._next = self._kept(asyncio.create_task(self._turn(by)))
        return await asyncio.shield(self._next)

    def reload_soon(self) -> None:
        """The same on a signal; what came of it is in the log."""
        if self._next is None:
            self._next = self._kept(asyncio.create_task(self._turn("SIGHUP")))
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def close(self) -> None:
        """Give up whatever is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _kept(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _turn(self, by: str) -> Reloaded:
        async with self._lock:
            self._next = None
            metrics = self.loads.current.pipeline.metrics
            try:
                done = await self._reload()
            except InterlaceError as error:
                metrics.reloads.labels("refused").inc()
                fields = {"by": by, "code": error.code, "error": error.message}
                _log.error("the configuration was not reloaded", extra={"fields": fields})
                raise
            except Exception:
                metrics.reloads.labels("refused").inc()
                _log.exception("a reload met a bug of ours; nothing was changed", extra={"fields": {"by": by}})
                raise
            metrics.reloads.labels("done").inc()
            _log.info("the configuration was reloaded", extra={"fields": {"by": by, **msgspec.structs.asdict(done)}})
            return done

    async def _reload(self) -> Reloaded:
        before = self.loads.current
        read = await asyncio.to_thread(self._read, before)
        renew = await asyncio.to_thread(self._read_certificate)
        # As read → as served. Adapters come and go over the engine there is.
        old = {bare(one): other for one, other in zip(before.read.models, before.settings.models, strict=True)}
        kept = {
            model.name: dataclasses.replace(
                old[bare(model)], adapters=model.adapters, owner=model.owner, priced_as=model.priced_as
            )
            for model in read.models
            if bare(model) in old
        }
        fresh = [model for model in read.models if model.name not in kept]
        served = kept | {model.name: model for model in await asyncio.to_thread(self._complete, fresh, read.home)}
        settings = dataclasses.replace(read, models=tuple(served[model.name] for model in read.models))
        async with self._started([served[model.name] for model in fresh], read.home) as new:
            engines = {model.name: new.get(model.name) or before.engines[model.name] for model in read.models}
            async with arriving(settings.models, engines, self.loads.adapters):
                load = self.make(read, settings, engines, before)
                leftover = self.loads.models - load.pipeline.routes.engines.keys()
                await asyncio.to_thread(self.registry.follow, settings, keep=leftover)
                renew()
                new.clear()  # they are the load's from now on: from here to the swap nothing waits and nothing fails
                self._apply(load)
                self._leftover = leftover
                self.loads.swap(load)
        return Reloaded(
            added=[model.name for model in fresh if model.name not in before.engines],
            replaced=[model.name for model in fresh if model.name in before.engines],
            removed=[name for name in before.engines if name not in served],
            kept=list(kept),
            changed=[*_differences(before.read, read), *_changed_over(before.read.models, kept)],
        )

    def _read(self, before: Load) -> Settings:
        """The settings; raises `InvalidRequest` that names file and line, also of what only a restart can change."""
        fixed = False

        def faults(settings: Settings) -> Iterator[tuple[str, str, str]]:
            nonlocal fixed
            for path in _differences(before.read, settings, FIXED):
                fixed = True
                yield path, "cannot change while the server runs", "Put it back, or restart the server"

        try:
            return self.source.read(faults)
        except ConfigError as error:
            code = "restart_needed" if fixed else "invalid_configuration"
            raise InvalidRequest(error.message, code=code) from error

    def _read_certificate(self) -> Callable[[], None]:
        try:
            return self.tls.read() if self.tls else lambda: None
        except ConfigError as error:
            raise InvalidRequest(error.message, code="invalid_configuration") from error

    def _complete(self, models: list[ModelSettings], home: Path) -> list[ModelSettings]:
        found: list[ModelSettings] = []
        for model in models:
            try:
                found.append(self.source.complete(model, home))
            except CheckpointError as error:
                raise _not_started(model.name, error.message) from error
            except OSError as error:  # a full disk, a folder that is not ours
                raise _not_started(model.name, f"{error.filename or home}: {error.strerror or error}") from error
        return found

    @contextlib.asynccontextmanager
    async def _started(self, models: list[ModelSettings], home: Path) -> AsyncGenerator[dict[str, StartingEngine]]:
        """New engines, all of them ready. Those that are still in the dictionary at the end are closed again."""
        new: dict[str, StartingEngine] = {}
        try:
            for model in models:
                new[model.name] = self.build(model, home)
            for engine in new.values():
                await engine.start()
            for name, engine in new.items():
                await _ready(name, engine)
            yield new
        except ConfigError as error:  # of `build`: a provider's key is missing
            raise InvalidRequest(error.message, code="invalid_configuration") from error
        finally:
            await asyncio.shield(asyncio.gather(*(engine.close() for engine in new.values()), return_exceptions=True))

    def _apply(self, load: Load) -> None:
        """What belongs to the process, not to a load."""
        settings = load.settings
        self.registry.settings = settings
        load.pipeline.admission.resize(settings.limits.concurrency, settings.limits.queue)
        load.pipeline.metrics.serve(load.engines, load.pipeline.routes)
        load.pipeline.metrics.watch(load.pipeline.routes.watched)
        self.applied(load)

    # --- what is left of earlier loads ---------------------------------------------------------------------------

    def _retire_prices_soon(self) -> None:
        if self._leftover:
            self._kept(asyncio.create_task(self._retire_prices()))

    async def _retire_prices(self) -> None:
        """A model that is served no more keeps its price until its last request is done, which may have to look it up
        still. Should the process end before, the next start does this."""
        async with self._lock:
            settings = self.loads.current.settings
            self._leftover = self.loads.models - self.loads.current.pipeline.routes.engines.keys()
            try:
                await asyncio.to_thread(self.registry.follow, settings, keep=self._leftover)
            except InterlaceError as error:
                _log.warning("prices of removed models stay for now: %s", error.message)


async def _ready(name: str, engine: StartingEngine) -> None:
    """Return once it is; raises `InvalidRequest` with its reason when it cannot be."""
    while (health := engine.health()).state != "ready":
        if health.state in {"failed", "closed"}:
            raise _not_started(name, health.detail)
        await asyncio.sleep(_LOOK_SECONDS)


def _not_started(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The model {name} could not be started, so nothing was changed: {reason}", code="model_not_started"
    )


def _changed_over(before: Sequence[ModelSettings], kept: Mapping[str, ModelSettings]) -> Iterator[str]:
    """What is another of models whose engines are the same."""
    for model in before:
        for name in ("adapters", "owner", "priced_as") if model.name in kept else ():
            if getattr(kept[model.name], name) != getattr(model, name):
                yield f"models.{model.name}.{name}"


def _differences(before: Any, after: Any, only: tuple[str, ...] = (), where: str = "") -> Iterator[str]:
    """Dotted paths of settings that differ, models apart. Lists count as one setting."""
    for field in dataclasses.fields(before):
        path, one, other = f"{where}{field.name}", getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(one):
            yield from _differences(one, other, only, f"{path}.")
        elif one != other and (path in only if only else path != "models"):
            yield path
