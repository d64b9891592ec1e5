"""Two installations, as on two machines, count together on one Redis: plans' limits, breakers, reused answers."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.redis_link import ALIVE, LEASE_SECONDS
from tests.support.billing import Asked, billing, priced, tenants
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently, until
from tests.support.stores import Redis, ledger_url, store_fixture
from tests.support.tenants import Tenant

store = store_fixture(sqlite=False)

WORDS = 40


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


ROUTES = [
    {"name": "remembers", "models": [{"model": "m"}], "reuse": {"seconds": 600, "entries": 5}},
    {
        "name": "careful",
        "models": [{"model": "broken"}],
        "fallbacks": [{"model": "m"}],
        "retries": {"times": 0},
    },
]
MODELS = {"m": "instant:3", "slow": f"slow:{WORDS}", "long": "slow:1000", "broken": "status:500"}
WANTED: dict[str, dict[str, Any]] = {
    "minute": {"rpm": 9},
    "tokens": {"tpm": 4400},
    "at once": {"concurrency": 5},
    "dead": {"concurrency": 4},
    "away": {"rpm": 10},
    "free": {},
}


def elsewhere(provider: Provider) -> Any:
    """The provider by an address that is not taken for the machine's own."""
    return dataclasses.replace(provider, url=provider.url.replace("127.0.0.1", "0.0.0.0"))


@pytest.fixture
def there(
    tmp_path: Path, provider: Provider, store: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[Served], dict[str, Tenant]]]:
    """Two machines of two workers each, and tenants."""
    with redis_server.client() as client:
        client.flushall()
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    payers = tenants(tmp_path, *WANTED.values())
    url = ledger_url(tmp_path / "home")
    other = tmp_path / "other"
    (other / "home").mkdir(parents=True)
    shutil.copy(tmp_path / "home" / "secret", other / "home" / "secret")
    prices = [priced(name, prompt=0) for name in MODELS]
    more = {"ledger": {"url": url}, "redis": {"url": "${REDIS_URL}", "timeout_seconds": 1.0}, "routes": ROUTES}
    with ExitStack() as stack:
        machines = [
            stack.enter_context(billing(at, elsewhere(provider), MODELS, prices=prices, workers=2, **more))
            for at in (tmp_path, other)
        ]
        yield machines, dict(zip(WANTED, payers, strict=True))
    redis_server.go_on()


async def _crowd(there: list[Served], count: int, who: Tenant, model: str, most: int) -> list[Asked]:
    body = {"model": model, "max_tokens": most}
    async with there[0].callers() as one, there[1].callers() as other:
        return await asyncio.gather(*(Asked(body, who).run((one, other)[n % 2]) for n in range(count)))


def _ends(asked: list[Asked]) -> Counter[int]:
    return Counter(one.answer.status for one in asked)


async def test_machines_share_the_limits_of_plans(there: tuple[list[Served], dict[str, Tenant]]) -> None:
    """Each with counts of its own would let twice as many through."""
    machines, who = there
    assert _ends(await _crowd(machines, 30, who["minute"], "m", 3)) == {200: 9, 429: 21}
    assert _ends(await _crowd(machines, 30, who["at once"], "slow", WORDS)) == {200: 5, 429: 25}
    assert _ends(await _crowd(machines, 2, who["at once"], "slow", WORDS)) == {200: 2}, "what has ended is free"
    seen = _ends(await _crowd(machines, 20, who["tokens"], "long", 1000))
    assert 2 <= seen[200] <= 4, seen  # by each machine's own count it would be twice as many
    assert seen[200] + seen[429] == 20
    standing = httpx.get(f"{machines[1].url}/v1/usage", headers=who["minute"].headers, trust_env=False, timeout=60)
    assert standing.json()["standing"]["limits"]["requests"]["remaining"] == 0
    assert sum(one.metric("interlace_redis_up") for one in machines) == 4


def _ask(there: Served, who: Tenant, model: str, said: str = "hi") -> httpx.Response:
    """One request on a connection of its own, so that any worker may get it."""
    body = {"model": model, "messages": [{"role": "user", "content": said}], "max_tokens": 3}
    url = f"{there.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=who.headers, trust_env=False, timeout=60)


