"""Every endpoint, streaming or not, masks and refuses secrets in its input and its output, and bills what was used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from interlace.config import GuardSettings, LogSettings, ModelSettings, SecretSettings, Settings
from interlace.engines.types import Delta, EmbedRequest, Started, ToolCallDelta
from interlace.ledger import Outcome
from tests.gateway.test_guarded_paths import CHAT, COMPLETIONS, EMBEDDINGS, POSTS, post, texts_and_ends
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine

CARD, KEY = "4111 1111 1111 1111", "AKIAIOSFODNN7EXAMPLE"
SAID = ("Pay ", "41", "11 1111", " 1111 11", "11", " with", " AKIAIOS", "FODNN7EX", "AMPLE", " now")
ASKED = [(path, stream) for path, stream in POSTS if path in {CHAT, COMPLETIONS, EMBEDDINGS}]
"""`tests/parity` asks every dialect."""

STREAMED = [(path, stream) for path in (CHAT, COMPLETIONS) for stream in (False, True)]


class Caller(ScriptedEngine):
    """Calls a tool with whatever it says."""

    async def _deltas(self, request: Any) -> Any:
        yield Delta(tool_calls=(ToolCallDelta(0, "call_0", "pay"),), tokens=1)
        for piece in self.tokens:
            yield Delta(tool_calls=(ToolCallDelta(0, arguments=piece),), tokens=1)
        yield Delta(finish_reason="tool_calls")


@contextmanager
def secret_gateway(action: str) -> Iterator[Gateway]:
    """A gateway that does this with every secret, in and out."""
    made = {
        "scripted": ScriptedEngine(),
        "leaky": ScriptedEngine(tokens=SAID),
        "caller": Caller(
            tokens=(
                '{"card": "4111',
                "11111111",
                '1111", "n": 41111111',
                "11111111, ",
                '"key": "AKIAIO',
                'SFODNN7EXAMPLE"}',
            )
        ),
        "embedder": ScriptedEngine(embeds=True),
    }
    secrets = SecretSettings(card=action, api_key=action, private_key=action)
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in made),
        guards=GuardSettings(secrets_input=secrets, secrets_output=secrets),
        drain_seconds=5,
    )
    with running_gateway(settings, made) as running:
        yield running


@pytest.fixture(scope="module")
def masking() -> Iterator[Gateway]:
    """It masks."""
    with secret_gateway("mask") as running:
        yield running


@pytest.fixture(scope="module")
def refusing() -> Iterator[Gateway]:
    """It refuses."""
    with secret_gateway("refuse") as running:
        yield running


def bodies(path: str) -> list[dict[str, Any]]:
    """Bodies of this endpoint with a secret in each place where a model would read it."""
    if path == EMBEDDINGS:
        return [{"model": "embedder", "input": f"my {CARD}"}, {"model": "embedder", "input": ["fine", KEY]}]
    if path == COMPLETIONS:
        return [{"model": "scripted", "prompt": f"my {CARD}"}, {"model": "scripted", "prompt": ["fine", KEY]}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": CARD, "b": KEY})}}
    user = {"role": "user", "content": "x"}
    messages: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": f"my {CARD}"}],
        [{"role": "user", "content": [{"type": "text", "text": f"my {KEY}"}]}],
        [{"role": "system", "content": KEY}, user],
        [user, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": CARD}],
    ]
    tool = {"type": "function", "function": {"name": "f", "description": f"like {CARD}"}}
    return [
        *({"model": "scripted", "messages": each} for each in messages),
        {"model": "scripted", "messages": [user], "tools": [tool]},
    ]


def body(path: str, model: str, **more: Any) -> dict[str, Any]:
    """A harmless body."""
    return {
        "model": model,
        **({"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}),
        **more,
    }


def arguments_of(answer: httpx.Response) -> tuple[str, str]:
    """The arguments of the tool call of an answer, streamed or whole, and the finish reason."""
    if "event-stream" not in answer.headers["content-type"]:
        choice = answer.json()["choices"][0]
        calls = choice["message"].get("tool_calls") or [{"function": {"arguments": ""}}]
        return calls[0]["function"]["arguments"], choice["finish_reason"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    pieces = [call["function"]["arguments"] for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    return "".join(pieces), choices[-1]["finish_reason"]


@pytest.mark.parametrize(("path", "stream"), ASKED)
def test_input_is_masked_before_the_engine_sees_it(masking: Gateway, path: str, stream: bool) -> None:
    """The engine answers, and read the placeholder."""
    for sent in bodies(path):
        engine: Any = masking.engines[sent["model"]]
        assert post(masking, path, sent, stream=stream).status_code == 200, sent
        seen = [request for request in engine.seen[-2:] if "removed]" in str(request)]
        assert seen, sent
        assert not any(secret in str(engine.seen) for secret in (CARD, KEY))


@pytest.mark.parametrize(("path", "stream"), ASKED)
def test_refused_input_names_the_kind_and_costs_nothing(refusing: Gateway, path: str, stream: bool) -> None:
    """400 `content_filter`, the engine never asked, no token billed, the value nowhere in the answer."""
    for sent in bodies(path):
        engine: Any = refusing.engines[sent["model"]]
        answer = post(refusing, path, sent, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter"), sent
        assert "card number" in answer.text or "API key" in answer.text
        assert CARD not in answer.text
        assert KEY not in answer.text
        assert not engine.seen
        assert all(event.outcome is Outcome.FILTERED for event in refusing.events), "nothing ran"


@pytest.mark.parametrize(("path", "stream"), STREAMED)
def test_output_is_masked_and_billed(masking: Gateway, path: str, stream: bool) -> None:
    """The secrets are replaced, the rest stays, every token that was generated is billed."""
    answer = post(masking, path, body(path, "leaky", n=2), stream=stream)
    texts, ends = texts_and_ends(answer)
    assert set(texts.values()) == {"Pay [card number removed] with [API key removed] now"}
    assert set(ends.values()) == {"stop"}
    event = masking.events[-1]
    assert (event.outcome, event.tokens.completion) == (Outcome.FINISHED, 2 * len(SAID))


@pytest.mark.parametrize(("path", "stream"), STREAMED)
def test_refused_output_ends_the_answer_and_is_billed(refusing: Gateway, path: str, stream: bool) -> None:
    """The clean text before stays, the finish reason says why, work stops, what was generated until then is billed."""
    answer = post(refusing, path, body(path, "leaky"), stream=stream)
    texts, ends = texts_and_ends(answer)
    assert (texts, ends) == ({0: "Pay "}, {0: "content_filter"})
    assert "1111" not in answer.text
    event = refusing.events[-1]
    assert event.outcome is Outcome.FILTERED
    assert 5 <= event.tokens.completion < len(SAID)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_arguments_are_masked(masking: Gateway, stream: bool) -> None:
    """The arguments stay JSON that a program can read."""
    answer = post(masking, CHAT, body(CHAT, "caller"), stream=stream)
    arguments, end = arguments_of(answer)
    assert json.loads(arguments) == {
        "card": "[card number removed]",
        "n": "[card number removed]",
        "key": "[API key removed]",
    }
    assert end == "tool_calls"
    assert masking.events[-1].tokens.completion == 7


@pytest.mark.parametrize("stream", [False, True])
def test_tool_arguments_are_refused(refusing: Gateway, stream: bool) -> None:
    """A secret in arguments ends the answer as one in its text does."""
    answer = post(refusing, CHAT, body(CHAT, "caller"), stream=stream)
    assert arguments_of(answer)[1] == "content_filter"
    assert "1111" not in answer.text
    assert refusing.events[-1].outcome is Outcome.FILTERED
    assert 0 < refusing.events[-1].tokens.completion < 7


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_tell_no_masked_token(masking: Gateway, stream: bool) -> None:
    """Neither endpoint shows in logprobs what it masks in text."""
    for path, more in ((CHAT, {"logprobs": True, "top_logprobs": 2}), (COMPLETIONS, {"logprobs": 2})):
        answer = post(masking, path, body(path, "leaky", **more), stream=stream)
        assert "Pay " in answer.text
        assert "1111" not in answer.text
        assert "FODNN" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_echo_shows_what_the_engine_read(masking: Gateway, stream: bool) -> None:
    """A masked prompt is echoed masked, as its logprobs would be."""
    answer = post(masking, COMPLETIONS, body(COMPLETIONS, "scripted", prompt=f"my {CARD} ", echo=True), stream=stream)
    assert texts_and_ends(answer)[0][0].startswith("my [card number removed] The capital")


class Decoding(ScriptedEngine):
    """Decodes every prompt of ids as a card number."""

    async def generate(self, request: Any) -> Any:
        """The scripted answer, with another prompt told."""
        async for event in super().generate(request):
            yield msgspec.structs.replace(event, prompt_text=CARD) if isinstance(event, Started) else event


@pytest.mark.parametrize("action", ["mask", "refuse"])
def test_token_ids_with_a_secret_are_refused_and_billed(action: str) -> None:
    """They are decoded by the engine, so the prompt was used; they cannot be masked. Ids to embed have no echo."""
    secrets = SecretSettings(card=action)
    models = tuple(ModelSettings(name=name, checkpoint=name) for name in ("decoding", "embedder"))
    settings = Settings(home=Path("/nonexistent"), models=models, guards=GuardSettings(secrets_input=secrets))
    with running_gateway(settings, {"decoding": Decoding(), "embedder": ScriptedEngine(embeds=True)}) as gateway:
        for stream in (False, True):
            answer = post(gateway, COMPLETIONS, {"model": "decoding", "prompt": [1, 2, 3]}, stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
            event = gateway.events[-1]
            assert (event.outcome, event.tokens.prompt) == (Outcome.FILTERED, 3)
        answer = post(gateway, EMBEDDINGS, {"model": "embedder", "input": [1, 2]}, stream=False)
        assert answer.json()["error"]["code"] == "content_filter"


def test_what_was_found_is_counted(masking: Gateway) -> None:
    """`/metrics` tells direction, kind and action, and no value."""
    for stream in (False, True):
        post(masking, CHAT, body(CHAT, "leaky"), stream=stream)
        post(masking, CHAT, {"model": "scripted", "messages": [{"role": "user", "content": CARD}]}, stream=stream)
    page = httpx.get(f"{masking.url}/metrics", trust_env=False).text
    for labels in ('action="mask",direction="input",kind="card"', 'action="mask",direction="output",kind="api_key"'):
        assert f"interlace_secrets_total{{{labels}}}" in page
    assert "4111" not in page


def test_embedding_requests_are_what_the_engine_takes(masking: Gateway) -> None:
    """Masking keeps one row per input, in order."""
    answer = post(masking, EMBEDDINGS, {"model": "embedder", "input": ["a", f"b {CARD} c", "d"]}, stream=False)
    engine: Any = masking.engines["embedder"]
    assert isinstance(engine.seen[-1], EmbedRequest)
    assert engine.seen[-1].texts == ("a", "b [card number removed] c", "d")
    assert [row["index"] for row in answer.json()["data"]] == [0, 1, 2]


@pytest.mark.parametrize("action", ["mask", "refuse"])
def test_logged_prompts_hold_no_secret(action: str, caplog: pytest.LogCaptureFixture) -> None:
    """With `log.prompts`, what a guard keeps from the engine or the caller is not written down instead."""
    secrets = SecretSettings(card=action, api_key=action)
    settings = Settings(
        home=Path("/nonexistent"),
        models=(ModelSettings(name="leaky", checkpoint="leaky"),),
        guards=GuardSettings(secrets_input=secrets, secrets_output=secrets),
        log=LogSettings(prompts=True),
    )
    with (
        caplog.at_level("INFO", "interlace.gateway.pipeline"),
        running_gateway(settings, {"leaky": ScriptedEngine(tokens=SAID)}) as gateway,
    ):
        post(gateway, CHAT, body(CHAT, "leaky"), stream=True)
        post(gateway, COMPLETIONS, body(COMPLETIONS, "leaky", prompt=f"{CARD} {KEY}"), stream=False)
    logged = [str(vars(record)["fields"]) for record in caplog.records if record.getMessage() == "prompt"]
    assert len(logged) == (2 if action == "mask" else 1), "a request that is refused before it runs is not logged"
    assert action == "refuse" or "[card number removed] [API key removed]" in logged[1]
    assert not any("1111" in line or "FODNN" in line for line in logged)
