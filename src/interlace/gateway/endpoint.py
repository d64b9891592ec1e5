"""One endpoint that answers through the pipeline: HTTP and a dialect on the outside, neutral events on the inside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.errors import EngineUnavailable, InterlaceError
from interlace.gateway.batches import Pace
from interlace.gateway.calls import Ask, Call, Done, Happening
from interlace.gateway.http import (
    EVENT_STREAM,
    ClientGone,
    ClientWatch,
    Exchange,
    ReaderStuck,
    answer_whole,
    blocked,
    conversation_of,
    credential_of,
    read_json_body,
    start_response,
    tags_of,
)
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.rendering import Dialect, Heed, Rendering, unheeded
from interlace.gateway.wire import read_beside

_log = logging.getLogger(__name__)

Happenings = AsyncGenerator[list[Happening], None]


class told_of_the_end:  # noqa: N801 - used as a function is
    """A request that the server cancels, because it shuts down, ends in an error like any other."""

    __slots__ = ("_client",)

    def __init__(self, client: ClientWatch) -> None:
        self._client = client

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, asyncio.CancelledError) and not self._client.gone:
            raise EngineUnavailable("The server is shutting down. Try again soon.", retry_after_seconds=5) from None


@dataclass(frozen=True)
class Endpoint:
    """An ASGI application for one path."""

    name: str
    dialect: Dialect
    pipeline: Pipeline
    limits: LimitSettings
    heed: Heed = unheeded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what went wrong before the answer began."""
        exchange: Exchange = scope["interlace.exchange"]
        exchange.endpoint = self.name
        rendering: Rendering | None = None
        client, pace = ClientWatch(scope, receive), Pace()

        async def read() -> Ask:
            nonlocal rendering
            body = await read_json_body(scope, receive, self.limits.body_bytes, self.limits.body_seconds)
            parse = partial(self.dialect, body, exchange.id, self.limits.sequences)
            ask, rendering = await read_beside(body, parse)
            ask = self.heed(ask, scope)
            exchange.model = ask.model
            client.start()
            return ask

        call = Call(
            id=exchange.id,
            endpoint=self.name,
            credential=credential_of(scope),
            read=read,
            client_gone=lambda: client.gone,
            meter=exchange.meter,
            tags=tags_of(scope),
            tell_limits=exchange.tell_limits,
            tell_unused=exchange.tell_unused,
            tell_route=exchange.tell_route,
            streams=lambda: rendering is None or rendering.stream,
            conversation=conversation_of(scope),
            pace=pace,
        )
        async with client:
            with told_of_the_end(client):
                async with aclosing(self.pipeline.answer(call)) as batches:
                    first = await anext(batches)  # whatever fails until here becomes a status of its own
                    assert rendering is not None
                    try:
                        if rendering.stream:
                            await self._send_stream(scope, send, rendering, first, batches, client, pace)
                        else:
                            await self._send_whole(scope, send, rendering, first, batches)
                    except ReaderStuck:
                        scope["interlace.abort"]()
                        raise

    async def _send_whole(
        self, scope: Scope, send: Send, rendering: Rendering, batch: list[Happening], batches: Happenings
    ) -> None:
        while not isinstance(batch[0], Done):
            rendering.take(batch)
            batch = await anext(batches)
        body = rendering.whole(batch[0])
        await self._patiently(scope, answer_whole(scope, send, body))

    async def _send_stream(
        self,
        scope: Scope,
        send: Send,
        rendering: Rendering,
        batch: list[Happening],
        batches: Happenings,
        client: ClientWatch,
        pace: Pace,
    ) -> None:
        """Everything that waits goes out as one write. After the first byte, an error can only be an event."""
        exchange: Exchange = scope["interlace.exchange"]
        await start_response(send, 200, EVENT_STREAM, (b"cache-control", b"no-cache"))
        try:
            with told_of_the_end(client):
                while not isinstance(batch[0], Done):
                    if data := rendering.chunks(batch):
                        if blocked(scope):
                            pace.fall_behind()
                        await self._write(scope, send, data)
                    batch = await anext(batches)
                end = rendering.last_chunks(batch[0])
        except InterlaceError as error:
            fields = {"error": type(error).__name__, "code": error.code}  # its message may quote what the model said
            _log.warning("a stream ended in an error", extra={"fields": fields})
            end = exchange.style.event(error, exchange.label)
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001 - the status has left already: logged, and told as an event
            _log.exception("a stream ended in a bug of ours")
            end = exchange.style.event(InterlaceError("The server had an error. Try again."), exchange.label)
        await self._write(scope, send, end, more=False)

    async def _write(self, scope: Scope, send: Send, data: bytes, *, more: bool = True) -> None:
        await self._patiently(scope, send({"type": "http.response.body", "body": data, "more_body": more}))

    async def _patiently(self, scope: Scope, sending: Awaitable[None]) -> None:
        """A reader that takes nothing for so long is dropped."""
        if not blocked(scope):
            await sending
            return
        try:
            async with asyncio.timeout(self.limits.reader_seconds):
                await sending
        except TimeoutError:
            raise ReaderStuck from None