def test_machines_share_breakers_and_reused_answers(
    there: tuple[list[Served], dict[str, Tenant]], provider: Provider, redis_server: Redis
) -> None:
    """By itself, each would send five of its own callers to a broken model, and ask again what another was told; and
    of a caller's words no name at the server may tell."""
    machines, who = there
    payer = who["free"]
    served = [_ask(machines[n % 2], payer, "careful").headers["x-interlace-route"] for n in range(20)]
    assert 5 <= served.count("fallback 1 after 502") < 10, served  # news is there within a second
    for one in machines:
        headers = {"authorization": f"Bearer {one.key}"}

        def states(one: Served = one, headers: dict[str, str] = headers) -> dict[str, str]:
            seen = httpx.get(f"{one.url}/admin/v1/routes", headers=headers, trust_env=False, timeout=60).json()
            return {each["model"]: each["breaker"] for route in seen["data"] for each in route["models"]}

        patiently(lambda states=states: states()["broken"] == "open")
    before = len(provider.seen)
    said = [_ask(machines[n % 2], payer, "remembers", "zebra").headers["x-interlace-route"] for n in range(8)]
    assert said == ["primary"] + ["reused"] * 7
    assert len(provider.seen) == before + 1
    for number in range(5):
        assert (
            _ask(machines[number % 2], payer, "remembers", f"other {number}").headers["x-interlace-route"] == "primary"
        )
    assert _ask(machines[0], payer, "remembers", "zebra").headers["x-interlace-route"] == "primary"
    with redis_server.client() as client:
        names = b" ".join(client.keys("*"))
    assert b"answer:" in names
    assert not any(secret.encode() in names for secret in ("zebra", "other", payer.headers["authorization"][7:]))


async def test_what_a_machine_ran_is_free_half_a_minute_after_its_death(
    there: tuple[list[Served], dict[str, Tenant]], provider: Provider, redis_server: Redis
) -> None:
    """All of its processes at once, as in a power cut; time is turned at the server."""
    machines, tenants_ = there
    who = tenants_["dead"]
    async with machines[1].callers() as client:
        asking = [asyncio.create_task(Asked({"model": "long", "max_tokens": 900}, who).run(client)) for _ in range(4)]
        await until(lambda: provider.running_of[MODELS["long"]] == 4)
        assert _ask(machines[0], who, "m").status_code == 429
        for process in (machines[1].process, *machines[1].workers().values(), machines[1].coordinator()):
            assert process is not None
            process.kill()
        await asyncio.gather(*asking, return_exceptions=True)
    assert _ends(await _crowd(machines[:1] * 2, 2, who, "m", 3)) == {429: 2}
    with redis_server.client() as client:
        mine = (machines[0].folder / "home" / "installation").read_text().strip()
        for token in client.zrange(ALIVE, 0, -1):
            if not token.decode().startswith(mine):
                client.zincrby(ALIVE, -LEASE_SECONDS - 1, token)
    assert _ends(await _crowd(machines[:1] * 2, 4, who, "slow", WORDS)) == {200: 4}


async def test_machines_go_on_by_themselves_while_redis_is_away(
    there: tuple[list[Served], dict[str, Tenant]], redis_server: Redis
) -> None:
    """Each has its part of every limit, so all together let no more through; nobody gets an error of ours; and what
    was let through meanwhile is counted by all afterwards."""
    machines, who = there
    patiently(lambda: all(one.metric("interlace_redis_machines") == 2 for one in machines))
    redis_server.pause()
    seen = await _crowd(machines, 30, who["away"], "m", 3)
    assert _ends(seen) == {200: 10, 429: 20}
    assert {one.refusal[1] for one in seen} == {"", "rate_limit_exceeded"}
    patiently(lambda: sum(one.metric("interlace_redis_up") for one in machines) == 0)
    redis_server.go_on()
    patiently(lambda: sum(one.metric("interlace_redis_up") for one in machines) == 4)
    assert _ends(await _crowd(machines, 10, who["away"], "m", 3)) == {429: 10}
    for one in machines:
        assert 1 <= len(one.logged("Redis is away: this machine counts limits by itself")) <= 2
