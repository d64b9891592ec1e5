"""A real gateway on a loopback port, in a thread: uvicorn, the whole application, and the engines it is given."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn.server
import uvloop

from interlace.config import Settings
from interlace.engines.types import Engine
from interlace.gateway.app import State, make_app
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.serve import Server, bind, make_pipeline
from interlace.ledger import Registry, UsageEvent, read_events
from tests.support.prices import free
from tests.support.stores import placed

KEY = "sk-il-test-key"


class _Awake:
    """asyncio, as uvicorn's server sees it here: it looks a hundred times a second whether it is to end, and whether
    all have gone, not ten times. Most tests take less than the fifth of a second that went into the end of each."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        """A tenth of what is asked."""
        await asyncio.sleep(seconds / 10)


uvicorn.server.asyncio = _Awake()


@dataclass
class Gateway:
    """A running gateway and what tests look at."""

    url: str
    port: int
    key: str
    pipeline: Pipeline
    engines: Mapping[str, Engine]
    registry: Registry
    server: Server
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def events(self) -> list[UsageEvent]:
        """The usage events recorded so far, in the order in which their requests began."""
        return self.registry.store.read(lambda connection: list(read_events(connection)))

    @property
    def headers(self) -> dict[str, str]:
        """What a caller with the key sends."""
        return {"authorization": f"Bearer {self.key}"}

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the gateway's loop."""
        self.loop.call_soon_threadsafe(function)


@contextmanager
def running_gateway(settings: Settings, engines: Mapping[str, Engine]) -> Iterator[Gateway]:
    """Start a gateway, wait until it answers, and drain it at the end. What has no price is free; `KEY` may do all."""
    with TemporaryDirectory() as home:
        prices = settings.prices or free(engines)
        settings = placed(dataclasses.replace(settings, home=Path(home), prices=prices))
        registry = Registry.open(settings, {})
        try:
            registry.admit_first_key(KEY, from_environment=False)
            with _running(registry, engines) as gateway:
                yield gateway
        finally:
            registry.close()


@contextmanager
def _running(registry: Registry, engines: Mapping[str, Engine]) -> Iterator[Gateway]:
    settings = registry.settings
    bound = bind("127.0.0.1", 0)
    pipeline = make_pipeline(registry, engines)
    state = State()
    server = Server(make_app(settings, pipeline, state), settings, state)
    loop = uvloop.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(sockets=[bound]))

    port = bound.getsockname()[1]
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield Gateway(f"http://127.0.0.1:{port}", port, KEY, pipeline, engines, registry, server, loop, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the gateway did not stop"


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return as soon as the condition holds; fail when it does not within a generous bound."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)
