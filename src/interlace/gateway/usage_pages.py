"""`/v1/usage`: a key's own use, limits and what is left of them, and what one of its requests cost."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

import msgspec
from starlette.types import Receive, Scope, Send

from interlace.errors import NotFound
from interlace.gateway.http import JSON, Exchange, credential_of, query_of, send_whole
from interlace.gateway.wire import convert, encode
from interlace.ledger import Attempt, Caller, Ledger, Tokens, UsageEvent, read_events
from interlace.ledger.operations import Period, UsageReport, summed
from interlace.ledger.standing import Standing, standing
from interlace.money import show_moment, show_usd

OWN_GROUPS = ("model", "route", "tag", "day", "month", "outcome")

_ID = re.compile(r"(?:[a-z]{1,16}[-_])?([0-9a-f]{24})")
_AT_ONCE = 2  # sums read at the same time: they go through the events, and any key may ask


class OwnUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How a key stands, and what it used: this month unless another period is named, by what is named in `by`."""

    standing: Standing
    usage: UsageReport


class SpentAttempt(Attempt, frozen=True, kw_only=True, omit_defaults=False):
    """One model's try at a request that came by a route. The costs of all of them are the request's."""

    cost_usd: str
    latency_seconds: float | None


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost, as it is recorded."""

    id: str
    model: str
    outcome: str
    tokens: Tokens
    cost_nanos: int
    cost_usd: str
    day: str
    started_at: str
    latency_seconds: float | None
    first_token_seconds: float | None
    tags: list[str]
    estimated: bool
    disputed: bool
    batch: bool
    route: str | None
    attempts: list[SpentAttempt]


@dataclass(frozen=True)
class OwnUsagePage:
    """`/v1/usage`, for any key that may ask models."""

    ledger: Ledger
    _reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        caller = _caller(self.ledger, scope)
        wanted = convert(query_of(scope), Period)
        now = await standing(self.ledger, caller)
        if wanted.since is None and wanted.until is None:
            wanted = msgspec.structs.replace(wanted, since=f"{now.month}-01")
        async with self._reading:
            usage = await asyncio.to_thread(summed, self.ledger.registry, wanted, OWN_GROUPS, key_id=caller.key.id)
        await send_whole(send, 200, JSON, encode(OwnUsage(standing=now, usage=usage)))


@dataclass(frozen=True)
class SpentPage:
    """`/v1/usage/{id}`: only who asked may see it; to all others it is not there."""

    ledger: Ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        caller, given = _caller(self.ledger, scope), scope["path_params"]["id"]
        found = _ID.fullmatch(given)
        event = None if found is None else await asyncio.to_thread(self._event, found[1])
        if event is None or event.key_id != caller.key.id:
            raise NotFound("This key has no recorded request of that id.", param="id", code="usage_not_found")
        await send_whole(send, 200, JSON, encode(_spent(event)))

    def _event(self, id: str) -> UsageEvent | None:
        return self.ledger.registry.store.read(lambda connection: next(read_events(connection, id=id), None))


def _caller(ledger: Ledger, scope: Scope) -> Caller:
    exchange: Exchange = scope["interlace.exchange"]
    exchange.endpoint = "usage"
    return ledger.authenticate(credential_of(scope))


def _spent(event: UsageEvent) -> Spent:
    return Spent(
        id=event.id,
        model=event.model,
        outcome=event.outcome.value,
        tokens=event.tokens,
        cost_nanos=event.cost_nanos,
        cost_usd=show_usd(event.cost_nanos),
        day=event.day,
        started_at=show_moment(event.started_us),
        latency_seconds=None if event.latency_us is None else event.latency_us / 1e6,
        first_token_seconds=None if event.first_token_us is None else event.first_token_us / 1e6,
        tags=list(event.tags),
        estimated=event.estimated,
        disputed=event.disputed,
        batch=event.batch,
        route=event.route,
        attempts=[_spent_attempt(event, number) for number in range(len(event.attempts))],
    )


def _spent_attempt(event: UsageEvent, number: int) -> SpentAttempt:
    attempt, times = event.attempts[number], event.attempt_us
    return SpentAttempt(
        **{name: getattr(attempt, name) for name in Attempt.__struct_fields__},
        cost_usd=show_usd(attempt.cost_nanos),
        latency_seconds=None if times is None else times[number] / 1e6,
    )
