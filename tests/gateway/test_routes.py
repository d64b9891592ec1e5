"""Routes through a real gateway to a real provider: who answers, what the caller sees, and who pays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from interlace.config import (
    BreakerSettings,
    MemberSettings,
    PartSettings,
    RetrySettings,
    RouteSettings,
    WhenSettings,
)
from interlace.engines.remote.engine import _capabilities_of
from tests.support.provider import Provider, running_provider
from tests.support.routing import ANSWER, PROMPT, route, routed
from tests.support.tenants import tenant

ONE_ANSWER = PROMPT + 3 * ANSWER  # of `instant:3` to one word
NO_RETRIES = RetrySettings(times=0)

streaming = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


# --- who answers -------------------------------------------------------------------------------------------------


@streaming
def test_a_route_answers_under_its_own_name_at_the_price_of_who_served(provider: Provider, stream: bool) -> None:
    """The caller asked for the route, so that is what its answer is called; the bill names the model and its price."""
    with routed(provider, {"a": "instant:3"}, route("a"), prices={"a": (7, 11)}) as there:
        reply = there.ask(stream=stream)
        assert (reply.whole, reply.text, reply.served) == (True, "w0 w1 w2 ", ("a", "primary"))
        event = there.event
        assert (event.model, event.route, event.cost_nanos) == ("a", "r", 7 + 33)
        assert there.attempts() == [("a", "served", "primary", 40)]
        assert [one for one in there.gateway.events if one.route is None] == []


@streaming
@pytest.mark.parametrize("fault", ["status:500", "status:503", "status:429", "status:401", "status:404", "cut:first",
                                   "hang-first", "html", "no-http", "half-json", "error-inside:text"])  # fmt: skip
def test_who_fails_before_the_first_word_is_replaced(provider: Provider, stream: bool, fault: str) -> None:
    """Whatever the fault is, the caller never sees it, and pays for the one answer it got. Half an event is a word
    already in a stream, but not where the caller gets the answer whole."""
    with routed(
        provider, {"bad": fault, "good": "instant:3"}, route("bad", fallbacks=("good",), retries=NO_RETRIES)
    ) as there:
        reply = there.ask(stream=stream)
        if stream and fault == "half-json":
            assert (reply.whole, reply.code, there.event.outcome.value) == (False, "engine_failed", "failed")
            assert (there.event.cost_nanos, there.attempts()[0][1]) == (0, "failed")
            return
        assert (reply.status, reply.text, reply.whole) == (200, "w0 w1 w2 ", True)
        assert reply.served[0] == "good"
        assert str(reply.served[1]).startswith("fallback 1 after ")
        assert there.event.cost_nanos == ONE_ANSWER
        assert [(model, end, cost) for model, end, _, cost in there.attempts()] == [
            ("bad", "failed", 0),
            ("good", "served", ONE_ANSWER),
        ]


@streaming
@pytest.mark.parametrize("fault", ["refuse:key", "refuse:filter", "status:400", "status:422"])
def test_what_is_the_callers_fault_asks_nobody_else(provider: Provider, stream: bool, fault: str) -> None:
    """A wrong request is wrong everywhere, and a refusal on content is not to be shopped around."""
    with routed(provider, {"bad": fault, "good": "instant:3"}, route("bad", fallbacks=("good",))) as there:
        assert there.ask(stream=stream).status == 400
        assert provider.bodies("instant:3") == []


def test_a_prompt_too_long_for_one_goes_to_the_next(provider: Provider) -> None:
    """Only a model with a longer context can answer it; asking the same one again cannot help."""
    with routed(
        provider, {"short": "refuse:context", "long": "instant:3"}, route("short", fallbacks=("long",))
    ) as there:
        assert there.ask().served == ("long", "fallback 1 after 400")
        assert len(provider.bodies("refuse:context")) == 1


@streaming
def test_where_all_fail_the_caller_gets_the_last_error_and_pays_nothing(provider: Provider, stream: bool) -> None:
    """The error of an attempt that nobody asked about would mislead; failed attempts are free."""
    models = {"a": "status:500", "b": "status:503", "c": "cut:first"}
    with routed(provider, models, route("a", fallbacks=("b", "c"), retries=NO_RETRIES)) as there:
        reply = there.ask(stream=stream)
        assert (reply.status, reply.code) == (502, "engine_failed")
        assert (there.event.outcome.value, there.event.cost_nanos) == ("failed", 0)
        assert [one[:2] for one in there.attempts()] == [("a", "failed"), ("b", "failed"), ("c", "failed")]


@streaming
def test_an_answer_that_breaks_off_is_whole_or_not_at_all(provider: Provider, stream: bool) -> None:
    """Once a word has been shown, another model's answer must not be glued to it; else it can be replaced."""
    with routed(
        provider, {"bad": "cut", "good": "instant:3"}, route("bad", fallbacks=("good",), retries=NO_RETRIES)
    ) as there:
        reply = there.ask(stream=stream)
        if stream:
            assert (reply.text, reply.whole, reply.code) == ("one two ", False, "engine_failed")
            assert (there.event.model, there.event.outcome.value, there.event.cost_nanos) == ("bad", "failed", 0)
        else:
            assert (reply.text, reply.served) == ("w0 w1 w2 ", ("good", "fallback 1 after 502"))
            assert there.event.cost_nanos == ONE_ANSWER


