"""Two installations, as on two machines, share one PostgreSQL database: budgets, keys, and what an operator does when
one of them does not come back."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently
from tests.support.serving import environment
from tests.support.stores import ledger_url, store_fixture
from tests.support.tenants import Tenant

store = store_fixture(sqlite=False)
pytestmark = pytest.mark.usefixtures("store")

ANSWER, CALLERS, ENOUGH = 20, 60, 37
COST = ANSWER * ANSWER_NANOS


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@contextmanager
def two_machines(folder: Path, provider: Provider, *wanted: dict[str, Any]) -> Iterator[tuple[list[Served], Any]]:
    """Two installations on the database of `folder/home`, and tenants there."""
    payers = tenants(folder, *wanted)
    url = ledger_url(folder / "home")
    other = folder / "other"
    (other / "home").mkdir(parents=True)
    shutil.copy(folder / "home" / "secret", other / "home" / "secret")
    model = f"slow:{2 * ANSWER}"
    with ExitStack() as stack:
        there = [
            stack.enter_context(
                billing(at, provider, {"m": model}, prices=[priced("m", prompt=0)], workers=2, ledger={"url": url})
            )
            for at in (folder, other)
        ]
        yield there, payers


async def _ask_both(there: list[Served], callers: int, who: Tenant) -> list[Asked]:
    body = {"model": "m", "max_tokens": ANSWER}
    async with there[0].callers() as one, there[1].callers() as other:
        return await asyncio.gather(*(Asked(body, who).run((one, other)[n % 2]) for n in range(callers)))


async def test_machines_share_a_budget_to_the_last_request(tmp_path: Path, provider: Provider) -> None:
    """Each with counters of its own would let twice as many through; one that does not give back, fewer."""
    books = Books(tmp_path)
    with two_machines(tmp_path, provider, *({"org_budget": ENOUGH * COST} for _ in range(2))) as (there, payers):
        for who in payers:
            every = await _ask_both(there, CALLERS, who)
            refused = (429, "insufficient_quota")
            assert Counter(asked.refusal for asked in every) == {(200, ""): ENOUGH, refused: CALLERS - ENOUGH}
            assert books.spent(who) == ENOUGH * COST
    books.check()


def test_a_key_that_is_revoked_at_one_machine_opens_nothing_at_the_other(tmp_path: Path, provider: Provider) -> None:
    """Within a second."""
    with two_machines(tmp_path, provider, {}) as (there, (who,)):
        body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}

        def status(at: Served) -> int:
            url = f"{at.url}/v1/chat/completions"
            return httpx.post(url, json=body, headers=who.headers, trust_env=False, timeout=60).status_code

        assert [status(at) for at in there] == [200, 200]
        admin = {"authorization": f"Bearer {there[0].key}"}
        url = f"{there[0].url}/admin/v1/keys/{who.key.id}/revoke"
        assert httpx.post(url, headers=admin, trust_env=False, timeout=60).is_success
        assert status(there[0]) == 401
        patiently(lambda: status(there[1]) == 401)


async def test_what_an_unreachable_machine_holds_comes_back_when_an_operator_closes_it(
    tmp_path: Path, provider: Provider
) -> None:
    """Not before: it may be spending it. When it comes back after all, its workers end and others take their place."""
    books = Books(tmp_path)
    with two_machines(tmp_path, provider, {"org_budget": ENOUGH * COST}) as (there, (who,)):
        async with there[1].callers() as client:
            assert (await Asked({"model": "m", "max_tokens": ANSWER}, who).run(client)).whole
        frozen = [there[1].process.pid, *(p.pid for p in there[1].workers().values()), there[1].coordinator().pid]  # type: ignore[union-attr]
        subprocess.run(["kill", f"-{signal.SIGSTOP.value}", *map(str, frozen)], check=True)
        try:
            held = [one for one in _interlace(tmp_path, "workers", "list") if one["held_nanos"]]
            assert held, "an asker gets a slice ahead"
            async with there[0].callers() as client:
                body = {"model": "m", "max_tokens": ANSWER}
                for _ in range(ENOUGH):
                    if not (await Asked(body, who).run(client)).whole:
                        break
                assert books.spent(who) < ENOUGH * COST
                for one in _interlace(tmp_path, "workers", "list"):
                    if one["machine"] != _installation(tmp_path):
                        _interlace(tmp_path, "workers", "close", one["id"])
                while (await Asked(body, who).run(client)).whole:
                    pass
            assert books.spent(who) == ENOUGH * COST
        finally:
            subprocess.run(["kill", f"-{signal.SIGCONT.value}", *map(str, frozen)], check=True)
        before = set(frozen[1:-1])
        patiently(lambda: len(there[1].workers()) == 2 and not before & {p.pid for p in there[1].workers().values()})
        patiently(there[1].ready)
    books.check()


def _installation(folder: Path) -> str:
    return (folder / "home" / "installation").read_text().strip()


def _interlace(folder: Path, *words: str) -> Any:
    import json

    config = str(folder / "interlace.yaml")
    command = [sys.executable, "-m", "interlace", *words, "--config", config, "--json"]
    env = {**environment(folder / "home"), "INTERLACE_URL": _url(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _url(folder: Path) -> str:
    first = (folder / "out").read_text().partition("\n")[0]
    return first.removeprefix("Interlace listens on ").partition(";")[0]
