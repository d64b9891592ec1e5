"""`interlace providers list|check` against a provider on loopback: what works is said to work, and only that."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from interlace.config import ModelSettings
from interlace.engines.fields import ALL_KEPT, Fields
from interlace.engines.remote import RemoteEngine
from interlace.gateway.commands import serve_command
from interlace.gateway.probes import Finding, check, probes
from tests.support.billing import priced
from tests.support.provider import Provider, running_provider
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving import environment

KEY = "sk-never-shown-anywhere-123"


@dataclass
class Said:
    """How the command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def results(self) -> dict[str, str]:
        """Check by check."""
        return {row["name"]: row["status"] for row in json.loads(self.out)["checks"]}


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, provider: Provider) -> Run:
    """`interlace providers WORDS` in a process of its own; the models are the provider's scripts."""

    def run(*words: str, models: dict[str, Any], prices: tuple[str, ...] = (), **env: str) -> Said:
        here = {"engine": "openai", "base_url": provider.url}
        listed = [
            {"name": name, **({} if "engine" in settings else here), **settings} for name, settings in models.items()
        ]
        config = {"models": listed, "prices": [priced(name) for name in prices]}
        (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "interlace", "providers", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path / "home") | env, capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
        assert KEY not in done.stdout + done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    return run


# --- check -------------------------------------------------------------------------------------------------------


def test_a_good_model_works_and_costs_what_its_price_says(run: Run, provider: Provider) -> None:
    """Were a capability that works told as failing, or the cost not that of the usage, nobody would trust the table."""
    model = {"model": "able", "api_key": "${SOME_KEY}"}
    done = run("check", "large", "--json", models={"large": model}, prices=("large",), SOME_KEY=KEY)
    assert done.code == 0, done.out + done.err
    here = {"chat", "usage", "count", "streaming", "stop", "tools", "tool results", "parallel tools",
            "structured output"}  # fmt: skip
    assert {name: status for name, status in done.results.items() if name in here} == dict.fromkeys(here, "works")
    assert set(done.results.values()) <= {"works", "not offered"}
    answer = json.loads(done.out)
    asked = len(provider.bodies("able"))
    assert asked == sum(row["tokens"] is not None for row in answer["checks"])
    assert answer["cost_nanos"] == asked * (30 * 2 + 20 * 5)
    assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in provider.seen)
    assert answer["provider"]["keys"] == {"SOME_KEY": True}
    assert all("temperature" not in body for body in provider.bodies("able")), "newer models refuse it"


def test_the_table_for_people(run: Run) -> None:
    """Result, time and cost of each check stand in one line, and what it cost in all below."""
    done = run("check", "large", models={"large": {"model": "able"}}, prices=("large",))
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("parallel tools"))
    assert line.split()[2] == "works"
    assert " s " in line
    assert "0.00000016" in line
    assert "dollars by the price of large" in done.out
    assert run("check", "large", models={"large": {"model": "able"}}).out.count("not known") == 1


def test_what_is_wrong_fails_the_command(run: Run) -> None:
    """A script that is run before a model is offered must not say yes to calls of another shape or broken objects."""
    done = run("check", "m", "--json", models={"m": {"model": "able:wrong"}})
    assert done.code == 1
    failed = {name for name, status in done.results.items() if status == "fails"}
    assert failed == {"stop", "tools", "parallel tools", "structured output"}
    done = run("check", "m", "--json", models={"m": {"model": "able:liar"}})
    assert (done.code, done.results["usage"]) == (1, "fails")


def test_what_a_model_chose_not_to_do_is_no_failure(run: Run) -> None:
    """Whether a model calls a tool, or tells its usage, is no fault of the way to it; it is told all the same."""
    done = run("check", "m", "--json", models={"m": {"model": "able:dull"}})
    assert done.code == 0
    assert {done.results[name] for name in ("chat", "tools", "parallel tools", "tool results")} == {"partly"}
    done = run("check", "m", "--json", models={"m": {"model": "able:silent"}})
    assert (done.code, done.results["usage"], done.results["count"]) == (0, "partly", "works")


