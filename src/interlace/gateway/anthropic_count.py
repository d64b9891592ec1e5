"""`/v1/messages/count_tokens`: how many tokens a message's prompt would be billed for. It costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.gateway.anthropic_messages import parse_count, with_betas
from interlace.gateway.calls import Ask, Call
from interlace.gateway.http import (
    JSON,
    ClientWatch,
    Exchange,
    conversation_of,
    credential_of,
    read_json_body,
    send_whole,
    tags_of,
)
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.styles import Header
from interlace.gateway.wire import encode, read_beside


class TokenCount(msgspec.Struct, frozen=True):
    """The answer."""

    input_tokens: int


@dataclass(frozen=True)
class CountEndpoint:
    """An ASGI application: the pipeline up to its engine, which counts instead of answering."""

    name: str
    pipeline: Pipeline
    limits: LimitSettings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a count that is an estimate says so in a header."""
        exchange: Exchange = scope["interlace.exchange"]
        exchange.endpoint = self.name
        client = ClientWatch(scope, receive)

        async def read() -> Ask:
            body = await read_json_body(scope, receive, self.limits.body_bytes, self.limits.body_seconds)
            ask = await read_beside(body, partial(parse_count, body, exchange.id))
            ask = with_betas(ask, scope)
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
            conversation=conversation_of(scope),
        )
        async with client:
            counted = await self.pipeline.count(call)
        more: tuple[Header, ...] = ((b"x-interlace-estimated", b"input_tokens"),) if counted.estimated else ()
        await send_whole(send, 200, JSON, encode(TokenCount(counted.tokens)), *more)
