"""Rates through the whole gateway, and the slots that requests wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, Settings
from interlace.engines.types import Delta, Event, GenerateRequest, Started, Usage
from interlace.errors import Overloaded
from interlace.gateway.admission import Admission
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

LONG, HELD_AT = 600, 500  # tokens of an answer, and of them those before a pause


class Parts(ScriptedEngine):
    """Leaks at the prompt "leak"; everything else it answers well, a moment later, with one token from a cache."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As its prompt says."""
        yield Started(2)
        if request.prompt == "leak":
            yield Delta(text="open sesame and more", tokens=4, finish_reason="stop")
        else:
            await asyncio.sleep(0.05)
            yield Delta(text="yes", tokens=1, finish_reason="stop")
        yield Usage(2, 4 if request.prompt == "leak" else 1, cached_tokens=1)


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """A gateway with a talkative model, one that pauses in the middle, and one that may say a denied word."""
    engines = {
        "long": ScriptedEngine(tokens=("word ",) * LONG),
        "held": ScriptedEngine(tokens=("word ",) * LONG, held=True, held_at=HELD_AT),
        "parts": Parts(),
    }
    with running_gateway(Settings(guards=GuardSettings(deny=("open sesame",))), engines) as running:
        yield running


def _ask(gateway: Gateway, who: Tenant, **body: object) -> httpx.Response:
    asked = {"model": "long", "messages": [{"role": "user", "content": "one two three"}], **body}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, headers=who.headers, trust_env=False)


def test_the_tokens_of_an_open_ended_answer_count_as_they_come(gateway: Gateway) -> None:
    """Counted only at the end, any number of answers at once could use any number of tokens in a minute."""
    engine: Any = gateway.engines["held"]
    who = tenant(gateway.registry, tpm=1000)
    window = gateway.pipeline.ledger.limits.use(who.key.id).tokens
    asking = threading.Thread(target=_ask, args=(gateway, who), kwargs={"model": "held"})
    asking.start()
    wait_for(lambda: window.total >= HELD_AT)
    assert engine.running == 1, "it is still being answered"
    assert _ask(gateway, who, max_tokens=LONG).status_code == 429
    gateway.call(engine.release.set)
    asking.join(10)
    assert window.total == 3 + LONG, "in the end exactly those it used"
    refused = _ask(gateway, who, max_tokens=LONG)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")


def test_a_filtered_part_leaves_the_others_their_own_count(gateway: Gateway) -> None:
    """Of two prompts the guard ends one answer; the other is billed by the engine's last word, cached tokens too."""
    body = {"model": "parts", "prompt": ["leak", "well behaved"], "max_tokens": 9}
    answer = httpx.post(f"{gateway.url}/v1/completions", json=body, headers=gateway.headers, trust_env=False)
    assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["content_filter", "stop"]
    assert gateway.events[-1].tokens.cached == 1


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
        assert (admission.waiting, len(admission._places._organisations)) == (0, 1)
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


async def test_admission_can_be_made_larger_and_smaller_while_it_is_used() -> None:
    """A reload changes its bounds: were those who run or wait not counted on, it would let in too many, or nobody."""
    admission = Admission(concurrency=1, queue=9)
    gates, order = [asyncio.Event() for _ in range(6)], []

    async def run(number: int) -> None:
        async with admission.slot():
            order.append(number)
            await gates[number].wait()

    tasks = [asyncio.create_task(run(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert (admission.running, admission.waiting) == (1, 5)
    admission.resize(3, 9)
    await asyncio.sleep(0)
    assert (order, admission.running, admission.waiting) == ([0, 1, 2], 3, 3)
    admission.resize(1, 0)
    for number in (0, 1):
        gates[number].set()
        await asyncio.sleep(0.01)
        assert (order, admission.running) == ([0, 1, 2], 2 - number), "more run than there shall be"
    with pytest.raises(Overloaded):
        await admission.take(0)
    gates[2].set()
    await asyncio.sleep(0.01)
    assert order == [0, 1, 2, 3]
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks)
    assert order == list(range(6))
    assert admission.running == 0
