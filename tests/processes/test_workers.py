"""Several gateway processes behind one port, in processes of their own, some of which are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, decoder, patiently, served, until

PROCESSES = 3


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def _admin(there: Served, method: str, path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {there.key}"}
    url = f"{there.url}/admin/v1{path}"
    answer = httpx.request(method, url, json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def _chat(there: Served, key: str, model: str = "slow:8") -> httpx.Response:
    """One request on a connection of its own, so that any worker may get it."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{there.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)


async def test_every_worker_answers_and_every_answer_is_in_the_books(tmp_path: Path, provider: Provider) -> None:
    """One process that got all connections, or whose events went nowhere, would be no help."""
    books = Books(tmp_path)
    with billing(tmp_path, provider, ["slow:8"], workers=PROCESSES) as there:
        assert len(there.workers()) == PROCESSES
        async with there.callers() as client:
            every = [Asked({"model": "slow:8", "stream": n % 2 == 0, "max_tokens": 8}) for n in range(60)]
            tasks = [asyncio.create_task(asked.run(client)) for asked in every]
            await until(lambda: all(provider.said[asked.tag] for asked in every))
            assert all(_callers(process, there.port) for process in there.workers().values())
            await asyncio.gather(*tasks)
        assert all(asked.whole for asked in every)
        assert {event["id"] for event in books.events()} == {asked.id for asked in every}
    books.check()


def _callers(process: psutil.Process, port: int) -> int:
    """How many connections of callers a worker has."""
    found = process.net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


async def test_a_worker_that_is_killed_loses_only_its_own_requests(tmp_path: Path, provider: Provider) -> None:
    """And it is there again; nobody is billed for an answer that was cut off, and nobody's whole answer is free."""
    books = Books(tmp_path)
    with billing(tmp_path, provider, ["slow:40"], workers=PROCESSES) as there:
        async with there.callers() as client:
            every = [Asked({"model": "slow:40", "stream": True, "max_tokens": 40}) for _ in range(30)]
            tasks = [asyncio.create_task(asked.run(client)) for asked in every]
            await until(lambda: sum(bool(asked.answer.events) for asked in every) == len(every))
            victim = there.workers()["w2"]
            victim.kill()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        cut = [result for result in results if isinstance(result, BaseException)]
        whole = {asked.id for asked in every if asked.whole}
        assert len(cut) + len(whole) == len(every)
        assert whole
        assert {event["id"] for event in books.events()} == whole
        patiently(lambda: "w2" in there.workers() and there.workers()["w2"].pid != victim.pid)
        assert _chat(there, there.key, "slow:40").is_success
    books.check()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_coordinator_that_is_killed_is_only_waited_for(
    tmp_path: Path, provider: Provider, stream: bool
) -> None:
    """Every request that ran is answered whole once another coordinator has written what it cost, once."""
    books = Books(tmp_path)
    with billing(tmp_path, provider, ["slow:40"], workers=PROCESSES) as there:
        async with there.callers() as client:
            every = [Asked({"model": "slow:40", "stream": stream, "max_tokens": 40}) for _ in range(30)]
            tasks = [asyncio.create_task(asked.run(client)) for asked in every]
            await until(lambda: sum(provider.said[asked.tag] > 0 for asked in every) == len(every))
            before = there.coordinator()
            assert before is not None
            before.kill()
            await asyncio.gather(*tasks)
        assert all(asked.whole for asked in every)
        assert sorted(event["id"] for event in books.events()) == sorted(asked.id for asked in every)
        after = there.coordinator()
        assert after is not None
        assert after.pid != before.pid
    books.check()


def test_when_the_supervisor_is_killed_all_of_them_leave(tmp_path: Path, provider: Provider) -> None:
    """Whoever starts the service again must find port and ledger free."""
    with billing(tmp_path, provider, ["slow:8"], workers=PROCESSES) as there:
        left = [*there.workers().values(), there.coordinator()]
        there.process.kill()
        there.process.wait()
        patiently(lambda: not any(process is not None and process.is_running() for process in left))
        config = yaml.safe_load((tmp_path / "interlace.yaml").read_text()) | {"port": there.port}
        (tmp_path / "again").mkdir()
    with served(tmp_path, config.pop("models"), **config) as again:
        assert _chat(again, again.key).is_success


