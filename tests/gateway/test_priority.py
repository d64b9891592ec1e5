"""Whom engines are told to serve first: by the plan of whoever asks, and batches and shadows last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import openai
import pytest

from interlace.config import MemberSettings, ModelSettings, PartSettings, RouteSettings, Settings
from interlace.engines.types import BATCH_PRIORITY, GenerateRequest
from tests.gateway.test_files_and_batches import batch, line, over
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A model, a route to it with a shadow, and an embedder."""
    engines = {"scripted": ScriptedEngine(), "shadow": ScriptedEngine(), "embedder": ScriptedEngine(embeds=True)}
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in engines),
        routes=(RouteSettings(name="route", models=(MemberSettings("scripted"),), shadow=PartSettings("shadow", 100)),),
    )
    with running_gateway(settings, engines) as running:
        yield running


def _seen(gateway: Gateway, model: str = "scripted") -> GenerateRequest:
    """The last request that an engine got."""
    return cast("ScriptedEngine", gateway.engines[model]).seen[-1]  # type: ignore[return-value]


def _ask(gateway: Gateway, who: Tenant, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=who.headers, trust_env=False)
    answer.raise_for_status()


@pytest.mark.parametrize("priority", [-1000, 0, 7])
@pytest.mark.parametrize("model", ["scripted", "route"])
def test_a_plan_says_whom_the_engine_serves_first(gateway: Gateway, model: str, priority: int) -> None:
    """The plan's number reaches the engine with the organisation, by name or by route; a shadow has that of batches."""
    who = tenant(gateway.registry, priority=priority)
    _ask(gateway, who, model)
    seen = _seen(gateway)
    assert (seen.priority, seen.tenant) == (priority, who.organisation.id)
    if model == "route":
        shadow = cast("ScriptedEngine", gateway.engines["shadow"])
        wait_for(lambda: shadow.seen and cast("GenerateRequest", shadow.seen[-1]).tenant == who.organisation.id)
        assert _seen(gateway, "shadow").priority == BATCH_PRIORITY


def test_an_embedder_is_told_whose_texts_they_are(gateway: Gateway) -> None:
    """As for an answer: else one organisation's million texts come before another's single one."""
    who = tenant(gateway.registry, priority=7)
    body = {"model": "embedder", "input": "hello"}
    httpx.post(f"{gateway.url}/v1/embeddings", json=body, headers=who.headers, trust_env=False).raise_for_status()
    seen = _seen(gateway, "embedder")
    assert (seen.priority, seen.tenant) == (7, who.organisation.id)


def test_a_batch_is_served_last(gateway: Gateway) -> None:
    """However high the plan: what may take a day goes after everyone who waits."""
    who = tenant(gateway.registry, priority=1000)
    with httpx.Client(trust_env=False) as http:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=who.text, max_retries=0, http_client=http)
        assert over(client, batch(client, line("a")).id).status == "completed"
    assert _seen(gateway).priority == BATCH_PRIORITY
