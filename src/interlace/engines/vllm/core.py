"""`VllmCore`: what an engine host drives where the tokens come from a `vllm serve` beside it.

Requests run on an event loop in a thread of its own, by the engine that asks any server that speaks OpenAI's dialect;
what comes of them goes to the stepping thread through a queue.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields
from interlace.engines.remote import RemoteEngine
from interlace.engines.types import (
    Capabilities,
    Delta,
    EmbedRequest,
    FilePart,
    GenerateRequest,
    Health,
    ImagePart,
    Outcome,
    Started,
    Usage,
)
from interlace.engines.vllm.adapters import Adapters
from interlace.engines.vllm.command import check_vllm, model_path
from interlace.engines.vllm.server import Server
from interlace.errors import EngineFailed, InterlaceError, InvalidRequest, Overloaded
from interlace.models import Shapes, linear_shapes

log = logging.getLogger(__name__)

T = TypeVar("T")

STEP_SECONDS = 0.01  # how long a step waits for an outcome, and new requests with it
KEY = "INTERLACE_OF_VLLM"  # what stands for the key in settings; it is in no real environment
EXIT_ENDED = 71  # EX_OSERR


def load_core(settings: ModelSettings, home: Path, progress: Callable[[str], None]) -> VllmCore:
    """Start `vllm serve` and return once it is ready; this process ends when it does. Raises `ConfigError`,
    `CheckpointError` and `NotStarted`."""
    check_vllm(settings)
    path = model_path(settings, home)
    shapes = linear_shapes(path) if settings.max_loras else {}
    progress("starting vllm serve")
    server = Server(settings, path)
    about = server.wait_ready(progress)
    server.watch(_end)
    return VllmCore(settings, server, int(about.get("max_model_len") or 0), shapes)


def vllm_fields(settings: ModelSettings) -> Fields:
    """What becomes of a request's fields: as at a vLLM elsewhere."""
    return RemoteEngine(settings, {}).fields()


def _end(why: str) -> None:
    """The server is the engine: without it, this process has no use, and its supervisor starts both again."""
    log.error("%s; this process ends", why)
    logging.shutdown()
    os._exit(EXIT_ENDED)


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: GenerateRequest | EmbedRequest
    engine: RemoteEngine


class VllmCore:
    """See `interlace.engines.core.Core` for the contract of each method."""

    def __init__(self, settings: ModelSettings, server: Server, context_length: int, shapes: Shapes) -> None:
        self._env = {KEY: server.key}
        self._settings = dataclasses.replace(
            settings,
            base_url=server.base_url,
            api_key=f"${{{KEY}}}",
            context_length=settings.context_length or context_length,
            adapters=(),
            executable="",
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="requests to vllm", daemon=True).start()
        self._base = self._engine(self._settings.model)
        self._adapters = Adapters(server, self._engine, shapes)
        for adapter in settings.adapters:
            self.register_adapter(adapter.name, Path(adapter.folder))
        self._outcomes: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
        self._running: dict[str, concurrent.futures.Future[None]] = {}

    def _engine(self, model: str) -> RemoteEngine:
        """The one that asks for what the server calls `model`: itself, or an adapter over it."""
        return RemoteEngine(dataclasses.replace(self._settings, model=model), self._env)

    def prepare(self, request: GenerateRequest | EmbedRequest) -> _Prepared:
        """Check the fields; have the adapter loaded, which takes as long as it takes, on the preparer's time."""
        if isinstance(request, EmbedRequest):
            if not self._settings.embeds:
                raise InvalidRequest("This model generates text; it makes no embeddings.", param="model")
            return _Prepared(request, self._base)
        _refuse_addresses(request)
        self.count(request)
        engine = self._adapters.engine(request.adapter) if request.adapter else self._base
        return _Prepared(msgspec.structs.replace(request, adapter=""), engine)

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """An upper bound: the tokenizer is the server's."""
        return self._wait(self._base.count(request))

    def add(self, prepared: _Prepared) -> None:
        """Send the request; the server queues."""
        id = prepared.request.id
        if len(self._running) >= self._settings.connections:
            raise Overloaded("The model's queue is full. Try again shortly.", retry_after_seconds=1.0)
        if id in self._running:
            raise InvalidRequest(f"A request with the id {id!r} is already running.", param="id")
        self._running[id] = asyncio.run_coroutine_threadsafe(self._answer(prepared), self._loop)

    def cancel(self, request_id: str) -> None:
        """Cut its connection, upon which the server stops the work."""
        task = self._running.pop(request_id, None)
        if task is not None:
            task.cancel()

    def register_adapter(self, name: str, folder: Path) -> None:
        """Serve the adapter in `folder` by that name from now on; it is loaded when the first request names it."""
        self._adapters.register(name, folder)

    def remove_adapter(self, name: str) -> None:
        """Serve it no more; the server is told."""
        self._adapters.remove(name)

    def has_work(self) -> bool:
        """Whether any request runs, or an outcome has not been handed out."""
        return bool(self._running) or not self._outcomes.empty()

    def step(self) -> list[tuple[str, Outcome]]:
        """What has come; waits a moment where nothing has."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._outcomes.get(timeout=STEP_SECONDS))
            while True:
                found.append(self._outcomes.get_nowait())
        for id, outcome in found:
            if not _goes_on(outcome):
                self._running.pop(id, None)
        return found

    def capabilities(self) -> Capabilities:
        """As of a vLLM elsewhere; the context length is what the server says."""
        return self._base.capabilities()

    def health(self) -> Health:
        """How many requests it has."""
        return Health("ready", running=len(self._running))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _answer(self, prepared: _Prepared) -> None:
        """Run one request to its end, whatever that is."""
        request = prepared.request
        try:
            if isinstance(request, EmbedRequest):
                self._outcomes.put((request.id, await prepared.engine.embed(request)))
                return
            async with contextlib.aclosing(prepared.engine.bursts(request)) as bursts:
                async for burst in bursts:
                    for event in burst:
                        self._outcomes.put((request.id, event))
                        if isinstance(event, Usage):
                            return
            raise EngineFailed("The server behind this model ended its answer early. Try again.")
        except InterlaceError as error:
            self._outcomes.put((request.id, error))
        except Exception as error:  # noqa: BLE001 - a bug costs its own request
            what = type(error).__name__  # not its words, which may be a prompt's
            self._outcomes.put((request.id, EngineFailed(f"the engine failed while asking vllm serve ({what})")))


def _refuse_addresses(request: GenerateRequest) -> None:
    """Pictures and files come as data: vLLM would fetch them from here, where more can be reached than from outside."""
    for message in request.messages or ():
        for part in message.parts:
            if isinstance(part, ImagePart | FilePart) and part.url:
                raise InvalidRequest("This model takes no addresses. Send the data itself.", param="messages")


def _goes_on(outcome: Outcome) -> bool:
    return isinstance(outcome, Started | Delta)
