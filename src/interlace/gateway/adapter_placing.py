"""Puts an adapter that was made here into service: by the running server at once, else by the next one that starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from interlace.config import LONGEST_NAME, ModelSettings, Settings, load_settings, public_name
from interlace.errors import Conflict, InterlaceError, InvalidRequest, NotFound
from interlace.gateway.adapter_view import AdapterView
from interlace.gateway.added_models import with_added_models
from interlace.gateway.asking import Where, ask_server, ask_to_reload
from interlace.gateway.chat import NoServer, server_url
from interlace.gateway.owners import check_owner, find_owner
from interlace.gateway.wire import convert
from interlace.models import Added, change_added, copy_adapter, copy_folder, forget_copy, read_added


def check_adapter(model: str, name: str, owner: str, where: Where, *, replace: bool) -> None:
    """Before anything is made: raise what would keep an adapter MODEL:NAME from being served to the organisation
    `owner` ("": everybody). `replace`: an earlier one of the same owner may give way to it."""
    settings = _settings(where)
    new = Added(model, name, _owner_of(model, name, owner, settings, where), "")
    try:
        there = _served(public_name(model, name), settings, where)
    except NoServer:
        entry = _entry(read_added(settings.home), new)
        if entry is not None:
            _check_owner(entry, new, where)
    else:
        entry = None if there is None else _replaced(there, new, settings.home, where)
    if entry is not None and not replace:
        raise _taken(public_name(model, name))


def place_adapter(
    folder: Path, model: str, name: str, owner: str, where: Where, *, replace: bool
) -> AdapterView | None:
    """Copy the folder's adapter into the home folder, under MODEL:NAME, for the organisation `owner` ("": everybody's).
    What the running server says of it; None where none runs: the next one serves it.

    The same again changes nothing. Another of the same owner by that name is put in its place where `replace` says so,
    by one rename of the list of entries; else `Conflict` is raised. A server that cannot load the adapter leaves all as
    it was.
    """
    settings = _settings(where)
    owner_id = _owner_of(model, name, owner, settings, where)
    digest, is_new = copy_adapter(folder, settings.home, _model(model, settings).adapter_bytes)
    try:
        return _placed(Added(model, name, owner_id, digest), settings, where, replace=replace)
    except InterlaceError:
        if is_new:
            forget_copy(settings.home, digest)
        raise


def _placed(new: Added, settings: Settings, where: Where, *, replace: bool) -> AdapterView | None:
    public = public_name(new.model, new.name)
    try:
        there = _served(public, settings, where)
        if there is None:
            given = {"model": new.model, "name": new.name, "digest": new.digest}
            given |= {"owner": new.owner} if new.owner else {}
            try:
                return convert(_ask("POST", "", given, settings, where), AdapterView)
            except Conflict:  # somebody else, or what is left of us that was killed, was quicker
                if (there := _served(public, settings, where)) is None:
                    raise
        return _instead(there, new, settings, where, replace=replace)
    except NoServer:
        _noted(settings.home, new, where, replace=replace)
        return None


def _settings(where: Where) -> Settings:
    return with_added_models(load_settings(where.config, where.env, {"home": where.home}, need_keys=False))


def _model(name: str, settings: Settings) -> ModelSettings:
    found = next((one for one in settings.models if one.name == name), None)
    if found is None:
        raise InvalidRequest(f"The configuration has no model {name!r}.", param="model")
    return found


def _owner_of(model: str, name: str, owner: str, settings: Settings, where: Where) -> str:
    """The id of the organisation ("": everybody). Raises where the next server would leave the adapter out, for the
    configuration has its name or no model can be called so, or where nobody could use it, for its base is another's."""
    base, public = _model(model, settings), public_name(model, name)
    if (over := len(public) - LONGEST_NAME) > 0:
        mend = f"one of {len(name) - over} at most, or " if len(name) > over else ""
        raise InvalidRequest(
            f"Callers would write {public}, which has {len(public)} characters, and a name can have {LONGEST_NAME}. "
            f"Choose {mend}a shorter name for the model {model} in the configuration.",
            param="name",
        )
    for what, names in (
        ("a model", {one.name for one in settings.models}),
        ("a route", {route.name for route in settings.routes}),
        ("an adapter", {public_name(one.name, adapter.name) for one in settings.models for adapter in one.adapters}),
    ):
        if public in names:
            raise Conflict(
                f"The configuration has {what} {public}. Choose another name, or remove it there.", param="name"
            )
    found = find_owner(owner, where)
    if owner and base.owner and not found.has(base.owner):
        raise InvalidRequest(
            f"The model {model} belongs to {base.owner}, so nobody could use an adapter of {owner} over it. Say "
            f"--owner {base.owner}, or give it to {owner} in the configuration.",
            param="owner",
        )
    return found.id


def _served(public: str, settings: Settings, where: Where) -> AdapterView | None:
    try:
        return convert(_ask("GET", f"/{quote(public, safe='')}", None, settings, where), AdapterView)
    except NotFound:
        return None


def _instead(there: AdapterView, new: Added, settings: Settings, where: Where, *, replace: bool) -> AdapterView:
    """Put the copy into the place of the adapter that is served by its name, unless it is that one."""
    entry = _replaced(there, new, settings.home, where)
    if entry == new and Path(there.folder) == copy_folder(settings.home, new):
        return there
    if not (replace or entry.digest == new.digest):  # listed, and not heard of: who did that was killed
        raise _taken(there.id)
    _swap(settings.home, entry, new)
    try:
        ask_to_reload(where)
    except InterlaceError:
        _swap(settings.home, new, entry)
        raise
    now = _served(there.id, settings, where)
    if now is None or Path(now.folder) != copy_folder(settings.home, new):
        raise Conflict(f"The server does not serve the new {there.id}. Is its home folder another one?", param="name")
    return now


def _replaced(there: AdapterView, new: Added, home: Path, where: Where) -> Added:
    """The entry of what is served by the new one's name, of the same owner."""
    if there.source != "added":
        raise Conflict(
            f"The server's configuration has an adapter {there.id}. Choose another name, or remove it there, and then: "
            "interlace reload",
            param="name",
        )
    entry = _entry(read_added(home), new)
    if entry is None:
        raise _taken(there.id)
    _check_owner(entry, new, where)
    return entry


def _noted(home: Path, new: Added, where: Where, *, replace: bool) -> None:
    """Take down an entry, while no server runs. All is decided under the list's lock: two commands may be at it."""

    def change(entries: tuple[Added, ...]) -> tuple[Added, ...]:
        there = _entry(entries, new)
        if there is None:
            return (*entries, new)
        _check_owner(there, new, where)
        if there.digest != new.digest and not replace:
            raise _taken(public_name(new.model, new.name))
        return tuple(new if entry == there else entry for entry in entries)

    change_added(home, change)


def _entry(entries: tuple[Added, ...], new: Added) -> Added | None:
    return next((entry for entry in entries if (entry.model, entry.name) == (new.model, new.name)), None)


def _check_owner(old: Added, new: Added, where: Where) -> None:
    check_owner("adapters", public_name(new.model, new.name), old.owner, new.owner, where)


def _swap(home: Path, old: Added, new: Added) -> None:
    change_added(home, lambda entries: tuple(new if entry == old else entry for entry in entries))


def _taken(public: str) -> Conflict:
    return Conflict(
        f"There is an adapter {public} already. Choose another name, or remove it: interlace adapters rm {public}",
        param="name",
    )


def _ask(method: str, path: str, body: dict[str, Any] | None, settings: Settings, where: Where) -> Any:
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    return ask_server(method, f"/adapters{path}", body, url, settings, where, seconds=None)
