"""`kill -9` of an engine host under load: what it costs, and what it must not cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.served import (
    CHAT,
    EMBEDDINGS,
    HASTY,
    SECRET,
    Answer,
    Served,
    ask,
    decoder,
    embedder,
    long_chat,
    served,
    until,
)

STREAMS = 8


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path) -> Iterator[Served]:
    """`talker` and `embedder`; a dead host is started again almost at once."""
    with served(tmp_path_factory.mktemp("both"), [decoder(smollm2_gguf), embedder(minilm)], command=HASTY) as there:
        yield there


@pytest.mark.parametrize(
    "times", [3, pytest.param(20, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])], ids=lambda n: f"{n} times"
)
async def test_deaths_under_load(both: Served, times: int) -> None:
    """Each costs its own requests only; the gateway answers all along, the host comes back, nothing leaks."""
    await _die_under_load(both, times)


async def test_only_the_dead_model_is_missing(both: Served) -> None:
    """While one model's host is away its requests get 503 with Retry-After, `/readyz` names it, and the other model
    answers."""
    async with both.callers() as client:
        await until(both.ready)
        both.hosts()["talker"].kill()
        await until(lambda: not both.ready())
        models = both.get("/readyz").json()["models"]
        assert (models["talker"]["state"], models["embedder"]["state"]) == ("restarting", "ready")
        assert "SIGKILL" in models["talker"]["detail"] or "ended" in models["talker"]["detail"]
        refused = await ask(client, long_chat(4))
        assert (refused.status, int(refused.headers["retry-after"]) >= 1) == (503, True)
        assert refused.error is not None
        assert refused.error["code"] == "engine_unavailable"
        embedded = await ask(client, {"model": "embedder", "input": SECRET}, EMBEDDINGS)
        assert embedded.status == httpx.codes.OK


async def _die_under_load(there: Served, times: int) -> None:
    async with there.callers() as client:
        await _load_and_kill(there, client, kill=False)  # everything is warm
        memory, descriptors = _memory(there), _descriptors(there)
        before = there.metric("interlace_engine_restarts_total", model="talker")
        checking = asyncio.create_task(_check_health(there))
        for life in range(1, times + 1):
            killed = there.hosts()["talker"]
            for answer in await _load_and_kill(there, client, kill=True):
                _check_clean_end(answer)
            await until(there.ready)
            assert there.hosts()["talker"].pid != killed.pid
            assert there.metric("interlace_engine_restarts_total", model="talker") == before + life
            answer = await ask(client, long_chat(4))
            assert (answer.status, answer.done, answer.finish_reason) == (200, True, "length")
        checking.cancel()
        (alive,) = await asyncio.gather(checking, return_exceptions=True)
        assert isinstance(alive, asyncio.CancelledError), alive
        await _load_and_kill(there, client, kill=False)
    await until(there.idle)
    await until(lambda: _descriptors(there) <= descriptors)
    assert len(there.hosts()) == 2
    for name, now in _memory(there).items():
        assert now < memory[name] * 1.3 + (32 << 20), f"{name}: {memory[name]} bytes before, {now} after"


async def _load_and_kill(there: Served, client: httpx.AsyncClient, *, kill: bool) -> list[Answer]:
    """The answers to eight requests, one of them not streamed, of which the engine's host sees the end or doesn't."""
    answers = [Answer() for _ in range(STREAMS)]
    bodies = [long_chat(1000 if kill else 16, stream=i > 0) for i in range(STREAMS)]
    asking = [asyncio.create_task(ask(client, b, CHAT, a)) for b, a in zip(bodies, answers, strict=True)]
    if kill:
        await until(lambda: all(len(answer.events) > 2 for answer in answers[1:]))
        await until(lambda: there.metric("interlace_engine_running") == STREAMS)
        there.hosts()["talker"].kill()
    return await asyncio.gather(*asking)


def _check_clean_end(answer: Answer) -> None:
    """A whole answer is a 502 or 503; a stream that began ends with an error event instead of [DONE]."""
    assert answer.error is not None
    assert answer.error["code"] in {"engine_failed", "engine_unavailable"}
    assert not answer.done
    assert answer.status == httpx.codes.OK if len(answer.events) > 1 else answer.status in {502, 503}


async def _check_health(there: Served) -> None:
    """The gateway answers all along."""
    async with there.callers() as client:
        while True:
            assert (await client.get("/healthz")).status_code == httpx.codes.OK
            await asyncio.sleep(0.05)


def _memory(there: Served) -> dict[str, int]:
    processes = {"gateway": psutil.Process(there.process.pid), **there.hosts()}
    return {name: process.memory_info().rss for name, process in processes.items()}


def _descriptors(there: Served) -> int:
    return psutil.Process(there.process.pid).num_fds()
