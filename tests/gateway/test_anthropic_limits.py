"""Limits, failures and counts at Anthropic's endpoints: in their statuses, headers and shapes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, LimitSettings, ModelSettings, Settings
from interlace.engines.fields import ALL_KEPT
from interlace.errors import ContextLengthExceeded
from tests.support.anthropic_shapes import ERROR, checked, events_of
from tests.support.asking import gateway_to
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import costing
from tests.support.provider import running_provider
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Models that answer, break, load and hold on; two may run and none may wait; a token costs a nano-dollar."""
    engines = {
        "m": ScriptedEngine(),
        "broken": ScriptedEngine(fail_after=2),
        "bug": ScriptedEngine(fail_after=2, error=ZeroDivisionError("x")),  # type: ignore[arg-type]
        "loading": ScriptedEngine(state="loading"),
        "short": ScriptedEngine(fail_after=0, error=ContextLengthExceeded("Your input exceeds the context window.")),
        "held": ScriptedEngine(held=True),
        "seeing": ScriptedEngine(fates=ALL_KEPT),
    }
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in engines),
        prices=tuple(costing(name, 1, 1) for name in engines),
        guards=GuardSettings(deny=("open sesame",)),
        limits=LimitSettings(body_bytes=50_000, concurrency=2, queue=1),
        drain_seconds=5,
    )
    with running_gateway(settings, engines) as running:
        yield running


def ask(gateway: Gateway, model: str = "m", path: str = MESSAGES, who: Tenant | None = None, **more: Any) -> Any:
    """One message, or one count."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello out there"}]}
    headers = gateway.headers if who is None else {"x-api-key": who.text}
    body |= {"max_tokens": 7} if path == MESSAGES else {}
    return httpx.post(gateway.url + path, json=body | more, headers=headers, trust_env=False, timeout=20)


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    """The words of an error, once its status and shape are known to be right."""
    assert answer.status_code == status, answer.text
    error = checked(ERROR, answer.content)
    assert (error.error.type, error.request_id) == (kind, answer.headers["request-id"])
    return str(error.error.message)


def test_rates_are_told_in_anthropics_headers(gateway: Gateway) -> None:
    """Limit, what remains and the moment at which all of it is there again; not OpenAI's headers as well."""
    headers = ask(gateway, who=tenant(gateway.registry, rpm=2, tpm=1000)).headers
    assert headers["anthropic-ratelimit-requests-limit"] == "2"
    assert headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert headers["anthropic-ratelimit-tokens-remaining"] == str(1000 - 3 - 7)
    reset = datetime.fromisoformat(headers["anthropic-ratelimit-tokens-reset"])
    assert 0 <= (reset - datetime.now(UTC)).total_seconds() <= 62
    assert not [name for name in headers if name.startswith("x-ratelimit-")]


