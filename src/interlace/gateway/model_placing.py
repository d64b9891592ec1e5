"""Puts a checkpoint of the store into service as a model: by the running server at once, else by the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from interlace.config import AddedModel, ModelSettings, Settings, load_settings, read_added_models
from interlace.errors import Conflict, InterlaceError, NotFound
from interlace.gateway.asking import Where, ask_server, ask_to_reload
from interlace.gateway.chat import NoServer, server_url
from interlace.gateway.model_view import ModelView
from interlace.gateway.owners import check_owner, find_owner
from interlace.gateway.wire import convert
from interlace.models import change_added_models


def configured(name: str, settings: Settings) -> ModelSettings | None:
    """The configuration's own model of that name. Raises `Conflict` where a route has it."""
    if any(route.name == name for route in settings.routes):
        raise Conflict(f"The configuration has a route {name}. Choose another name.", param="name")
    return next((model for model in settings.models if model.name == name), None)


def check_name(name: str, settings: Settings, *, replace: bool) -> None:
    """Raise `Conflict` where a model of that name could not be put into service."""
    if configured(name, settings) is not None:
        raise Conflict(f"The configuration has a model {name}. Choose another name, or remove it there.", param="name")
    if not replace and any(entry.name == name for entry in read_added_models(settings.home)):
        raise _taken(name)


def check_model(name: str, owner: str, settings: Settings, where: Where, *, replace: bool) -> None:
    """Before anything is made: raise what would keep a model of that name from being served for the organisation
    `owner` ("": everybody)."""
    check_name(name, settings, replace=replace)
    new = find_owner(owner, where).id
    try:
        there = _served(name, settings, where)
    except NoServer:
        pass
    else:
        if there is None:  # what is listed and not served is written over
            return
        _check_added(there)
    entry = next((one for one in read_added_models(settings.home) if one.name == name), None)
    if entry is not None:
        check_owner("models", name, entry.owner, new, where)


def place_model(name: str, checkpoint: str, owner: str, like: str, where: Where, *, replace: bool) -> ModelView | None:
    """Serve that checkpoint by the name, for the organisation `owner` ("": everybody), at the price of the model `like`
    ("": none). What the running server says of it; None where none runs: the next one serves it.

    The same again changes nothing. Another by that name is put in its place where `replace` says so, by one rename of
    the list of entries, and the earlier one answers what it has begun; else `Conflict` is raised. A server that cannot
    load it leaves all as it was.
    """
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    check_name(name, settings, replace=True)
    try:
        there = _served(name, settings, where)
        if there is None:
            given = {"name": name, "checkpoint": checkpoint} | ({"owner": owner} if owner else {})
            given |= {"like": like} if like else {}
            try:
                return convert(_ask("POST", "", given, settings, where), ModelView)
            except Conflict:  # somebody else, or what is left of us that was killed, was quicker
                if (there := _served(name, settings, where)) is None:
                    raise
        return _instead(there, name, checkpoint, owner, like, settings, where, replace=replace)
    except NoServer:
        _noted(settings, AddedModel(name, checkpoint, find_owner(owner, where).id, like), where, replace=replace)
        return None


def _served(name: str, settings: Settings, where: Where) -> ModelView | None:
    try:
        return convert(_ask("GET", f"/{quote(name, safe='')}", None, settings, where), ModelView)
    except NotFound:
        return None


def _instead(
    there: ModelView,
    name: str,
    checkpoint: str,
    owner: str,
    like: str,
    settings: Settings,
    where: Where,
    *,
    replace: bool,
) -> ModelView:
    """Put the checkpoint into the place of what is served by its name, unless it is that one."""
    _check_added(there)
    entry = next((one for one in read_added_models(settings.home) if one.name == name), None)
    new = AddedModel(name, checkpoint, find_owner(owner, where).id, like)
    if entry == new and there.checkpoint == checkpoint:
        return there
    if entry is None or not (replace or entry.checkpoint == checkpoint):
        raise _taken(name)
    check_owner("models", name, entry.owner, new.owner, where)
    _swap(settings.home, entry, new)
    try:
        ask_to_reload(where)
    except InterlaceError:
        _swap(settings.home, new, entry)
        raise
    now = _served(name, settings, where)
    if now is None or now.checkpoint != checkpoint:
        raise Conflict(f"The server does not serve the new {name}. Is its home folder another one?", param="name")
    return now


def _noted(settings: Settings, new: AddedModel, where: Where, *, replace: bool) -> None:
    """Take down an entry, while no server runs. All is decided under the list's lock: two commands may be at it."""

    def change(entries: tuple[AddedModel, ...]) -> tuple[AddedModel, ...]:
        there = next((entry for entry in entries if entry.name == new.name), None)
        if there is None:
            return (*entries, new)
        if there.checkpoint != new.checkpoint and not replace:
            raise _taken(new.name)
        check_owner("models", new.name, there.owner, new.owner, where)
        return tuple(new if entry == there else entry for entry in entries)

    change_added_models(settings.home, change)


def _swap(home: Path, old: AddedModel, new: AddedModel) -> None:
    change_added_models(home, lambda entries: tuple(new if entry == old else entry for entry in entries))


def _check_added(there: ModelView) -> None:
    if there.source != "added":
        raise Conflict(
            f"The server's configuration has a model {there.id}. Choose another name, or remove it there, and then: "
            "interlace reload",
            param="name",
        )


def _taken(name: str) -> Conflict:
    return Conflict(
        f"There is a model {name} already. Choose another name, or remove it: interlace models rm {name}", param="name"
    )


def _ask(method: str, path: str, body: dict[str, Any] | None, settings: Settings, where: Where) -> Any:
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    return ask_server(method, f"/models{path}", body, url, settings, where, seconds=None)
