"""`interlace models list|show|add|rm`: what a running server serves, and changing that while it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from interlace.config import load_settings
from interlace.gateway.asking import Where, ask_server
from interlace.gateway.chat import server_url
from interlace.gateway.model_view import ModelView
from interlace.gateway.wire import convert
from interlace.models import print_table


def list_models(where: Where, *, as_json: bool) -> int:
    """Print every model that is served."""
    rows = convert(_ask("GET", "", None, where)["data"], list[ModelView])
    if as_json:
        _print_json(rows)
    elif not rows:
        print("No models are served.", file=sys.stderr)
    else:
        columns = ["MODEL", "CHECKPOINT", "OWNER", "SOURCE", "STATE", "PRICED AS"]
        print_table(columns, [_cells(row) for row in rows])
    return 0


def show_model(name: str, where: Where, *, as_json: bool) -> int:
    """Print one."""
    return _print_one(_ask("GET", f"/{quote(name, safe='')}", None, where), as_json=as_json)


def add_model(name: str, checkpoint: str, owner: str | None, like: str | None, where: Where, *, as_json: bool) -> int:
    """Have the server serve a checkpoint of its store. Raises what the server says against it, and then nothing is
    changed."""
    given = {"name": name, "checkpoint": checkpoint, "owner": owner, "like": like}
    answer = _ask("POST", "", {field: value for field, value in given.items() if value is not None}, where)
    return _print_one(answer, as_json=as_json)


def remove_model(name: str, where: Where, *, as_json: bool) -> int:
    """Have the server serve it no more."""
    return _print_one(_ask("DELETE", f"/{quote(name, safe='')}", None, where), as_json=as_json)


def _ask(method: str, path: str, body: Mapping[str, Any] | None, where: Where) -> Any:
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    return ask_server(method, f"/models{path}", body, url, settings, where, seconds=None)


def _cells(row: ModelView) -> list[str]:
    owner, price = row.owner or "everybody", row.priced_as or "no price"
    return [row.id, row.checkpoint or "", owner, row.source, row.state, price]


def _print_one(answer: Any, *, as_json: bool) -> int:
    view = convert(answer, ModelView)
    if as_json:
        _print_json(view)
        return 0
    for field, value in msgspec.to_builtins(view).items():
        print(f"{field.replace('_', ' '):10} {value or 'none'}")
    if view.priced_as is None:
        print(
            f"It has no price, so requests for it are refused: interlace prices create {view.id} --prompt ... "
            "--completion ...",
            file=sys.stderr,
        )
    return 0


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
