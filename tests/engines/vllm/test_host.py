"""The engine host over what looks like `vllm serve`: it serves, it fails, it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.types import (
    Delta,
    EmbedRequest,
    Event,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
    Sampling,
    Started,
    Usage,
)
from interlace.engines.vllm import server
from interlace.errors import EngineFailed, EngineUnavailable, InvalidRequest, NotFound
from tests.support.adapters import write_adapter
from tests.support.hosts import host_processes, until
from tests.support.vllms import Make, Record, adapter_tensors, alive, chat, hosted, ready, said, sound_adapter


async def test_it_answers_a_conversation(make: Make, record: Record):
    """Events, usage and what it can do are the server's; its key stands in its environment and nowhere in its command
    line."""
    async with ready(make()) as engine:
        events = [event async for event in engine.generate(chat(sampling=Sampling(max_tokens=3, top_k=5)))]
        assert isinstance(events[0], Started)
        assert "".join(event.text for event in events if isinstance(event, Delta)) == "one two three"
        assert events[-1] == Usage(5, 3)
        assert engine.capabilities().context_length == 512
        assert engine.health().state == "ready"
        told = record()
        (asked,) = told["asked"]
        assert (asked["max_tokens"], asked["top_k"], asked["stream"]) == (3, 5, True)
        assert told["env"]["VLLM_API_KEY"] not in " ".join(told["argv"])
        assert len(told["env"]["VLLM_API_KEY"]) >= 32
        assert "OPENAI_API_KEY" not in told["env"]
        assert await engine.tell_count(chat()) == (await engine.count(chat()), True)


async def test_what_it_cannot_do_is_refused_by_name(make: Make):
    """As at a vLLM elsewhere: the fields of a request have the same fate."""
    async with ready(make()) as engine:
        assert await said(engine, chat(output=OutputRule("regex", "a+")))
        with pytest.raises(InvalidRequest, match="makes no embeddings"):
            await engine.embed(EmbedRequest("e", texts=("a",)))
        picture = Message(role="user", content=(ImagePart(url="http://169.254.169.254/latest"),))
        with pytest.raises(InvalidRequest, match="no addresses"):
            await said(engine, GenerateRequest("r", messages=(picture,)))
        with pytest.raises(InvalidRequest, match="logprobs"):
            await said(engine, chat(sampling=Sampling(logprobs=1, prompt_logprobs=True)))


async def test_adapters_come_and_go_by_its_own_api(make: Make, record: Record, tmp_path: Path):
    """Loaded once, by the first request that names it; asked for by name; unloaded when it is removed; another folder
    under the same name is never taken for the first."""
    async with ready(make()) as engine:
        engine.register_adapter("a", sound_adapter(tmp_path / "a"))
        assert await asyncio.gather(*(said(engine, chat(adapter="a")) for _ in range(3))) == ["one two three"] * 3
        assert await said(engine, chat()) == "one two three"
        asked = record()["asked"]
        assert [one["path"] for one in asked].count("/v1/load_lora_adapter") == 1
        named = [one["model"] for one in asked if "model" in one]
        assert len(set(named)) == 2
        engine.register_adapter("a", sound_adapter(tmp_path / "b"))
        await said(engine, chat(adapter="a"))
        await until(lambda: list(record()["adapters"].values()) == [str(tmp_path / "b")])
        engine.remove_adapter("a")
        with pytest.raises(NotFound):
            await said(engine, chat(adapter="a"))
        await said(engine, chat())  # the server notes what it knows when it is asked
        await until(lambda: not record()["adapters"])


@pytest.mark.parametrize("wrong", ["missing", "pickle", "nan", "broken"])
async def test_a_broken_adapter_fails_its_own_request_alone(make: Make, record: Record, tmp_path: Path, wrong: str):
    """No pickle and no NaN is handed to the server, and what it refuses is told without its words."""
    folder = tmp_path / wrong
    if wrong != "missing":
        sound_adapter(folder)
    if wrong == "pickle":
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    if wrong == "nan":
        write_adapter(folder, {name: values * np.nan for name, values in adapter_tensors().items()})
    async with ready(make()) as engine:
        engine.register_adapter("a", folder)
        with pytest.raises(EngineFailed, match="The adapter a could not be loaded"):
            await said(engine, chat(adapter="a"))
        assert (record()["adapters"] != {}) == (wrong == "broken")
        assert await said(engine, chat()) == "one two three"


async def test_adapters_are_served_after_a_restart(make: Make, record: Record, tmp_path: Path):
    """What the gateway was told of does not depend on one life of the server."""
    async with ready(make()) as engine:
        engine.register_adapter("a", sound_adapter(tmp_path / "a"))
        await said(engine, chat(adapter="a"))
        os.kill(record()["pid"], signal.SIGKILL)
        await until(lambda: engine.health().state == "ready" and engine.health().restarts == 1)
        assert await said(engine, chat(adapter="a")) == "one two three"


async def test_one_that_dies_at_its_start_is_given_up(make: Make):
    """Not tried for ever in a hurry: the state says failed and why, and callers are told at once."""
    engine = hosted(make("--fails=dies"))
    try:
        await engine.start()
        with pytest.raises(EngineUnavailable, match="exited with status 1"):
            await asyncio.wait_for(engine.wait_ready(), 60)
        assert engine.health().state == "failed"
        with pytest.raises(EngineUnavailable):
            await said(engine, chat())
    finally:
        await engine.close()


async def test_one_that_is_never_healthy_is_ended_and_started_again(make: Make, record: Record):
    """After `start_seconds`, and its process is gone: two of them would not fit on one GPU."""
    engine = hosted(make("--fails=never", start_seconds=1.0))
    try:
        await engine.start()
        await until((Path(make().executable).parent / "record").exists)
        first = record()["pid"]
        with pytest.raises(EngineUnavailable, match="not ready after 1 seconds"):
            await asyncio.wait_for(engine.wait_ready(), 60)
        assert not alive(first)
    finally:
        await engine.close()


async def test_what_it_says_while_it_starts_is_told(make: Make):
    """Loading takes minutes on a GPU: health says that it goes on."""
    engine = hosted(make("--fails=never"))
    try:
        await engine.start()
        await until(lambda: "has been starting for" in engine.health().detail)
        assert engine.health().state == "loading"
    finally:
        await engine.close()


async def test_a_death_amid_an_answer_costs_that_answer(make: Make, record: Record):
    """Who was being answered gets a clean error after what was said, and the next caller a new server."""
    async with ready(make()) as engine:
        heard: list[str] = []
        with pytest.raises(EngineFailed):
            await _hear(engine.generate(chat("die")), heard)
        assert "".join(heard) == "one"
        first = record()["pid"]
        await until(lambda: engine.health().restarts >= 1 and engine.health().state == "ready")
        assert await said(engine, chat()) == "one two three"
        assert record()["pid"] != first


async def test_one_that_dies_at_rest_is_noticed(make: Make, record: Record):
    """Not by the next caller: nobody has to pay for it."""
    async with ready(make()) as engine:
        await said(engine, chat())
        os.kill(record()["pid"], signal.SIGKILL)
        await until(lambda: engine.health().restarts == 1)
        await asyncio.wait_for(engine.wait_ready(), 30)
        assert await said(engine, chat()) == "one two three"


def test_one_that_falls_ill_is_given_up(make: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A server whose process lives but that says it is unwell is ended, not kept for its being there."""
    monkeypatch.setattr(server, "ASK_SECONDS", 0.05)
    started = server.Server(make(), checkpoint)
    try:
        started.wait_ready(lambda _: None)
        why: list[str] = []
        started.watch(why.append)
        settings = {"model": str(checkpoint), "messages": [{"role": "user", "content": "sicken"}]}
        with contextlib.suppress(Exception):
            _post(started, settings)
        _wait(lambda: why != [])
        assert "not been healthy" in why[0]
    finally:
        started.stop()


async def test_giving_up_an_answer_frees_its_place(make: Make):
    """A caller who leaves is not waited for."""
    async with ready(make()) as engine:
        stream = engine.generate(chat("endless"))
        await anext(stream)
        await until(lambda: engine.health().running == 1)
        await stream.aclose()
        await until(lambda: engine.health().running == 0)


async def test_no_server_outlives_its_host(make: Make, record: Record):
    """Not when it is closed, and not when the host is killed: it would hold the GPU."""
    async with ready(make()) as engine:
        await said(engine, chat())
        first = record()["pid"]
        (host,) = host_processes()
        host.kill()
        await until(lambda: not alive(first))
        await until(lambda: engine.health().restarts == 1 and engine.health().state == "ready")
        await said(engine, chat())
        last = record()["pid"]
        assert alive(last)
    await until(lambda: not alive(last))


async def _hear(stream: AsyncGenerator[Event, None], heard: list[str]) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            heard.append(event.text)


def _post(started: server.Server, body: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {started.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{started.base_url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        answer.read()


def _wait(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")
