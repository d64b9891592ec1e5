"""`interlace serve` in a process of its own reads its configuration again, while callers stream from it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.billing import Asked, Books, billing, priced
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, decoder, patiently, served, until
from tests.support.serving import environment

COMMAND = (sys.executable, "-m", "interlace")
RELOAD = "/admin/v1/reload"
DONE, REFUSED = "the configuration was reloaded", "the configuration was not reloaded"
FAST, SLOW, OTHER = "slow:12", "slow:200", "slow:30"  # of the provider's scripts; a word every five milliseconds


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


@dataclass
class Reloading:
    """A gateway and its configuration file."""

    served: Served
    config: dict[str, Any]
    provider: Provider

    def model(self, script: str) -> dict[str, Any]:
        """Settings of a model that is a script of the provider."""
        return {"name": script, "engine": "openai", "base_url": self.provider.url, "model": script}

    def write(self, text: str | None = None, **changes: Any) -> None:
        """Another file. A change to None leaves the setting out; models have a price unless `prices` are given."""
        wanted = {name: value for name, value in {**self.config, **changes}.items() if value is not None}
        if "models" in changes and "prices" not in changes:
            wanted["prices"] = [priced(model["name"]) for model in changes["models"]]
        (self.served.folder / "interlace.yaml").write_text(text or yaml.safe_dump(wanted))

    def hang_up(self) -> None:
        """SIGHUP, and what came of it is in the log."""
        before = self.told()
        self.served.process.send_signal(signal.SIGHUP)
        patiently(lambda: self.told() > before)

    def told(self) -> int:
        """How many reloads are over."""
        return len(self.served.logged(DONE)) + len(self.served.logged(REFUSED))

    def post(self) -> httpx.Response:
        """The API's way."""
        headers = {"authorization": f"Bearer {self.served.key}"}
        return httpx.post(self.served.url + RELOAD, headers=headers, timeout=60, trust_env=False)

    def models(self) -> list[str]:
        """Those that are served."""
        return list(self.served.get("/readyz").json()["models"])


@contextmanager
def reloading(folder: Path, provider: Provider, *models: str, **settings: Any) -> Iterator[Reloading]:
    """A running gateway of these scripts."""
    with billing(folder, provider, models, command=COMMAND, **settings) as there:
        config = yaml.safe_load((folder / "interlace.yaml").read_text())
        yield Reloading(there, config, provider)


def stream(model: str, words: int) -> Asked:
    """A streamed chat of so many words."""
    return Asked({"model": model, "stream": True, "max_tokens": words})


# --- under load --------------------------------------------------------------------------------------------------


async def test_twenty_reloads_under_load_drop_and_misbill_nothing(tmp_path: Path, provider: Provider) -> None:
    """Were a request refused, cut, lost or billed twice because the configuration changed underneath, steady streams
    through twenty reloads of other models, prices, guards, limits and plans would show it."""
    asked: list[Asked] = []
    with reloading(tmp_path, provider, FAST) as there:
        async with there.served.callers() as client:
            over = asyncio.Event()

            async def steady() -> None:
                while not over.is_set():
                    asked.append(stream(FAST, 12))
                    await asked[-1].run(client)

            callers = [asyncio.create_task(steady()) for _ in range(8)]
            others: list[asyncio.Task[Asked]] = []
            for number in range(20):
                here = number % 2 == 0
                models = [there.model(FAST), *([there.model(OTHER)] if here else [])]
                there.write(
                    models=models,
                    prices=[priced(model["name"], 2 + number % 3, 5 + number % 4) for model in models],
                    limits={"concurrency": 3 if number % 3 == 0 else 16, "queue": 64},
                    guards={"deny": [f"forbidden-{number}"]},
                    plans=[{"name": "gold", "rpm": 1000 + number}],
                    log={"level": "info" if number % 4 else "debug"},
                )
                told = there.told()
                there.served.process.send_signal(signal.SIGHUP)
                await until(lambda told=told: there.told() > told)
                if here:
                    asked += (more := [stream(OTHER, 30) for _ in range(3)])
                    begun = len(provider.bodies(OTHER))
                    others += [asyncio.create_task(one.run(client)) for one in more]
                    await until(lambda begun=begun: len(provider.bodies(OTHER)) > begun)
            over.set()
            await asyncio.gather(*callers, *others)
        assert len(there.served.logged(DONE)) == 20
        assert not there.served.logged(REFUSED)
        patiently(lambda: len(there.served.logged("an engine is closed, its last request done")) == 10)
        assert [one.answer.error or one.answer.status for one in asked if not one.whole] == []
        assert {one.words for one in asked} == {12, 30}
    books = Books(tmp_path)
    events = books.by_tag()
    assert {tag: len(found) for tag, found in events.items()} == {one.tag: 1 for one in asked}
    for one in asked:
        (event,) = events[one.tag]
        assert (event["prompt_tokens"], event["completion_tokens"]) == one.usage
        assert event["outcome"] == "finished"
    books.check()
    assert len({event["price_id"] for found in events.values() for event in found}) > 5, "no price was followed"


