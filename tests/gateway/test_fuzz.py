"""Requests nobody would write: drawn from our own OpenAPI document, and noise. No 5xx, no hang, one error shape."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.anthropic_shapes import ERROR, checked
from tests.support.gateway_thread import Gateway
from tests.support.response_events import check_stream, events_of

RESPONSES = "/v1/responses"
POSTS = {
    "/v1/chat/completions": "scripted",
    RESPONSES: "scripted",
    "/v1/completions": "scripted",
    "/v1/embeddings": "embedder",
    "/v1/rerank": "reranker",
    "/v1/classify": "classifier",
    "/v1/messages": "scripted",
    "/v1/messages/count_tokens": "scripted",
}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)


def test_requests_drawn_from_the_schema(gateway: Gateway) -> None:
    """Whatever the document allows is answered as the document says; known models, so that requests get far."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert set(POSTS) < {operation.path for operation in operations}
    for operation in operations:
        if operation.path == "/readyz":  # this gateway has a model that never gets ready: 503 is right
            continue

        @QUIET
        @given(case=operation.as_strategy())
        def answer(case: Any) -> None:
            _call(case, gateway)

        answer()


def _call(case: Any, gateway: Gateway) -> None:
    if case.path in POSTS and isinstance(case.body, dict):
        case.body["model"] = POSTS[case.path]
    response = case.call(headers=gateway.headers, timeout=20)
    if isinstance(case.body, dict) and case.body.get("stream") and response.status_code == 200:
        if case.path == RESPONSES:
            check_stream(events_of(response.text))
            return
        last = b'data: {"type":"message_stop"}\n\n' if case.path == "/v1/messages" else b"data: [DONE]\n\n"
        assert response.content.endswith(last)
        return
    case.validate_response(response, checks=CHECKS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "input", "n", "stop", "tools", "tool_choice", "response_format", "logit_bias", "logprobs",
     "top_logprobs", "stream", "stream_options", "max_tokens", "temperature", "seed", "echo", "suffix", "nonsense",
     "instructions", "previous_response_id", "text", "reasoning", "include", "background", "store", "truncation",
     "system", "stop_sequences", "thinking", "output_config", "cache_control", "mcp_servers"]
)  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@QUIET
@given(data=st.data())
def test_bodies_with_any_values(path: str, gateway: Gateway, data: st.DataObject) -> None:
    """Any value in any field is answered or refused in the endpoint's shape, NaN and lone surrogates included."""
    body = {"model": POSTS[path], **data.draw(st.dictionaries(FIELDS, JSON_VALUES, max_size=6))}
    _check(path, httpx.post(gateway.url + path, content=json.dumps(body), headers=_headers(gateway), timeout=20))


@pytest.mark.parametrize("path", POSTS)
@QUIET
@given(noise=st.binary(max_size=300) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bodies_of_noise(path: str, gateway: Gateway, noise: bytes) -> None:
    """Bytes that are no JSON at all get a 400."""
    response = httpx.post(gateway.url + path, content=noise, headers=_headers(gateway), timeout=20)
    assert response.status_code == 400
    _check(path, response)


def _headers(gateway: Gateway) -> dict[str, str]:
    return gateway.headers | {"content-type": "application/json"}


def _check(path: str, response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and path.startswith("/v1/messages"):
        assert checked(ERROR, response.content).error.message
    elif response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
