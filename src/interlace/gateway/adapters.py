"""Adapters as models: each is served by its public name, `base:adapter`, by its base's engine, behind its owner's wall.

To its engine an adapter has a name that also says whose it is and where it lies. So a public name that is given to
another organisation, or another folder, never leads a request that has begun to what is now behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
import unicodedata
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from interlace.config import AdapterSettings, ModelSettings, Settings, public_name
from interlace.engines.bursts import bursts_of
from interlace.engines.types import (
    Capabilities,
    Embeddings,
    EmbedRequest,
    Engine,
    Event,
    GenerateRequest,
    Health,
    Sampling,
)
from interlace.errors import EngineFailed, EngineUnavailable, InvalidRequest, NotFound, Overloaded
from interlace.gateway.routing import models_of
from interlace.ledger import Caller

_PATIENCE_SECONDS, _PAUSE_SECONDS = 30.0, 0.2  # how long an adapter that arrives waits for a full queue, and how often


def engine_name(adapter: AdapterSettings) -> str:
    """What the engine calls an adapter: its name, and a digest of all that its settings say."""
    said = msgspec.json.encode((adapter.name, adapter.owner, adapter.folder))
    return f"{adapter.name}#{hashlib.sha256(said).hexdigest()[:16]}"


def bare(model: ModelSettings) -> ModelSettings:
    """The model without its adapters, owner and price: what an engine is made for, whatever comes and goes over it."""
    return dataclasses.replace(model, adapters=(), owner="", priced_as="")


@runtime_checkable
class TakesAdapters(Protocol):
    """An engine of this process that can be told of adapters while it runs."""

    def register_adapter(self, name: str, folder: Path) -> None:
        """From now on requests may name the adapter in `folder`."""
        ...

    def remove_adapter(self, name: str) -> None:
        """From now on there is none of that name; requests that have it keep it."""
        ...


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A base's engine with one of its adapters: an `Engine` like any other, equal to another with the same of both."""

    name: str  # the adapter's public name
    base: str  # the base's
    adapter: str  # what its engine calls it
    owner: str
    engine: Engine

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As the base's."""
        async with contextlib.aclosing(self.bursts(request)) as bursts:
            async for burst in bursts:
                for event in burst:
                    yield event

    async def bursts(self, request: GenerateRequest) -> AsyncGenerator[list[Event], None]:
        """As the base's; what its engine says of the adapter is said of its public name."""
        named = msgspec.structs.replace(request, adapter=self.adapter)
        try:
            async with contextlib.aclosing(bursts_of(self.engine, named)) as bursts:
                async for burst in bursts:
                    yield burst
        except NotFound as error:  # of an engine that has just begun again, and is being told
            raise EngineUnavailable("The model is restarting. Try again soon.", retry_after_seconds=1) from error
        except EngineFailed as error:
            if self.adapter not in error.message:
                raise
            raise EngineFailed(error.message.replace(self.adapter, self.name)) from error

    async def embed(self, request: EmbedRequest) -> Embeddings:  # noqa: ARG002 - an engine's signature
        """Never what the base alone would say."""
        raise InvalidRequest("Adapters make no embeddings.", param="model", code="model_not_supported")

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """As the base's: an adapter changes no token of a prompt."""
        return await self.engine.count(request)

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """As the base's."""
        return await self.engine.tell_count(request)

    def capabilities(self) -> Capabilities:
        """The base's, of those that an adapter changes."""
        can = self.engine.capabilities()
        return msgspec.structs.replace(can, embed=False, labels=()) if can.embed or can.labels else can

    def fields(self) -> Mapping[str, Any]:
        """As the base's."""
        return self.engine.fields()

    def health(self) -> Health:
        """As the base's."""
        return self.engine.health()

    async def close(self) -> None:
        """Nothing: the engine is the base's."""