async def test_a_removed_model_answers_what_it_began_and_what_waited(tmp_path: Path, provider: Provider) -> None:
    """Were an engine closed, or its price retired, before its last request is done, a stream under way would be cut,
    and one that waits for its turn be refused."""
    with reloading(tmp_path, provider, FAST, SLOW, limits={"concurrency": 1, "queue": 9}) as there:
        async with there.served.callers() as client:
            running, waiting, late = stream(SLOW, 200), stream(SLOW, 7), stream(SLOW, 7)
            first = asyncio.create_task(running.run(client))
            await until(lambda: running.answer.events)
            second = asyncio.create_task(waiting.run(client))
            await until(lambda: there.served.metric("interlace_requests_queued") == 1)
            there.write(models=[there.model(FAST)])
            answer = await asyncio.to_thread(there.post)
            assert answer.json()["removed"] == [SLOW]
            assert not running.answer.done, "the test is too slow to show anything"
            await late.run(client)
            assert late.refusal == (404, "model_not_found")
            assert there.models() == [FAST]
            await asyncio.gather(first, second)
            assert (running.words, waiting.words) == (200, 7)
            assert running.whole
            assert waiting.whole
        patiently(lambda: there.served.logged("an engine is closed, its last request done"))
        query = "SELECT 1 FROM prices WHERE model = ? AND retired_at IS NULL"
        patiently(lambda: not Books(tmp_path).rows(query, SLOW))
    Books(tmp_path).check()


async def test_a_request_keeps_the_guards_it_began_under(tmp_path: Path, provider: Provider) -> None:
    """Were guards looked up later than the request began, half an answer would pass other guards than its first half;
    were they not followed at all, a pattern added now would not hold for the next request."""
    with reloading(tmp_path, provider, SLOW) as there:
        async with there.served.callers() as client:
            running, later = stream(SLOW, 200), stream(SLOW, 200)
            task = asyncio.create_task(running.run(client))
            await until(lambda: running.answer.events)
            there.write(guards={"deny": ["w199"]})
            assert (await asyncio.to_thread(there.post)).json()["changed"] == ["guards.deny"]
            assert not running.answer.done, "the test is too slow to show anything"
            await asyncio.gather(task, later.run(client))
            assert running.answer.finish_reason == "stop"
            assert running.words == 200
            assert later.answer.finish_reason == "content_filter"


async def test_reloads_at_once_end_in_what_the_file_says(tmp_path: Path, provider: Provider) -> None:
    """Did two reloads run at the same time, one could swap in what the other has closed, or an older file win."""
    with reloading(tmp_path, provider, FAST) as there:
        async with there.served.callers() as client:
            for number in range(1, 6):
                scripts = [FAST, *(f"instant:{number + more}" for more in range(number))]
                there.write(models=[there.model(script) for script in scripts])
                there.served.process.send_signal(signal.SIGHUP)
                answers = await asyncio.gather(*(client.post(RELOAD) for _ in range(6)))
                assert {answer.status_code for answer in answers} == {200}
                assert there.models() == scripts
                told = await asyncio.gather(*(Asked({"model": script}).run(client) for script in scripts))
                assert all(one.whole for one in told)


