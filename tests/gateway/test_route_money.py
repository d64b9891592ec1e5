"""A crowd by a route with everything switched on: no budget is ever overspent, and every attempt is paid for once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from interlace.config import BreakerSettings, HedgeSettings, MemberSettings, RetrySettings
from tests.support.provider import Provider, running_provider
from tests.support.routing import Reply, Routed, route, routed
from tests.support.tenants import tenant

BUDGET = 60_000
CALLERS, ASKS = 12, 8


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("max_tokens", [10, None], ids=["bounded", "open"])
def test_a_crowd_that_hedges_retries_and_falls_back_never_overspends(
    provider: Provider, stream: bool, max_tokens: int | None
) -> None:
    """Looked at all the while: what is spent and what is reserved stay within the budget together. In the end the
    budget is what the events say, and nothing is held."""
    models = {"bad": "status:500", "slow": "late:0.05,5", "quick": "slow:5", "cut": "cut"}
    asked = route(
        MemberSettings("bad", 1), MemberSettings("slow", 2), MemberSettings("cut", 1), MemberSettings("quick", 1),
        retries=RetrySettings(1, 0.005, 0.05), hedge=HedgeSettings(50, 0.02),
    )  # fmt: skip
    prices = {"bad": (1, 10), "slow": (2, 30), "quick": (3, 50), "cut": (1, 20)}
    settings: dict[str, Any] = {"prices": prices, "breaker": BreakerSettings(3, 1, 0.05)}
    with routed(provider, models, asked, **settings) as there:
        who = tenant(there.gateway.registry, key_budget=BUDGET)
        over = _watched(there, who.key.id)
        with ThreadPoolExecutor(CALLERS) as pool:
            body: dict[str, Any] = {"who": who, "stream": stream, "max_tokens": max_tokens}
            replies: list[Reply] = list(pool.map(lambda i: there.ask(f"{i}", **body), range(CALLERS * ASKS)))
        assert over() == []
        assert {reply.status for reply in replies} <= {200, 429, 502}
        events = [event for event in there.gateway.events if event.key_id == who.key.id]
        spent = sum(event.cost_nanos for event in events)
        assert spent == sum(one.cost_nanos for event in events for one in event.attempts) <= BUDGET
        assert len(events) >= sum(reply.status == 200 for reply in replies)
        ends = {one.end for event in events for one in event.attempts}
        assert {"served", "failed", "cancelled"} <= ends, "the crowd did not do what it is here for"


def _watched(there: Routed, key_id: str) -> Any:
    """Looks at the key's account on the gateway's own loop, again and again; gives what was wrong, and stops."""
    found: list[str] = []
    stop = threading.Event()

    async def look() -> None:
        book = there.gateway.pipeline.ledger.book
        while not stop.is_set():
            for (_, id, _), account in list(book.accounts.items()):
                if id == key_id and account.spent + account.reserved > BUDGET:
                    found.append(f"{account.spent} + {account.reserved}")
            await asyncio.sleep(0)

    looking = asyncio.run_coroutine_threadsafe(look(), there.gateway.loop)

    def stopped() -> list[str]:
        stop.set()
        looking.result(10)
        return found

    return stopped
