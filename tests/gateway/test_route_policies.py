"""Hedging, shadows and policies through a real gateway: what they do to the answer, and to the bill."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import (
    BreakerSettings,
    GuardSettings,
    HedgeSettings,
    ModelSettings,
    OpenFirstSettings,
    PartSettings,
    RetrySettings,
    ReuseSettings,
)
from interlace.engines.types import Delta, EmbedRequest, Event, GenerateRequest
from interlace.errors import Overloaded
from interlace.gateway.routing import AnyBreaker, Live, MappedBreakers
from interlace.mapped import area_file
from tests.support.gateway_thread import wait_for
from tests.support.provider import Provider, running_provider
from tests.support.routing import ANSWER, PROMPT, Routed, route, routed
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import tenant

NO_RETRIES = RetrySettings(times=0)
HEDGED = HedgeSettings(percentile=95, least_seconds=0.05)

streaming = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def metric(there: Routed, name: str, **labels: str) -> float:
    """The value of one series."""
    text = httpx.get(f"{there.gateway.url}/metrics", trust_env=False).text
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


# --- hedging -----------------------------------------------------------------------------------------------------


@streaming
def test_who_is_slow_to_begin_is_overtaken_and_stopped(provider: Provider, stream: bool) -> None:
    """The caller waits for the quicker of the two; the slow one must not go on working, and costs what it used: here
    nothing, for it had not begun."""
    asked = route("slow", fallbacks=("quick",), hedge=HEDGED)
    with routed(provider, {"slow": "late:20", "quick": "instant:3"}, asked) as there:
        reply = there.ask(stream=stream)
        assert (reply.text, reply.served) == ("w0 w1 w2 ", ("quick", "hedge"))
        assert there.attempts() == [
            ("slow", "cancelled", "primary", 0),
            ("quick", "served", "hedge", PROMPT + 3 * ANSWER),
        ]
        wait_for(lambda: provider.cancelled == ["late:20"])


@streaming
def test_a_loser_that_had_begun_is_billed_for_what_it_had_said(provider: Provider, stream: bool) -> None:
    """Both were asked on the caller's behalf and both send a bill: the event is their sum, to the nano-dollar."""
    first = ScriptedEngine(tokens=("a", "b", "c"), held=True, held_at=0)
    asked = route("first", fallbacks=("quick",), hedge=HEDGED)
    prices = {"first": (100, 0), "quick": (1, 1)}
    with routed(provider, {"quick": "instant:3"}, asked, local={"first": first}, prices=prices) as there:
        reply = there.ask("one two three", stream=stream)
        assert (reply.text, reply.served) == ("w0 w1 w2 ", ("quick", "hedge"))
        assert [(one[0], one[1], one[3]) for one in there.attempts()] == [
            ("first", "cancelled", 300),
            ("quick", "served", 6),
        ]
        assert (there.event.cost_nanos, there.event.tokens.completion) == (306, 3)
        used = sum(one.tokens.prompt + one.tokens.completion for one in there.event.attempts)
        window = there.gateway.pipeline.ledger.limits.use(there.event.key_id).tokens
        assert window.total == used > there.event.tokens.prompt + there.event.tokens.completion
        assert (first.cancelled, first.running) == (1, 0)


def test_who_begins_in_time_is_not_hedged(provider: Provider) -> None:
    """A second request for each first one would double the bill."""
    asked = route("a", fallbacks=("b",), hedge=HedgeSettings(percentile=95, least_seconds=5))
    with routed(provider, {"a": "slow:3", "b": "instant:3"}, asked) as there:
        assert there.ask().served == ("a", "primary")
        assert provider.bodies("instant:3") == []


def test_where_the_first_fails_while_both_run_the_second_answers(provider: Provider) -> None:
    """And where both fail, the next one is asked."""
    asked = route("a", fallbacks=("b", "c"), hedge=HEDGED, retries=NO_RETRIES)
    models = {"a": "hang-first", "b": "hang-first", "c": "instant:3"}
    with routed(provider, models, asked) as there:
        assert there.ask().served == ("c", "fallback 2 after 502")
        assert [one[1] for one in there.attempts()] == ["failed", "failed", "served"]


