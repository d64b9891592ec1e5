"""`HostedEngine`: a local engine in a process of its own, as an `Engine` like any other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Protocol

from interlace.config import ModelSettings
from interlace.engines.fields import Fields
from interlace.engines.host.attachment import Attachment
from interlace.engines.host.client import Connection
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.host.protocol import Failure
from interlace.engines.host.supervisor import DEFAULT_POLICY, RestartPolicy, Supervisor
from interlace.engines.types import (
    Capabilities,
    Embeddings,
    EmbedRequest,
    Event,
    GenerateRequest,
    Health,
    Usage,
)
from interlace.errors import EngineFailed, InterlaceError

LOCAL_CORE = "interlace.engines.local:load_core"


class Keeper(Protocol):
    """Keeps a connection to an engine host: the `Supervisor` that has started it, or an `Attachment` to it."""

    def start(self) -> None:
        """Begin, and return at once."""
        ...

    async def wait_ready(self) -> None:
        """Return once there is a connection; raises `EngineUnavailable` once it is failed or closed."""
        ...

    def connection(self) -> Connection:
        """The one to the host that is ready now; raises `EngineUnavailable`."""
        ...

    def capabilities(self) -> Capabilities:
        """Those of the last host that was ready; raises `EngineUnavailable` before there was one."""
        ...

    def health(self) -> Health:
        """The state now."""
        ...

    async def close(self) -> None:
        """End everything; safe to call twice."""
        ...


class _BehindSocket:
    """An engine whose core runs in another process."""

    def __init__(self, keeper: Keeper, fields: Fields, *, exact: bool) -> None:
        self._keeper = keeper
        self._fields = fields
        self._exact = exact

    async def start(self) -> None:
        """Begin to load, and return at once; `health()` says how far it is."""
        self._keeper.start()

    async def wait_ready(self) -> None:
        """Return once the engine is ready; raises `EngineUnavailable` once it is failed or closed."""
        await self._keeper.wait_ready()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream the events of one request; `aclose()` stops the work within one step."""
        async with aclosing(self.bursts(request)) as bursts:
            async for burst in bursts:
                for event in burst:
                    yield event

    async def bursts(self, request: GenerateRequest) -> AsyncGenerator[list[Event], None]:
        """The same events, in lists of what came together."""
        connection = self._keeper.connection()
        stream = connection.open(request)
        finished = False
        try:
            while not finished:
                burst: list[Event] = []
                failure: InterlaceError | None = None
                for outcome in await stream.take():
                    if isinstance(outcome, Failure):
                        failure = outcome.error()
                    elif isinstance(outcome, Embeddings):
                        failure = EngineFailed("the engine answered a prompt with an embedding")
                    else:
                        burst.append(outcome)
                        finished = isinstance(outcome, Usage)
                if burst:
                    yield burst
                if failure is not None:
                    raise failure
        finally:
            connection.finish(stream, cancel=not finished)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed all texts of the request, answered together."""
        connection = self._keeper.connection()
        stream = connection.open(request)
        finished = False
        try:
            outcome, *_ = await stream.take()
            finished = isinstance(outcome, Embeddings)
        finally:
            connection.finish(stream, cancel=not finished)
        if isinstance(outcome, Failure):
            raise outcome.error()
        if not isinstance(outcome, Embeddings):
            raise EngineFailed("the engine answered an embedding request with text")
        return outcome

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Tokens of the request's prompt, exactly; the host answers while a step runs."""
        connection = self._keeper.connection()
        stream = connection.open(request, count=True)
        finished = False
        try:
            outcome, *_ = await stream.take()
            finished = True
        finally:
            connection.finish(stream, cancel=not finished)
        if isinstance(outcome, Failure):
            raise outcome.error()
        if not isinstance(outcome, Usage):
            raise EngineFailed("the engine answered a question for a count with something else")
        return outcome.prompt_tokens

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """Exact where the core has the tokenizer; else the bound that is counted before a request runs."""
        return await self.count(request), not self._exact

    def fields(self) -> Fields:
        """What becomes of each field of a request."""
        return self._fields

    def capabilities(self) -> Capabilities:
        """What it can do; raises `EngineUnavailable` before it was ready the first time."""
        return self._keeper.capabilities()

    def health(self) -> Health:
        """Its state now, with the counters the host last sent; never waits, never asks."""
        return self._keeper.health()

    async def close(self) -> None:
        """End the host and all requests on it (they get `EngineUnavailable`); safe to call twice."""
        await self._keeper.close()


class HostedEngine(_BehindSocket):
    """A model whose core runs in an engine host, supervised.

    `core` names the factory `load_core(settings, home, progress) -> Core` as "package.module:function". It is
    imported in the host, so it comes from our code or the operator's settings, never from a request. `fields` is what
    becomes of a request's fields there; `exact`: it has the tokenizer. `listen`: where the host listens for other
    gateway processes.
    """

    def __init__(
        self,
        settings: ModelSettings,
        home: Path,
        *,
        core: str = LOCAL_CORE,
        policy: RestartPolicy = DEFAULT_POLICY,
        listen: Path | None = None,
        fields: Fields = LOCAL_FIELDS,
        exact: bool = True,
    ) -> None:
        self._supervisor = Supervisor(settings, home, core, policy, listen)
        super().__init__(self._supervisor, fields, exact=exact)
        self.listen = listen

    def register_adapter(self, name: str, folder: Path) -> None:
        """From now on requests may name the adapter in `folder`, which is read when the first one does. It is served
        after a restart of the host, too."""
        self._supervisor.adapter(name, str(folder))

    def remove_adapter(self, name: str) -> None:
        """From now on there is no adapter of that name; requests that have it keep it to their end."""
        self._supervisor.adapter(name, "")


class AttachedEngine(_BehindSocket):
    """A model whose core runs in a host that another process of this gateway has started and watches; `told` hears of
    it."""

    def __init__(
        self,
        name: str,
        address: Callable[[str], AbstractContextManager[str]],
        *,
        fields: Fields = LOCAL_FIELDS,
        exact: bool = True,
    ) -> None:
        attachment = Attachment(name, address)
        super().__init__(attachment, fields, exact=exact)
        self.told = attachment.told
