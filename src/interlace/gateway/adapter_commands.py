"""`interlace adapters`: what a running server serves over its models, and changing that while it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from interlace.config import Settings, load_settings
from interlace.errors import InterlaceError, InvalidRequest
from interlace.gateway.adapter_view import AdapterView
from interlace.gateway.added_models import with_added_models
from interlace.gateway.asking import Where, ask_server
from interlace.gateway.chat import server_url
from interlace.gateway.wire import convert
from interlace.models import copy_adapter, forget_copy, print_table


def list_adapters(where: Where, *, as_json: bool) -> int:
    """Print every adapter that is served."""
    rows = convert(_ask("GET", "", None, _settings(where), where)["data"], list[AdapterView])
    if as_json:
        _print_json(rows)
    elif not rows:
        print("No adapters are served.", file=sys.stderr)
    else:
        cells = [[row.id, row.owner or "everybody", row.source, row.priced_as or "no price"] for row in rows]
        print_table(["ADAPTER", "OWNER", "SOURCE", "PRICED AS"], cells)
    return 0


def show_adapter(name: str, where: Where, *, as_json: bool) -> int:
    """Print one."""
    return _print_one(_ask("GET", f"/{quote(name, safe='')}", None, _settings(where), where), as_json=as_json)


def add_adapter(folder: Path, model: str, name: str, owner: str | None, where: Where, *, as_json: bool) -> int:
    """Copy the folder's adapter into the home folder and have the server serve the copy. Raises what the server says
    against it, and then nothing is changed."""
    settings = _settings(where)
    served = next((one for one in settings.models if one.name == model), None)
    if served is None:
        raise InvalidRequest(f"The configuration has no model {model!r}.", param="model")
    digest, new = copy_adapter(folder, settings.home, served.adapter_bytes)
    given = {"model": model, "name": name, "digest": digest} | ({} if owner is None else {"owner": owner})
    try:
        answer = _ask("POST", "", given, settings, where)
    except InterlaceError:
        if new:
            forget_copy(settings.home, digest)
        raise
    return _print_one(answer, as_json=as_json)


def remove_adapter(name: str, where: Where, *, as_json: bool) -> int:
    """Have the server serve it no more."""
    return _print_one(_ask("DELETE", f"/{quote(name, safe='')}", None, _settings(where), where), as_json=as_json)


def _settings(where: Where) -> Settings:
    return with_added_models(load_settings(where.config, where.env, {"home": where.home}, need_keys=False))


def _ask(method: str, path: str, body: Mapping[str, Any] | None, settings: Settings, where: Where) -> Any:
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    return ask_server(method, f"/adapters{path}", body, url, settings, where, seconds=None)


def _print_one(answer: Any, *, as_json: bool) -> int:
    view = convert(answer, AdapterView)
    if as_json:
        _print_json(view)
    else:
        for field, value in msgspec.to_builtins(view).items():
            print(f"{field.replace('_', ' '):10} {value or 'none'}")
    return 0


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
