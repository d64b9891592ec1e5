"""Budgets through the whole gateway: never overspent, never refused in error, whatever arrives at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from interlace.config import Settings
from interlace.engines.types import GenerateRequest
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

PROMPT, ANSWER = 3, 20  # tokens of every request here
COST = 2 * PROMPT + 5 * ANSWER  # nano-dollars, at 2 for a token of the prompt and 5 for one of the answer
ENOUGH = 37


@dataclass
class CountingEngine(ScriptedEngine):
    """Remembers how many requests ran at once."""

    tokens: tuple[str, ...] = ("word ",) * ANSWER
    delay: float = 0.001
    most: int = 0
    seen: list[Any] = field(default_factory=list)

    def generate(self, request: GenerateRequest) -> Any:
        """As scripted."""
        self.most = max(self.most, self.running + 1)
        return super().generate(request)


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """A gateway whose model costs money."""
    settings = Settings(prices=(costing("m", 2, 5),))
    with running_gateway(settings, {"m": CountingEngine()}) as running:
        yield running


async def _ask_at_once(gateway: Gateway, who: Tenant, callers: int, **body: Any) -> list[tuple[int, str, str]]:
    """Status, text and last finish reason or error code of so many callers at once."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], **body}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=gateway.url, headers=who.headers, limits=limits, timeout=60, trust_env=False
    ) as client:

        async def one() -> tuple[int, str, str]:
            answer = await client.post("/v1/chat/completions", json=asked)
            if answer.status_code != 200:
                return answer.status_code, "", answer.json()["error"]["code"]
            if not body.get("stream"):
                choice = answer.json()["choices"][0]
                return 200, choice["message"]["content"], choice["finish_reason"]
            return 200, *_streamed(answer.text)

        return list(await asyncio.gather(*(one() for _ in range(callers))))


def _streamed(text: str) -> tuple[str, str]:
    import json

    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events if event["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    return said, choices[-1]["finish_reason"]


def _spent(gateway: Gateway, who: Tenant) -> tuple[int, int]:
    """What the events add up to, and how many there are."""
    costs = [event.cost_nanos for event in gateway.events if event.key_id == who.key.id]
    return sum(costs), len(costs)


def _nothing_is_held(gateway: Gateway) -> bool:
    book = gateway.pipeline.ledger.book
    return book.waiting == 0 and all(account.reserved == 0 for account in book.accounts.values())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("scope", ["org_budget", "project_budget", "key_budget", "budget_nanos"])
def test_a_budget_for_exactly_37_lets_exactly_37_through(gateway: Gateway, stream: bool, scope: str) -> None:
    """A gateway that checks and then spends lets more through; one that refuses what would fit lets fewer."""
    who = tenant(gateway.registry, **{scope: ENOUGH * COST})
    answers = asyncio.run(_ask_at_once(gateway, who, 100, max_tokens=ANSWER, stream=stream))
    assert Counter(status for status, _, _ in answers) == {200: ENOUGH, 429: 100 - ENOUGH}
    assert {code for status, _, code in answers if status == 429} == {"insufficient_quota"}
    assert _spent(gateway, who) == (ENOUGH * COST, ENOUGH)
    again = asyncio.run(_ask_at_once(gateway, who, 10, max_tokens=ANSWER, stream=stream))
    assert {status for status, _, _ in again} == {429}
    assert _nothing_is_held(gateway)


@pytest.mark.parametrize("stream", [False, True])
def test_who_says_no_max_tokens_holds_little_and_overspends_nothing(gateway: Gateway, stream: bool) -> None:
    """One caller without `max_tokens` must not hold a whole budget, and at its end answers end cleanly."""
    engine: Any = gateway.engines["m"]
    engine.most = 0
    who = tenant(gateway.registry, key_budget=ENOUGH * COST)
    answers = asyncio.run(_ask_at_once(gateway, who, 100, stream=stream))
    assert engine.most >= 30
    served = [(text, end) for status, text, end in answers if status == 200]
    assert {end for _, end in served} <= {"stop", "length"}
    assert len(served) >= 30
    spent, events = _spent(gateway, who)
    shown = sum(len(text.split()) for text, _ in served)
    assert spent == 2 * PROMPT * events + 5 * shown, "what is billed is what was shown"
    assert ENOUGH * COST - COST < spent <= ENOUGH * COST
    assert _nothing_is_held(gateway)


def test_what_would_fit_waits_and_is_served_in_order(gateway: Gateway) -> None:
    """With `max_tokens` far above what is used, a budget for two at a time still serves everybody."""
    bound = 2 * PROMPT + 5 * 10 * ANSWER
    who = tenant(gateway.registry, key_budget=2 * bound)
    answers = asyncio.run(_ask_at_once(gateway, who, 8, max_tokens=10 * ANSWER))
    assert {status for status, _, _ in answers} == {200}
    assert _spent(gateway, who) == (8 * COST, 8)


def test_a_caller_who_leaves_the_queue_holds_nobody_up(gateway: Gateway) -> None:
    """What a waiting caller would have held goes to the next, and nothing of it stays reserved."""
    bound = 2 * PROMPT + 5 * 10 * ANSWER
    who = tenant(gateway.registry, key_budget=bound + 10 * COST)  # one at a time, for all of them

    async def leave_and_ask() -> list[tuple[int, str, str]]:
        impatient = [asyncio.create_task(_ask_at_once(gateway, who, 3, max_tokens=10 * ANSWER)) for _ in range(3)]
        await asyncio.sleep(0.02)
        for task in impatient:
            task.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        return await _ask_at_once(gateway, who, 2, max_tokens=10 * ANSWER)

    assert {status for status, _, _ in asyncio.run(leave_and_ask())} == {200}
    wait_for(lambda: _nothing_is_held(gateway))


def test_a_model_of_price_zero_needs_no_budget(gateway: Gateway) -> None:
    """What is free is free also when a budget is used up."""
    with running_gateway(Settings(prices=(costing("m", 0, 0),)), {"m": CountingEngine()}) as free:
        who = tenant(free.registry, key_budget=0)
        answers = asyncio.run(_ask_at_once(free, who, 20))
        assert {status for status, _, _ in answers} == {200}
        assert _spent(free, who) == (0, 20)
