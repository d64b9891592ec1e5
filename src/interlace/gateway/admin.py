"""The admin API: the ledger's operations under `/admin/v1`, for keys with the scope `admin`, and their OpenAPI page.

Operations wait for the disk, so they run beside the event loop; what they change holds for the next request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.errors import InvalidRequest
from interlace.gateway.admin_openapi import admin_document
from interlace.gateway.http import JSON, Exchange, credential_of, query_of, read_json_body, send_whole
from interlace.gateway.pages import Page
from interlace.gateway.reload_page import RELOAD
from interlace.gateway.wire import ADMIN, convert, decode, encode
from interlace.ledger import Caller, Ledger
from interlace.ledger.operations import OPERATIONS, Operation

_log = logging.getLogger(__name__)
_object = msgspec.json.Decoder(dict[str, Any])


def admin_routes(ledger: Ledger, limits: LimitSettings, more: Sequence[Operation] = ()) -> list[Route]:
    """A route for each path, and one for the document that describes them. `more`: operations on the running server."""
    operations = {**OPERATIONS, **{operation.name: operation for operation in more}}
    paths: dict[str, dict[str, Operation]] = {}
    for operation in operations.values():
        paths.setdefault(operation.path, {})[operation.method] = operation
    routes = [Route(f"{ADMIN}/openapi.json", _document_page(operations), methods=["GET"])]
    for path, methods in paths.items():
        routes.append(Route(ADMIN + _whole(path), AdminPage(methods, ledger, limits), methods=list(methods)))
    return routes


def _whole(path: str) -> str:
    """The last part of a path may hold slashes, as the names of models do."""
    return f"{path[:-1]}:path}}" if path.endswith("}") else path


def _document_page(operations: Mapping[str, Operation]) -> Page:
    body = encode(admin_document({**operations, RELOAD.name: RELOAD}, ADMIN))
    return Page(lambda _: (200, JSON, body))


@dataclass(frozen=True)
class AdminPage:
    """An ASGI application for one path: its operations by method."""

    operations: Mapping[str, Operation]
    ledger: Ledger
    limits: LimitSettings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out one operation. Strangers learn nothing: their bodies are not read."""
        exchange: Exchange = scope["interlace.exchange"]
        exchange.endpoint = "admin"
        caller = self.ledger.authenticate(credential_of(scope), "admin")
        operation = self.operations["GET" if scope["method"] == "HEAD" else scope["method"]]
        given = await self._input(operation, scope, receive)
        if operation.looks_only:
            result = operation.run(self.ledger.registry, given)
        elif operation.runs_here:
            result = await operation.run(self.ledger.registry, given)
        elif self.ledger.operate is not None and operation.method != "GET":
            result = await self.ledger.operate(operation.name, given)
        else:
            result = await asyncio.to_thread(operation.run, self.ledger.registry, given)
        if operation.method != "GET" and not operation.looks_only:
            _tell(operation, caller, result)
        await send_whole(send, 200, JSON, encode(_listed(operation, result)))

    async def _input(self, operation: Operation, scope: Scope, receive: Receive) -> Any:
        if operation.method == "GET":
            fields: dict[str, Any] = query_of(scope)
        else:
            body = await read_json_body(scope, receive, self.limits.body_bytes, self.limits.body_seconds)
            fields = decode(body, _object) if body.strip() else {}
        for name, value in scope["path_params"].items():
            if name in fields:
                raise InvalidRequest(f"`{name}` is in the path already; leave it out here.", param=name)
            fields[name] = value
        return convert(fields, operation.input)


def _listed(operation: Operation, result: Any) -> Any:
    """A list as OpenAI sends one."""
    return {"object": "list", "data": result} if get_origin(operation.output) is list else result


def _tell(operation: Operation, caller: Caller, result: Any) -> None:
    """One line in the log for each change: who did what to which."""
    fields = {"operation": operation.name, "by": caller.key.id, "id": result.id}
    _log.info("an administrator changed the ledger", extra={"fields": fields})
