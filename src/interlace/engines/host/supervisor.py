"""Keeps an engine host alive: one task that starts it, waits for its end and starts it again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from interlace.config import ModelSettings
from interlace.engines.host.client import Connection
from interlace.engines.host.process import HostProcess, describe_exit
from interlace.engines.host.protocol import Failure, LoadFailed, Ready
from interlace.engines.types import Capabilities, Health
from interlace.errors import EngineUnavailable

log = logging.getLogger(__name__)

END_OF_STREAM_SECONDS = 1.0  # how far a host's exit and the end of its stream may lie apart, whichever is first


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a host that died is started again. Times in seconds; the wait doubles from `first` up to `cap`."""

    first_seconds: float = 0.5
    cap_seconds: float = 30.0
    jitter: float = 0.25  # each wait is longer or shorter by up to this share, so that hosts do not start in step
    healthy_seconds: float = 60.0  # a host that was ready for this long starts from `first_seconds` again
    failed_after: int = 3  # deaths while loading, in a row, that make the state "failed"
    stop_seconds: float = 5.0  # from SIGTERM to SIGKILL

    def wait_seconds(self, deaths: int, random: random.Random) -> float:
        """How long to wait after that many deaths in a row (at least one)."""
        doubled: float = self.first_seconds * 2.0 ** min(deaths - 1, 32)
        return min(self.cap_seconds, doubled) * (1 + self.jitter * random.uniform(-1, 1))


DEFAULT_POLICY = RestartPolicy()


@dataclass(frozen=True, slots=True)
class _Death:
    """How one life of a host ended."""

    reason: str
    was_loaded: bool
    ready_seconds: float = 0.0
    hopeless: bool = False  # loading the same again will fail again


