"""What several processes of one machine count together: plans' limits, breakers, answers that are reused. One server
for all that leaves it whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.billing import billing
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently

PROCESSES = 3
ROUTES = [
    {"name": "remembers", "models": [{"model": "instant:3"}], "reuse": {"seconds": 600, "entries": 5}},
    {
        "name": "careful",
        "models": [{"model": "status:500"}],
        "fallbacks": [{"model": "instant:3"}],
        "retries": {"times": 0},
    },
]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Served]:
    """A server of three processes."""
    models = ["instant:3", "slow:40", "slow:600", "status:500"]
    with billing(tmp_path_factory.mktemp("served"), provider, models, workers=PROCESSES, routes=ROUTES) as running:
        assert len(running.workers()) == PROCESSES
        yield running


def _admin(there: Served, path: str, body: Any) -> Any:
    headers = {"authorization": f"Bearer {there.key}"}
    answer = httpx.post(f"{there.url}/admin/v1{path}", json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def _key(there: Served, **limits: int) -> str:
    """A key of its own on a plan with these limits."""
    name = "-".join(f"{name}-{limit}" for name, limit in limits.items())
    _admin(there, "/orgs", {"name": name})
    project = _admin(there, "/projects", {"name": "p", "org": name})
    _admin(there, "/plans", {"name": name, **limits})
    return str(_admin(there, "/keys", {"name": "k", "project": project["id"], "plan": name})["key"])


def _ask(there: Served, key: str, model: str = "instant:3", said: str = "hi", most: int = 3) -> httpx.Response:
    """One request on a connection of its own, so that any worker may get it."""
    body = {"model": model, "messages": [{"role": "user", "content": said}], "max_tokens": most}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{there.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)


def _crowd(there: Served, key: str, count: int, model: str = "instant:3", most: int = 3) -> Counter[int]:
    """How many of so many at once were answered with which status."""
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(lambda _: _ask(there, key, model, most=most).status_code, range(count)))


def test_requests_per_minute_are_of_all_workers_together(there: Served) -> None:
    """Each with a count of its own would let three times as many through; and everybody is told what is left of it."""
    key = _key(there, rpm=7)
    assert _crowd(there, key, 24) == {200: 7, 429: 17}
    refused = _ask(there, key)
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
    assert 0 < float(refused.headers["retry-after"]) <= 61


def test_tokens_per_minute_are_of_all_workers_together(there: Served) -> None:
    """Tokens that one worker has counted are not there for another."""
    key = _key(there, tpm=2300)
    first = _ask(there, key, most=300)
    assert first.status_code == 200
    used = 2300 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert used >= 3
    seen = _crowd(there, key, 24, "slow:600", most=600)
    assert 2 <= seen[200] <= 3, seen  # by each worker's own count it would be three times as many
    assert seen[200] + seen[429] == 24


def test_what_runs_is_counted_across_workers_and_dropped_with_the_dead(there: Served) -> None:
    """A key that runs as many as it may is refused everywhere; what a killed worker ran must not hold a place for
    ever, or the key would be locked out for good."""
    key = _key(there, concurrency=6)
    with ThreadPoolExecutor(24) as pool:
        running = [pool.submit(_ask, there, key, "slow:600", "x", 600) for _ in range(24)]
        patiently(lambda: sum(one.done() for one in running) == 18)
        victims = [there.workers()[name] for name in ("w1", "w2")]
        for victim in victims:
            victim.kill()
        ends = Counter(map(_status, running))
    assert ends[429] == 18
    assert ends[200] + ends[None] == 6
    patiently(lambda: len(there.workers()) == PROCESSES and victims[0] not in there.workers().values())
    patiently(lambda: _crowd(there, key, 6, "slow:40", most=40) == {200: 6})


def _status(one: Any) -> int | None:
    """None: its connection was cut."""
    error = one.exception()
    return None if isinstance(error, httpx.TransportError) else int(one.result().status_code)


def test_a_breaker_that_opens_at_one_worker_is_open_at_all(there: Served) -> None:
    """Five failures at any workers, and nobody asks that model first any more; by themselves, each would send five of
    its own callers to a broken model."""
    served = [_ask(there, there.key, "careful").headers["x-interlace-route"] for _ in range(20)]
    assert served.count("fallback 1 after 502") == 5, served
    headers = {"authorization": f"Bearer {there.key}"}
    for _ in range(8):
        seen = httpx.get(f"{there.url}/admin/v1/routes", headers=headers, trust_env=False, timeout=60).json()
        states = {one["model"]: one["breaker"] for route in seen["data"] for one in route["models"]}
        assert states["status:500"] == "open"


def test_an_answer_that_one_worker_keeps_is_found_by_all(there: Served, provider: Provider) -> None:
    """Asked once, and never again; what is kept is bounded for all of them together, oldest first."""
    before = len(provider.seen)
    served = [_ask(there, there.key, "remembers").headers["x-interlace-route"] for _ in range(12)]
    assert served == ["primary"] + ["reused"] * 11
    assert len(provider.seen) == before + 1
    for number in range(5):
        assert _ask(there, there.key, "remembers", f"other {number}").headers["x-interlace-route"] == "primary"
    assert _ask(there, there.key, "remembers").headers["x-interlace-route"] == "primary"


def test_what_is_kept_is_forgotten_with_its_configuration(there: Served) -> None:
    """Guards may have changed: what passed the old ones has not passed the new ones."""
    assert _ask(there, there.key, "remembers", "again").headers["x-interlace-route"] == "primary"
    assert _ask(there, there.key, "remembers", "again").headers["x-interlace-route"] == "reused"
    _admin(there, "/reload", {})
    assert _ask(there, there.key, "remembers", "again").headers["x-interlace-route"] == "primary"
