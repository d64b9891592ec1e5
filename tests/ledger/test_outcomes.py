"""How requests end, one table: what the caller sees, whether a usage event is left, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from interlace.config import GuardSettings, LimitSettings, Settings
from interlace.ledger import RULES, Outcome, UsageEvent
from interlace.ledger.audit import audit
from interlace.ledger.registry import alter
from interlace.ledger.schema import api_keys, balances
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

CHAT = "/v1/chat/completions"
PROMPT, COMPLETION = 2, 5  # nano-dollars for a token
WORDS = "one two three"  # of every prompt here: three tokens
NOBODY = {"authorization": "Bearer sk-il-nobody"}


@dataclass(frozen=True)
class Case:
    """One way to end. `completion`: tokens of the answer that the usage event has."""

    outcome: Outcome
    name: str
    status: int
    code: str | None = None
    model: str = "scripted"
    completion: int = 0
    prompt: int = 3
    body: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] | None = None
    before: Callable[[Gateway, Tenant], None] = lambda _, __: None
    streamed_status: int | None = None  # where it differs: the status had left already
    finish: str | None = None


def revoke(gateway: Gateway, who: Tenant) -> None:
    """The key is no good any more."""
    _change(gateway, who, revoked_at=1)


def expire(gateway: Gateway, who: Tenant) -> None:
    """It was good until a moment ago."""
    _change(gateway, who, expires_at=gateway.registry.clock.now() - 1)


def _change(gateway: Gateway, who: Tenant, **values: Any) -> None:
    gateway.registry.change(lambda connection: [alter(connection, api_keys, who.key.id, **values)])


def fill_the_disk(gateway: Gateway, _: Tenant) -> None:
    """As the store says it while commits fail."""
    gateway.registry.store.trouble = "database or disk is full"


O = Outcome  # noqa: E741 - a table should be narrow
TABLE = [
    Case(O.UNAUTHENTICATED, "no key", 401, "invalid_api_key", headers={}),
    Case(O.UNAUTHENTICATED, "a wrong key", 401, "invalid_api_key", headers=NOBODY),
    Case(O.UNAUTHENTICATED, "a revoked key", 401, "invalid_api_key", before=revoke),
    Case(O.UNAUTHENTICATED, "an expired key", 401, "invalid_api_key", before=expire),
    Case(O.INVALID, "an unknown field", 400, "unknown_parameter", body={"nonsense": 1}),
    Case(O.INVALID, "an answer longer than the plan allows", 400, "invalid_value",
         body={"max_tokens": 9}, plan={"largest_max_tokens": 8}),
    Case(O.DENIED, "a key for something else", 403, "permission_denied", plan={"scopes": ("admin",)}),
    Case(O.DENIED, "a model that the key may not use", 403, "model_not_found", plan={"models": ("held",)}),
    Case(O.UNKNOWN_MODEL, "no such model", 404, "model_not_found", model="nothing"),
    Case(O.UNPRICED, "no price", 403, "model_not_priced", model="unpriced"),
    Case(O.RATE_LIMITED, "requests", 429, "rate_limit_exceeded", plan={"rpm": 0}),
    Case(O.RATE_LIMITED, "tokens", 429, "rate_limit_exceeded", plan={"tpm": 3}),
    Case(O.RATE_LIMITED, "concurrency", 429, "rate_limit_exceeded", plan={"concurrency": 0}),
    Case(O.NOT_READY, "an engine that loads", 503, "engine_unavailable", model="loading"),
    Case(O.NOT_READY, "a ledger that cannot write", 503, "ledger_unavailable", before=fill_the_disk),
    Case(O.REFUSED, "the guard", 400, "content_filter",
         body={"messages": [{"role": "user", "content": "open sesame"}]}),
    Case(O.REFUSED, "too long a prompt", 400, "context_length_exceeded", body={"max_tokens": 5000}),
    Case(O.NO_BUDGET, "a key's", 429, "insufficient_quota", body={"max_tokens": 7}, plan={"key_budget": 40}),
    Case(O.NO_BUDGET, "a plan's", 429, "insufficient_quota", body={"max_tokens": 7}, plan={"budget_nanos": 40}),
    Case(O.NO_BUDGET, "a project's", 429, "insufficient_quota", body={"max_tokens": 7}, plan={"project_budget": 40}),
    Case(O.NO_BUDGET, "an organisation's", 429, "insufficient_quota", plan={"org_budget": 10}),
    Case(O.FAILED, "the engine dies", 502, "engine_failed", model="broken", completion=2, streamed_status=200),
    Case(O.FILTERED, "the guard ends the answer", 200, model="leaky", completion=5, finish="content_filter"),
    Case(O.BUDGET_ENDED, "within the answer", 200, completion=3, plan={"key_budget": 21}, finish="length"),
    Case(O.FINISHED, "by itself", 200, completion=7, finish="stop"),
    Case(O.FINISHED, "on a budget that just suffices", 200, completion=7, body={"max_tokens": 7},
         plan={"key_budget": 41}, finish="stop"),
    Case(O.FINISHED, "at max_tokens", 200, completion=4, body={"max_tokens": 4}, finish="length"),
    Case(O.FINISHED, "two choices", 200, completion=14, body={"n": 2}, finish="stop"),
]  # fmt: skip
ELSEWHERE = {O.OVERLOADED, O.CANCELLED, O.CLIENT_GONE, O.PROVIDER_REFUSED}  # below; by providers: gateway/test_routes


def test_the_table_is_whole() -> None:
    """An outcome without a row is one that nobody has seen happen."""
    assert {case.outcome for case in TABLE} | ELSEWHERE == set(Outcome)
    assert list(RULES) == list(Outcome), "the order is part of the contract"
    for case in TABLE:
        assert case.status == RULES[case.outcome].status, case.name


class Gate(asyncio.Event):
    """What a held engine waits at, once its first token has gone through the whole pipeline."""

    reached = 0

    async def wait(self) -> Any:
        """Counts whoever comes."""
        self.reached += 1
        return await super().wait()


def held() -> ScriptedEngine:
    """An engine that says one token and waits."""
    return ScriptedEngine(held=True, release=Gate())


def engines() -> dict[str, ScriptedEngine]:
    """One for each way to behave."""
    return {
        "scripted": ScriptedEngine(),
        "leaky": ScriptedEngine(tokens=("Well", ", op", "en se", "same", " and", " more")),
        "held": held(),
        "broken": ScriptedEngine(fail_after=2),
        "loading": ScriptedEngine(state="loading"),
        "unpriced": ScriptedEngine(),
    }


def settings_of(**more: Any) -> Settings:
    """Every model but one costs money."""
    prices = tuple(costing(name, PROMPT, COMPLETION) for name in engines() if name != "unpriced")
    return Settings(prices=prices, guards=GuardSettings(deny=("open sesame",)), **more)


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """A gateway with all of them."""
    with running_gateway(settings_of(), engines()) as running:
        yield running


def ask(gateway: Gateway, who: Tenant, case: Case, *, stream: bool) -> tuple[int, str | None, str | None]:
    """Status, code and finish reason, as the caller sees them."""
    body = {"model": case.model, "messages": [{"role": "user", "content": WORDS}], "stream": stream, **case.body}
    headers = who.headers if case.headers is None else case.headers
    answer = httpx.post(gateway.url + CHAT, json=body, headers=headers, trust_env=False, timeout=20)
    if answer.headers["content-type"].startswith("application/json"):
        said = answer.json()
        if "error" in said:
            return answer.status_code, said["error"]["code"], None
        return answer.status_code, None, said["choices"][0]["finish_reason"]
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if "error" in events[-1]:
        return answer.status_code, events[-1]["error"]["code"], None
    assert lines[-1] == "[DONE]"
    ends = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["index"] == 0]
    return answer.status_code, None, ends[-1]


def events_of(gateway: Gateway, who: Tenant) -> list[UsageEvent]:
    """What the ledger has of a tenant."""
    return [event for event in gateway.events if event.key_id == who.key.id]


def settled(gateway: Gateway, who: Tenant, outcome: Outcome, prompt: int, completion: int) -> None:
    """The ledger says so, on every page of it, and nothing is held any more."""
    rule = RULES[outcome]
    cost = PROMPT * prompt + COMPLETION * completion if rule.charged else 0
    events = events_of(gateway, who)
    if rule.recorded:
        (event,) = events
        assert (event.outcome, event.cost_nanos, event.overrun_nanos) == (outcome, cost, 0)
        assert (event.tokens.prompt, event.tokens.completion) == (prompt, completion)
    else:
        assert events == []
    ids = (who.organisation.id, who.project.id, who.key.id)
    query = select(balances.c.spent_nanos, balances.c.requests).where(balances.c.scope_id.in_(ids))
    rows = [tuple(row) for row in gateway.registry.store.read(lambda c: c.execute(query).all())]
    assert rows == ([(cost, 1)] * 3 if rule.recorded else [])
    ledger = gateway.pipeline.ledger
    mine = {key: account for key, account in ledger.book.accounts.items() if key[1] in ids}
    assert all((account.spent, account.reserved) == (cost, 0) for account in mine.values())
    wait_for(lambda: ledger.limits.use(who.key.id).running == 0)  # whoever hung up is not there to see the end
    assert gateway.registry.store.read(lambda c: list(audit(c))) == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.outcome}: {case.name}")
def test_what_a_caller_sees_and_what_it_costs(gateway: Gateway, case: Case, stream: bool) -> None:
    """A row that differs is a caller misled, somebody billed for nothing, or work that nobody pays for."""
    who = tenant(gateway.registry, **case.plan)
    case.before(gateway, who)
    all_events = len(gateway.events)
    try:
        status, code, finish = ask(gateway, who, case, stream=stream)
    finally:
        gateway.registry.store.trouble = None
    assert status == (case.status if case.streamed_status is None or not stream else case.streamed_status)
    assert (code, finish) == (case.code, case.finish)
    settled(gateway, who, case.outcome, case.prompt, case.completion)
    assert len(gateway.events) == all_events + RULES[case.outcome].recorded


def hang_on(gateway: Gateway, who: Tenant, *, stream: bool, model: str = "held") -> socket.socket:
    """A request on a connection of our own, which has got its first token."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": WORDS}], "stream": stream}).encode()
    engine: Any = gateway.engines[model]
    before = engine.release.reached
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {who.text}\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    wait_for(lambda: engine.release.reached == before + 1)
    if stream:
        received = b""
        while b"The" not in received:
            received += connection.recv(4096)
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_client_gone(gateway: Gateway, stream: bool) -> None:
    """Who hangs up pays for the prompt and for what was generated by then, no more."""
    who = tenant(gateway.registry, key_budget=10_000)
    hang_on(gateway, who, stream=stream).close()
    wait_for(lambda: events_of(gateway, who))
    settled(gateway, who, Outcome.CLIENT_GONE, 3, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_cancelled(stream: bool) -> None:
    """A server that is told to stop charges nothing for what it could not finish, and says so where it still can."""
    with running_gateway(settings_of(drain_seconds=0.2), {"held": held()}) as gateway:
        who = tenant(gateway.registry, key_budget=10_000)
        with contextlib.closing(hang_on(gateway, who, stream=stream)) as connection:
            gateway.call(gateway.server.drain)
            gateway.thread.join(10)
            assert not gateway.thread.is_alive()
            rest = b""
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(4096):
                    rest += piece
        assert b"[DONE]" not in rest
        assert b"The server is shutting down. Try again soon." in rest
        assert stream or rest.startswith(b"HTTP/1.1 503 ")
        settled(gateway, who, Outcome.CANCELLED, 3, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_overloaded(stream: bool) -> None:
    """With every place taken and none to wait in, a request costs nothing and is told when to come back."""
    limits = LimitSettings(concurrency=1, queue=0)
    made = {"held": held(), "scripted": ScriptedEngine()}
    with running_gateway(settings_of(limits=limits), made) as gateway:
        first, second = tenant(gateway.registry), tenant(gateway.registry, key_budget=10_000)
        connection = hang_on(gateway, first, stream=True)
        status, code, _ = ask(gateway, second, Case(Outcome.OVERLOADED, "", 429), stream=stream)
        assert (status, code) == (RULES[Outcome.OVERLOADED].status, "rate_limit_exceeded")
        settled(gateway, second, Outcome.OVERLOADED, 0, 0)
        gateway.call(made["held"].release.set)
        wait_for(lambda: events_of(gateway, first))
        connection.close()
