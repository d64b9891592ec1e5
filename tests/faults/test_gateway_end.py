"""How the gateway ends, by `kill -9` and by signals, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from interlace.ledger import Outcome
from tests.support.served import (
    CHAT,
    COMPLETIONS,
    SECRET,
    Answer,
    Served,
    ask,
    decoder,
    embedder,
    long_chat,
    patiently,
    served,
    until,
)


@pytest.fixture
def loading(tmp_path: Path, smollm2_gguf: Path, minilm: Path) -> Iterator[Served]:
    """A server that listens and has only begun to load."""
    with served(tmp_path, [decoder(smollm2_gguf), embedder(minilm)], ready=False) as there:
        yield there


@pytest.fixture
def ready(loading: Served) -> Served:
    """A server of this test's own, ready."""
    patiently(loading.ready)
    return loading


def test_it_answers_before_weights_are_loaded(loading: Served) -> None:
    """The first look already finds it: alive, not ready, saying for whom it waits; completions get 503."""
    assert loading.get("/healthz").status_code == httpx.codes.OK
    waiting = loading.get("/readyz")
    assert waiting.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert waiting.json()["status"] == "not ready"
    talker = waiting.json()["models"]["talker"]
    assert talker["state"] == "loading"
    assert talker["detail"]
    refused = httpx.post(
        loading.url + COMPLETIONS,
        json={"model": "talker", "prompt": SECRET},
        headers={"authorization": f"Bearer {loading.key}"},
        trust_env=False,
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(refused.headers["retry-after"]) >= 1


def test_kill_9_while_loading_leaves_no_host(loading: Served) -> None:
    """Hosts that are busy reading and compiling go with it."""
    patiently(lambda: len(loading.hosts()) == 2)
    hosts = list(loading.hosts().values())
    loading.process.kill()
    assert psutil.wait_procs(hosts, timeout=10)[1] == []


async def test_kill_9_while_streams_run_leaves_no_host(ready: Served) -> None:
    """Neither the busy host nor the idle one stays, and callers see that their stream was cut."""
    hosts = list(ready.hosts().values())
    assert len(hosts) == 2
    async with ready.callers() as client:
        answers = [Answer() for _ in range(4)]
        asking = [asyncio.create_task(ask(client, long_chat(1000), CHAT, answer)) for answer in answers]
        await until(lambda: all(len(answer.events) > 2 for answer in answers))
        ready.process.kill()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert [isinstance(end, httpx.TransportError) for end in ends] == [True] * 4
    assert psutil.wait_procs(hosts, timeout=10)[1] == []


async def test_sigterm_lets_streams_finish(ready: Served) -> None:
    """They run to their end, nobody new is let in, and then the process ends with 0 and takes its hosts along."""
    hosts = list(ready.hosts().values())
    async with ready.callers() as client:
        answers = [Answer() for _ in range(4)]
        bodies = [long_chat(150, stream=i > 0) for i in range(4)]
        asking = [asyncio.create_task(ask(client, b, CHAT, a)) for b, a in zip(bodies, answers, strict=True)]
        await until(lambda: all(len(answer.events) > 2 for answer in answers[1:]))
        ready.process.send_signal(signal.SIGTERM)
        await until(lambda: ready.logged("draining"))
        await until(lambda: _lets_nobody_in(ready))
        assert not any(answer.done for answer in answers), "all had finished before anything was seen"
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.finish_reason, answer.error) == (200, "length", None)
        assert [answer.done for answer in answers] == [False, True, True, True]
    assert ready.process.wait(20) == 0
    assert psutil.wait_procs(hosts, timeout=10)[1] == []
    settled = [usage.tokens.completion for usage in ready.usage() if usage.outcome is Outcome.FINISHED]
    assert settled.count(150) == 4


def test_sigterm_while_loading_ends_at_once(loading: Served) -> None:
    """Nothing runs, so there is nothing to wait for: exit code 0, no host left."""
    patiently(lambda: len(loading.hosts()) == 2)
    hosts = list(loading.hosts().values())
    loading.process.terminate()
    assert loading.process.wait(15) == 0
    assert psutil.wait_procs(hosts, timeout=10)[1] == []


async def test_the_second_ctrl_c_does_not_wait(ready: Served) -> None:
    """The first drains like SIGTERM; the second ends the process, with the exit code of an interrupted one, while a
    stream still runs; its hosts go too."""
    hosts = list(ready.hosts().values())
    async with ready.callers() as client:
        answer = Answer()
        asking = asyncio.create_task(ask(client, long_chat(4000), CHAT, answer))
        await until(lambda: len(answer.events) > 2)
        ready.process.send_signal(signal.SIGINT)
        await until(lambda: ready.logged("draining"))
        seen = len(answer.events)
        await until(lambda: len(answer.events) > seen)  # the first one lets it run
        ready.process.send_signal(signal.SIGINT)
        (end,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(end, httpx.TransportError)
    assert ready.process.wait(10) == 130
    assert psutil.wait_procs(hosts, timeout=10)[1] == []


def _lets_nobody_in(there: Served) -> bool:
    """Whether a new connection is refused, or told 503."""
    try:
        with socket.create_connection(("127.0.0.1", there.port), timeout=5) as caller:
            body = json.dumps(long_chat(1)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {there.key}\r\n"
            caller.sendall(
                f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
            )
            first = caller.recv(12)
    except ConnectionError:
        return True
    return first in {b"", b"HTTP/1.1 503"}
