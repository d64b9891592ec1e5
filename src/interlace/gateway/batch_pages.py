"""`/v1/batches`: leave a batch, look how far it is, stop it, as OpenAI's API has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.deposits import BatchView, Deposits, NewBatch
from interlace.errors import InvalidRequest
from interlace.gateway.batch_endpoints import ENDPOINTS
from interlace.gateway.file_pages import Methods, limit_of
from interlace.gateway.http import JSON, query_of, read_json_body, send_whole
from interlace.gateway.wire import Body, convert, decode, encode
from interlace.ledger import Caller, Ledger

Short = Annotated[str, Meta(max_length=64)]
Cursor = Annotated[str, Meta(pattern="^batch_[0-9a-f]{17}$")]


class ExpiresAfter(Body, frozen=True, kw_only=True):
    """When output files go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class BatchBody(Body, frozen=True, kw_only=True):
    """A batch to make."""

    input_file_id: Short
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[Short, Annotated[str, Meta(max_length=512)]] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchQuery(Body, frozen=True, kw_only=True):
    """What a list of batches may be asked for."""

    after: Cursor | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """Batches, the newest first."""

    data: list[BatchView]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


_decoder = msgspec.json.Decoder(BatchBody)
_MOST_METADATA = 16


def batch_routes(ledger: Ledger, deposits: Deposits, limits: LimitSettings, changed: Callable[[], None]) -> list[Route]:
    """The paths of batches; the runner hears what is `changed`."""
    pages = BatchPages(ledger, deposits, limits, changed)
    return [
        Route("/v1/batches", pages.all, methods=["GET", "POST"]),
        Route("/v1/batches/{id}", pages.one, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", pages.cancel, methods=["POST"]),
    ]


class BatchPages:
    """The ASGI applications. What waits for the disk runs beside the event loop."""

    def __init__(self, ledger: Ledger, deposits: Deposits, limits: LimitSettings, changed: Callable[[], None]) -> None:
        self._batches = deposits.batches
        self._limits = limits
        self._changed = changed
        self.all = Methods(ledger, "batches", GET=self._list, POST=self._create)
        self.one = Methods(ledger, "batches", GET=self._show)
        self.cancel = Methods(ledger, "batches", POST=self._cancel)

    async def _create(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json_body(scope, receive, self._limits.body_bytes, self._limits.body_seconds)
        wanted = decode(body, _decoder)
        if wanted.endpoint not in ENDPOINTS:
            raise InvalidRequest(
                f"Invalid value: {wanted.endpoint[:100]!r}. Supported values are: {', '.join(ENDPOINTS)}.",
                param="endpoint",
                code="invalid_value",
            )
        if wanted.metadata is not None and len(wanted.metadata) > _MOST_METADATA:
            raise InvalidRequest(f"'metadata' takes at most {_MOST_METADATA} pairs.", param="metadata")
        new = NewBatch(
            wanted.endpoint,
            wanted.completion_window,
            wanted.input_file_id,
            wanted.metadata,
            None if wanted.output_expires_after is None else wanted.output_expires_after.seconds,
        )
        batch = await asyncio.to_thread(self._batches.create, caller.project.id, caller.key.id, new)
        self._changed()
        await send_whole(send, 200, JSON, encode(batch))

    async def _list(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        query = convert(limit_of(query_of(scope)), BatchQuery)
        found, more = await asyncio.to_thread(
            self._batches.list, caller.project.id, after=query.after, limit=query.limit
        )
        data = list(found)
        ends = (data[0].id, data[-1].id) if data else (None, None)
        await send_whole(
            send, 200, JSON, encode(BatchList(data=data, first_id=ends[0], last_id=ends[1], has_more=more))
        )

    async def _show(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        batch = await asyncio.to_thread(self._batches.get, caller.project.id, scope["path_params"]["id"])
        await send_whole(send, 200, JSON, encode(batch))

    async def _cancel(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        batch = await asyncio.to_thread(self._batches.cancel, caller.project.id, scope["path_params"]["id"])
        self._changed()
        await send_whole(send, 200, JSON, encode(batch))