def adapted(settings: Settings, engines: Mapping[str, Engine]) -> dict[str, Adapted]:
    """Every adapter of the served models, by its public name."""
    return {
        (name := public_name(model.name, adapter.name)): Adapted(
            name, model.name, engine_name(adapter), unicodedata.normalize("NFC", adapter.owner), engines[model.name]
        )
        for model in settings.models
        if model.name in engines
        for adapter in model.adapters
    }


def walls(settings: Settings, adapters: Mapping[str, Adapted]) -> dict[str, frozenset[str]]:
    """Public name → owners, of each model and adapter that has one, of each adapter over such a model, and of each
    route that leads to any: who is not every one of them learns nothing of it."""
    owners = {model.name: frozenset({unicodedata.normalize("NFC", model.owner)}) - {""} for model in settings.models}
    owners |= {name: (owners[one.base] | {one.owner}) - {""} for name, one in adapters.items()}
    for route in settings.routes:
        owners[route.name] = frozenset[str]().union(*(owners.get(name, ()) for name in models_of(route)))
    return {name: behind for name, behind in owners.items() if behind}


def passes(owners: Iterable[str], caller: Caller) -> bool:
    """Whether the caller's organisation is each of the owners, which are names or ids; no name can be an id."""
    organisation = caller.organisation
    return all(owner in (organisation.id, organisation.name) for owner in owners)


def hold(engine: object, adapters: Iterable[AdapterSettings]) -> None:
    """Have a local engine of this process serve adapters."""
    if isinstance(engine, TakesAdapters):
        for adapter in adapters:
            engine.register_adapter(engine_name(adapter), Path(adapter.folder))


Held = frozenset[tuple[int, str]]
"""What engines have been told of: (id of the engine, what it calls the adapter)."""


def told(models: Iterable[ModelSettings], engines: Mapping[str, object]) -> Held:
    """All adapters of those models, in their engines."""
    return frozenset((id(engines[model.name]), engine_name(one)) for model in models for one in model.adapters)


def let_go(models: Iterable[ModelSettings], engines: Mapping[str, object], still: Held) -> None:
    """Have the engines serve those of the models' adapters no more that are not among `still`."""
    for model in models:
        engine = engines[model.name]
        if isinstance(engine, TakesAdapters):
            for name in {engine_name(one) for one in model.adapters}:
                if (id(engine), name) not in still:
                    engine.remove_adapter(name)


@contextlib.asynccontextmanager
async def arriving(
    models: Sequence[ModelSettings], engines: Mapping[str, Engine], there: Held
) -> AsyncGenerator[None, None]:
    """The adapters that engines of this process have not been told of are, and each answers once before anybody may
    name it; they are let go again where the block fails. Raises `InvalidRequest` for one that cannot be served, and
    `EngineUnavailable`."""
    new: list[tuple[TakesAdapters, str]] = []
    try:
        for model in models:
            engine = engines[model.name]
            for adapter in model.adapters:
                if isinstance(engine, TakesAdapters) and (id(engine), engine_name(adapter)) not in there:
                    hold(engine, (adapter,))
                    new.append((engine, engine_name(adapter)))
                    await _tried(engine, adapter, public_name(model.name, adapter.name))
        yield
    except BaseException:
        for told_engine, name in new:
            told_engine.remove_adapter(name)
        raise


async def _tried(engine: Engine, adapter: AdapterSettings, public: str) -> None:
    """One token by it: its files have been read and found to fit the base."""
    name = engine_name(adapter)
    request = GenerateRequest(
        f"trial-{uuid.uuid4().hex}", prompt_ids=(0,), sampling=Sampling(max_tokens=1, temperature=0), adapter=name
    )
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            async for _ in engine.generate(request):
                pass
        except Overloaded:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)
        except (EngineFailed, InvalidRequest) as error:
            reason = error.message.replace(name, public)
            raise InvalidRequest(
                f"{reason} Nothing was changed.", param="adapter", code="adapter_not_loaded"
            ) from error
        else:
            return