@pytest.mark.parametrize("script", ["status:401", "status:500", "cut:first", "garbage:7", "html"])
def test_a_provider_that_does_not_answer_is_asked_once(script: str, run: Run, provider: Provider) -> None:
    """Ten calls that fail for the same reason say nothing more than one, and may lock a key out."""
    done = run("check", "m", "--json", models={"m": {"model": script, "api_key": "${SOME_KEY}"}}, SOME_KEY=KEY)
    assert done.code == 1
    assert done.results["chat"] == "fails"
    assert set(done.results.values()) == {"fails", "not tried"}
    assert len(provider.bodies(script)) <= 2, "asked again"


def test_embeddings_are_checked_too(run: Run) -> None:
    """A model of embeddings answers no chat: asked for one, it would always fail."""
    good = run("check", "v", "--json", models={"v": {"model": "instant", "embeds": True}})
    assert (good.code, good.results) == (0, {"embeddings": "works", "count": "works"})
    bad = run("check", "v", "--json", models={"v": {"model": "embed:few", "embeds": True}})
    assert (bad.code, bad.results) == (1, {"embeddings": "fails", "count": "not tried"})


def test_wrong_use(run: Run) -> None:
    """A name that is not there, and a key that is not set, are told with what there is; nothing is asked."""
    models = {"large": {"model": "able", "api_key": "${SOME_KEY}"}}
    done = run("check", "small", models=models)
    assert (done.code, "there is: large" in done.err) == (2, True)
    done = run("check", "large", models=models)
    assert done.code == 2
    assert "SOME_KEY" in done.err


# --- each capability, where the engine offers all -----------------------------------------------------------------


class Everything(ScriptedEngine):
    """Offers everything, and says what it was told to."""

    def fields(self) -> Fields:
        """Nothing is refused."""
        return ALL_KEPT


async def _found(*words: str) -> dict[str, Finding]:
    begun: list[str] = []
    found = await check(Everything(tokens=words), embeds=False, begun=begun.append)
    assert begun == [one.name for one in found]
    return {one.name: one for one in found}


async def test_a_picture_is_seen_or_not() -> None:
    """A model that gets no picture answers all the same, with something else."""
    found = await _found("It", " is", " Red.")
    assert found["image"].status == "works"
    found = await _found("Blue.")
    assert (found["image"].status, found["image"].detail) == ("partly", "it said Blue.")
    (image,) = (probe.request for probe in probes() if probe.name == "image")
    assert image.messages is not None
    picture = image.messages[0].parts[1]
    assert base64.b64decode(picture.data).startswith(b"\x89PNG")  # type: ignore[union-attr] # it is an image


async def test_thoughts_are_looked_for_in_text_and_usage() -> None:
    """An engine that thinks nothing must not be said to reason."""
    assert (await _found("No."))["reasoning"].status == "partly"


async def test_what_an_engine_refuses_is_not_asked(provider: Provider) -> None:
    """The table of fields says no before the provider does; no call is paid for to hear it."""
    engine = RemoteEngine(ModelSettings(name="m", engine="openai", base_url=provider.url, model="instant:3"))
    try:
        found = {one.name: one for one in await check(engine, embeds=False, begun=lambda _: None)}
    finally:
        await engine.close()
    refused = {name for name, one in found.items() if one.status == "not offered"}
    assert all(found[name].tokens is None for name in refused)
    assert len(provider.bodies("instant:3")) == len(found) - len(refused) - 1, "the count asks nobody"