@streaming
def test_where_every_provider_refuses_the_books_show_it(provider: Provider, stream: bool) -> None:
    """An operator who looks for why nobody is answered must find that it was the providers, and who was asked."""
    models = {"a": "status:429", "b": "status:429"}
    with routed(provider, models, route("a", fallbacks=("b",), retries=NO_RETRIES)) as there:
        assert there.ask(stream=stream).status == 429
        assert (there.event.outcome.value, there.event.cost_nanos) == ("provider_refused", 0)
        assert [(model, end, cost) for model, end, _, cost in there.attempts()] == [
            ("a", "failed", 0),
            ("b", "failed", 0),
        ]


@streaming
@pytest.mark.parametrize("status", [400, 404, 413, 429])
def test_a_providers_own_refusal_is_recorded_and_free(provider: Provider, stream: bool, status: int) -> None:
    """By a model's own name too: what reached a provider is in the books; what was refused here is not."""
    with routed(provider, {"a": f"status:{status}"}) as there:
        assert there.ask(model="a", stream=stream).status == status
        assert (there.event.outcome.value, there.event.cost_nanos, there.event.model) == ("provider_refused", 0, "a")
        before = len(there.gateway.events)
        assert there.ask(model="a", stream=stream, temperature=9).status == 400
        assert len(there.gateway.events) == before


def test_the_weights_hold(provider: Provider) -> None:
    """Three to one is what was asked for, not turn by turn and not all to the first."""
    members = (MemberSettings("a", weight=3), MemberSettings("b", weight=1), MemberSettings("never", weight=0))
    with routed(provider, {"a": "instant:1", "b": "instant:2", "never": "instant:3"}, route(*members)) as there:
        served = [there.ask().served[0] for _ in range(80)]
        assert 45 <= served.count("a") <= 74
        assert served.count("a") + served.count("b") == 80


def test_embeddings_go_by_routes_too(provider: Provider) -> None:
    """Every endpoint takes the name of a route."""
    with routed(
        provider, {"bad": "status:500", "good": "instant"}, route("bad", fallbacks=("good",), retries=NO_RETRIES)
    ) as there:
        for engine in there.gateway.engines.values():
            object.__setattr__(engine._settings, "embeds", True)  # type: ignore[attr-defined]
            engine._capabilities = _capabilities_of(engine._settings)  # type: ignore[attr-defined]
        body = {"model": "r", "input": ["one two"]}
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{there.gateway.url}/v1/embeddings", json=body, headers=there.gateway.headers)
        assert (answer.status_code, answer.headers["x-interlace-model"]) == (200, "good")
        assert (there.event.tokens.embedding, there.event.cost_nanos) == (2, 2 * PROMPT)


