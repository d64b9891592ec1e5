"""A real gateway on a loopback port, in a thread: uvicorn, the whole application, and the engines it is given."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop

from interlace.config import Settings
from interlace.engines.types import Engine
from interlace.gateway.app import State, make_app
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.serve import Server, bind, make_pipeline
from interlace.ledger import UsageEvent

KEY = "sk-il-test-key"


@dataclass
class MemorySink:
    """Keeps usage events in memory."""

    events: list[UsageEvent] = field(default_factory=list)

    async def record(self, event: UsageEvent) -> None:
        """Keep one; the same id twice is a bug of the gateway."""
        assert event.id not in {known.id for known in self.events}, "settled twice"
        self.events.append(event)


@dataclass
class Gateway:
    """A running gateway and what tests look at."""

    url: str
    port: int
    key: str
    pipeline: Pipeline
    engines: Mapping[str, Engine]
    events: list[UsageEvent]
    server: Server
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def headers(self) -> dict[str, str]:
        """What a caller with the key sends."""
        return {"authorization": f"Bearer {self.key}"}

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the gateway's loop."""
        self.loop.call_soon_threadsafe(function)


@contextmanager
def running_gateway(settings: Settings, engines: Mapping[str, Engine]) -> Iterator[Gateway]:
    """Start a gateway, wait until it answers, and drain it at the end."""
    bound = bind("127.0.0.1", 0)
    sink = MemorySink()
    pipeline = make_pipeline(settings, KEY, engines, sink)
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
        yield Gateway(f"http://127.0.0.1:{port}", port, KEY, pipeline, engines, sink.events, server, loop, thread)
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