async def test_batches_go_on_through_a_reload_and_follow_it(tmp_path: Path, provider: Provider) -> None:
    """One runner works for the process: were it bound to the first load, its lines would go to engines that are closed
    and past guards that hold now; were each load given its own, batches made after a reload would never begin."""
    with reloading(tmp_path, provider, SLOW, limits={"batch_lines": 2}) as there:
        async with there.served.callers() as client:
            begun = len(provider.bodies(SLOW))
            early = await _batch(client, SLOW, 6)
            await until(lambda: len(provider.bodies(SLOW)) > begun)
            there.write(models=[{**there.model(SLOW), "connections": 7}], guards={"deny": ["w60 "]})
            assert (await client.post(RELOAD)).json()["replaced"] == [SLOW]
            later = await _batch(client, SLOW, 2)
            ends = [await _finished(client, one) for one in (early, later)]
            assert [(end["status"], end["request_counts"]["completed"]) for end in ends] == [
                ("completed", 6), ("completed", 2)
            ]  # fmt: skip
            texts = [
                row["response"]["body"]["choices"][0]["finish_reason"]
                for end in ends
                for row in map(
                    json.loads, (await client.get(f"/v1/files/{end['output_file_id']}/content")).text.split("\n")[:-1]
                )
            ]
            assert len(texts) == 8
            assert 0 < texts.count("stop") <= 2, "lines that had begun"
            assert texts.count("content_filter") == 8 - texts.count("stop"), "lines that began later"
        patiently(lambda: there.served.logged("an engine is closed, its last request done"))
    Books(tmp_path).check()


async def _batch(client: httpx.AsyncClient, model: str, lines: int) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    rows = [
        {"custom_id": f"l{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(lines)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", text)})
    wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str((await client.post("/v1/batches", json=wanted)).json()["id"])


async def _finished(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            batch = (await client.get(f"/v1/batches/{id}")).json()
            if batch["status"] in {"completed", "failed", "expired", "cancelled"}:
                return dict(batch)
            await asyncio.sleep(0.05)


# --- refused -----------------------------------------------------------------------------------------------------


def test_a_wrong_file_changes_nothing_and_says_why(tmp_path: Path, provider: Provider) -> None:
    """Were a part of a wrong file applied, or the reason not told with its line, a slip of the pen would take a server
    down or leave its operator guessing."""
    with reloading(tmp_path, provider, FAST) as there:
        good = (tmp_path / "interlace.yaml").read_text()
        there.write(good + "guards:\n  deny: ['(']\nlimits: {queue: -1}\n")
        there.hang_up()
        (line,) = there.served.logged(REFUSED)
        answer = there.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_configuration")
        last = good.count("\n")
        for message in (line["error"], answer.json()["error"]["message"]):
            assert f"interlace.yaml:{last + 2}: guards.deny" in message
            assert f"interlace.yaml:{last + 3}: limits.queue" in message
        verb = _verb(there, tmp_path)
        assert verb.returncode == 2
        assert f"interlace.yaml:{last + 3}: limits.queue" in verb.stderr
        assert there.models() == [FAST]
        assert there.served.metric("interlace_reloads_total", outcome="refused") == 2
        (tmp_path / "interlace.yaml").unlink()
        assert "cannot be read" in there.post().json()["error"]["message"]
        there.write(models=[there.model(FAST), there.model(OTHER)])
        verb = _verb(there, tmp_path, "--url", there.served.url)
        assert (verb.returncode, verb.stderr) == (0, "")
        assert "added     " + OTHER in verb.stdout


def _verb(there: Reloading, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "reload", *more], env=environment(folder / "home"), cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("host", {"host": "0.0.0.0"}),
        ("port", {"port": 9}),
        ("ledger.url", {"ledger": {"url": "sqlite:////nowhere/ledger.db"}}),
        ("ledger.time_zone", {"ledger": {"time_zone": "Africa/Nairobi"}}),
    ],
)
def test_what_needs_a_restart_is_refused_by_name(
    path: str, change: dict[str, Any], tmp_path: Path, provider: Provider
) -> None:
    """Were such a setting taken without effect, the operator would believe in it until the next start."""
    with reloading(tmp_path, provider, FAST) as there:
        there.write(**change, guards={"deny": ["w1 "]})
        error = there.post().json()["error"]
        assert error["code"] == "restart_needed"
        assert f": {path}: cannot change while the server runs" in error["message"]
        assert "restart" in error["message"]
        assert "interlace.yaml:" in error["message"]
        with httpx.Client(base_url=there.served.url, headers={"authorization": f"Bearer {there.served.key}"}) as http:
            body = {"model": FAST, "messages": [{"role": "user", "content": "hello"}]}
            assert "w1 " in http.post("/v1/chat/completions", json=body).text, "half of it was applied"