def test_completions_go_by_routes_too(provider: Provider) -> None:
    """Several prompts in one request are one attempt."""
    with routed(
        provider, {"bad": "status:500", "good": "instant:3"}, route("bad", fallbacks=("good",), retries=NO_RETRIES)
    ) as there:
        body = {"model": "r", "prompt": ["one", "two"], "max_tokens": 5}
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{there.gateway.url}/v1/completions", json=body, headers=there.gateway.headers)
        assert (answer.status_code, len(answer.json()["choices"])) == (200, 2)
        assert there.attempts() == [
            ("bad", "failed", "primary", 0),
            ("good", "served", "fallback 1 after 502", 2 * ONE_ANSWER),
        ]


# --- who may -----------------------------------------------------------------------------------------------------


def test_a_route_is_allowed_by_its_own_name(provider: Provider) -> None:
    """A plan that allows the route allows, by it, the models behind; one that allows only these does not allow it."""
    with routed(provider, {"a": "instant:3"}, route("a")) as there:
        by_route = tenant(there.gateway.registry, models=("r",))
        by_model = tenant(there.gateway.registry, models=("a",))
        assert there.ask(who=by_route).whole
        assert there.ask(who=by_route, model="a").status == 403
        assert there.ask(who=by_model).status == 403
        assert there.ask(who=by_model, model="a").whole
        with httpx.Client(trust_env=False, base_url=there.gateway.url) as client:
            lists = [client.get("/v1/models", headers=who.headers).json()["data"] for who in (by_route, by_model)]
            one = client.get("/v1/models/r", headers=by_route.headers).json()
            assert client.get("/v1/models/r", headers=by_model.headers).status_code == 403
        assert [[row["id"] for row in rows] for rows in lists] == [["r"], ["a"]]
        assert (one["engine"], one["state"], one["kind"], one["models"]) == ("route", "ready", "chat", ["a"])


def test_a_model_by_its_own_name_is_as_before(provider: Provider) -> None:
    """No headers, no attempts, no retries: who names a model means that model."""
    with routed(provider, {"a": "status:500", "b": "instant:3"}, route("a", fallbacks=("b",))) as there:
        reply = there.ask(model="a")
        assert (reply.status, reply.served, len(provider.bodies("status:500"))) == (502, (None, None), 1)
        assert (there.event.route, there.event.attempts) == (None, ())


# --- retries -----------------------------------------------------------------------------------------------------


@streaming
def test_a_model_that_fails_once_is_asked_again(provider: Provider, stream: bool) -> None:
    """A blip costs the caller a moment, not an error, and no second model's price."""
    with routed(provider, {"a": "flaky:500,2"}, route("a", retries=RetrySettings(3, 0.01, 1))) as there:
        reply = there.ask(stream=stream)
        assert (reply.text, reply.served) == ("w0 w1 w2 ", ("a", "retry 2 after 502"))
        assert [(one[1], one[3]) for one in there.attempts()] == [("failed", 0), ("failed", 0), ("served", ONE_ANSWER)]


def test_who_asks_for_more_time_than_there_is_is_not_asked_again(provider: Provider) -> None:
    """Seven seconds are longer than any caller's patience here: the next model is asked at once."""
    with routed(
        provider, {"a": "status:429", "b": "instant:3"}, route("a", fallbacks=("b",), retries=RetrySettings(5))
    ) as there:
        assert there.ask().served == ("b", "fallback 1 after 429")
        assert len(provider.bodies("status:429")) == 1


def test_who_says_when_to_come_back_is_obeyed(provider: Provider) -> None:
    """A short Retry-After is waited for and then the model is asked again."""
    with routed(provider, {"a": "flaky:429,1"}, route("a", retries=RetrySettings(1, 0.01, 1))) as there:
        assert there.ask().served == ("a", "retry 1 after 429")


# --- the breaker -------------------------------------------------------------------------------------------------


def test_who_fails_again_and_again_is_asked_last_until_a_probe_succeeds(provider: Provider) -> None:
    """Every caller would otherwise wait for the same broken model; and one that is well again must come back."""
    breaker = BreakerSettings(failures=2, window_seconds=60, open_seconds=60)
    asked = route("a", fallbacks=("b",), retries=NO_RETRIES)
    with routed(provider, {"a": "flaky:500,2", "b": "instant:3"}, asked, breaker=breaker) as there:
        assert [there.ask().served[0] for _ in range(4)] == ["b", "b", "b", "b"]
        assert len(provider.bodies("flaky:500,2")) == 2, "it was asked while its breaker was open"
        live = there.gateway.pipeline.routes.live["a"]
        live.breaker.clock = lambda: time.monotonic() + 61
        assert live.breaker.state == "half_open"
        assert there.ask().served == ("a", "primary")
        assert live.breaker.state == "closed"


