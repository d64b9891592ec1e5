"""What administrators do with adapters while the server runs: look, add and remove. A change is written into the home
folder first, and then the configuration is read again, as by `interlace reload`: every worker hears of it.

GET    /admin/v1/adapters
GET    /admin/v1/adapters/{adapter}
POST   /admin/v1/adapters
DELETE /admin/v1/adapters/{adapter}

No path comes in by HTTP: what is added is a copy that lies in the server's home folder, named by its content.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from interlace.config import LONGEST_NAME, AdapterSettings, ModelSettings, Settings, is_adapter_name, public_name
from interlace.errors import CheckpointError, Conflict, InvalidRequest, NotFound
from interlace.gateway.adapter_view import AdapterView
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.reload_page import Reload
from interlace.ledger import Registry
from interlace.ledger.operations import Operation
from interlace.ledger.operations.words import Input, Nothing, Word, find_org
from interlace.models import Added, change_added, copy_folder, find_copy, read_added

_log = logging.getLogger(__name__)


class NewAdapter(Input, frozen=True, kw_only=True):
    """An adapter over a served model: `digest` names its copy in the server's home folder, `owner` the organisation
    that it belongs to, by name or id; left out: everybody's."""

    model: Word
    name: Word
    digest: Word
    owner: Word | None = None


class AdapterNamed(Input, frozen=True, kw_only=True):
    """An adapter, by its public name."""

    adapter: Word


def with_added(settings: Settings) -> Settings:
    """Settings with the adapters that were added by command. One whose model is gone, or whose name the configuration
    has given to something else, is left out, and the log says so. Raises `ConfigError`."""
    added = read_added(settings.home)
    if not added:
        return settings
    taken = {model.name for model in settings.models} | {route.name for route in settings.routes}
    taken.update(_public_names(settings))
    more: dict[str, list[AdapterSettings]] = {model.name: [] for model in settings.models if model.runs_here}
    for entry in added:
        if entry.model not in more or public_name(entry.model, entry.name) in taken:
            fields = {"adapter": public_name(entry.model, entry.name)}
            _log.warning(
                "an added adapter is not served: its model is gone, or its name taken", extra={"fields": fields}
            )
            continue
        folder = str(copy_folder(settings.home, entry))
        more[entry.model].append(AdapterSettings(entry.name, folder, entry.owner))
    models = [_with(model, more.get(model.name, [])) for model in settings.models]
    return dataclasses.replace(settings, models=tuple(models))