def test_a_used_up_rate_is_a_429_and_counts_count(gateway: Gateway) -> None:
    """A count takes a request of the rate, and is refused when there is none left."""
    who = tenant(gateway.registry, rpm=2)
    assert ask(gateway, path=COUNT, who=who).headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert ask(gateway, who=who).status_code == 200
    for path in (MESSAGES, COUNT):
        answer = ask(gateway, path=path, who=who)
        refused(answer, 429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1


def test_an_empty_purse_is_a_402(gateway: Gateway) -> None:
    """Anthropic's billing_error, which its SDK does not try again; a count is free."""
    who = tenant(gateway.registry, key_budget=5)
    refused(ask(gateway, who=who), 402, "billing_error")
    assert ask(gateway, path=COUNT, who=who).json() == {"input_tokens": 3}


def test_a_count_leaves_no_usage_event_and_asks_no_model(gateway: Gateway) -> None:
    """Nothing was used, so there is nothing to bill."""
    engine: Any = gateway.engines["m"]
    recorded, asked = len(gateway.events), len(engine.seen)
    assert ask(gateway, path=COUNT).json() == {"input_tokens": 3}
    assert (len(gateway.events), len(engine.seen)) == (recorded, asked)


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_what_a_key_may_not_use(gateway: Gateway, path: str) -> None:
    """Allow-lists hold for counts as for messages: 403 in Anthropic's shape."""
    refused(ask(gateway, path=path, who=tenant(gateway.registry, models=("other",))), 403, "permission_error")


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_failures_before_the_answer(gateway: Gateway, path: str) -> None:
    """A body too large, a model that loads, a guard that refuses: statuses of their own, in shape."""
    refused(ask(gateway, path=path, system="x" * 60_000), 413, "invalid_request_error")
    refused(ask(gateway, "loading", path), 503, "api_error")
    refused(ask(gateway, path=path, system="now open sesame"), 400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_context_that_is_too_short(gateway: Gateway, stream: bool) -> None:
    """However a provider says it, it is told in words that clients look for before they shorten a conversation."""
    answer = ask(gateway, "short", stream=stream)
    assert "prompt is too long: Your input exceeds the context window." in answer.text


def test_a_full_queue_is_a_529(gateway: Gateway) -> None:
    """Anthropic's overloaded_error, with a word on when to come back."""
    engine: Any = gateway.engines["held"]
    waiting = [threading.Thread(target=ask, args=(gateway, "held")) for _ in range(3)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: engine.running == 2 and gateway.pipeline.admission.waiting == 1)
    answer = ask(gateway, "held")
    refused(answer, 529, "overloaded_error")
    assert answer.headers["retry-after"] == "1"
    gateway.call(engine.release.set)
    for thread in waiting:
        thread.join(20)


@pytest.mark.parametrize(("model", "status"), [("broken", 502), ("bug", 500)])
def test_an_engine_that_dies(gateway: Gateway, model: str, status: int) -> None:
    """Whole: a status. Streamed: what was said, then `event: error`, and no message_stop after it."""
    refused(ask(gateway, model), status, "api_error")
    events = events_of(ask(gateway, model, stream=True).text)
    assert [event["type"] for event in events][-2:] == ["content_block_delta", "error"]
    assert events[-1]["error"]["type"] == "api_error"
    assert "ZeroDivision" not in str(events)


def test_any_version_and_beta_is_taken(gateway: Gateway) -> None:
    """Headers that name versions nobody knows here change nothing; nor does the query that SDKs add for betas."""
    headers = gateway.headers | {"anthropic-version": "2099-01-01", "anthropic-beta": "many,more"}
    body = {"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{gateway.url}{MESSAGES}?beta=true", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 200


def test_the_dialect_of_shared_paths_is_the_headers(gateway: Gateway) -> None:
    """`/v1/models` tells errors as Anthropic does to who says `anthropic-version`, as OpenAI does to others; paths that
    are OpenAI's alone stay so."""
    version = {"anthropic-version": "2023-06-01"}
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        get = client.get
        assert checked(ERROR, get("/v1/models", headers=version).content).error.type == "authentication_error"
        named = get("/v1/models/x", headers=version | gateway.headers)
        assert checked(ERROR, named.content).error.type == "not_found_error"
        assert get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        wrong = get("/v1/chat/completions", headers=version | gateway.headers)
        assert wrong.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({"x-api-key": "KEY"}, True),
        ({"authorization": "Bearer KEY"}, True),
        ({"authorization": "Basic eDp5", "x-api-key": "KEY"}, True),
        ({"authorization": "Bearer KEY", "x-api-key": "wrong"}, True),
        ({"authorization": "Bearer wrong", "x-api-key": "KEY"}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": "Bearer KEY"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/usage", "/admin/v1/orgs"])
def test_one_key_counts(gateway: Gateway, path: str, headers: dict[str, str], good: bool) -> None:
    """A bearer token first, else `x-api-key`, at every path; a wrong one is not made good by another header."""
    sent = {name: value.replace("KEY", gateway.key) for name, value in headers.items()}
    assert (httpx.get(gateway.url + path, headers=sent, trust_env=False).status_code == 200) == good


def test_a_provider_without_a_counter_is_estimated() -> None:
    """The header says which number is an estimate; the model is not asked for it."""
    with running_provider() as provider, gateway_to(provider.url, {"far": "instant"}) as made:
        body = {"model": "far", "messages": [{"role": "user", "content": "hello out there"}]}
        answer = httpx.post(made.url + COUNT, json=body, headers=made.headers, trust_env=False)
        assert answer.headers["x-interlace-estimated"] == "input_tokens"
        assert answer.json()["input_tokens"] > 0
        assert not made.events
