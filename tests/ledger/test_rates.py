"""Rates through the whole gateway, and the slots that requests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from interlace.config import Settings
from interlace.errors import Overloaded
from interlace.gateway.admission import Admission
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

LONG = 600  # tokens of an answer


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with a talkative model."""
    with running_gateway(Settings(), {"long": ScriptedEngine(tokens=("word ",) * LONG)}) as running:
        yield running


def _ask(gateway: Gateway, who: Tenant, **body: object) -> httpx.Response:
    asked = {"model": "long", "messages": [{"role": "user", "content": "one two three"}], **body}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, headers=who.headers, trust_env=False)


def test_the_tokens_of_an_open_ended_answer_count_as_they_come(gateway: Gateway) -> None:
    """Counted only at the end, any number of answers at once could use any number of tokens in a minute."""
    who = tenant(gateway.registry, tpm=1000)
    window = gateway.pipeline.ledger.limits.use(who.key.id).tokens
    counted: list[int] = []

    async def watch() -> int:
        async with httpx.AsyncClient(headers=who.headers, trust_env=False, timeout=30) as client:
            body = {"model": "long", "messages": [{"role": "user", "content": "a"}], "stream": True}
            async with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        counted.append(window.total)
        return answer.status_code

    assert asyncio.run(watch()) == 200
    assert max(counted) >= LONG, "while it ran, its tokens were in the window"
    assert window.total == LONG + 1, "and in the end exactly those it used"
    refused = _ask(gateway, who, max_tokens=LONG)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")


def test_what_remains_of_the_tokens_leaves_out_what_is_asked_for_now(gateway: Gateway) -> None:
    """As OpenAI says it: a caller that paces itself by the header must not be a request behind."""
    who = tenant(gateway.registry, tpm=1000, rpm=10)
    headers = _ask(gateway, who, max_tokens=100).headers
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 3 - 100)
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert len(headers.get_list("x-ratelimit-limit-tokens")) == 1


async def test_who_comes_and_goes_while_every_slot_is_held_leaves_nothing() -> None:
    """Else callers who connect and hang up would fill the memory, whatever the bound of the queue."""
    admission = Admission(concurrency=1, queue=2)
    async with admission.slot():
        for _ in range(50):
            waiting = asyncio.create_task(admission.take(0))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait((waiting,))
        assert (admission.waiting, len(admission._waiting)) == (0, 0)
        both = [asyncio.create_task(admission.take(0)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await admission.take(0)
    await both[0]
    admission.give_back()
    await both[1]
    admission.give_back()
    assert admission.running == 0


async def test_the_greater_priority_goes_first() -> None:
    """A plan's priority says who is served first when requests queue; within one priority, whoever came first."""
    admission, order = Admission(concurrency=1, queue=9), []

    async def come(name: str, priority: int) -> None:
        async with admission.slot(priority):
            order.append(name)

    async with admission.slot():
        tasks = [asyncio.create_task(come(*each)) for each in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1))]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["b", "d", "a", "c", "e"]
