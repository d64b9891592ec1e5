"""`interlace route explain` and `/admin/v1/routes`: what is told is what would happen, and nothing is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from interlace.cli import app
from interlace.config import BreakerSettings, MemberSettings, PartSettings, RetrySettings, WhenSettings
from tests.support.provider import Provider, running_provider
from tests.support.routing import Routed, route, routed
from tests.support.serving import free_port
from tests.support.tenants import tenant


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def explained(there: Routed, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the admin API says of a request."""
    with httpx.Client(trust_env=False, headers=there.gateway.headers) as client:
        answer = client.post(f"{there.gateway.url}/admin/v1/routes/explain", json={"request": request, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_what_is_explained_is_what_happens(provider: Provider) -> None:
    """An explanation that differs from the choice is worse than none: here of a conversation, which draws the same."""
    models = {name: f"instant:{i}" for i, name in enumerate("abcd", 1)}
    with routed(provider, models, route(*models, sticky=True)) as there:
        key = there.gateway.events and ""
        key = next(iter(there.gateway.registry.directory.keys))
        for turn in range(8):
            request = {"model": "r", "messages": [{"role": "user", "content": f"talk {turn}"}]}
            told = explained(there, request, key=key)
            assert told["steps"][0]["model"] == there.ask(f"talk {turn}").served[0]
        asked = len(provider.seen)
        assert asked == 8, "explaining asked a model"


def test_the_live_state_is_told(provider: Provider) -> None:
    """Who is broken, how quick each is, who is passed over and why, what it is likely to cost."""
    breaker = BreakerSettings(failures=1, window_seconds=60, open_seconds=60)
    members = ("bad", "good", MemberSettings("eu", when=WhenSettings(tags=("eu",))))
    asked = route(*members, shadow=PartSettings("quiet", 100), retries=RetrySettings(times=0))
    models = {"bad": "status:500", "good": "instant:3", "eu": "instant:1", "quiet": "instant:1"}
    with routed(provider, models, asked, breaker=breaker) as there:
        while there.gateway.pipeline.routes.live["bad"].breaker.state == "closed":
            there.ask()
        told = explained(there, {"model": "r", "max_tokens": 10})
        by_model = {step["model"]: step for step in told["steps"]}
        assert (by_model["good"]["place"], by_model["good"]["why"]) == (1, "primary")
        assert by_model["good"]["first_token_seconds"] > 0
        assert (by_model["good"]["percent"], by_model["good"]["likely_usd"]) == (100.0, "0.000000052")
        assert (by_model["bad"]["place"], by_model["bad"]["breaker"]) == (2, "open")
        assert by_model["bad"]["why"] == "fallback 1; its breaker is open"
        assert (by_model["eu"]["place"], by_model["eu"]["why"]) == (None, "only for requests tagged eu")
        assert (told["shadow"], told["live"]) == ("quiet", True)
        assert explained(there, {"model": "r"}, tags=["eu"])["steps"][0]["model"] in {"good", "eu"}
        assert explained(there, {"model": "good"})["route"] is None
        with httpx.Client(trust_env=False, headers=there.gateway.headers, base_url=there.gateway.url) as client:
            (view,) = client.get("/admin/v1/routes").json()["data"]
            assert {one["model"]: one["breaker"] for one in view["models"]}["bad"] == "open"
            assert client.post("/admin/v1/routes/explain", json={"request": {"model": "no"}}).status_code == 404
            wrong = {"request": {"model": "r", "messages": []}}
            assert client.post("/admin/v1/routes/explain", json=wrong).status_code == 400
            paths = client.get("/admin/v1/openapi.json").json()["paths"]
            assert {"/admin/v1/routes", "/admin/v1/routes/explain"} <= set(paths)
            stranger = tenant(there.gateway.registry).headers
            assert client.get("/admin/v1/routes", headers=stranger).status_code == 403


def configuration(folder: Path) -> Path:
    """A configuration with a route, for a server that does not run."""
    model = {"engine": "openai", "base_url": "http://127.0.0.1:1/v1"}
    whole = {
        "home": str(folder),
        "port": free_port(),
        "models": [{"name": name, "model": name, **model} for name in ("a", "b")],
        "routes": [
            {"name": "r", "models": [{"model": "a"}], "fallbacks": [{"model": "b", "when": {"needs": ["tools"]}}]}
        ],
    }
    path = folder / "interlace.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def test_without_a_server_the_configuration_is_explained(tmp_path: Path) -> None:
    """Before a change is rolled out, its effect can be looked at."""
    env = {"INTERLACE_CONFIG": str(configuration(tmp_path))}
    run = CliRunner().invoke
    told = run(app, ["route", "explain", '{"model": "r"}', "--json"], env=env)
    assert told.exit_code == 0, told.output
    value = json.loads(told.stdout)
    assert [(step["place"], step["model"], step["why"]) for step in value["steps"]] == [
        (1, "a", "primary"),
        (None, "b", "only for requests that need tools"),
    ]
    table = run(app, ["route", "explain", "-"], env=env, input='{"model": "r"}')
    assert "only for requests that need tools" in table.stdout
    assert "is asked, and nobody else" in run(app, ["route", "explain", '{"model": "a"}'], env=env).stdout
    assert "r      weighted  a" in run(app, ["route", "list"], env=env).stdout
    assert run(app, ["route", "explain", "no json"], env=env).exit_code == 2
    assert run(app, ["route", "explain", '{"model": "r", "messages": []}'], env=env).exit_code == 2


def test_the_command_asks_a_running_server(provider: Provider, tmp_path: Path) -> None:
    """Only it knows who is broken now."""
    with routed(provider, {"a": "instant:3"}, route("a")) as there:
        env = {
            "INTERLACE_URL": there.gateway.url,
            "INTERLACE_API_KEY": there.gateway.key,
            "INTERLACE_HOME": str(tmp_path),
        }
        told = CliRunner().invoke(app, ["route", "explain", '{"model": "r"}', "--json"], env=env)
        assert json.loads(told.stdout)["live"] is True
        shown = CliRunner().invoke(app, ["route", "list"], env=env)
        assert "ready" in shown.stdout
