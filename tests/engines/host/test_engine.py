"""`HostedEngine` against real host processes: streams, cancels, errors, and their independence of each other."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path

import pytest

from interlace.engines import Delta, EmbedRequest, Started, Usage
from interlace.errors import EngineFailed, EngineUnavailable, InvalidRequest, Overloaded
from tests.support.hosts import PATIENCE_SECONDS, ask, host_processes, ready_engine, text_of, toy_engine, until


async def test_a_stream_starts_counts_and_ends_with_usage() -> None:
    """Events come in the order of the contract, and health and capabilities are the core's."""
    async with ready_engine() as engine:
        events = [e async for e in engine.generate(ask("count 3"))]
        assert events[0] == Started(1)
        assert "".join(e.text for e in events if isinstance(e, Delta)) == "0 1 2 "
        assert events[-1] == Usage(1, 3)
        assert engine.capabilities().context_length == 1000
        assert engine.health().state == "ready"


async def test_32_streams_come_in_order_and_side_by_side() -> None:
    """Each stream is whole and in order, though all have the same request id; they advance together."""
    async with ready_engine() as engine:
        endless = [engine.generate(ask("endless")) for _ in range(2)]
        for stream in endless:  # both run: neither waits for the other to end
            await anext(stream)
        texts = await asyncio.gather(*(text_of(engine, f"count {100 + n}") for n in range(32)))
        assert texts == ["".join(f"{i} " for i in range(100 + n)) for n in range(32)]
        for stream in endless:
            await stream.aclose()


async def test_a_prompt_is_counted_while_a_step_runs(tmp_path: Path) -> None:
    """A count comes from beside the stepping thread, costs no run, and refuses as a run would."""
    async with ready_engine() as engine:
        step = asyncio.create_task(text_of(engine, f"sleep 20 {tmp_path / 'mark'}"))
        await until((tmp_path / "mark").exists)
        assert await engine.count(ask("count three words and more")) == 5
        assert not step.done()
        step.cancel()
        await asyncio.wait([step])
        with pytest.raises(InvalidRequest, match="no such thing"):
            await engine.count(ask("refuse"))
        with pytest.raises(EngineFailed, match="counting"):
            await engine.count(ask("raise-in-prepare"))


async def test_closing_a_stream_stops_its_work() -> None:
    """After `aclose()` the core has cancelled just that request, and its counters come to rest unasked."""
    async with ready_engine() as engine:
        stream = engine.generate(ask("endless", "gone"))
        await anext(stream)
        await stream.aclose()
        report = json.loads(await text_of(engine, "report", "asks"))
        assert [id.partition("#")[0] for id in report["cancelled"]] == ["gone"]
        assert report["running"] == []
        await until(lambda: engine.health().running == 0)


async def test_cancelling_the_consumers_task_stops_its_work() -> None:
    """A task that is cancelled while it waits for a delta frees its place, as a closed connection does."""
    async with ready_engine() as engine:
        task = asyncio.create_task(text_of(engine, "endless", "gone"))
        await until(lambda: engine.health().running == 1)
        task.cancel()
        await asyncio.wait([task])
        report = json.loads(await text_of(engine, "report"))
        assert [id.partition("#")[0] for id in report["cancelled"]] == ["gone"]


async def test_a_cancel_overtakes_its_own_preparation() -> None:
    """A request given up while it is being prepared never reaches the core."""
    async with ready_engine() as engine:
        task = asyncio.create_task(text_of(engine, "slow-prepare 0.3", "gone"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await text_of(engine, "slow-prepare 0.6", "waits") == "0.6"  # prepared after the other would have been
        assert json.loads(await text_of(engine, "report"))["cancelled"] == {}


async def test_a_slow_preparation_holds_up_nobody() -> None:
    """While one request is prepared, another is answered."""
    async with ready_engine() as engine:
        slow = asyncio.create_task(text_of(engine, "slow-prepare 600"))
        assert await text_of(engine, "echo quick") == "quick"
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])


async def test_a_slow_consumer_holds_up_nobody() -> None:
    """A stream that nobody reads neither stops its own work nor the others', and loses nothing."""
    async with ready_engine() as engine:
        lazy = engine.generate(ask("count 20000"))
        first = await anext(lazy)
        assert await text_of(engine, "count 50") == "".join(f"{i} " for i in range(50))
        await until(lambda: engine.health().running == 0)
        assert isinstance(first, Started)
        assert sum([e.tokens async for e in lazy if isinstance(e, Delta)]) == 20000


@pytest.mark.parametrize(
    ("prompt", "error", "param", "code", "retry"),
    [
        ("refuse", InvalidRequest, "prompt", "refused", None),
        ("overload", Overloaded, None, "rate_limit_exceeded", 2.5),
        ("fail", EngineFailed, None, "engine_failed", None),
        ("raise-in-prepare secret", EngineFailed, None, "engine_failed", None),
        ("raise-in-add secret", EngineFailed, None, "engine_failed", None),
        ("surrogate", EngineFailed, None, "engine_failed", None),
        ("\ud800", InvalidRequest, "prompt", None, None),
    ],
)
async def test_an_error_keeps_its_parts_and_to_itself(
    prompt: str,
    error: type[Exception],
    param: str | None,
    code: str | None,
    retry: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever refuses or breaks: the caller gets class, param, code and retry-after; a neighbour is untouched; no
    word of the prompt is logged."""
    async with ready_engine() as engine:
        neighbour = engine.generate(ask("endless"))
        await anext(neighbour)
        with pytest.raises(error) as caught:
            await text_of(engine, prompt)
        assert (caught.value.param, caught.value.code, caught.value.retry_after_seconds) == (param, code, retry)  # type: ignore[attr-defined]
        assert isinstance(await anext(neighbour), Delta)
        await neighbour.aclose()
        assert engine.health().restarts == 0
    assert "secret" not in caplog.text
    assert "secret" not in str(caught.value)


async def test_embeddings_come_whole() -> None:
    """One answer with a row per text."""
    async with ready_engine() as engine:
        answer = await engine.embed(EmbedRequest("e", texts=("a", "bcd")))
        assert [struct.unpack("<f", row)[0] for row in answer.rows] == [1.0, 3.0]


async def test_before_ready_and_after_close_it_is_unavailable() -> None:
    """While loading, `health` says how far, requests get 503; `start` returned long before. Close ends all of it."""
    engine = toy_engine("toy:sleep=600")
    await engine.start()
    await until(lambda: engine.health().detail == "loading the toy")
    assert engine.health().state == "loading"
    for ask_it in (lambda: text_of(engine, "echo x"), lambda: engine.embed(EmbedRequest("e", texts=("a",)))):
        with pytest.raises(EngineUnavailable, match="loading the toy"):
            await ask_it()
    with pytest.raises(EngineUnavailable):
        engine.capabilities()
    await asyncio.gather(engine.close(), engine.close())
    await engine.close()
    assert engine.health().state == "closed"
    assert host_processes() == []
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.start()


async def test_close_ends_running_streams_with_503() -> None:
    """A stream that runs while the engine is closed, even in a long step, gets `EngineUnavailable`, not silence."""
    async with ready_engine() as engine:
        task = asyncio.create_task(text_of(engine, "sleep 600"))
        await asyncio.sleep(0)
        await asyncio.wait_for(engine.close(), PATIENCE_SECONDS)
        with pytest.raises(EngineUnavailable, match="closed"):
            await task
    assert host_processes() == []