def test_a_revoked_key_opens_nothing_at_any_worker(tmp_path: Path, provider: Provider) -> None:
    """Whichever worker carried out the order, the others know of it before it is confirmed."""
    with billing(tmp_path, provider, ["slow:8"], workers=PROCESSES) as there:
        org = _admin(there, "POST", "/orgs", {"name": "acme"})
        project = _admin(there, "POST", "/projects", {"name": "p", "org": org["name"]})
        for _ in range(3):
            key = _admin(there, "POST", "/keys", {"name": "k", "project": project["id"]})
            assert all(_chat(there, key["key"]).is_success for _ in range(12))
            _admin(there, "POST", f"/keys/{key['id']}/revoke")
            assert {_chat(there, key["key"]).status_code for _ in range(12)} == {401}


def test_a_reload_reaches_every_worker_before_it_is_confirmed(tmp_path: Path, provider: Provider) -> None:
    """A worker that served by the old configuration for a while would answer some callers so and others so."""
    with billing(tmp_path, provider, ["slow:8"], workers=PROCESSES) as there:
        config = yaml.safe_load((tmp_path / "interlace.yaml").read_text())
        config["models"].append({**config["models"][0], "name": "new"})
        config["prices"].append(priced("new"))
        (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
        assert _admin(there, "POST", "/reload")["added"] == ["new"]
        assert all(_chat(there, there.key, "new").is_success for _ in range(12))
        config["models"][0]["engine"] = "nobody"
        (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
        os.kill(there.process.pid, signal.SIGHUP)
        patiently(lambda: there.logged("the configuration was not reloaded"))
        assert all(_chat(there, there.key, "new").is_success for _ in range(12))


@pytest.mark.usefixtures("smollm2_gguf")
async def test_workers_share_the_engine_host_of_a_local_model(tmp_path: Path, smollm2_gguf: Path) -> None:
    """One copy of the weights; when it is killed, another is started and every worker finds it."""
    with served(tmp_path, [decoder(smollm2_gguf)], workers=PROCESSES) as there:
        patiently(lambda: all(_chat(there, there.key, "talker").is_success for _ in range(12)))
        (host,) = there.hosts().values()
        host.kill()
        patiently(lambda: all(_chat(there, there.key, "talker").is_success for _ in range(12)))
        assert len(there.hosts()) == 1


def test_a_signal_drains_all_of_them(tmp_path: Path, provider: Provider) -> None:
    """What runs is finished and recorded, and then nothing is left."""
    books = Books(tmp_path)
    with billing(tmp_path, provider, ["slow:40"], workers=PROCESSES) as there:

        async def drained() -> list[Asked]:
            async with there.callers() as client:
                every = [Asked({"model": "slow:40", "max_tokens": 40}) for _ in range(12)]
                tasks = [asyncio.create_task(asked.run(client)) for asked in every]
                await until(lambda: sum(provider.said[asked.tag] > 0 for asked in every) == len(every))
                there.process.terminate()
                return await asyncio.gather(*tasks)

        every = asyncio.run(drained())
        began = time.monotonic()
        assert there.process.wait(60) == 0
        assert time.monotonic() - began < 30
        assert all(asked.whole for asked in every)
        assert sorted(event["id"] for event in books.events()) == sorted(asked.id for asked in every)
    books.check()


def test_what_a_caller_has_left_and_what_is_measured_is_that_of_all_workers(tmp_path: Path, provider: Provider) -> None:
    """Whichever worker is asked: a part would look like a smaller bill, and like less traffic. A worker that dies takes
    no counts along."""
    books = Books(tmp_path)
    (who,) = tenants(tmp_path, {"key_budget": 10**9})
    with billing(tmp_path, provider, ["slow:8"], workers=PROCESSES) as there:
        key = who.headers["authorization"].partition(" ")[2]
        for _ in range(12):
            assert _chat(there, key).is_success
        patiently(lambda: there.metric("interlace_requests_total", endpoint="chat", status="200") == 12)
        for _ in range(4):
            own = httpx.get(f"{there.url}/v1/usage", headers=who.headers, trust_env=False, timeout=60).json()
            (budget,) = own["standing"]["budgets"]
            assert (budget["spent_nanos"], budget["reserved_nanos"]) == (books.spent(who), 0)
        there.workers()["w1"].kill()
        patiently(lambda: len(there.workers()) == PROCESSES)
        assert there.metric("interlace_requests_total", endpoint="chat", status="200") == 12
    books.check()


async def test_a_batch_that_is_left_while_the_coordinator_is_dead_is_run(tmp_path: Path, provider: Provider) -> None:
    """Whoever runs batches cannot be told of it then, and would never look; and there is one who runs them after it."""
    books, ids = Books(tmp_path), []
    with billing(tmp_path, provider, ["instant:6"], workers=2) as there:
        for _ in range(3):  # it may be the same worker again, who does not look by itself
            coordinator = there.coordinator()
            assert coordinator is not None
            coordinator.kill()
            before = len(ids)
            while there.coordinator() is None or len(ids) == before:
                ids.append(_leave_batch(there))
            patiently(lambda: {_batch(there, id)["status"] for id in ids} == {"completed"})
        assert [_batch(there, id)["request_counts"]["completed"] for id in ids] == [2] * len(ids)
    assert len(books.events()) == 2 * len(ids), "a line is billed twice, or not"
    books.check()


def _leave_batch(there: Served) -> str:
    lines = [
        json.dumps({
            "custom_id": f"l{n}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "instant:6", "messages": [{"role": "user", "content": "hi"}]},
        })
        for n in range(2)
    ]  # fmt: skip
    headers = {"authorization": f"Bearer {there.key}"}
    with httpx.Client(base_url=there.url, headers=headers, trust_env=False, timeout=60) as client:
        file = client.post("/v1/files", files={"file": ("in.jsonl", "\n".join(lines))}, data={"purpose": "batch"})
        wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return str(client.post("/v1/batches", json=wanted).json()["id"])


def _batch(there: Served, id: str) -> Any:
    headers = {"authorization": f"Bearer {there.key}"}
    return httpx.get(f"{there.url}/v1/batches/{id}", headers=headers, trust_env=False, timeout=60).json()


@pytest.mark.parametrize("new", [False, True], ids=["kept connections", "new connections"])
async def test_a_worker_that_drains_fails_nobody(tmp_path: Path, provider: Provider, new: bool) -> None:
    """Requests that run are finished, those on kept connections are answered, and those that wait in the queue of the
    port are taken by the next worker; what the worker held of a budget is spent by others to its end."""
    books = Books(tmp_path)
    enough = 600
    (who,) = tenants(tmp_path, {"org_budget": enough * 4 * ANSWER_NANOS})
    with billing(tmp_path, provider, {"m": "instant:8"}, prices=[priced("m", prompt=0)], workers=2) as there:
        every: list[Asked] = []

        async def call() -> None:
            limits = httpx.Limits(max_keepalive_connections=0 if new else 1)
            async with httpx.AsyncClient(base_url=there.url, limits=limits, trust_env=False, timeout=60) as client:
                while not every or every[-1].refusal[0] in (0, 200):
                    every.append(asked := Asked({"model": "m", "max_tokens": 4}, who))
                    await asked.run(client)

        tasks = [asyncio.create_task(call()) for _ in range(12)]
        for number in range(2):
            name = f"w{1 + number % 2}"
            before = there.workers()[name]
            enough_so_far = sum(asked.whole for asked in every) + 100
            await until(lambda n=enough_so_far: sum(asked.whole for asked in every) >= n)
            before.terminate()
            await until(lambda name=name, pid=before.pid: (now := there.workers().get(name)) and now.pid != pid)
        await asyncio.gather(*tasks)
        assert {asked.refusal for asked in every if not asked.whole} == {(429, "insufficient_quota")}
        assert sum(asked.whole for asked in every) == enough
    assert books.spent(who) == enough * 4 * ANSWER_NANOS
    books.check()
