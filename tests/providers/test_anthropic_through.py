"""Anthropic's client through the gateway to Anthropic's API on loopback: as if nobody stood between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from interlace.config import ModelSettings
from interlace.engines.fields import check_fields
from interlace.engines.remote.providers.anthropic_fields import ANTHROPIC_FIELDS
from interlace.engines.remote.providers.anthropic_request import message_body
from interlace.gateway.anthropic_messages import parse_messages
from interlace.ledger import Outcome
from tests.gateway.test_anthropic_parse import bodies
from tests.providers.servers.anthropic import KEY, Anthropic, running_anthropic
from tests.support.anthropic_shapes import ERROR, MESSAGE, assembled, checked, events_of
from tests.support.asking import gateway_to
from tests.support.gateway_thread import Gateway

VERSION = {"anthropic-version": "2023-06-01"}
TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("weather", "now")]
HELLO = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
ASKED: dict[str, dict[str, Any]] = {
    "text": {},
    "thinks": {"thinking": {"type": "adaptive"}},
    "calls": {"tools": TOOLS},
    "ends:refusal": {},
    "ends:max_tokens": {},
    "ends:stop_sequence": {"stop_sequences": ["."]},
}


AN_HOURS = {
    "input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 9,
    "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 7},
}  # fmt: skip


@dataclass(frozen=True)
class Both:
    """The provider, and the gateway before it."""

    server: Anthropic
    gateway: Gateway

    def ask(
        self, model: str, *, through: bool, path: str = "/v1/messages", betas: str = "", **more: Any
    ) -> httpx.Response:
        """The same request, sent to the one or the other."""
        body: dict[str, Any] = {"model": model, "messages": HELLO, **more}
        if path == "/v1/messages":
            body.setdefault("max_tokens", 50)
        url, key = (self.gateway.url, self.gateway.key) if through else (self.server.url, KEY)
        headers = {"x-api-key": key, **VERSION, **({"anthropic-beta": betas} if betas else {})}
        return httpx.post(url + path, json=body, headers=headers, trust_env=False, timeout=20)


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Each model of the server's under its own name."""
    models = {name: name for name in ASKED} | {"hour": f"counts:{json.dumps(AN_HOURS)}"}
    with running_anthropic() as server, gateway_to(server.url, models, KEY, engine="anthropic") as gateway:
        yield Both(server, gateway)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ASKED)
def test_an_answer_comes_through_as_it_was(both: Both, model: str, stream: bool) -> None:
    """Every block with its seals and inputs, why it ended, and the usage: the same as asked without us."""
    told = []
    for through in (False, True):
        answer = both.ask(model, through=through, stream=stream, **ASKED[model])
        assert answer.status_code == 200, answer.text
        told.append(assembled(events_of(answer.text)) if stream else answer.json())
    straight, ours = told
    checked(MESSAGE, json.dumps(ours))
    for name in ("content", "stop_reason", "stop_sequence", "role", "model"):
        assert ours[name] == straight[name], name
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        assert ours["usage"][name] == straight["usage"][name], name


def test_a_refusal_of_the_models_own_is_billed_by_its_last_word(both: Both) -> None:
    """It is no work of our guards: the provider's usage is waited for, cache and all, and the request was finished."""
    usage = both.ask("ends:refusal", through=True).json()["usage"]
    event = both.gateway.events[-1]
    assert event.outcome is Outcome.FINISHED
    parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert event.tokens.prompt == sum(usage[name] for name in parts)
    assert (event.tokens.cached, event.tokens.cache_write) == (20, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cached_for_an_hour_is_told_and_counted_apart(both: Both, stream: bool) -> None:
    """It costs twice what a prompt does, one for five minutes a quarter more: as one kind the bill would be wrong."""
    answer = both.ask("hour", through=True, stream=stream)
    told = assembled(events_of(answer.text)) if stream else answer.json()
    assert told["usage"]["cache_creation_input_tokens"] == 9
    if not stream:  # Anthropic's last word of a stream has no place for it
        assert told["usage"]["cache_creation"] == AN_HOURS["cache_creation"]
    tokens = both.gateway.events[-1].tokens
    assert (tokens.prompt, tokens.cache_write, tokens.cache_write_1h) == (14, 9, 7)


def test_a_count_is_the_providers_own(both: Both) -> None:
    """Asked of its counter, so it is no estimate."""
    path = "/v1/messages/count_tokens"
    ours = both.ask("text", through=True, path=path)
    assert ours.json() == both.ask("text", through=False, path=path).json()
    assert "x-interlace-estimated" not in ours.headers


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_what_a_header_switches_on_is_switched_on(both: Both, path: str) -> None:
    """Fields of a beta are refused without its header, so the header goes along; and only where it was sent."""
    management = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    betas = "context-management-2025-06-27,thinking-display-updates-2026-08-18"
    thinking = {"type": "adaptive", "display": "updates"}
    answer = both.ask("text", through=True, path=path, betas=betas, context_management=management, thinking=thinking)
    assert answer.status_code == 200, answer.text
    assert (both.server.last["context_management"], both.server.last["thinking"]) == (management, thinking)
    assert both.server.betas[-1] == betas
    assert "x-interlace-unused" not in answer.headers
    both.ask("text", through=True, path=path)
    assert both.server.betas[-1] == ""


def test_an_error_comes_through_in_shape(both: Both) -> None:
    """What the provider refuses is a 400 of Anthropic's here too, in its words."""
    more = {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 100}
    straight, ours = (both.ask("thinks", through=through, **more) for through in (False, True))
    assert (straight.status_code, ours.status_code) == (400, 400)
    assert checked(ERROR, ours.content).error.type == straight.json()["error"]["type"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies())
def test_a_request_goes_out_as_it_came(body: dict[str, Any]) -> None:
    """Every field of the dialect reaches the provider that speaks it, and none is said to have no use there."""
    ask, _ = parse_messages(json.dumps(body).encode(), "id", 1)
    (request,) = ask.generate
    assert check_fields(request, ANTHROPIC_FIELDS, ask.words) == []
    made = message_body(request, ModelSettings(name="m", engine="anthropic", model="m", stream=False))
    sent = json.loads(msgspec.json.encode(made))
    assert _spelled_out(sent) == _spelled_out(body)


def _spelled_out(body: dict[str, Any]) -> dict[str, Any]:
    """The body with texts as blocks, turns of one role together, and what says nothing left out."""
    spelled = {name: value for name, value in body.items() if (name, value) not in SAYS_NOTHING}
    turns: list[dict[str, Any]] = []
    for turn in body["messages"]:
        blocks = [_block(block) for block in _blocks(turn["content"])]
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": turn["role"], "content": blocks})
    system = {"system": _blocks(body["system"])} if "system" in body else {}
    return {**spelled, "messages": turns, **system}


SAYS_NOTHING: list[tuple[str, Any]] = [
    ("top_k", 0),
    ("tool_choice", {"type": "auto"}),
    ("temperature", 1.0),
    ("top_p", 1.0),
]


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "tool_result":
        return block
    content = {"content": _blocks(block["content"])} if block.get("content") else {}
    return {name: value for name, value in block.items() if name != "content"} | content
