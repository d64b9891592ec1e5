"""`python -m benchmarks.peers.gateway bare|full KEYS`: a gateway over an engine that answers at once.

*full* is the product: its pipeline with keys, rates, budgets on organisation, project and key, a price, guards, metrics
and a durable ledger, with so many keys in it. *bare* is the same endpoint around nothing: a body is read, the engine
asked, the answer rendered. Both have the same server, the same outer handlers and the same log. The first line tells
port and key; the process ends when standard input does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import uvloop

from interlace.config import LogSettings, PerMillion, PriceSettings, Settings
from interlace.engines.fields import Fields
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    Engine,
    Event,
    GenerateRequest,
    Health,
    Started,
    Usage,
)
from interlace.gateway.app import State, make_app
from interlace.gateway.batches import Batches
from interlace.gateway.calls import Call, Done, Happening, PartStarted
from interlace.gateway.logs import set_up_logs
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.serve import Server, bind, calm_collector, make_pipeline
from interlace.ledger import Registry, new_key
from interlace.ledger.directory import hint_of
from interlace.ledger.registry import Entry, add
from interlace.ledger.schema import api_keys, organisations, plans, projects
from interlace.money import Micros, Nanos

MODEL = "instant"


class InstantEngine:
    """Ten tokens of prompt, sixteen of answer, in two pieces, at once."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:  # noqa: ARG002
        """The same answer to everybody."""
        yield Started(10)
        yield Delta(text="Paris is the capital of France, and ", tokens=8)
        yield Delta(text="has been for a thousand years.", tokens=8, finish_reason="stop")
        yield Usage(10, 16)

    async def embed(self, request: EmbedRequest) -> Embeddings:  # noqa: ARG002
        """Nothing: embeddings are not measured."""
        return Embeddings((), 0, 0)

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:  # noqa: ARG002
        """As generated."""
        return 10

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """Exactly so many."""
        return await self.count(request), False

    def fields(self) -> Fields:
        """As a local model's."""
        return LOCAL_FIELDS

    def capabilities(self) -> Capabilities:
        """Chat."""
        return Capabilities(generate=True, chat=True, context_length=4096, vocabulary=1000)

    def health(self) -> Health:
        """Always."""
        return Health("ready")

    async def close(self) -> None:
        """Nothing to free."""


class BarePipeline:
    """What is left of the pipeline when nothing is asked of it but an answer."""

    def __init__(self, whole: Pipeline) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        """For the pages around it, which are the same."""
        return getattr(self._whole, name)

    async def answer(self, call: Call) -> AsyncGenerator[list[Happening], None]:
        """Read, ask, pass on."""
        ask = await call.read()
        engine = self.routes.engines[ask.model]
        async with Batches([_passed(engine, request, call) for request in ask.generate]) as batches:
            async for batch in batches:
                yield batch
        yield [Done(call.meter.usage())]


async def _passed(engine: Any, request: GenerateRequest, call: Call) -> AsyncGenerator[list[Happening], None]:
    async for event in engine.generate(request):
        call.meter.see(0, event)
        if isinstance(event, Started):
            yield [PartStarted(0, event, request.prompt)]
        elif isinstance(event, Delta):
            yield [event]


def fill(registry: Registry, keys: int) -> str:
    """Organisations, projects and keys, with limits that are never reached, and the text of one key."""
    mine = new_key()
    now = registry.clock.now()
    budget = 10**17

    def work(connection: Any) -> list[Entry]:
        limits = {"rpm": 10**9, "tpm": 10**12, "concurrency": 10**6, "budget_nanos": budget}
        plan = add(connection, plans, name="plan", priority=0, source="db", created_at=now, **limits)
        made: list[Entry] = [plan]
        for number in range(keys):
            text = mine if number == 0 else new_key()
            org = add(connection, organisations, name=f"org-{number}", budget_nanos=budget, created_at=now)
            project = add(connection, projects, org_id=org.id, name="p", budget_nanos=budget, created_at=now)
            key = add(
                connection, api_keys, project_id=project.id, plan_id=plan.id, name="k", hint=hint_of(text),
                digest=registry.hasher.digest(text), scopes='["inference"]', budget_nanos=budget, created_at=now,
            )  # fmt: skip
            made += [org, project, key]
        return made

    registry.change(work)
    return mine


def main(kind: str, keys: int) -> None:
    """Serve until standard input ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    set_up_logs(LogSettings(), Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the process' life
    logging.captureWarnings(capture=True)
    with tempfile.TemporaryDirectory() as home:
        price = PerMillion(prompt=Nanos(150_000_000), completion=Nanos(600_000_000))
        settings = Settings(
            home=Path(home), prices=(PriceSettings(model=MODEL, since=Micros(0), usd_per_million=price),)
        )
        registry = Registry.open(settings, {})
        key = fill(registry, keys)
        engine: Engine = InstantEngine()
        pipeline: Any = make_pipeline(registry, {MODEL: engine})
        if kind == "bare":
            pipeline = BarePipeline(pipeline)
        state = State()
        server = Server(make_app(settings, pipeline, state), settings, state)
        bound = bind("127.0.0.1", 0)

        async def serve() -> None:
            serving = asyncio.create_task(server.serve(sockets=[bound]))
            while not server.started:
                await asyncio.sleep(0.01)
            calm_collector()
            told.write(json.dumps({"port": bound.getsockname()[1], "key": key, "model": MODEL}) + "\n")
            told.flush()
            await serving

        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