def test_what_is_said_to_be_unused_is_of_the_model_that_answers(provider: Provider) -> None:
    """The second model has a use for what the first one leaves aside, or the other way round: of what answers, also
    from memory, the caller must know what became of each field."""
    slow = ScriptedEngine(delay=0.3)
    asked = route("slow", fallbacks=("remote",), hedge=HEDGED, reuse=ReuseSettings(seconds=60))
    with routed(provider, {"remote": "late:9"}, asked, local={"slow": slow}) as there:
        for why in ("primary", "reused"):
            reply = there.ask(service_tier="flex", max_tokens=2)
            assert reply.served == ("slow", why)
            assert reply.headers["x-interlace-unused"] == "service_tier"


def test_a_hedge_that_is_refused_disturbs_nobody(provider: Provider) -> None:
    """The second model may not take what the first one does: the caller, whose answer is on its way, got its 400."""
    asked = route("slow", fallbacks=("picky",), hedge=HEDGED)
    with routed(provider, {"slow": "late:0.3,3", "picky": "status:400"}, asked) as there:
        assert there.ask().served == ("slow", "primary")
        assert [one[:2] for one in there.attempts()] == [("slow", "served"), ("picky", "failed")]


def test_no_hedge_that_no_budget_pays_for(provider: Provider) -> None:
    """Two requests at once may together never cost more than the budget: the slow one is waited for instead."""
    asked = route("slow", fallbacks=("dear",), hedge=HEDGED)
    prices = {"slow": (0, 10), "dear": (0, 100)}
    with routed(provider, {"slow": "late:0.3", "dear": "instant:3"}, asked, prices=prices) as there:
        poor = tenant(there.gateway.registry, key_budget=1000)
        assert there.ask(who=poor).served == ("slow", "primary")
        assert provider.bodies("instant:3") == []
        rich = tenant(there.gateway.registry, key_budget=2200)
        assert there.ask(who=rich).served == ("dear", "hedge")


def test_a_hedge_that_no_budget_pays_for_is_still_a_fallback(provider: Provider) -> None:
    """There is room for the second model once the first has failed, though not for both at once."""
    asked = route("hung", fallbacks=("dear",), hedge=HEDGED, retries=NO_RETRIES)
    prices = {"hung": (0, 10), "dear": (0, 50)}
    with routed(provider, {"hung": "hang-first", "dear": "instant:3"}, asked, prices=prices) as there:
        poor = tenant(there.gateway.registry, key_budget=1100)
        assert there.ask(who=poor).served == ("dear", "fallback 1 after 502")


def test_who_hangs_up_while_two_run_pays_for_both_and_holds_nothing(provider: Provider) -> None:
    """The work was done; and a hold that stayed would lock the budget until a restart."""
    first = ScriptedEngine(tokens=("a", "b", "c"), held=True, held_at=0)
    second = ScriptedEngine(tokens=("a", "b", "c"), held=True, held_at=0)
    asked = route("first", fallbacks=("second",), hedge=HEDGED)
    with routed(provider, {}, asked, local={"first": first, "second": second}) as there:
        body = '{"model": "r", "max_tokens": 9, "messages": [{"role": "user", "content": "one two"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {there.gateway.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", there.gateway.port)) as connection:
            connection.sendall((head + body).encode())
            wait_for(lambda: first.running and second.running)
        wait_for(lambda: there.gateway.events)
        assert (there.event.outcome.value, there.event.cost_nanos) == ("client_gone", 2 * 2 * PROMPT)
        assert [one[1] for one in there.attempts()] == ["cancelled", "cancelled"]
        assert (first.cancelled, second.cancelled) == (1, 1)


@dataclass
class Gated(ScriptedEngine):
    """Begins when it is let."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As scripted, behind the gate."""
        await self.gate.wait()
        async for event in super().generate(request):
            yield event


def test_what_a_guard_refuses_in_both_at_once_is_told_once(provider: Provider) -> None:
    """Token ids are refused when an engine has decoded them; were both told to have served, the record of the request
    would contradict itself for ever."""
    first = Gated()
    second = Gated(gate=first.gate)
    guards, local = GuardSettings(deny=("t5 t6",)), {"first": first, "second": second}
    asked = route("first", fallbacks=("second",), hedge=HEDGED)
    with routed(provider, {}, asked, local=local, guards=guards) as there, ThreadPoolExecutor(1) as pool:
        body = {"model": "r", "prompt": [5, 6], "max_tokens": 3}
        url, headers = f"{there.gateway.url}/v1/completions", there.gateway.headers
        answer = pool.submit(httpx.post, url, json=body, headers=headers, trust_env=False)
        wait_for(lambda: there.gateway.pipeline.admission.running)
        time.sleep(3 * HEDGED.least_seconds)
        there.gateway.call(first.gate.set)
        assert answer.result(20).json()["error"]["code"] == "content_filter"
        assert [(one[0], one[1]) for one in there.attempts()] == [("first", "served"), ("second", "cancelled")]