class Supervisor:
    """Runs `core` for `settings` in a host, one after the other as they die, from `start` to `close`."""

    def __init__(
        self, settings: ModelSettings, home: Path, core: str, policy: RestartPolicy, listen: Path | None = None
    ) -> None:
        self._settings = settings
        self._home = home
        self._core = core
        self._listen = "" if listen is None else str(listen)
        self._policy = policy
        self._random = random.Random()  # noqa: S311 - spreads restarts in time, guards nothing
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None  # while ready
        self._capabilities: Capabilities | None = None
        self._health = Health("loading", detail="waiting to start")
        self._deaths = 0  # in a row, without a healthy time between
        self._load_deaths = 0  # in a row, without having been ready between
        self._changed = asyncio.Event()
        self._adapters: dict[str, str] = {}  # what was told since the settings: name → folder, "" where removed

    # --- what it knows, without waiting ---

    def connection(self) -> Connection:
        """The connection to the host that is ready now; raises `EngineUnavailable`."""
        if connection := self._open_connection():
            return connection
        raise self._unavailable()

    def _open_connection(self) -> Connection | None:
        """That of the ready host. None from the very moment its stream ends, before `_live` has heard of it."""
        return self._connection if self._connection and not self._connection.closed.done() else None

    def capabilities(self) -> Capabilities:
        """Those of the last host that was ready; raises `EngineUnavailable` before there was one."""
        if self._capabilities is None:
            raise self._unavailable()
        return self._capabilities

    def health(self) -> Health:
        """State and restarts, with the counters that the host last sent."""
        if connection := self._open_connection():
            return msgspec.structs.replace(connection.health, state="ready", restarts=self._health.restarts)
        if self._health.state == "ready":
            return Health("restarting", detail="the engine's process has ended", restarts=self._health.restarts)
        return self._health

    def _unavailable(self) -> EngineUnavailable:
        health = self.health()
        detail = f": {health.detail}" if health.detail else ""
        again = None if health.state == "closed" else max(1.0, self._policy.first_seconds)
        return EngineUnavailable(
            f"the engine of model {self._settings.name} is {health.state}{detail}", retry_after_seconds=again
        )

    def adapter(self, name: str, folder: str) -> None:
        """Tell this host, and those after it, where the adapter `name` lies from now on; "": nowhere."""
        if folder or any(one.name == name for one in self._settings.adapters):
            self._adapters[name] = folder
        else:
            self._adapters.pop(name, None)
        if connection := self._open_connection():
            connection.adapter(name, folder)

    # --- from start to close ---

    def start(self) -> None:
        """Start the first host and return at once. Raises `EngineUnavailable` when closed; twice is once."""
        if self._health.state == "closed":
            raise self._unavailable()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervisor of {self._settings.name}")

    async def wait_ready(self) -> None:
        """Return once a host is ready; raises `EngineUnavailable` once the state is failed or closed."""
        while self._open_connection() is None:
            if self._health.state in ("failed", "closed"):
                raise self._unavailable()
            await self._changed.wait()

    async def close(self) -> None:
        """End the host and everything that runs on it; safe to call twice, also at once."""
        if self._connection is not None:
            self._connection.end_of_streams = Failure.of(EngineUnavailable("the engine was closed"))
        self._set(Health("closed", restarts=self._health.restarts))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            death = await self._live()
            wait_seconds = self._note_death(death)
            await asyncio.sleep(wait_seconds)
            self._set(self._with(restarts=self._health.restarts + 1))

    # --- one life ---

    async def _live(self) -> _Death:
        """Start a host, serve with it until it dies, and say how it did."""
        try:
            process = HostProcess(self._settings.name)
        except OSError as error:
            return _Death(f"the engine's process cannot be started: {error}", was_loaded=False)
        ready_at = time.monotonic()
        async with self._connected(process) as connection:
            connection.set_up(self._core, self._settings, str(self._home), self._listen)
            loaded = await connection.loaded
            if isinstance(loaded, Ready):
                ready_at = time.monotonic()
                self._note_ready(connection, loaded)
                await connection.closed
                self._connection = None
                self._set(self.health())
            await asyncio.wait([process.exited], timeout=END_OF_STREAM_SECONDS)  # by itself, to know how it ended
        if isinstance(loaded, LoadFailed):
            return _Death(loaded.failure.message, was_loaded=False, hopeless=loaded.hopeless)
        reason = f"the engine's process {describe_exit(process.exited.result())}"
        if loaded is None:
            return _Death(f"{reason} while loading", was_loaded=False)
        return _Death(reason, was_loaded=True, ready_seconds=time.monotonic() - ready_at)

    @asynccontextmanager
    async def _connected(self, process: HostProcess) -> AsyncGenerator[Connection]:
        """The connection to `process`; on the way out, also when cancelled, both are ended and their failures told."""
        loop = asyncio.get_running_loop()
        connection = Connection(self._settings.name, self._note_progress)
        # Normally the stream ends with the process. Where a stranger still holds the other end, it must not hold us.
        process.exited.add_done_callback(lambda _: loop.call_later(END_OF_STREAM_SECONDS, connection.abort))
        try:
            async with process.output_logged():
                try:
                    await loop.create_unix_connection(lambda: connection, sock=process.channel)
                    yield connection
                finally:
                    self._connection = None
                    connection.abort()
                    await process.stop(self._policy.stop_seconds)
        finally:
            process.channel.close()

    def _note_progress(self, text: str) -> None:
        if self._health.state == "loading":
            self._set(self._with(detail=text))

    def _note_ready(self, connection: Connection, ready: Ready) -> None:
        for name, folder in self._adapters.items():
            connection.adapter(name, folder)  # before the first request that may name it
        self._connection = connection
        self._capabilities = ready.capabilities
        self._load_deaths = 0
        self._set(Health("ready", restarts=self._health.restarts))
        log.info("model %s is ready", self._settings.name)

    def _note_death(self, death: _Death) -> float:
        """Take a death into account; returns the seconds to wait before the next life."""
        if death.ready_seconds >= self._policy.healthy_seconds:
            self._deaths = 0
        self._deaths += 1
        self._load_deaths = 0 if death.was_loaded else self._load_deaths + 1
        failed = death.hopeless or self._load_deaths >= self._policy.failed_after
        wait_seconds = self._policy.cap_seconds if failed else self._policy.wait_seconds(self._deaths, self._random)
        self._set(Health(self._state_after(failed=failed), detail=death.reason, restarts=self._health.restarts))
        log.error("model %s: %s; next start in %.1f s", self._settings.name, death.reason, wait_seconds)
        return wait_seconds

    def _state_after(self, *, failed: bool) -> Literal["loading", "restarting", "failed"]:
        """The state between two lives: once failed, it stays so until a host is ready."""
        if failed or self._health.state == "failed":
            return "failed"
        return "loading" if self._capabilities is None else "restarting"

    def _with(self, *, detail: str | None = None, restarts: int | None = None) -> Health:
        health = self._health
        return Health(
            health.state,
            detail=health.detail if detail is None else detail,
            restarts=health.restarts if restarts is None else restarts,
        )

    def _set(self, health: Health) -> None:
        self._health = health
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
