"""Puts an adapter that was made here into service: by the running server at once, else by the next one that starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from interlace.config import Settings, load_settings, public_name
from interlace.errors import Conflict, InterlaceError, InvalidRequest, NotFound
from interlace.gateway.adapter_view import AdapterView
from interlace.gateway.added_models import with_added_models
from interlace.gateway.asking import Where, ask_server, ask_to_reload
from interlace.gateway.chat import NoServer, server_url
from interlace.gateway.ledger_client import perform
from interlace.gateway.wire import convert
from interlace.models import Added, change_added, copy_adapter, copy_folder, forget_copy, read_added


def place_adapter(
    folder: Path, model: str, name: str, owner: str, where: Where, *, replace: bool
) -> AdapterView | None:
    """Copy the folder's adapter into the home folder, under MODEL:NAME, for the organisation `owner` ("": everybody's).
    What the running server says of it; None where none runs: the next one serves it.

    The same again changes nothing. Another by that name is put in its place where `replace` says so, by one rename of
    the list of entries; else `Conflict` is raised. A server that cannot load the adapter leaves all as it was.
    """
    settings = with_added_models(load_settings(where.config, where.env, {"home": where.home}, need_keys=False))
    served = next((one for one in settings.models if one.name == model), None)
    if served is None:
        raise InvalidRequest(f"The configuration has no model {model!r}.", param="model")
    digest, new = copy_adapter(folder, settings.home, served.adapter_bytes)
    try:
        there = _served(public_name(model, name), settings, where)
        if there is None:
            given = {"model": model, "name": name, "digest": digest} | ({"owner": owner} if owner else {})
            try:
                return convert(_ask("POST", "", given, settings, where), AdapterView)
            except Conflict:  # somebody else, or what is left of us that was killed, was quicker
                if (there := _served(public_name(model, name), settings, where)) is None:
                    raise
        return _instead(there, model, name, digest, settings, where, replace=replace)
    except NoServer:
        owner_id = perform("orgs.show", {"org": owner}, where)["id"] if owner else ""
        _noted(settings.home, Added(model, name, owner_id, digest), replace=replace)
        return None
    except InterlaceError:
        if new:
            forget_copy(settings.home, digest)
        raise


def _served(public: str, settings: Settings, where: Where) -> AdapterView | None:
    try:
        return convert(_ask("GET", f"/{quote(public, safe='')}", None, settings, where), AdapterView)
    except NotFound:
        return None


def _instead(
    there: AdapterView, model: str, name: str, digest: str, settings: Settings, where: Where, *, replace: bool
) -> AdapterView:
    """Put the copy into the place of the adapter that is served by its name, unless it is that one."""
    entry = next((one for one in read_added(settings.home) if (one.model, one.name) == (model, name)), None)
    if entry is not None and entry.digest == digest and Path(there.folder) == copy_folder(settings.home, entry):
        return there
    if entry is None or not (replace or entry.digest == digest):  # listed, and not heard of: who did that was killed
        raise _taken(there.id)
    _swap(settings.home, entry, Added(model, name, entry.owner, digest))
    try:
        ask_to_reload(where)
    except InterlaceError:
        _swap(settings.home, Added(model, name, entry.owner, digest), entry)
        raise
    now = _served(there.id, settings, where)
    if now is None or Path(now.folder) != copy_folder(settings.home, Added(model, name, entry.owner, digest)):
        raise Conflict(f"The server does not serve the new {there.id}. Is its home folder another one?", param="name")
    return now


def _noted(home: Path, new: Added, *, replace: bool) -> None:
    """Take down an entry, while no server runs. All is decided under the list's lock: two commands may be at it."""

    def change(entries: tuple[Added, ...]) -> tuple[Added, ...]:
        there = next((entry for entry in entries if (entry.model, entry.name) == (new.model, new.name)), None)
        if there is None:
            return (*entries, new)
        if there.digest != new.digest and not replace:
            raise _taken(public_name(new.model, new.name))
        kept = Added(new.model, new.name, there.owner, new.digest)
        return tuple(kept if entry == there else entry for entry in entries)

    change_added(home, change)


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