def adapter_operations(pipeline: Pipeline, settings: Settings, reload: Callable[[], Reload]) -> tuple[Operation, ...]:
    """The operations, on a running pipeline with these settings."""

    def every(registry: Registry, _: Nothing) -> list[AdapterView]:
        return [_view(registry, settings.home, model, one) for model in settings.models for one in model.adapters]

    def one(registry: Registry, given: AdapterNamed) -> AdapterView:
        found = next((view for view in every(registry, Nothing()) if view.id == given.adapter), None)
        if found is None:
            raise _unknown(given.adapter)
        return found

    async def add(registry: Registry, given: NewAdapter) -> AdapterView:
        model = next((model for model in settings.models if model.name == given.model), None)
        if model is None or not model.runs_here:
            raise NotFound(f"No model {given.model!r} runs here.", param="model", code="model_not_found")
        public = public_name(model.name, given.name)
        if not is_adapter_name(given.name) or len(public) > LONGEST_NAME:
            raise InvalidRequest(
                "`name` must be 1 to 64 letters, digits and . _ -, a letter or digit first, and "
                f"{LONGEST_NAME} with the model's name before it.",
                param="name",
                code="invalid_name",
            )
        owner = None if given.owner is None else find_org(registry, given.owner)
        if owner is not None and model.owner not in ("", owner.id, owner.name):
            raise InvalidRequest(
                f"{model.name} belongs to another organisation, so nobody could use it. Leave `owner` out: what is "
                "over a model is its owner's.",
                param="owner",
            )
        entry = Added(model.name, given.name, "" if owner is None else owner.id, given.digest)
        if public in pipeline.routes.engines or public in pipeline.routes.routes:
            raise _there(public)
        try:
            await asyncio.to_thread(find_copy, settings.home, entry.digest)
        except CheckpointError as error:
            raise InvalidRequest(error.message, param="digest", code="no_such_copy") from error
        # One of that name that is listed and not served was put there by a process that was killed, or is at it.
        await _changed(settings.home, lambda entries: (*_others(entries, public), entry))
        try:
            await reload()("adapters.add")
        except BaseException:
            await asyncio.shield(_changed(settings.home, lambda entries: tuple(e for e in entries if e != entry)))
            raise
        if entry not in await asyncio.to_thread(read_added, settings.home):  # somebody else was at it, after us
            raise _there(public)
        folder = str(copy_folder(settings.home, entry))
        return _view(registry, settings.home, model, AdapterSettings(entry.name, folder, entry.owner))

    async def remove(registry: Registry, given: AdapterNamed) -> AdapterView:
        view = one(registry, given)
        if view.source != "added":
            raise Conflict(f"The configuration names {view.id}. Remove it there, and reload.", param="adapter")
        before = await asyncio.to_thread(read_added, settings.home)
        await _changed(settings.home, lambda entries: _others(entries, view.id))
        try:
            await reload()("adapters.remove")
        except BaseException:
            left = tuple(entry for entry in before if entry not in _others(before, view.id))
            await asyncio.shield(_changed(settings.home, lambda entries: (*_others(entries, view.id), *left)))
            raise
        return view

    named, new = AdapterNamed, NewAdapter
    all_served = "All adapters that are served."
    return (
        Operation("adapters.list", "GET", "/adapters", all_served, Nothing, list[AdapterView], every, looks_only=True),
        Operation("adapters.show", "GET", "/adapters/{adapter}", "One adapter.", named, AdapterView, one,
                  looks_only=True),
        Operation("adapters.add", "POST", "/adapters", "Serve an adapter.", new, AdapterView, add, runs_here=True),
        Operation("adapters.remove", "DELETE", "/adapters/{adapter}", "Serve an adapter no more; requests that have it "
                  "keep it.", named, AdapterView, remove, runs_here=True),
    )  # fmt: skip


async def _changed(home: Path, change: Callable[[tuple[Added, ...]], tuple[Added, ...]]) -> None:
    await asyncio.to_thread(change_added, home, change)


def _others(entries: tuple[Added, ...], public: str) -> tuple[Added, ...]:
    return tuple(entry for entry in entries if public_name(entry.model, entry.name) != public)


def _view(registry: Registry, home: Path, model: ModelSettings, adapter: AdapterSettings) -> AdapterView:
    public, now = public_name(model.name, adapter.name), registry.clock.now()
    price = registry.directory.price(public, now, model.name)
    return AdapterView(
        id=public,
        model=model.name,
        name=adapter.name,
        owner=_organisation(registry, adapter.owner or model.owner),
        source="added" if Path(adapter.folder).parent == home / "adapters" else "file",
        folder=adapter.folder,
        priced_as=None if price is None else price.model,
    )


def _organisation(registry: Registry, owner: str) -> str | None:
    """The name of the organisation, where there is one that the settings mean."""
    known = registry.directory.organisations.get(owner)
    return (owner if known is None else known.name) or None


def _with(model: ModelSettings, more: list[AdapterSettings]) -> ModelSettings:
    return dataclasses.replace(model, adapters=(*model.adapters, *more)) if more else model


def _public_names(settings: Settings) -> list[str]:
    return [public_name(model.name, one.name) for model in settings.models for one in model.adapters]


def _unknown(public: str) -> NotFound:
    return NotFound(f"There is no adapter {public[:200]!r}.", param="adapter", code="adapter_not_found")


def _there(public: str) -> Conflict:
    return Conflict(f"There is something called {public} already. Choose another name, or remove it.", param="name")