# --- cheapest, fastest -------------------------------------------------------------------------------------------


def test_the_cheapest_goes_first(provider: Provider) -> None:
    """By what the request would cost there, prompt and answer together."""
    models = {"dear": "instant:1", "cheap": "instant:2"}
    prices = {"dear": (1, 100), "cheap": (50, 1)}
    with routed(provider, models, route("dear", "cheap", policy="cheapest"), prices=prices) as there:
        assert {there.ask().served for _ in range(5)} == {("cheap", "primary")}
        assert there.ask("long " * 1000, max_tokens=1).served[0] == "dear"


def test_the_fastest_goes_first_once_both_are_known(provider: Provider) -> None:
    """By the median time to the first token; one that is not known is tried."""
    models = {"slow": "late:0.15", "quick": "instant:2"}
    with routed(provider, models, route("slow", "quick", policy="fastest")) as there:
        served = [there.ask().served[0] for _ in range(8)]
        assert set(served[:2]) == {"slow", "quick"}
        assert set(served[2:]) == {"quick"}


# --- open first --------------------------------------------------------------------------------------------------


@streaming
def test_an_open_model_that_does_is_kept(provider: Provider, stream: bool) -> None:
    """The closed model is not asked, and what that saved is counted: its price for the same tokens, less ours."""
    asked = route("closed", "open", policy="open_first")
    prices = {"open": (0, 1), "closed": (10, 100)}
    with routed(provider, {"closed": "instant:3"}, asked, local={"open": ScriptedEngine()}, prices=prices) as there:
        reply = there.ask(stream=stream)
        assert (reply.text, reply.served) == ("The capital of France is Paris.", ("open", "primary"))
        assert (there.event.cost_nanos, provider.seen) == (7, [])
        assert metric(there, "interlace_route_judged_total", route="r", verdict="kept") == 1
        assert metric(there, "interlace_route_saved_nanos_total", route="r") == 10 + 700 - 7


@streaming
@pytest.mark.parametrize(
    ("engine", "body", "fault"),
    [
        (ScriptedEngine(tokens=("I'm", " sorry,", " but", " no.")), {}, "refusal"),
        (ScriptedEngine(), {}, "low confidence"),
        (ScriptedEngine(), {"max_tokens": 2, "response_format": {"type": "json_object"}}, "schema"),
    ],
    ids=["refusal", "low confidence", "schema"],
)
def test_an_answer_that_will_not_do_goes_to_the_closed_model(
    provider: Provider, stream: bool, engine: ScriptedEngine, body: dict[str, Any], fault: str
) -> None:
    """The caller sees nothing of the first answer, not even its logprobs, and pays for both that were made."""
    least = -0.4 if fault == "low confidence" else None
    asked = route(
        "open", fallbacks=("closed",), policy="open_first", open_first=OpenFirstSettings(least_mean_logprob=least)
    )
    with routed(provider, {"closed": "instant:2"}, asked, local={"open": engine}) as there:
        reply = there.ask(stream=stream, **body)
        assert (reply.text, reply.served) == ("w0 w1 ", ("closed", f"fallback 1 after {fault}"))
        (rejected, served) = there.event.attempts
        assert (rejected.end, rejected.error, served.end) == ("rejected", fault, "served")
        assert rejected.cost_nanos == PROMPT + rejected.tokens.completion * ANSWER
        assert there.event.cost_nanos == rejected.cost_nanos + served.cost_nanos
        assert metric(there, "interlace_route_judged_total", verdict=fault.replace(" ", "_")) == 1


DEEP = {
    "type": "object",
    "properties": {"people": {"type": "array", "items": {"$ref": "#/$defs/person"}}},
    "required": ["people"],
    "$defs": {"person": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}},
}


