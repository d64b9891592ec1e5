"""A connection to an engine host that another process has started, made again whenever there is a new host."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from interlace.engines.host.client import Connection
from interlace.engines.host.protocol import Failure, Ready
from interlace.engines.types import Capabilities, Health
from interlace.errors import EngineUnavailable

AGAIN_SECONDS = 0.05

_numbers = itertools.count()


class Attachment:
    """To the host of the model `name`. `address` gives that of a socket by its name, while inside."""

    def __init__(self, name: str, address: Callable[[str], AbstractContextManager[str]]) -> None:
        self._name = name
        self._address = address
        self._socket = ""
        self._health = Health("loading", detail="waiting to start")
        self._capabilities: Capabilities | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def told(self, socket: str, health: Health, capabilities: Capabilities | None) -> None:
        """What the process that watches the host says of it."""
        if self._health.state == "closed":
            return
        self._socket, self._health = socket, health
        self._capabilities = capabilities or self._capabilities
        self._stir()

    # --- what it knows, without waiting ---

    def connection(self) -> Connection:
        """The connection to the host that is ready now; raises `EngineUnavailable`."""
        if connection := self._open_connection():
            return connection
        raise self._unavailable()

    def _open_connection(self) -> Connection | None:
        return self._connection if self._connection and not self._connection.closed.done() else None

    def capabilities(self) -> Capabilities:
        """Those of the last host that was ready; raises `EngineUnavailable` before there was one."""
        if self._capabilities is None:
            raise self._unavailable()
        return self._capabilities

    def health(self) -> Health:
        """As the process that watches the host says, with the counters that came here."""
        if connection := self._open_connection():
            return msgspec.structs.replace(connection.health, state="ready", restarts=self._health.restarts)
        if self._health.state == "ready":
            return Health("restarting", detail="not connected to the engine's process", restarts=self._health.restarts)
        return self._health

    def _unavailable(self) -> EngineUnavailable:
        health = self.health()
        detail = f": {health.detail}" if health.detail else ""
        again = None if health.state == "closed" else 1.0
        return EngineUnavailable(
            f"the engine of model {self._name} is {health.state}{detail}", retry_after_seconds=again
        )

    # --- from start to close ---

    def start(self) -> None:
        """Begin to connect, and return at once; twice is once."""
        if self._task is None and self._health.state != "closed":
            self._task = asyncio.create_task(self._run(), name=f"attachment to {self._name}")

    async def wait_ready(self) -> None:
        """Return once connected; raises `EngineUnavailable` once the state is failed or closed."""
        while self._open_connection() is None:
            if self._health.state in ("failed", "closed"):
                raise self._unavailable()
            await self._changed.wait()

    async def close(self) -> None:
        """End the connection and everything that runs on it here; safe to call twice."""
        if self._connection is not None:
            self._connection.end_of_streams = Failure.of(EngineUnavailable("the engine was closed"))
            self._connection.abort()
        self._health = Health("closed", restarts=self._health.restarts)
        self._stir()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            while not self._socket or self._health.state != "ready":
                await self._changed.wait()
            if not await self._live():
                await asyncio.sleep(AGAIN_SECONDS)

    async def _live(self) -> bool:
        """One connection, to its end; False where there was none."""
        connection = Connection(self._name, lambda _: None, prefix=f"{os.getpid()}.{next(_numbers)}|")
        try:
            with self._address(self._socket) as path:
                await asyncio.get_running_loop().create_unix_connection(lambda: connection, path)
        except OSError:
            return False
        try:
            connection.attach()
            loaded = await connection.loaded
            if not isinstance(loaded, Ready):
                return False
            self._capabilities = loaded.capabilities
            self._connection = connection
            self._stir()
            await connection.closed
        finally:
            self._connection = None
            connection.abort()
            self._stir()
        return True

    def _stir(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
