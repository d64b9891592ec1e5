"""What administrators do with models while the server runs: look, and put checkpoints of the store into service or out
of it. A change is written into the home folder first, and then the configuration is read again, as by
`interlace reload`: the new engine is ready before anybody is led to it, and every worker hears of it.

GET    /admin/v1/models
GET    /admin/v1/models/{model}
POST   /admin/v1/models
DELETE /admin/v1/models/{model}

No path comes in by HTTP: what is added lies in the server's store, and is named as it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from interlace.config import AddedModel, ModelSettings, Settings, is_adapter_name, read_added_models
from interlace.errors import Conflict, InvalidRequest, NotFound
from interlace.gateway.added_models import lies_there
from interlace.gateway.model_view import ModelView
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.reload_page import Reload
from interlace.ledger import Registry
from interlace.ledger.operations import Operation
from interlace.ledger.operations.words import Input, Nothing, Word, find_org
from interlace.models import change_added_models


class NewModel(Input, frozen=True, kw_only=True):
    """A checkpoint of the server's store, by its name there. `owner` is the organisation that it belongs to, by name or
    id; left out: everybody's. `like`: the served model whose price it has until it has one of its own."""

    name: Word
    checkpoint: Word
    owner: Word | None = None
    like: Word | None = None


class ModelNamed(Input, frozen=True, kw_only=True):
    """A model, by its public name."""

    model: Word


def model_operations(pipeline: Pipeline, settings: Settings, reload: Callable[[], Reload]) -> tuple[Operation, ...]:
    """The operations, on a running pipeline with these settings."""
    added = {(one.name, one.checkpoint) for one in read_added_models(settings.home)}

    def every(registry: Registry, _: Nothing) -> list[ModelView]:
        return [_view(registry, pipeline, model, added) for model in settings.models]

    def one(registry: Registry, given: ModelNamed) -> ModelView:
        found = next((view for view in every(registry, Nothing()) if view.id == given.model), None)
        if found is None:
            raise _unknown(given.model)
        return found

    async def add(registry: Registry, given: NewModel) -> ModelView:
        if not is_adapter_name(given.name):
            raise InvalidRequest(
                "`name` must be 1 to 64 letters, digits and . _ -, a letter or digit first.",
                param="name",
                code="invalid_name",
            )
        if given.like is not None and given.like not in pipeline.routes.bases:
            raise NotFound(f"No model {given.like!r} is served.", param="like", code="model_not_found")
        owner = "" if given.owner is None else find_org(registry, given.owner).id
        entry = AddedModel(given.name, given.checkpoint, owner, given.like or "")
        if entry.name in pipeline.routes.engines or entry.name in pipeline.routes.routes:
            raise _there(entry.name)
        if not await asyncio.to_thread(lies_there, entry, settings.home):
            raise InvalidRequest(
                f"There is no checkpoint {entry.checkpoint[:100]!r} in this server's store. `interlace checkpoints "
                "list` shows what there is, and `interlace pull` brings more.",
                param="checkpoint",
                code="no_such_checkpoint",
            )
        await _changed(settings.home, lambda entries: (*_without(entries, entry.name), entry))
        try:
            await reload()("models.add")
        except BaseException:
            await asyncio.shield(_changed(settings.home, lambda entries: tuple(e for e in entries if e != entry)))
            raise
        if entry not in await asyncio.to_thread(read_added_models, settings.home):  # somebody else was at it, after us
            raise _there(entry.name)
        return _shown(registry, entry)

    async def remove(registry: Registry, given: ModelNamed) -> ModelView:
        view = one(registry, given)
        if view.source != "added":
            raise Conflict(f"The configuration names {view.id}. Remove it there, and reload.", param="model")
        before = await asyncio.to_thread(read_added_models, settings.home)
        await _changed(settings.home, lambda entries: _without(entries, view.id))
        try:
            await reload()("models.remove")
        except BaseException:
            left = tuple(entry for entry in before if entry.name == view.id)
            await asyncio.shield(_changed(settings.home, lambda entries: (*_without(entries, view.id), *left)))
            raise
        return view

    named = ModelNamed
    return (
        Operation("models.list", "GET", "/models", "All models that are served.", Nothing, list[ModelView], every,
                  looks_only=True),
        Operation("models.show", "GET", "/models/{model}", "One model.", named, ModelView, one, looks_only=True),
        Operation("models.add", "POST", "/models", "Serve a checkpoint of the store.", NewModel, ModelView, add,
                  runs_here=True),
        Operation("models.remove", "DELETE", "/models/{model}", "Serve an added model no more; requests that have it "
                  "keep it.", named, ModelView, remove, runs_here=True),
    )  # fmt: skip


async def _changed(home: Path, change: Callable[[tuple[AddedModel, ...]], tuple[AddedModel, ...]]) -> None:
    await asyncio.to_thread(change_added_models, home, change)


def _without(entries: tuple[AddedModel, ...], name: str) -> tuple[AddedModel, ...]:
    return tuple(entry for entry in entries if entry.name != name)


def _view(registry: Registry, pipeline: Pipeline, model: ModelSettings, added: set[tuple[str, str]]) -> ModelView:
    price = registry.directory.price(model.name, registry.clock.now())
    health = pipeline.routes.engines[model.name].health()
    return ModelView(
        id=model.name,
        checkpoint=model.checkpoint or None,
        owner=_organisation(registry, model.owner),
        source="added" if (model.name, model.checkpoint) in added else "file",
        engine=model.engine,
        state=health.state,
        detail=health.detail,
        priced_as=None if price is None else _priced_as(model, price.source),
    )


def _priced_as(model: ModelSettings, source: str) -> str:
    return model.priced_as if source == "like" else model.name


def _shown(registry: Registry, entry: AddedModel) -> ModelView:
    """As it is once a reload has put it into service."""
    price = registry.directory.price(entry.name, registry.clock.now())
    model = ModelSettings(entry.name, entry.checkpoint, owner=entry.owner, priced_as=entry.like)
    return ModelView(
        id=entry.name,
        checkpoint=entry.checkpoint,
        owner=_organisation(registry, entry.owner),
        source="added",
        engine=model.engine,
        state="ready",
        detail="",
        priced_as=None if price is None else _priced_as(model, price.source),
    )


def _organisation(registry: Registry, owner: str) -> str | None:
    known = registry.directory.organisations.get(owner)
    return (owner if known is None else known.name) or None


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no model {name[:200]!r}.", param="model", code="model_not_found")


def _there(name: str) -> Conflict:
    return Conflict(f"There is something called {name} already. Choose another name, or remove it.", param="name")