def test_only_administrators_reload(tmp_path: Path, provider: Provider) -> None:
    """Were it open to any key, callers could make a server load models at will."""
    with reloading(tmp_path, provider, FAST) as there:
        assert httpx.post(there.served.url + RELOAD).status_code == 401
        headers = {"authorization": f"Bearer {there.served.key}"}
        with httpx.Client(base_url=there.served.url, headers=headers) as http:
            project = http.get("/admin/v1/projects").json()["data"][0]["id"]
            key = http.post("/admin/v1/keys", json={"project": project}).json()["key"]
            assert http.post(RELOAD, headers={"authorization": f"Bearer {key}"}).status_code == 403
            assert http.post(RELOAD, json={"models": []}).status_code == 400
            assert http.post(RELOAD, json={}).json()["changed"] == []


# --- local engines -----------------------------------------------------------------------------------------------


async def test_local_engines_are_kept_or_replaced_without_a_gap(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Were an unchanged engine loaded again, every reload would cost its weights; were a changed one closed before the
    new one is ready, its callers would be refused meanwhile; were one that cannot load swapped in, nobody would be
    answered any more."""
    model = decoder(smollm2_gguf)
    with served(tmp_path, [model], command=COMMAND) as server:
        there = Reloading(server, yaml.safe_load((tmp_path / "interlace.yaml").read_text()), Provider())
        free = there.config["prices"]
        first = server.hosts()["talker"].pid
        there.write(guards={"deny": ["xyzzy"]})
        assert there.post().json()["kept"] == ["talker"]
        assert server.hosts()["talker"].pid == first

        async with server.callers() as client:
            over, asked = asyncio.Event(), []

            async def steady() -> None:
                while not over.is_set():
                    asked.append(Asked({"model": "talker", "stream": True, "max_tokens": 8, "temperature": 0}))
                    await asked[-1].run(client)

            caller = asyncio.create_task(steady())
            there.write(models=[{**model, "max_waiting": 17}], prices=free)
            answer = await client.post(RELOAD)
            assert answer.json()["replaced"] == ["talker"]
            for wrong in ({**model, "checkpoint": "./nowhere.gguf"}, {**model, "cache_bytes": "4096GiB"}):
                there.write(models=[wrong], prices=free)
                error = (await client.post(RELOAD)).json()["error"]
                assert error["code"] == "model_not_started"
                assert "talker" in error["message"]
            over.set()
            await caller
        assert asked
        assert [one.answer.error for one in asked if not one.whole] == []
        patiently(lambda: list(server.hosts()) == ["talker"])
        assert server.hosts()["talker"].pid != first
        assert server.ready()


# --- the terminal ------------------------------------------------------------------------------------------------


def test_a_terminal_that_is_closed_ends_the_server(tmp_path: Path, provider: Provider) -> None:
    """The system sends SIGHUP then too: taken for a reload, a server started by hand would outlive its window."""
    model = {"name": FAST, "engine": "openai", "base_url": provider.url, "model": FAST}
    config = {"port": 0, "models": [model], "prices": [priced(FAST)]}
    (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
    terminal, inside = pty.openpty()
    log = tmp_path / "err"
    with log.open("wb") as sink:  # a terminal that the leader of a session opens becomes its own
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" < "$0"', os.ttyname(inside), *COMMAND, "serve"], stdout=sink, stderr=sink,
            cwd=tmp_path, env=environment(tmp_path / "home"), start_new_session=True,
        )  # fmt: skip
    try:
        patiently(lambda: process.poll() is not None or "is ready" in log.read_text())
        process.send_signal(signal.SIGHUP)
        patiently(lambda: process.poll() is not None or DONE in log.read_text())
        assert process.poll() is None, log.read_text()
        os.close(inside)
        os.close(terminal)
        assert process.wait(60) == 0
        assert '"draining"' in log.read_text()
    finally:
        process.kill()
        process.wait()
