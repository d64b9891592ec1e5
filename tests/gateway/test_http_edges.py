"""What arrives broken is refused in OpenAI's shape; what is around an answer is right."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import msgspec
import pytest

from tests.support.gateway_thread import Gateway

CHAT = "/v1/chat/completions"
GOOD = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


def post(gateway: Gateway, content: bytes, path: str = CHAT, **headers: str) -> httpx.Response:
    """Send raw bytes as JSON."""
    sent = {**gateway.headers, "content-type": "application/json", **headers}
    return httpx.post(gateway.url + path, content=content, headers=sent, trust_env=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800", "messages": []}',
        b"\xef\xbb\xbf{}",
        b"[" * 50_000,
        b'{"model": "scripted", "messages": ' + b"[" * 40_000,
        b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":'
        b'{"name":"f","parameters":' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"}}]}",
        b'{"model": "scripted", "temperature": NaN}',
        b'{"model": "scripted", "temperature": 1e999}',
        b'{"model": "scripted", "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_broken_bodies(gateway: Gateway, content: bytes) -> None:
    """400 with a message a person can act on, whatever the bytes."""
    answer = post(gateway, content)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_a_large_body_is_refused_before_it_is_read(gateway: Gateway) -> None:
    """413 from the declared length alone, and from counting when there is none."""
    assert post(gateway, b" " * 100_001).status_code == 413
    chunks = (b" " * 10_000 for _ in range(50))
    headers = {**gateway.headers, "content-type": "application/json"}
    counted = httpx.post(gateway.url + CHAT, content=chunks, headers=headers, trust_env=False)
    assert counted.status_code == 413
    assert counted.json()["error"]["code"] == "request_too_large"


def test_a_body_that_never_comes_is_given_up(gateway: Gateway) -> None:
    """A caller that declares a body and sends half of it gets a 400 and no slot."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
            "content-type: application/json\r\ncontent-length: 50\r\n\r\n{".encode()
        )
        assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_older_client_gets_no_chunks(gateway: Gateway, version: str, stream: bool) -> None:
    """HTTP/1.0 does not know them: it would read their lengths as part of the answer. Its end is the connection's."""
    body = msgspec.json.encode({**GOOD, "stream": stream})
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert (b"transfer-encoding" in head.lower()) == (stream and version == "1.1")
    assert b"connection: close" in head.lower()
    if version == "1.0" and stream:
        assert rest.startswith(b"data: ")
        assert rest.endswith(b"\n\ndata: [DONE]\n\n")
    elif not stream:
        assert msgspec.json.decode(rest)["object"] == "chat.completion"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_other_content_types(gateway: Gateway, content_type: str) -> None:
    """415: a browser's form cannot be taken for a request."""
    answer = post(gateway, b"{}", **{"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_strangers_are_refused_before_anything_is_read(gateway: Gateway) -> None:
    """401 in OpenAI's words for every sort of missing key, and before the body is judged."""
    for value in ("", "Bearer", f"Basic {gateway.key}", gateway.key, "Bearer sk-x", "Bearer \u00e9"):
        headers = {"authorization": value.encode("latin-1")}
        answer = httpx.post(gateway.url + CHAT, content=b"{broken", headers=headers, trust_env=False)
        assert answer.status_code == 401, value
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sk-x" not in answer.text
    assert httpx.get(f"{gateway.url}/v1/models", trust_env=False).status_code == 401


def test_unknown_pages_and_methods(gateway: Gateway) -> None:
    """404 and 405 in the same shape; 405 says what is allowed."""
    missing = httpx.get(f"{gateway.url}/v2/nothing", trust_env=False)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    wrong = httpx.get(gateway.url + CHAT, trust_env=False)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    there = httpx.get(f"{gateway.url}/v1/models/", headers=gateway.headers, trust_env=False)
    assert (there.status_code, there.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("with space", False), ("caf\u00e9", False)],
)
def test_request_ids(gateway: Gateway, given: str, kept: bool) -> None:
    """Every answer has an id; a decent one of the caller's is kept, an odd one is replaced."""
    answer = httpx.get(gateway.url, headers={"x-request-id": given.encode("latin-1")}, trust_env=False)
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/nothing"])
def test_every_answer_has_a_request_id(gateway: Gateway, path: str) -> None:
    """Good or bad, page or API."""
    assert httpx.get(gateway.url + path, trust_env=False).headers["x-request-id"].startswith("req_")


def test_readyz_says_what_is_missing(gateway: Gateway) -> None:
    """503 with the state of each model, and a request to the loading one is a 503 with Retry-After."""
    answer = httpx.get(f"{gateway.url}/readyz", trust_env=False)
    assert answer.status_code == 503
    models = answer.json()["models"]
    assert models["loading"] == {"state": "loading", "detail": "weights 40 %"}
    assert models["scripted"]["state"] == "ready"
    refused = httpx.post(
        gateway.url + CHAT, json={**GOOD, "model": "loading"}, headers=gateway.headers, trust_env=False
    )
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1


def test_metrics_count_what_happened(gateway: Gateway) -> None:
    """Requests, tokens, times, refusals and the engines' gauges are there; callers cannot invent labels."""
    before = metrics(gateway)
    httpx.post(gateway.url + CHAT, json=GOOD, headers=gateway.headers, trust_env=False)
    httpx.post(gateway.url + CHAT, json={**GOOD, "model": "invented"}, headers=gateway.headers, trust_env=False)
    after = metrics(gateway)

    def gained(series: str) -> float:
        return after[series] - before.get(series, 0)

    assert gained('interlace_requests_total{endpoint="chat",model="scripted",status="200"}') == 1
    assert gained('interlace_requests_total{endpoint="chat",model="none",status="404"}') == 1
    assert gained('interlace_tokens_total{kind="completion",model="scripted"}') == 7
    assert gained('interlace_time_to_first_token_seconds_count{model="scripted"}') == 1
    assert gained('interlace_time_between_tokens_seconds_count{model="scripted"}') == 6
    assert gained('interlace_refusals_total{reason="not_found"}') == 1
    assert after['interlace_engine_ready{model="loading"}'] == 0
    assert after["interlace_requests_running"] == 0
    assert not any("invented" in series for series in after)


def metrics(gateway: Gateway) -> dict[str, float]:
    """Every series and its value."""
    lines = httpx.get(f"{gateway.url}/metrics", trust_env=False).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {series: float(value) for series, value in pairs}


@pytest.mark.parametrize("stream", [False, True])
def test_a_dying_engine(gateway: Gateway, stream: bool) -> None:
    """502 before the answer began; afterwards an error event that the SDK raises, and no [DONE]. Billed either way."""
    body: dict[str, Any] = {**GOOD, "model": "broken", "stream": stream}
    answer = httpx.post(gateway.url + CHAT, json=body, headers=gateway.headers, trust_env=False)
    assert answer.status_code == (200 if stream else 502)
    assert '"code":"engine_failed"' in answer.text
    assert "[DONE]" not in answer.text
    assert (gateway.events[-1].outcome, gateway.events[-1].tokens.completion) == ("failed", 2)


def test_no_cors(gateway: Gateway) -> None:
    """Other people's web pages may not read our answers."""
    answer = httpx.options(gateway.url + CHAT, headers={"origin": "https://example.org"}, trust_env=False)
    assert not [name for name in answer.headers if name.startswith("access-control")]
