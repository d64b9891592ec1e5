"""How the command line reaches the ledger: in the database while no server runs, else through its admin API.

The operations are the same, written once in `ledger/operations`; here is only the way to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, get_origin
from urllib.parse import quote

import msgspec

from interlace.config import Settings, find_config, load_settings
from interlace.deposits import Deposits
from interlace.gateway.asking import Where, error_of
from interlace.gateway.chat import ChatError, NoServer, Server, server_url
from interlace.gateway.wire import ADMIN, convert
from interlace.ledger import LedgerBusy, Registry
from interlace.ledger.operations import OPERATIONS, Operation


def perform(name: str, given: Mapping[str, Any], where: Where) -> Any:
    """Carry out one operation and return what it gives, in plain values.

    A server that `--url` or `INTERLACE_URL` names is asked; else the ledger at home is opened, and where a server has
    it open, that one is asked. Raises what the operation raises, `LedgerBusy` and `ChatError`.
    """
    operation = OPERATIONS[name]
    settings = load_settings(where.config, where.env, {"home": where.home})
    if url := where.url or where.env.get("INTERLACE_URL"):
        return _ask(operation, given, url, settings, where)
    try:
        registry = Registry.open(settings, where.env, take_over=find_config(where.config, where.env) is not None)
    except LedgerBusy:
        return _ask_who_has_it(operation, given, settings, where)
    with closing(registry):
        registry.make_defaults()
        Deposits(registry)  # erases its share of a project
        return msgspec.to_builtins(operation.run(registry, convert(dict(given), operation.input)))


def _ask_who_has_it(operation: Operation, given: Mapping[str, Any], settings: Settings, where: Where) -> Any:
    url = server_url(settings)
    try:
        return _ask(operation, given, url, settings, where)
    except NoServer:
        raise LedgerBusy(
            f"Another Interlace has the ledger in {settings.home} open, and no server answers at {url}. Name the "
            "address it listens on with --url or INTERLACE_URL."
        ) from None


def _ask(operation: Operation, given: Mapping[str, Any], url: str, settings: Settings, where: Where) -> Any:
    server = Server.reached_as(url, where.key, settings, where.env)
    try:
        response = server.send(operation.method, *_request(operation, given))
    finally:
        server.close()
    if response.is_error:
        raise error_of(response, server.url)
    try:
        answer = response.json()
        return answer["data"] if get_origin(operation.output) is list else answer
    except (ValueError, KeyError, TypeError):
        raise ChatError(f"{server.url} did not answer as Interlace's admin API does.") from None


def _request(operation: Operation, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None, Any]:
    """Path, query and body."""
    places = {name: quote(str(given[name]), safe="") for name in operation.in_path}
    rest = {name: value for name, value in given.items() if name not in places}
    path = ADMIN + operation.path.format(**places)
    return (path, rest, None) if operation.method == "GET" else (path, None, rest)
