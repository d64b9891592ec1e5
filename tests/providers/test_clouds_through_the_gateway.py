"""Clients of both dialects, through a whole gateway, to Bedrock and Vertex AI: what goes in comes out, and is paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings, Settings
from interlace.gateway.serve import build_engine
from tests.providers.servers.bedrock import ACCESS, REGION, SECRET, Bedrock, running_bedrock
from tests.providers.servers.vertex import PROJECT, SIGNATURE, Vertex, running_vertex
from tests.support.gateway_thread import Gateway, running_gateway

CLAUDE, PRO = "anthropic.claude-sonnet-4-v1:0", "gemini-3-pro"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NAMES = ("weather", "now")


@pytest.fixture(scope="module")
def bedrock() -> Iterator[Bedrock]:
    """Bedrock."""
    with running_bedrock() as running:
        yield running


@pytest.fixture(scope="module")
def vertex() -> Iterator[Vertex]:
    """Vertex AI."""
    with running_vertex() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(bedrock: Bedrock, vertex: Vertex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a model of each."""
    account = tmp_path_factory.mktemp("google") / "account.json"
    account.write_text(json.dumps(vertex.account()))
    models = (
        ModelSettings(name="claude", engine="bedrock", model=CLAUDE, base_url=bedrock.url, region=REGION),
        ModelSettings(name="gemini", engine="vertex", model=PRO, base_url=f"{vertex.url}/v1beta1", project=PROJECT),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
            patch.delenv(name, raising=False)
        engines = {model.name: build_engine(model, Path("/nonexistent"), {}) for model in models}
        settings = Settings(home=Path("/nonexistent"), models=models, drain_seconds=5)
        with running_gateway(settings, engines) as made:
            yield made
            for engine in engines.values():
                asyncio.run_coroutine_threadsafe(engine.close(), made.loop).result(10)


def _post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}{path}", json=body, headers=gateway.headers, timeout=20)


def _chat(gateway: Gateway, model: str, messages: list[Any], **more: Any) -> Any:
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES]
    answer = _post(gateway, "/v1/chat/completions", model=model, messages=messages, tools=tools, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _messages(gateway: Gateway, model: str, messages: list[Any], **more: Any) -> Any:
    tools = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    answer = _post(gateway, "/v1/messages", model=model, messages=messages, tools=tools, max_tokens=4000, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


models = pytest.mark.parametrize("model", ["claude", "gemini"])


@models
def test_a_round_of_tools_in_openais_dialect(gateway: Gateway, model: str) -> None:
    """Calls come out; sent back with their results as they came, the provider takes them, its signatures included."""
    asked = {"role": "user", "content": "calls please"}
    told = _chat(gateway, model, [asked])
    message = told["choices"][0]["message"]
    assert told["choices"][0]["finish_reason"] == "tool_calls"
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
        {"city": "Zürich", "days": 10},
        {},
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in message["tool_calls"]]
    after = _chat(gateway, model, [asked, message, *results, {"role": "user", "content": "words"}])
    assert after["choices"][0]["message"]["content"] == "Grüße, world"
    assert (after["usage"]["prompt_tokens"], after["usage"]["completion_tokens"]) == (12, 7)


@models
def test_a_round_of_tools_in_anthropics_dialect(gateway: Gateway, model: str) -> None:
    """The same for a client of Anthropic's."""
    asked = {"role": "user", "content": "calls please"}
    told = _messages(gateway, model, [asked])
    assert told["stop_reason"] == "tool_use"
    calls = [block for block in told["content"] if block["type"] == "tool_use"]
    assert [call["input"] for call in calls] == [{"city": "Zürich", "days": 10}, {}]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "x", "is_error": True} for call in calls]
    turns = [
        asked,
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": [*results, {"type": "text", "text": "words"}]},
    ]
    after = _messages(gateway, model, turns)
    assert after["content"][-1]["text"] == "Grüße, world"


def test_signatures_come_back_to_gemini(gateway: Gateway, vertex: Vertex) -> None:
    """The signature that went back is the one that came, in either dialect: not the word for calls that have none."""
    for round_of_tools in (
        test_a_round_of_tools_in_openais_dialect,
        test_a_round_of_tools_in_anthropics_dialect,
    ):
        round_of_tools(gateway, "gemini")
        call = next(part for part in vertex.last["contents"][1]["parts"] if "functionCall" in part)
        assert call["thoughtSignature"] == SIGNATURE


@models
def test_thoughts_in_anthropics_dialect(gateway: Gateway, model: str, bedrock: Bedrock, vertex: Vertex) -> None:
    """Thoughts with their seal come out as blocks, and go back as they came."""
    asked = {"role": "user", "content": "thinks"}
    thinking = {"type": "enabled", "budget_tokens": 2000}
    told = _messages(gateway, model, [asked], thinking=thinking)
    blocks = told["content"]
    assert blocks[0]["thinking"] == "First this."
    after = [asked, {"role": "assistant", "content": blocks}, {"role": "user", "content": "words"}]
    _messages(gateway, model, after, thinking=thinking)
    if model == "claude":
        kinds = [next(iter(block)) for block in bedrock.last["messages"][1]["content"]]
        assert kinds == ["reasoningContent", "reasoningContent", "text"]
        sealed = bedrock.last["messages"][1]["content"][0]["reasoningContent"]["reasoningText"]
        assert sealed == {"text": "First this.", "signature": "c2lnbmVk"}
    else:
        signatures = [part.get("thoughtSignature") for part in vertex.last["contents"][1]["parts"]]
        assert SIGNATURE in signatures


@models
@pytest.mark.parametrize(
    ("path", "status", "type"),
    [("/v1/chat/completions", 429, "rate_limit_error"), ("/v1/messages", 429, "rate_limit_error")],
)
def test_errors_have_the_shape_of_the_dialect(gateway: Gateway, model: str, path: str, status: int, type: str) -> None:
    """A provider at its limit is told in the words of the client, with its hint when to come back."""
    wish = {"claude": "throttled", "gemini": "exhausted"}[model]
    answer = _post(gateway, path, model=model, messages=[{"role": "user", "content": wish}], max_tokens=9)
    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) == {"claude": 7, "gemini": 37}[model]
    assert answer.json()["error"]["type"] == type


def test_a_blocked_prompt_in_both_dialects(gateway: Gateway) -> None:
    """Gemini's block is OpenAI's content_filter and Anthropic's refusal, and what reading the prompt took is billed."""
    before = len(gateway.events)
    asked = [{"role": "user", "content": "blocked"}]
    openai = _post(gateway, "/v1/chat/completions", model="gemini", messages=asked).json()
    assert openai["choices"][0]["finish_reason"] == "content_filter"
    anthropic = _post(gateway, "/v1/messages", model="gemini", messages=asked, max_tokens=9).json()
    assert anthropic["stop_reason"] == "refusal"
    assert [event.tokens.prompt for event in gateway.events[before:]] == [12, 12]


def test_what_is_refused_is_named(gateway: Gateway) -> None:
    """A field that the provider cannot take is a 400 that names it as the caller wrote it; one that it has no use for
    stands in the header."""
    asked = [{"role": "user", "content": "words"}]
    answer = _post(gateway, "/v1/chat/completions", model="claude", messages=asked, logprobs=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"
    answer = _post(gateway, "/v1/chat/completions", model="gemini", messages=asked, user="somebody")
    assert answer.status_code == 200
    assert "user" in answer.headers["x-interlace-unused"]
