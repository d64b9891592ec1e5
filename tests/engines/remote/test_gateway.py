"""A gateway over a provider: what callers get, what is billed, and what stays secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings
from interlace.engines.remote import RemoteEngine
from interlace.engines.types import Delta, Embeddings, Started, Usage
from interlace.errors import ConfigError
from interlace.gateway.commands import config_check_command, models_command
from interlace.gateway.logs import JsonFormatter
from interlace.gateway.meter import Meter
from interlace.gateway.serve import build_engine
from interlace.ledger import Outcome, Tokens
from tests.support.asking import KEY, KEY_NAME, chat, collect, gateway_to, remote_settings
from tests.support.gateway_thread import Gateway, wait_for
from tests.support.provider import Provider
from tests.support.serving import environment

BAD = (
    "cut", "cut:first", "half-json", "html", "long-line", "no-http", "redirect:307", "status:401", "status:403",
    "status:500", "status:503", "refuse:key", "refuse:controls", "error-inside:mid", "hang-first", "hang-mid",
)  # fmt: skip
GOOD = ("instant:3", "slow:4000", "liar", "no-usage", "instant:2000")


@pytest.fixture(scope="module")
def gateway(provider: Provider) -> Iterator[Gateway]:
    """Every script is a model of the same name."""
    models = {name: name for name in (*BAD, *GOOD, "status:429", "status:400", "refuse:context")}
    with gateway_to(provider.url, models | {"embedder": "instant", "embedder-401": "status:401"}) as made:
        yield made


def ask(gateway: Gateway, model: str, *, stream: bool = False, **more: Any) -> httpx.Response:
    """One chat, answered to its end."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello out there"}], "stream": stream, **more}
    url = f"{gateway.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=gateway.headers, timeout=30, trust_env=False)