def test_failures_by_a_models_own_name_count_too(provider: Provider) -> None:
    """Routes need not find out for themselves; and whoever names the model is never held up."""
    breaker = BreakerSettings(failures=2, window_seconds=60, open_seconds=60)
    with routed(
        provider, {"a": "status:500", "b": "instant:3"}, route("a", fallbacks=("b",)), breaker=breaker
    ) as there:
        assert [there.ask(model="a").status for _ in range(3)] == [502, 502, 502]
        assert there.ask().served == ("b", "primary")


def test_a_breaker_never_takes_the_last_model_away(provider: Provider) -> None:
    """Where there is nobody else, a model that may be broken is better than none."""
    breaker = BreakerSettings(failures=1, window_seconds=60, open_seconds=60)
    with routed(provider, {"a": "flaky:500,1"}, route("a", retries=NO_RETRIES), breaker=breaker) as there:
        assert there.ask().status == 502
        assert there.ask().served == ("a", "primary")


def test_callers_that_ask_wrongly_break_nothing(provider: Provider) -> None:
    """One caller's bad requests must not take a model from everybody else; nor does a rate limit say it is broken."""
    breaker = BreakerSettings(failures=1, window_seconds=60, open_seconds=60)
    models = {"a": "status:400", "b": "status:429", "c": "refuse:context", "d": "instant:3"}
    asked = [RouteSettings(name, (MemberSettings(name),), retries=NO_RETRIES) for name in models]
    routes = [RouteSettings(f"r-{one.name}", one.models, retries=NO_RETRIES) for one in asked]
    with routed(provider, models, *routes, breaker=breaker) as there:
        for name in models:
            there.ask(model=f"r-{name}")
        states = {name: live.breaker.state for name, live in there.gateway.pipeline.routes.live.items()}
        assert states == dict.fromkeys(models, "closed")


# --- conditions, canary, conversations ---------------------------------------------------------------------------


def test_conditions_send_requests_where_they_belong(provider: Provider) -> None:
    """Tools to one model, long prompts to another, a tag to a third; the rest to whoever is for all."""
    members = (
        MemberSettings("tools", weight=1000, when=WhenSettings(needs=("tools",))),
        MemberSettings("long", weight=1000, when=WhenSettings(least_characters=100)),
        MemberSettings("eu", weight=1000, when=WhenSettings(tags=("eu",))),
    )
    models = {name: f"instant:{i}" for i, name in enumerate(("tools", "long", "eu", "rest"), 1)}
    with routed(provider, models, route(*members, fallbacks=("rest",))) as there:
        tool = {"type": "function", "function": {"name": "f"}}
        assert there.ask(tools=[tool]).served[0] == "tools"
        assert there.ask("long " * 30).served[0] == "long"
        assert there.ask(headers={"x-interlace-tags": "eu"}).served[0] == "eu"
        assert there.ask().served == ("rest", "primary")


def test_pictures_go_to_who_is_meant_for_them(provider: Provider) -> None:
    """And what is said beside a picture counts as the prompt's length."""
    members = (
        MemberSettings("eyes", weight=1000, when=WhenSettings(needs=("vision",))),
        MemberSettings("long", weight=1000, when=WhenSettings(least_characters=100)),
    )
    models = {"eyes": "instant:1", "long": "instant:2", "rest": "instant:3"}
    with routed(provider, models, route(*members, fallbacks=("rest",))) as there:
        text = {"type": "text", "text": "what is it?"}
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

        def asked(*parts: Any) -> str | None:
            return there.ask(messages=[{"role": "user", "content": list(parts)}]).served[0]

        assert asked(text) == "rest"
        assert asked(text, picture) == "eyes"
        assert asked({"type": "text", "text": "long " * 30}) == "long"


