"""Pages of other origins: nothing unless they are named, then `/v1/` and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from interlace.config import CorsSettings, Settings, check_config
from interlace.gateway.cors import EXPOSED
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine

NAMED, OTHER = "https://app.example.com", "https://evil.example.com"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def _gateway(*origins: str) -> Iterator[Gateway]:
    settings = Settings(home=Path("/nonexistent"), cors=CorsSettings(origins), drain_seconds=5)
    with running_gateway(settings, {"m": ScriptedEngine()}) as running:
        yield running


@pytest.fixture(scope="module")
def closed() -> Iterator[Gateway]:
    """As it comes."""
    yield from _gateway()


@pytest.fixture(scope="module")
def opened() -> Iterator[Gateway]:
    """With one origin named."""
    yield from _gateway(NAMED, "http://localhost:3000")


def _preflight(
    gateway: Gateway, path: str, origin: str, headers: str = "authorization, content-type"
) -> httpx.Response:
    asks = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": headers}
    return httpx.options(gateway.url + path, headers=asks, trust_env=False)


def _allowing(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def test_off_by_default(closed: Gateway) -> None:
    """A page that nobody named could else call with a key that its user gave it for another."""
    assert _allowing(_preflight(closed, CHAT, NAMED)) == {}
    asked = httpx.post(closed.url + CHAT, json=BODY, headers=closed.headers | {"origin": NAMED}, trust_env=False)
    assert (asked.status_code, _allowing(asked)) == (200, {})


def test_a_named_origin_is_told_what_it_may(opened: Gateway) -> None:
    """The browser of a named page asks first, and must hear origin, methods and headers, but never credentials."""
    answer = _preflight(opened, CHAT, NAMED, "authorization,content-type,x-stainless-lang")
    assert (answer.status_code, answer.content) == (204, b"")
    assert _allowing(answer) == {
        "access-control-allow-origin": NAMED,
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization,content-type,x-stainless-lang",
        "access-control-max-age": "600",
    }
    assert "origin" in answer.headers["vary"]


@pytest.mark.parametrize("key", ["good", "bad"])
@pytest.mark.parametrize("stream", [False, True])
def test_its_answers_and_errors_can_be_read(opened: Gateway, key: str, stream: bool) -> None:
    """Without the mark on an error, a page would see only that something failed."""
    headers = (opened.headers if key == "good" else {"authorization": "Bearer no"}) | {"origin": NAMED}
    answer = httpx.post(opened.url + CHAT, json={**BODY, "stream": stream}, headers=headers, trust_env=False)
    assert answer.status_code == (200 if key == "good" else 401)
    assert _allowing(answer) == {
        "access-control-allow-origin": NAMED, "access-control-expose-headers": EXPOSED.decode()
    }  # fmt: skip
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize(
    "origin", [OTHER, NAMED + ".evil.com", NAMED.upper(), "null", NAMED + ":8443", "http" + NAMED[5:]]
)
def test_others_are_told_nothing(opened: Gateway, origin: str) -> None:
    """Origins are compared letter for letter: what begins or ends like a named one is another."""
    assert _allowing(_preflight(opened, CHAT, origin)) == {}
    asked = httpx.get(opened.url + "/v1/models", headers=opened.headers | {"origin": origin}, trust_env=False)
    assert _allowing(asked) == {}
    assert asked.headers["vary"] == "origin", "a cache would give the answer to a named page"


@pytest.mark.parametrize("path", ["/admin/v1/orgs", "/admin/v1/reload", "/metrics", "/readyz", "/"])
def test_only_the_api_is_open_to_pages(opened: Gateway, path: str) -> None:
    """A page must not administer, whoever opened it."""
    assert _allowing(_preflight(opened, path, NAMED)) == {}
    asked = httpx.get(opened.url + path, headers=opened.headers | {"origin": NAMED}, trust_env=False)
    assert _allowing(asked) == {}


def test_odd_preflights_are_not_echoed(opened: Gateway) -> None:
    """What is echoed into a header must be a list of header names."""
    for odd in ("a b", "x" * 5000, "a;b", "*", ""):
        assert "access-control-allow-headers" not in _allowing(_preflight(opened, CHAT, NAMED, odd))
    plain = httpx.options(opened.url + CHAT, headers={"origin": NAMED}, trust_env=False)
    assert plain.status_code == 405, "OPTIONS without a question is no preflight"


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://a.example/", "https://A.example", "a.example", "https://*.a.b", "https://a.example:443",
     "https://u:p@a.example", "https://a.example/x"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str, tmp_path: Path) -> None:
    """A star, or an address that no browser sends as an origin, would open more than meant, or nothing."""
    file = tmp_path / "interlace.yaml"
    file.write_text(f"cors: {{origins: ['{origin}']}}\n")
    (problem,) = check_config(file, {})
    assert (problem.line, problem.where) == (1, "cors.origins[0]")
    assert "https://app.example.com" in problem.mend