@pytest.mark.parametrize(("said", "kept"), [('{"people": [{"age": 3}]}', True), ('{"people": [{"age": "3"}]}', False)])
def test_a_schema_is_looked_at_to_its_last_level(provider: Provider, said: str, kept: bool) -> None:
    """An answer that breaks the form deep inside is as useless to its caller as one that is no JSON."""
    asked = route("open", fallbacks=("closed",), policy="open_first")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": DEEP}}
    engine = ScriptedEngine(deltas=(Delta(tokens=1, text=said), Delta(finish_reason="stop")))
    with routed(provider, {"closed": "instant:2"}, asked, local={"open": engine}) as there:
        reply = there.ask(response_format=form)
        assert reply.served == (("open", "primary") if kept else ("closed", "fallback 1 after schema"))


@streaming
def test_logprobs_that_were_only_asked_to_judge_by_are_not_shown(provider: Provider, stream: bool) -> None:
    """A caller that did not ask for them could trip over them."""
    asked = route("open", "closed", policy="open_first", open_first=OpenFirstSettings(least_mean_logprob=-3))
    engine = ScriptedEngine()
    with routed(provider, {"closed": "instant:2"}, asked, local={"open": engine}) as there:
        with httpx.Client(trust_env=False) as client:
            body = {"model": "r", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
            text = client.post(
                f"{there.gateway.url}/v1/chat/completions", json=body, headers=there.gateway.headers
            ).text
        assert not re.search(r'"logprobs":\s*\{', text)
        (request,) = [one for one in engine.seen if isinstance(one, GenerateRequest)]
        assert request.sampling.logprobs == 0


@pytest.mark.parametrize("fault", ["status:500", "status:400", "refuse:context"])
def test_an_answer_is_kept_after_all_where_nobody_better_can_answer(provider: Provider, fault: str) -> None:
    """A poor answer is better than an error; it is charged once."""
    asked = route("open", fallbacks=("closed",), policy="open_first", retries=NO_RETRIES)
    engine = ScriptedEngine(tokens=("I'm", " sorry."))
    with routed(provider, {"closed": fault}, asked, local={"open": engine}) as there:
        reply = there.ask()
        assert (reply.text, reply.served) == ("I'm sorry.", ("open", "primary"))
        assert [(one[1], one[3]) for one in there.attempts()] == [("served", PROMPT + 2 * ANSWER), ("failed", 0)]


def test_a_full_queue_goes_to_the_closed_model(provider: Provider) -> None:
    """Waiting for a small machine of one's own is what the closed model is there for."""
    full = ScriptedEngine(fail_after=0, error=Overloaded("The queue is full.", retry_after_seconds=30))
    with routed(
        provider, {"closed": "instant:2"}, route("open", "closed", policy="open_first"), local={"open": full}
    ) as there:
        assert there.ask().served == ("closed", "fallback 1 after 429")


# --- shadows -----------------------------------------------------------------------------------------------------


@streaming
def test_a_shadow_is_asked_and_never_seen_or_billed(provider: Provider, stream: bool) -> None:
    """It is the operator's trial: the caller's answer, headers, bill and waiting are as without it."""
    engine = ScriptedEngine(held=True)
    asked = route("a", shadow=PartSettings("new", 100))
    with routed(provider, {"a": "instant:3"}, asked, local={"new": engine}, prices={"new": (7, 7)}) as there:
        poor = tenant(there.gateway.registry, key_budget=PROMPT * 300 + 20 * ANSWER)
        reply = there.ask(who=poor, stream=stream)
        assert (reply.whole, reply.served) == (True, ("a", "primary"))
        assert there.attempts() == [("a", "served", "primary", PROMPT + 3 * ANSWER)]
        wait_for(lambda: engine.running == 1)
        there.gateway.call(engine.release.set)
        wait_for(lambda: metric(there, "interlace_shadow_requests_total", route="r", model="new", end="finished") == 1)
        assert metric(there, "interlace_shadow_cost_nanos_total", route="r", model="new") == 7 + 7 * 7
        assert len(there.gateway.events) == 1


def test_shadows_are_bounded_and_a_broken_one_disturbs_nobody(provider: Provider) -> None:
    """Requests that nobody waits for could otherwise pile up until the server falls."""
    engine = ScriptedEngine(held=True)
    asked = route("a", shadow=PartSettings("new", 100))
    with routed(provider, {"a": "instant:1"}, asked, local={"new": engine}) as there:
        assert all(there.ask().whole for _ in range(20))
        assert engine.running == 16
        assert metric(there, "interlace_shadow_requests_total", end="left_out") == 4
        engine.fail_after = 1
        there.gateway.call(engine.release.set)
        wait_for(lambda: engine.running == 0)


# --- the pieces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_breaker_opens_half_opens_and_lets_one_probe(tmp_path: Path, shared: bool) -> None:
    """Too early and a blip takes a model away; without the single probe, every waiting request falls on a sick one."""
    now = [0.0]
    settings = BreakerSettings(failures=3, window_seconds=10, open_seconds=5)
    breaker: AnyBreaker = Live.of(settings, lambda: now[0]).breaker
    if shared:
        workers = MappedBreakers(area_file(tmp_path), 0, lambda: now[0])
        breaker = workers.breaker(ModelSettings(name="m", breaker=settings))
    for moment in (0, 1, 11.5):  # the first has been forgotten by then
        now[0] = moment
        breaker.failed()
    assert breaker.state == "closed"
    now[0] = 11.6
    breaker.failed()
    breaker.failed()
    assert (breaker.state, breaker.enter()) == ("open", False)
    now[0] = 16.7
    assert breaker.state == "half_open"
    assert (breaker.enter(), breaker.state, breaker.enter()) == (True, "probing", False)
    breaker.leave()
    assert breaker.enter()
    breaker.failed(probe=True)
    assert breaker.state == "open"
    now[0] = 21.8
    assert breaker.enter()
    breaker.succeeded()
    assert (breaker.state, breaker.enter()) == ("closed", False)
    breaker.failed()
    assert breaker.state == "closed"


@pytest.mark.parametrize("place", [0, 1])
def test_one_request_of_a_crowd_probes(provider: Provider, place: int) -> None:
    """Wherever the model stands in the route; else a crowd falls on a model that has just begun to recover."""

    class Counting(ScriptedEngine):
        async def count(self, request: GenerateRequest | EmbedRequest) -> int:
            await asyncio.sleep(0.5)  # meanwhile others come
            return await super().count(request)

    first, sick = ScriptedEngine(fail_after=0), Counting(fail_after=0)
    asked = route(*(["first"] if place else []), "sick", "well", policy="open_first", retries=NO_RETRIES)
    breaker = BreakerSettings(failures=1, window_seconds=60, open_seconds=60)
    local = {"first": first, "sick": sick}
    with routed(provider, {"well": "instant:3"}, asked, local=local, breaker=breaker) as there:
        who = tenant(there.gateway.registry, key_budget=10**9)  # so that tokens are counted
        broken = there.gateway.pipeline.routes.live["sick"].breaker
        broken.settings = breaker
        broken.failed()
        broken.clock = lambda: time.monotonic() + 61
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda i: there.ask(f"{i}", who=who), range(16)))
        assert {reply.served[0] for reply in replies} == {"well"}
        assert len(sick.seen) == 1


def test_first_tokens_are_forgotten() -> None:
    """A model that was slow once is tried again."""
    now = [0.0]
    quick = Live.of(BreakerSettings(), lambda: now[0]).first_tokens
    for seconds in range(1, 101):
        quick.add(float(seconds))
    assert (quick.percentile(50), quick.percentile(95), quick.percentile(95, 101)) == (50.0, 95.0, None)
    now[0] = 301.0
    assert quick.percentile(50) is None


def test_embeddings_have_shadows_too(provider: Provider) -> None:
    """Every endpoint takes every part of a route."""
    one, two = ScriptedEngine(embeds=True), ScriptedEngine(embeds=True)
    asked = route("a", shadow=PartSettings("b", 100))
    before = threading.active_count()
    with routed(provider, {}, asked, local={"a": one, "b": two}) as there:
        with httpx.Client(trust_env=False) as client:
            body = {"model": "r", "input": "one two"}
            answer = client.post(f"{there.gateway.url}/v1/embeddings", json=body, headers=there.gateway.headers)
        assert answer.status_code == 200
        wait_for(lambda: two.seen)
        assert isinstance(two.seen[0], EmbedRequest)
        assert threading.active_count() < before + 30
