"""What is asked of things that lie here counts among the requests of a plan, before anything is looked up."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.gateway_thread import Gateway
from tests.support.responding import responding
from tests.support.tenants import tenant

VISITS = [
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/file-x"),
    ("DELETE", "/v1/files/file-x"),
    ("GET", "/v1/files/file-x/content"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches/batch_x"),
    ("POST", "/v1/batches/batch_x/cancel"),
    ("GET", "/v1/responses/resp_x"),
    ("DELETE", "/v1/responses/resp_x"),
    ("POST", "/v1/responses/resp_x/cancel"),
    ("GET", "/v1/responses/resp_x/input_items"),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that keeps files, batches and responses."""
    with responding() as running:
        yield running


@pytest.mark.parametrize(("method", "path"), VISITS)
def test_a_visit_is_a_request_of_the_plan(gateway: Gateway, method: str, path: str) -> None:
    """A caller that polls without end would else keep the disk busy for everybody. It takes no tokens and no place."""
    who = tenant(gateway.registry, rpm=1, tpm=0, concurrency=0)
    first, second = (
        httpx.request(method, gateway.url + path, headers=who.headers, trust_env=False, timeout=20) for _ in range(2)
    )
    assert first.status_code in {200, 400, 404, 411, 415}, first.text
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert second.json()["error"]["message"].startswith("Rate limit reached on requests per minute: limit 1, used 1")
    assert 1 <= int(second.headers["retry-after"]) <= 61
    use = gateway.pipeline.ledger.limits.use(who.key.id)
    assert (use.running, use.tokens.total, use.requests.total) == (0, 0, 1)