STATUSES = {
    "status:400": (400, "odd"),
    "refuse:context": (400, "context_length_exceeded"),
    "status:401": (502, "engine_failed"),
    "status:429": (429, "rate_limit_exceeded"),
    "status:500": (502, "engine_failed"),
    "status:503": (503, "engine_unavailable"),
    "html": (502, "engine_failed"),
    "hang-first": (502, "engine_failed"),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", STATUSES)
def test_what_fails_before_the_first_token_has_a_status(gateway: Gateway, model: str, stream: bool) -> None:
    """Streaming or not, a caller can tell a fault of its own from one of the provider's, and nothing is billed."""
    answer = ask(gateway, model, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == STATUSES[model]
    assert answer.headers.get("retry-after") == {"status:429": "7", "status:503": "5"}.get(model)
    assert all(event.tokens == Tokens() and event.cost_nanos == 0 for event in gateway.events if event.model == model)


def test_what_breaks_later_is_told_in_the_stream(gateway: Gateway) -> None:
    """A stream that breaks ends in an error event, and what was generated is billed."""
    answer = ask(gateway, "cut", stream=True)
    assert answer.status_code == 200
    *_, last = [line for line in answer.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert ask(gateway, "cut").status_code == 502
    for event in gateway.events[-2:]:
        assert (event.outcome, event.tokens.completion) == (Outcome.FAILED, 2)
        assert event.tokens.prompt == 8  # our estimate: fifteen bytes and a message


@pytest.mark.parametrize("stream", [True, False])
def test_a_good_answer_is_billed_as_reported(gateway: Gateway, stream: bool) -> None:
    """The provider's count is what the caller is told and what is recorded, streamed or not."""
    answer = ask(gateway, "instant:3", stream=stream)
    assert answer.status_code == 200
    event = gateway.events[-1]
    assert (event.outcome, event.tokens.prompt, event.tokens.completion) == (Outcome.FINISHED, 3, 3)


def test_a_bill_that_cannot_be_is_marked(gateway: Gateway) -> None:
    """What a provider reports is charged as reported; where it contradicts what was seen, the event says so, and so do
    the key's own usage and the operator's sums."""
    assert ask(gateway, "instant:3").status_code == 200
    assert not gateway.events[-1].disputed
    answer = ask(gateway, "liar", max_tokens=8)
    assert answer.status_code == 200
    event = gateway.events[-1]
    assert event.disputed
    assert not event.estimated
    told = httpx.get(f"{gateway.url}/v1/usage/{event.id}", headers=gateway.headers, trust_env=False).json()
    assert told["disputed"] is True
    own = httpx.get(f"{gateway.url}/v1/usage?by=model", headers=gateway.headers, trust_env=False).json()
    lines = {line["model"]: line["disputed_requests"] for line in own["usage"]["data"]}
    assert (lines["liar"], lines["instant:3"]) == (1, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_ends_it_at_the_provider(gateway: Gateway, provider: Provider, stream: bool) -> None:
    """A caller that leaves, streaming or not, stops the work where it is done; what was generated is billed."""
    provider.cancelled.clear()
    before, seen = len(gateway.events), len(provider.bodies("slow:4000"))
    body = {"model": "slow:4000", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with httpx.Client(headers=gateway.headers, trust_env=False) as client:
        if stream:
            with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as answer:
                lines = answer.iter_lines()
                assert sum(1 for _ in zip(range(8), lines, strict=False)) == 8
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=0.3)
    wait_for(lambda: provider.cancelled == ["slow:4000"])
    wait_for(lambda: len(gateway.events) == before + 1)
    assert len(provider.bodies("slow:4000")) == seen + 1
    event = gateway.events[-1]
    assert event.outcome is Outcome.CLIENT_GONE
    assert 2 <= event.tokens.completion < 1000
    assert event.tokens.prompt > 0


def test_one_providers_faults_lock_nobody_out(gateway: Gateway) -> None:
    """Callers of a good model and of bad ones at once, through one gateway: the good answers all come."""
    answers: list[httpx.Response] = []
    callers = [
        threading.Thread(target=lambda name=name: answers.append(ask(gateway, name)))  # type: ignore[misc]
        for name in (*BAD, *["instant:3"] * 16)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert [answer.status_code for answer in answers].count(200) == 16
    assert {answer.status_code for answer in answers} <= {200, 400, 502, 503}
    ready = httpx.get(f"{gateway.url}/readyz", trust_env=False)
    assert ready.status_code == 200
    assert {model["state"] for model in ready.json()["models"].values()} == {"ready"}


# --- secrets -----------------------------------------------------------------------------------------------------


def test_the_providers_key_reaches_the_provider_only(
    gateway: Gateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes out in one header; no answer, header, page, log line or traceback has it, whatever the provider says."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for model in (*BAD, "instant:3", "status:429", "status:400"):
        for stream in (True, False):
            answer = ask(gateway, model, stream=stream)
            said += [answer.text, str(answer.headers)]
    for model in ("embedder", "embedder-401"):
        body = {"model": model, "input": "a"}
        answer = httpx.post(f"{gateway.url}/v1/embeddings", json=body, headers=gateway.headers, trust_env=False)
        said.append(answer.text)
    for page in ("/v1/models", "/v1/models/html", "/readyz", "/metrics", "/openapi.json", "/"):
        said.append(httpx.get(gateway.url + page, headers=gateway.headers, trust_env=False).text)
    formatter = JsonFormatter()
    said += [formatter.format(record) + repr(record.__dict__) for record in caplog.records]
    assert [text for text in said if KEY in text or KEY[8:-4] in text] == []
    assert any("a provider refused" in text for text in said)
    assert provider.seen[-1].headers["authorization"] == f"Bearer {KEY}"
    assert not any(KEY in json.dumps(seen.body) for seen in provider.seen)


def test_the_key_is_in_no_representation(gateway: Gateway) -> None:
    """Neither the settings nor an engine shows it to a debugger, a log or a traceback."""
    engine: Any = gateway.engines["html"]
    key, wire = engine._wire._key, vars(engine._wire)
    shown = [repr(engine), repr(engine._settings), repr(vars(engine)), repr(wire), f"{key} {key!r} {key!s}"]
    assert [text for text in shown if KEY in text] == []
    assert key.reveal() == KEY


@pytest.mark.parametrize("text", ["", " ", "two words", "ends in\x00", "Schlüssel"])
async def test_a_variable_that_holds_no_key_is_named(text: str) -> None:
    """A missing or mangled key ends the start with the variable's name, and without what it held."""
    with pytest.raises(ConfigError, match=KEY_NAME) as caught:
        RemoteEngine(remote_settings("http://127.0.0.1:9", "m"), {KEY_NAME: text})
    assert not text.strip() or text not in caught.value.message


def test_commands_show_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`config check` and `models` know where a model runs, and nothing of its key; the latter does not need one."""
    file = tmp_path / "interlace.yaml"
    lines = ["models:", "  - name: far", "    engine: openai", "    base_url: http://127.0.0.1:9/v1", "    model: m"]
    file.write_text("\n".join([*lines, f"    api_key: ${{{KEY_NAME}}}\n"]))
    env = {KEY_NAME: KEY, "INTERLACE_HOME": str(tmp_path), "INTERLACE_PORT": "1"}
    assert config_check_command(file, env=env) == 0
    for there in (env, {**env, KEY_NAME: ""}):
        for as_json in (True, False):
            assert models_command(as_json=as_json, config=file, env=there) == 0
    said = capsys.readouterr()
    assert "m at http://127.0.0.1:9/v1" in said.out
    assert KEY not in said.out + said.err
    file.write_text("\n".join([*lines, f"    api_key: {KEY}\n"]))
    assert config_check_command(file, env=env) == 1
    said = capsys.readouterr()
    assert f"{file}:6: models[0].api_key: is not written as ${{NAME}}" in said.out
    assert KEY not in said.out + said.err


@pytest.mark.parametrize("engine", ["anthropic", "mistral", "groq", "together", "azure"])
def test_the_check_knows_the_keys_that_are_not_written_down(tmp_path: Path, capsys: Any, engine: str) -> None:
    """A provider's usual variable must be set though no line names it; else `serve` would be the first to say so."""
    file = tmp_path / "interlace.yaml"
    file.write_text(f"models:\n  - {{name: far, engine: {engine}, base_url: 'http://127.0.0.1:9', model: m}}\n")
    assert config_check_command(file, env={"INTERLACE_HOME": str(tmp_path)}) == 1
    said = capsys.readouterr().out
    variable = "AZURE_OPENAI_API_KEY" if engine == "azure" else f"{engine.upper()}_API_KEY"
    assert f"models[0].api_key: The environment variable {variable} is not set" in said
    assert config_check_command(file, env={"INTERLACE_HOME": str(tmp_path), variable: "k"}) == 0


# --- a light process ---------------------------------------------------------------------------------------------

LIGHT = """
import sys, threading, time
from pathlib import Path
from interlace.config import load_settings
from interlace.gateway.serve import serve
import os, signal
def announce(text, **more):
    if "Try it" in text:
        print(*sorted(set(sys.argv[2:]) & set(sys.modules)), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
sys.exit(serve(load_settings(Path(sys.argv[1])), announce=announce))
"""
HEAVY = ("openvino", "numpy", "tokenizers", "llguidance", "huggingface_hub", "gguf", "safetensors", "httpx", "torch")


def started_with(tmp_path: Path, models: str, *asked: str) -> list[str]:
    """Which of the asked modules a gateway has loaded once it is ready to answer."""
    file = tmp_path / "interlace.yaml"
    file.write_text("port: 0\nmodels:\n" + models)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(file), *asked], env=environment(tmp_path), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_gateway_of_remote_models_loads_no_engine(tmp_path: Path) -> None:
    """It is ready to answer without openvino or numpy, and so in a moment; the HTTP client is there."""
    models = "  - {name: far, engine: openai, base_url: 'http://127.0.0.1:9', model: m}\n"
    client = "interlace.engines.remote.transport"
    assert started_with(tmp_path, models, *HEAVY, "aiohttp", client) == [client]


def test_a_gateway_of_local_models_loads_no_http_client(tmp_path: Path, minilm: Path) -> None:
    """Who runs everything here does not pay for a client of other servers."""
    client = "interlace.engines.remote.transport"
    assert started_with(tmp_path, f"  - {{name: near, checkpoint: '{minilm}'}}\n", client) == []


async def test_a_server_without_keys_is_sent_none(provider: Provider) -> None:
    """`api_key` may be left out, for a server of one's own; then there is no Authorization header at all."""
    settings = ModelSettings("far", engine="openai", base_url=provider.url, model="instant:1")
    engine = build_engine(settings, Path("/nonexistent"), {})
    await collect(engine, chat())  # type: ignore[arg-type]
    await engine.close()
    assert "authorization" not in provider.seen[-1].headers


def test_a_cut_off_answer_is_known_to_be_an_estimate() -> None:
    """What is billed by estimates says so, until the provider's own count replaces them."""
    meter = Meter()
    meter.see(0, Started(8, estimated=True))
    meter.see(0, Delta(text="one ", tokens=1))
    assert meter.usage() == Usage(8, 1, estimated=True)
    meter.see(0, Usage(5, 1, 2, 1, 1))
    assert meter.usage() == Usage(5, 1, 2, 1, 1)
    meter.see(1, Embeddings((b"",), 0, 3, estimated=True))
    assert meter.usage() == Usage(8, 1, 2, 1, 1, estimated=True)
