"""What docs/how-to/add-a-provider-or-dialect.md shows is enough: with one module and one entry of a table each, a
provider is asked and a dialect is answered, guarded and billed as all others are."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, ModelSettings, Settings
from interlace.engines import RemoteEngine
from interlace.engines.remote import providers
from interlace.gateway import app, dialects, openapi
from interlace.gateway.translation import paths_of
from tests.extending import toy_provider
from tests.extending.toy_dialect import TABLE, TOY, ToyBody, parse_toy
from tests.providers.servers.http import Asked, Told, serving
from tests.support.gateway_thread import Gateway, running_gateway

ENV = {"TOY_API_KEY": "toy-key-1"}


def _toy(asked: Asked) -> Told:
    """Toy's server: it repeats the last turn."""
    kind = {"Content-Type": "application/json"}
    if asked.path != "/say" or asked.headers.get("toy-key") != ENV["TOY_API_KEY"]:
        return Told(401, b'{"error": {"message": "who are you?"}}', kind)
    body = json.loads(asked.body)
    if set(body) != {"model", "turns", "most"}:
        return Told(400, b'{"error": {"message": "what is that?"}}', kind)
    said = {"words": f"You said {body['turns'][-1][1]}.", "why": "done", "read": 12, "written": 4}
    return Told(200, json.dumps(said).encode(), kind)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway with a line more in each of the two tables."""
    monkeypatch.setattr(providers, "PROVIDERS", {**providers.PROVIDERS, "toy": "toy"})
    monkeypatch.setitem(sys.modules, "interlace.engines.remote.providers.toy", toy_provider)
    spoken = MappingProxyType({**dialects.DIALECTS, "toy": TOY})
    for module in (dialects, openapi):
        monkeypatch.setattr(module, "DIALECTS", spoken)
    monkeypatch.setattr(app, "PARSED", {**dialects.PARSED, TOY.path: (TOY, parse_toy)})
    with serving(_toy) as url:
        model = ModelSettings(name="toy", engine="toy", base_url=url, model="t1")
        settings = Settings(home=Path("/nonexistent"), models=(model,), guards=GuardSettings(deny=("swordfish",)))
        engine = RemoteEngine(model, ENV)
        with running_gateway(settings, {"toy": engine}) as made:
            yield made
            asyncio.run_coroutine_threadsafe(engine.close(), made.loop).result(10)


def _post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}{path}", json=body, headers=gateway.headers, timeout=20, trust_env=False)


HELLO = [{"role": "user", "content": "hello"}]


def test_a_provider_of_one_module_answers_in_every_dialect(gateway: Gateway) -> None:
    """Else adding one would take more than the page says."""
    chat = _post(gateway, "/v1/chat/completions", model="toy", messages=HELLO)
    assert chat.json()["choices"][0]["message"]["content"] == "You said hello."
    message = _post(gateway, "/v1/messages", model="toy", messages=HELLO, max_tokens=9)
    assert message.json()["content"][0]["text"] == "You said hello."
    refused = _post(gateway, "/v1/chat/completions", model="toy", messages=HELLO, seed=4)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "seed")
    assert [(event.tokens.prompt, event.tokens.completion) for event in gateway.events] == [(12, 4), (12, 4)]


def test_a_dialect_of_one_module_is_spoken(gateway: Gateway) -> None:
    """Whole and streamed, with errors, guards and the bill of all others."""
    whole = _post(gateway, "/v1/toy", model="toy", question="hello", most=9)
    assert whole.json() == {"words": "You said hello.", "read": 12, "written": 4}
    streamed = _post(gateway, "/v1/toy", model="toy", question="hello", stream=True)
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert [json.loads(event) for event in events[:-1]] == [{"words": "You said hello."}, {"read": 12, "written": 4}]
    assert events[-1] == "[DONE]"
    unknown = _post(gateway, "/v1/toy", model="toy", question="hello", mood="good")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "mood")
    guarded = _post(gateway, "/v1/toy", model="toy", question="say swordfish")
    assert (guarded.status_code, guarded.json()["error"]["param"]) == (400, "question")
    assert [event.endpoint for event in gateway.events if event.cost_nanos is not None][:2] == ["toy", "toy"]
    assert "/v1/toy" in httpx.get(f"{gateway.url}/openapi.json", trust_env=False).json()["paths"]


def test_the_table_covers_the_body() -> None:
    """The example must keep the rule that each dialect is held to."""
    assert set(TABLE) == paths_of(ToyBody)
