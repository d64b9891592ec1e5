"""Answers from memory: only of the very same request, of the same project, and billed as the plan of the route says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, MemberSettings, RetrySettings, ReuseSettings, WhenSettings
from interlace.engines.types import Delta, Started, Thought, TokenLogprob, TopLogprob, Usage
from interlace.gateway.calls import PartStarted
from interlace.gateway.routing import Kept, Memory
from tests.support.gateway_thread import wait_for
from tests.support.prices import costing
from tests.support.provider import Provider, running_provider
from tests.support.routing import ANSWER, PROMPT, route, routed
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import tenant

KEPT = ReuseSettings(seconds=60)
COST = PROMPT + 3 * ANSWER

streaming = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@streaming
@pytest.mark.parametrize(("percent", "cost"), [(0, 0), (50, 9), (100, COST)])
def test_the_same_request_is_answered_from_memory(provider: Provider, stream: bool, percent: int, cost: int) -> None:
    """Streamed or not, whichever the first one was; marked for the caller and in the ledger, for its part of the price,
    rounded up once."""
    with routed(provider, {"a": "instant:3"}, route("a", reuse=ReuseSettings(seconds=60, percent=percent))) as there:
        first, again = there.ask(stream=not stream), there.ask(stream=stream)
        assert (again.text, again.whole, again.served) == (first.text, True, ("a", "reused"))
        assert len(provider.seen) == 1
        assert there.attempts() == [("a", "reused", "reused", cost)]
        event = there.event
        assert (event.cost_nanos, event.tokens.completion, event.outcome.value) == (cost, 3, "finished")


def test_nothing_but_the_very_same_request_will_do(provider: Provider) -> None:
    """An answer to something near it is a wrong answer."""
    with routed(provider, {"a": "instant:3"}, route("a", reuse=KEPT)) as there:
        bodies: list[dict[str, Any]] = [
            {}, {"temperature": 0.5}, {"max_tokens": 3}, {"seed": 1}, {"stop": "x"}, {"n": 2}, {"logprobs": True},
            {"messages": [{"role": "system", "content": "hello"}]},
            {"messages": [{"role": "user", "content": "hello "}]},
        ]  # fmt: skip
        assert [there.ask(**body).served[1] for body in bodies] == ["primary"] * len(bodies)
        assert [there.ask(**body).served[1] for body in bodies] == ["reused"] * len(bodies)


def test_projects_share_no_memory(provider: Provider) -> None:
    """What one project asked must not be told to another, not even by how quick the answer is."""
    with routed(provider, {"a": "instant:3"}, route("a", reuse=KEPT)) as there:
        one, other = tenant(there.gateway.registry), tenant(there.gateway.registry)
        assert [there.ask(who=who).served[1] for who in (one, other, one, other)] == [
            "primary",
            "primary",
            "reused",
            "reused",
        ]


@pytest.mark.parametrize("when", [WhenSettings(tags=("vip",)), WhenSettings(plans=("gold",))], ids=["tag", "plan"])
def test_an_answer_is_only_for_those_for_whom_its_model_is(provider: Provider, when: WhenSettings) -> None:
    """A route keeps a model to some; from memory, all others of the project would get what it said."""
    asked = route(MemberSettings("for-some", when=when), fallbacks=("for-all",), reuse=KEPT)
    with routed(provider, {"for-some": "instant:3", "for-all": "instant:2"}, asked) as there:
        some = tenant(there.gateway.registry, name="gold")
        others = tenant(there.gateway.registry, beside=some) if when.plans else some
        told = {"x-interlace-tags": "vip, nobody-asks-for-this"} if when.tags else {}
        assert there.ask(who=some, headers=told).served == ("for-some", "primary")
        assert there.ask(who=others).served == ("for-all", "primary")
        told = {"x-interlace-tags": "vip"} if when.tags else {}
        assert there.ask(who=some, headers=told).served == ("for-some", "reused")
        assert there.ask(who=others, headers={"x-interlace-tags": "a-number"}).served == ("for-all", "reused")


def test_a_batch_pays_its_own_price_for_what_is_reused(provider: Provider) -> None:
    """It would pay more for an answer from memory than for one that is made anew, and not count as a batch."""
    asked = route("a", reuse=ReuseSettings(seconds=60, percent=50))
    halved = {"a": dataclasses.replace(costing("a", PROMPT, ANSWER), batch_percent=50)}
    with routed(provider, {"a": "instant:3"}, asked, prices=halved) as there:
        body = {"model": "r", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
        assert there.ask().whole
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
        with httpx.Client(base_url=there.gateway.url, headers=there.gateway.headers, trust_env=False) as client:
            files = {"file": ("in.jsonl", json.dumps(line))}
            file = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
            wanted = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
            id = client.post("/v1/batches", json=wanted).json()["id"]
            wait_for(lambda: client.get(f"/v1/batches/{id}").json()["status"] == "completed")
        assert (there.event.batch, there.attempts()) == (True, [("a", "reused", "reused", 5)])  # a quarter of 17


def test_off_unless_it_is_switched_on(provider: Provider) -> None:
    """A caller that asks again may want another answer."""
    with routed(provider, {"a": "instant:3"}, route("a")) as there:
        assert [there.ask().served[1] for _ in range(2)] == ["primary", "primary"]


def test_what_failed_or_was_cut_by_a_guard_is_not_kept(provider: Provider) -> None:
    """One bad answer would be given again and again."""
    leaky = ScriptedEngine(tokens=("open", " sesame"))
    guards = GuardSettings(deny=("open sesame",))
    asked = route("a", reuse=KEPT, retries=RetrySettings(times=0))
    with routed(provider, {}, asked, local={"a": leaky}, guards=guards) as there:
        assert [there.ask().served[1] for _ in range(2)] == ["primary", "primary"]
        leaky.fail_after = 1
        assert [there.ask("other").status for _ in range(2)] == [502, 502]


def test_what_costs_nothing_again_needs_no_budget(provider: Provider) -> None:
    """A free answer must not be refused for a budget that is used up."""
    with routed(provider, {"a": "instant:3"}, route("a", reuse=KEPT)) as there:
        who = tenant(there.gateway.registry, key_budget=700)
        assert there.ask(who=who, max_tokens=3).whole
        while there.ask("more", who=who, max_tokens=3, seed=len(provider.seen)).status == 200:
            pass
        assert there.ask(who=who, max_tokens=3).served[1] == "reused"


def test_embeddings_are_reused_too(provider: Provider) -> None:
    """Every endpoint takes every part of a route."""
    engine = ScriptedEngine(embeds=True)
    with routed(provider, {}, route("a", reuse=KEPT), local={"a": engine}) as there:
        with httpx.Client(trust_env=False, headers=there.gateway.headers) as client:
            body = {"model": "r", "input": ["one two"]}
            first, again = (client.post(f"{there.gateway.url}/v1/embeddings", json=body) for _ in range(2))
        assert first.json()["data"] == again.json()["data"]
        assert (again.headers["x-interlace-route"], len(engine.seen)) == ("reused", 1)
        assert (there.event.tokens.embedding, there.event.cost_nanos) == (2, 0)


async def test_memory_is_bounded_in_time_number_and_size() -> None:
    """Kept for ever, or all of them, answers would fill the machine."""
    now = [0.0]
    memory = Memory(ReuseSettings(seconds=10, entries=2, entry_bytes=1000), lambda: now[0])
    for key in (b"1", b"2"):
        await memory.keep(key, Kept("m", (Delta(text="x"),), Usage(1, 1)))
    assert await memory.find(b"1")
    await memory.keep(b"3", Kept("m", (Delta(text="x"),), Usage(1, 1)))
    assert [bool(await memory.find(key)) for key in (b"1", b"2", b"3")] == [True, False, True]
    long = "x" * 1000
    logprob = TokenLogprob(id=1, bytes=b"x", logprob=-1.0, top=(TopLogprob(id=1, bytes=b"x", logprob=-1.0),) * 100)
    for event in (
        Delta(text=long),
        Delta(thought=Thought(long)),
        Delta(logprobs=(logprob,)),
        PartStarted(0, Started(9), long),
        PartStarted(0, Started(9, prompt_text=long)),
    ):
        await memory.keep(b"4", Kept("m", (event,), Usage(1, 1)))
        assert await memory.find(b"4") is None
    now[0] = 10.0
    assert (await memory.find(b"1"), await memory.find(b"3")) == (None, None)