def test_whoever_runs_the_gateway_hears_more_than_a_caller(run: Run) -> None:
    """A caller is told to ask whoever runs the gateway. That is who runs this command, and must hear what was refused,
    where, and which key was used."""
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/n", "AWS_SHARED_CREDENTIALS_FILE": "/n"}
    done = run("check", "m", models={"m": {"engine": "bedrock", "model": "x", "region": "eu-central-1"}}, **nobody)
    assert done.code == 1
    assert "Asked was https://bedrock-runtime.eu-central-1.amazonaws.com, for x; key: AWS's credentials." in done.err
    done = run("check", "m", models={"m": {"model": "status:401"}})
    assert "The log would say: a provider refused or failed a request (status 401" in done.err
    assert done.err.count("The log would say") == 1


# --- list --------------------------------------------------------------------------------------------------------


def test_the_list_tells_of_keys_without_showing_them(run: Run) -> None:
    """Which key is missing is what one looks for; the key itself is nobody's business."""
    models = {
        "large": {"model": "able", "api_key": "${SOME_KEY}"},
        "other": {"model": "able", "api_key": "${OTHER_KEY}"},
        "open": {"model": "able"},
    }
    done = run("list", models=models, SOME_KEY=KEY)
    assert done.code == 0
    rows = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert "SOME_KEY is set" in rows["large"]
    assert "OTHER_KEY IS NOT SET" in rows["other"]
    assert rows["open"].endswith("none")
    rows = {row["name"]: row["keys"] for row in json.loads(run("list", "--json", models=models, SOME_KEY=KEY).out)}
    assert rows == {"large": {"SOME_KEY": True}, "other": {"OTHER_KEY": False}, "open": {}}
    assert "no model of another server" in run("list", models={}).err


@pytest.mark.parametrize(
    ("engine", "more", "address", "key"),
    [
        ("anthropic", {}, "https://api.anthropic.com", "ANTHROPIC_API_KEY IS NOT SET"),
        ("groq", {}, "https://api.groq.com/openai/v1", "GROQ_API_KEY IS NOT SET"),
        ("azure", {"base_url": "https://x.openai.azure.com"}, "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY IS"),
        ("azure", {"base_url": "https://x.openai.azure.com", "entra_token": "${E}"}, "https://x.openai.az", "E IS NOT"),
        ("bedrock", {"region": "eu-west-1"}, "https://bedrock-runtime.eu-west-1.amazonaws.com", "AWS's credentials"),
        ("vertex", {"project": "p"}, "https://aiplatform.googleapis.com/v1beta1", "Google's credentials"),
        ("vertex", {}, "https://generativelanguage.googleapis.com/v1", "GEMINI_API_KEY IS NOT SET"),
        ("ollama", {}, "http://127.0.0.1:11434/v1", "none"),
    ],
)
def test_the_list_fills_in_what_providers_know_themselves(
    run: Run, monkeypatch: pytest.MonkeyPatch, engine: str, more: dict[str, Any], address: str, key: str
) -> None:
    """Else the table says that no key is needed where one is missing, and nothing of where requests go."""
    for name in ("ANTHROPIC_API_KEY", "GROQ_API_KEY", "AZURE_OPENAI_API_KEY", "E", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)  # the machine's own, or other tests'
    done = run("list", models={"one": {"engine": engine, "model": "m", **more}})
    row = done.out.splitlines()[1]
    assert address in row
    assert key in row


def test_a_missing_key_is_told_before_anything_is_pulled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody should wait for a checkpoint of gigabytes to hear that a variable is not set."""
    local = {"name": "small", "checkpoint": "smollm2-135m-instruct"}
    file = tmp_path / "interlace.yaml"
    file.write_text(yaml.safe_dump({"models": [local, {"name": "far", "engine": "anthropic", "model": "m"}]}))
    assert serve_command(config=file, home=tmp_path / "home", env={}) == 2
    told = capsys.readouterr().err
    assert "models[1].api_key: The environment variable ANTHROPIC_API_KEY is not set." in told
    assert "Pulling" not in told


def test_the_environment_of_these_tests_is_clean() -> None:
    """A key of the machine's own must not decide what the list says."""
    assert "SOME_KEY" not in os.environ
