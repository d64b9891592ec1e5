"""`POST /admin/v1/reload`: the configuration is read again, and what came of it is the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Never

import msgspec
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.errors import Conflict
from interlace.gateway.http import JSON, Exchange, credential_of, read_json_body, send_whole
from interlace.gateway.wire import convert, decode, encode
from interlace.ledger import Ledger, Registry
from interlace.ledger.operations import Operation
from interlace.ledger.operations.words import Nothing


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a load of the configuration changed: models by name, and the other settings that have another value now.

    Models of `removed` and `replaced` answer the requests they have, and then their engines are closed.
    """

    added: list[str]
    replaced: list[str]
    removed: list[str]
    kept: list[str]
    changed: list[str]


Reload = Callable[[str], Awaitable[Reloaded]]
"""Read the configuration again, for whoever is named; raises `InterlaceError` with nothing changed."""


async def cannot_reload(_: str) -> Never:
    """Of a gateway that was made from settings which nobody can read again."""
    raise Conflict(
        "This server was not started from a configuration that can be read again. Restart it.", code="restart_needed"
    )


def _documented(_: Registry, __: Any) -> Never:
    raise AssertionError("a reload is not the ledger's: see ReloadPage")


RELOAD = Operation(
    "reload", "POST", "/reload", "Read the configuration again; a wrong one changes nothing.", Nothing, Reloaded,
    _documented,
)  # fmt: skip
"""As the OpenAPI document has it. It is no verb of the ledger, which has no engines."""


@dataclass(frozen=True)
class ReloadPage:
    """An ASGI application for that path."""

    ledger: Ledger
    limits: LimitSettings
    reload: Callable[[], Reload]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reload, which lasts as long as new models take to load."""
        exchange: Exchange = scope["interlace.exchange"]
        exchange.endpoint = "admin"
        caller = self.ledger.authenticate(credential_of(scope), "admin")
        body = await read_json_body(scope, receive, self.limits.body_bytes, self.limits.body_seconds)
        convert(decode(body, _object) if body.strip() else {}, Nothing)
        await send_whole(send, 200, JSON, encode(await self.reload()(caller.key.id)))


_object = msgspec.json.Decoder(dict[str, Any])
