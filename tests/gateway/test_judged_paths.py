"""A classifier as an input guard, on the way of a request: what it reads, when it is asked, and whose fault it is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from interlace.config import (
    BreakerSettings,
    ClassifierSettings,
    FallbackSettings,
    GuardSettings,
    MemberSettings,
    ModelSettings,
    RetrySettings,
    RouteSettings,
    Settings,
)
from interlace.engines.types import BATCH_PRIORITY, Embeddings, EmbedRequest
from interlace.errors import EngineFailed, EngineUnavailable, GuardFailed, GuardUnavailable
from interlace.gateway.batch_attempt import comes_back, is_final
from tests.gateway.test_files_and_batches import batch, line, over
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import tenant

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COUNT = "/v1/messages/count_tokens"


@dataclass
class Judging(ScriptedEngine):
    """A classifier that takes `bad` for spam; `away`: it is loaded, and this is what its host has come to."""

    labels: tuple[str, ...] = ("ham", "spam")
    away: Exception | None = None

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Spam where `bad` is a word of the text."""
        self.seen.append(request)
        if self.away:
            raise self.away
        rows = tuple(struct.pack("<2f", 0.1, 0.9 if "bad" in text.split() else 0.1) for text in request.texts)
        return Embeddings(rows, 2, 1, labels=self.labels)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Two models, a route to the first with the second to fall back on, and the judge of what they are asked; no
    denied patterns."""
    engines = {"scripted": ScriptedEngine(), "other": ScriptedEngine(), "judge": Judging()}
    breaker = BreakerSettings(failures=1, window_seconds=60, open_seconds=60)
    retries = RetrySettings(times=2, first_seconds=0.01, longest_seconds=5)
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name, breaker=breaker) for name in engines),
        routes=(RouteSettings("route", (MemberSettings("scripted"),), (FallbackSettings("other"),), retries=retries),),
        guards=GuardSettings(classifiers=(ClassifierSettings("judge", ("spam",), 0.5),)),
    )
    with running_gateway(settings, engines) as running:
        yield running


def post(gateway: Gateway, path: str, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """The answer to that body."""
    body = {"model": "scripted", **body}
    headers = headers or gateway.headers
    return httpx.post(gateway.url + path, json=body, headers=headers, trust_env=False, timeout=20)


def judged(gateway: Gateway) -> list[EmbedRequest]:
    """What the judge has read."""
    return gateway.engines["judge"].seen  # type: ignore[attr-defined, no-any-return]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "so \\u0062ad"}'}}
HELLO = {"role": "user", "content": "hello"}
FORBIDDEN: dict[str, dict[str, Any]] = {
    "parts of a message": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "so b"}, {"type": "text", "text": "ad"}]}]
    },
    "escapes of a call": {"messages": [HELLO, {"role": "assistant", "tool_calls": [CALL]}]},
    "the system's turn": {"messages": [{"role": "system", "content": "so bad"}, HELLO]},
    "an earlier turn": {"messages": [{"role": "user", "content": "so bad"}, HELLO]},
    "a tool": {
        "messages": [HELLO],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"title": "so bad\n"}}}],
    },
}


@pytest.mark.parametrize("body", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_judge_reads_what_denied_patterns_read(gateway: Gateway, body: dict[str, Any]) -> None:
    """What a model puts together, or reads out of escapes, is judged as it reads it."""
    answer = post(gateway, CHAT, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
    assert gateway.engines["scripted"].seen == []  # type: ignore[attr-defined]
    assert post(gateway, CHAT, messages=[HELLO]).status_code == 200


def test_a_judge_is_told_whose_texts_they_are(gateway: Gateway) -> None:
    """Of text and of token ids: else one organisation's huge request sends all others away. Batches come last here,
    too."""
    who = tenant(gateway.registry, priority=7)
    assert post(gateway, CHAT, headers=who.headers, messages=[HELLO]).status_code == 200
    assert post(gateway, COMPLETIONS, headers=who.headers, prompt=[5, 6]).status_code == 200
    assert [(one.tenant, one.priority, one.texts) for one in judged(gateway)] == [
        (who.organisation.id, 7, ("hello",)),
        (who.organisation.id, 7, ("t5 t6",)),
    ]
    with httpx.Client(trust_env=False) as http:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=who.text, max_retries=0, http_client=http)
        assert over(client, batch(client, line("a")).id).status == "completed"
    assert (judged(gateway)[-1].tenant, judged(gateway)[-1].priority) == (who.organisation.id, BATCH_PRIORITY)


def test_nothing_is_judged_that_nobody_would_answer(gateway: Gateway) -> None:
    """It is work that nobody pays for: not for a model that is not there, nor where a model here only counts."""
    assert post(gateway, CHAT, model="nobody", messages=[HELLO]).status_code == 404
    assert post(gateway, COUNT, messages=[{"role": "user", "content": "so bad"}]).status_code == 200
    assert judged(gateway) == []


def test_what_a_provider_might_count_is_judged(gateway: Gateway) -> None:
    """A route may lead anywhere, and a provider that counts has read the text."""
    answer = post(gateway, COUNT, model="route", messages=[{"role": "user", "content": "so bad"}])
    assert answer.status_code == 400
    assert len(judged(gateway)) == 1


AWAY = {
    "gone": (EngineUnavailable("The host has gone."), 503, "guard_unavailable"),
    "died": (EngineFailed("The host died under this request."), 502, "guard_failed"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["scripted", "route"])
@pytest.mark.parametrize(("away", "status", "code"), AWAY.values(), ids=AWAY)
def test_a_judge_that_is_away_breaks_no_model(
    gateway: Gateway, away: Exception, status: int, code: str, model: str, stream: bool
) -> None:
    """Token ids are judged once the model has begun. Were it taken to have failed, its breaker would open, and routes
    would ask one healthy model after the other, in vain. It is no mistake of the caller's either: status 400 would
    keep clients from sending it again."""
    gateway.engines["judge"].away = away
    answer = post(gateway, COMPLETIONS, model=model, prompt=[5, 6], stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert bool(answer.headers.get("retry-after")) is (status == 503)
    assert len(judged(gateway)) == 1, "it was tried again elsewhere"
    assert gateway.engines["other"].seen == []  # type: ignore[attr-defined]
    states = {name: live.breaker.state for name, live in gateway.pipeline.routes.live.items()}
    assert states == dict.fromkeys(gateway.engines, "closed")
    gateway.engines["judge"].away = None
    assert post(gateway, COMPLETIONS, model=model, prompt=[5, 6], stream=stream).status_code == 200


def test_a_line_of_a_batch_comes_again_while_the_judge_is_away() -> None:
    """A classifier that restarts would else end, after three attempts, every line of a batch that has a day for it.
    One that a line kills each time is not killed by it for a day."""
    assert comes_back(GuardUnavailable("The content guard is not ready."))
    failed = GuardFailed("The content guard failed.")
    assert not comes_back(failed)
    assert not is_final(failed)
