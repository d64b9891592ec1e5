"""A gateway with routes to a provider's scripts, and its books closed: for tests of who is asked, and who pays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from interlace.config import BreakerSettings, FallbackSettings, MemberSettings, PriceSettings, RouteSettings, Settings
from interlace.engines.types import Engine
from interlace.gateway.serve import build_engine
from interlace.ledger import UsageEvent
from interlace.ledger.audit import audit, audit_book
from tests.support.asking import KEY, KEY_NAME, remote_settings
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.prices import costing
from tests.support.provider import Provider
from tests.support.tenants import Tenant

PROMPT, ANSWER = 2, 5  # nano-dollars a token of every model, unless a test says otherwise
NO_BREAKER = BreakerSettings(failures=0)


def route(*models: str | MemberSettings, fallbacks: tuple[str, ...] = (), **more: Any) -> RouteSettings:
    """The route `r` to these models."""
    members = tuple(MemberSettings(model=one) if isinstance(one, str) else one for one in models)
    return RouteSettings("r", members, tuple(FallbackSettings(model=one) for one in fallbacks), **more)


@dataclass(frozen=True)
class Reply:
    """What came back: `text` of the answer, whether it was whole, and the error's code where there was one."""

    status: int
    headers: httpx.Headers
    text: str
    whole: bool
    code: str | None

    @property
    def served(self) -> tuple[str | None, str | None]:
        """The model that answered, and why, as the headers tell."""
        return self.headers.get("x-interlace-model"), self.headers.get("x-interlace-route")


@dataclass
class Routed:
    """A running gateway, and the ways to ask it."""

    gateway: Gateway

    def ask(self, text: str = "hello", *, who: Tenant | None = None, model: str = "r", **body: Any) -> Reply:
        """One chat completion, read to its end; `stream` in the body streams it."""
        headers = body.pop("headers", {}) | (who.headers if who else self.gateway.headers)
        messages = body.pop("messages", None) or [{"role": "user", "content": text}]
        with httpx.Client(trust_env=False, timeout=30) as client:
            answer = client.post(
                f"{self.gateway.url}/v1/chat/completions",
                headers=headers,
                json={"model": model, "messages": messages, "max_tokens": 20, **body},
            )
        return _reply(answer, streamed=bool(body.get("stream")))

    @property
    def event(self) -> UsageEvent:
        """The newest usage event."""
        return self.gateway.events[-1]

    def attempts(self) -> list[tuple[str, str, str, int]]:
        """Model, end, reason and cost of each attempt of the newest event."""
        return [(one.model, one.end, one.why, one.cost_nanos) for one in self.event.attempts]

    def check(self) -> None:
        """The auditor agrees with the record and with the running bookkeeper, and nothing is held."""

        def look() -> list[str]:
            book, store = self.gateway.pipeline.ledger.book, self.gateway.registry.store
            unwritten = list(self.gateway.pipeline.ledger.unwritten.values())
            found = store.read(lambda c: [*audit(c), *audit_book(c, book.accounts, unwritten)])
            held = [f"{key} holds {account.reserved}" for key, account in book.accounts.items() if account.reserved]
            return [str(one) for one in found] + held

        async def on_its_loop() -> list[str]:
            return look()

        assert asyncio.run_coroutine_threadsafe(on_its_loop(), self.gateway.loop).result(20) == []


def _reply(answer: httpx.Response, *, streamed: bool) -> Reply:
    if not streamed or answer.status_code != 200:
        body = answer.json()
        error = body.get("error")
        text = "" if error else body["choices"][0]["message"]["content"] or ""
        return Reply(answer.status_code, answer.headers, text, error is None, error and error["code"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    values = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(c["delta"].get("content") or "" for one in values for c in one.get("choices") or ())
    code = next((one["error"]["code"] for one in values if "error" in one), None)
    return Reply(200, answer.headers, text, events[-1] == "[DONE]", code)


@contextmanager
def routed(
    provider: Provider,
    models: Mapping[str, str],
    *routes: RouteSettings,
    prices: Mapping[str, tuple[int, int] | PriceSettings] | None = None,
    local: Mapping[str, Engine] | None = None,
    breaker: BreakerSettings = NO_BREAKER,
    **settings: Any,
) -> Iterator[Routed]:
    """A gateway whose models are the provider's scripts (`local` ones aside), with these routes. Afterwards every
    balance must be right, and nothing may be held."""
    made = []
    for name, script in models.items():
        soon = {"first_token_seconds": 0.3, "between_tokens_seconds": 0.3} if script.startswith("hang") else {}
        made.append({"name": name, "model": script, "breaker": breaker, **soon})
    remote = [_renamed(provider.url, one) for one in made]
    engines: dict[str, Engine] = {one.name: build_engine(one, Path("/nonexistent"), {KEY_NAME: KEY}) for one in remote}
    here = [_local(name) for name in local or {}]
    costs: dict[str, tuple[int, int] | PriceSettings] = dict.fromkeys((*models, *(local or {})), (PROMPT, ANSWER))
    costs |= prices or {}
    whole = Settings(
        home=Path("/nonexistent"),
        models=(*remote, *here),
        routes=routes,
        prices=tuple(one if isinstance(one, PriceSettings) else costing(name, *one) for name, one in costs.items()),
        drain_seconds=5,
        **settings,
    )
    with running_gateway(whole, {**engines, **(local or {})}) as gateway:
        there = Routed(gateway)
        try:
            yield there
        finally:
            for engine in engines.values():
                asyncio.run_coroutine_threadsafe(engine.close(), gateway.loop).result(10)
        there.check()


def _renamed(url: str, values: dict[str, Any]) -> Any:
    import dataclasses

    more = dict(values)
    name, model = more.pop("name"), more.pop("model")
    return dataclasses.replace(remote_settings(url, model, **more), name=name)


def _local(name: str) -> Any:
    from interlace.config import ModelSettings

    return ModelSettings(name=name, checkpoint=name)