def test_a_route_with_nobody_for_a_request_says_so(provider: Provider) -> None:
    """A caller cannot mend what it is not told."""
    member = MemberSettings("a", when=WhenSettings(tags=("eu",)))
    with routed(provider, {"a": "instant:3"}, route(member)) as there:
        reply = there.ask()
        assert (reply.status, reply.code) == (400, "no_model_for_request")


def test_a_canary_gets_its_part_and_whoever_fails_it_is_caught(provider: Provider) -> None:
    """A model on trial that breaks must cost nobody an answer."""
    asked = route("a", canary=PartSettings("new", 100), retries=NO_RETRIES)
    with routed(provider, {"a": "instant:3", "new": "flaky:500,1"}, asked) as there:
        assert there.ask().served == ("a", "fallback 1 after 502")
        assert there.ask().served == ("new", "canary")


def test_a_conversation_stays_where_it_began(provider: Provider) -> None:
    """A prompt cache is of use only to who is asked again; another conversation may go elsewhere."""
    models = {name: f"instant:{i}" for i, name in enumerate("abcd", 1)}
    with routed(provider, models, route(*models, sticky=True)) as there:
        first = {"role": "user", "content": "first"}
        more = [first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "second"}]
        home = there.ask(messages=[first]).served[0]
        assert {there.ask(messages=turns).served[0] for turns in ([first], more, more)} == {home}
        by_header = [there.ask(f"{i}", headers={"x-interlace-conversation": "c"}).served[0] for i in range(6)]
        by_key = [there.ask(f"{i}", prompt_cache_key="k").served[0] for i in range(6)]
        assert (len(set(by_header)), len(set(by_key))) == (1, 1)
        assert len({there.ask(f"other {i}").served[0] for i in range(40)}) > 1


# --- money -------------------------------------------------------------------------------------------------------


@streaming
@pytest.mark.parametrize("max_tokens", [20, None])
def test_a_dearer_fallback_is_only_asked_where_a_budget_pays_for_it(
    provider: Provider, stream: bool, max_tokens: int | None
) -> None:
    """The hold grows to what the next model may cost; where it cannot, the first error is told, and the budget is
    whole."""
    models = {"cheap": "status:500", "dear": "instant:3"}
    asked = route("cheap", fallbacks=("dear",), retries=NO_RETRIES)
    prices = {"cheap": (0, 1), "dear": (0, 1000)}
    with routed(provider, models, asked, prices=prices) as there:
        poor = tenant(there.gateway.registry, key_budget=999)
        rich = tenant(there.gateway.registry, key_budget=20_000)
        body: dict[str, Any] = {"stream": stream, "max_tokens": max_tokens}
        assert there.ask(who=poor, **body).status == 502
        assert provider.bodies("instant:3") == []
        assert there.ask(who=rich, **body).served == ("dear", "fallback 1 after 502")
        assert there.event.cost_nanos == 3000
        used = there.ask(who=rich, **(body | {"max_tokens": 17}))
        assert (used.whole, there.event.cost_nanos) == (True, 3000)


def test_what_a_request_by_a_route_cost_can_be_looked_up(provider: Provider) -> None:
    """Whoever pays sees each attempt, with its price and its reason."""
    with routed(
        provider, {"a": "status:500", "b": "instant:3"}, route("a", fallbacks=("b",), retries=NO_RETRIES)
    ) as there:
        there.ask()
        with httpx.Client(trust_env=False, base_url=there.gateway.url, headers=there.gateway.headers) as client:
            spent = client.get(f"/v1/usage/{there.event.id}").json()
            by_route = client.get("/v1/usage?by=route").json()["usage"]["data"]
        assert (spent["route"], spent["model"]) == ("r", "b")
        assert [(one["model"], one["end"], one["cost_usd"]) for one in spent["attempts"]] == [
            ("a", "failed", "0.00"),
            ("b", "served", "0.000000017"),
        ]
        assert spent["attempts"][0]["error"] == "engine_failed"
        assert all(one["latency_seconds"] > 0 for one in spent["attempts"])
        assert [(row["route"], row["requests"]) for row in by_route] == [("r", 1)]
