"""More than fits: a small cache queues, a full queue says so, and nothing leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import SECRET, Served, ask, decoder, long_chat, patiently, served, until

QUEUE = 12
CONCURRENCY, GATEWAY_QUEUE = 24, 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Iterator[Served]:
    """`talker` with room for some 220 tokens, a queue of twelve, and a gateway with small limits."""
    model = decoder(smollm2_gguf, cache_bytes="10MiB", max_waiting=QUEUE)
    limits = {"concurrency": CONCURRENCY, "queue": GATEWAY_QUEUE}
    with served(tmp_path_factory.mktemp("small"), [model], limits=limits) as there:
        yield there


async def test_a_cache_too_small_queues(small: Served) -> None:
    """Twelve requests of which two or three fit at once: the others wait, and all are answered in full."""
    async with small.callers() as client:
        asking = [asyncio.create_task(ask(client, long_chat(30))) for _ in range(QUEUE)]
        await until(lambda: small.metric("interlace_engine_waiting") > 0)
        assert small.metric("interlace_engine_blocks_used") <= small.metric("interlace_engine_blocks_total")
        answers = await asyncio.gather(*asking)
    assert [(a.status, a.done, a.finish_reason) for a in answers] == [(200, True, "length")] * QUEUE
    await until(small.idle)


async def test_a_full_queue_is_a_429(small: Served) -> None:
    """Past the engine's queue, and past the gateway's, callers are told when to come back; the others are answered,
    and afterwards everything is free."""
    async with small.callers() as client:
        answers = await asyncio.gather(*(ask(client, long_chat(16)) for _ in range(48)))
    refused = [a for a in answers if a.status != 200]
    assert {a.status for a in refused} == {429}
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    assert {(a.error or {}).get("code") for a in refused} == {"rate_limit_exceeded"}
    by_gateway = [a for a in refused if "The server is at its limit" in (a.error or {})["message"]]
    by_engine = [a for a in refused if "The model's queue is full" in (a.error or {})["message"]]
    assert by_gateway
    assert by_engine
    assert len(by_gateway) + len(by_engine) == len(refused)
    good = [a for a in answers if a.status == 200]
    assert len(good) >= QUEUE
    assert {(a.done, a.finish_reason) for a in good} == {(True, "length")}
    await until(small.idle)
    assert small.metric("interlace_refusals_total", reason="rate_limit_exceeded") >= len(refused)


async def test_what_can_never_fit_is_refused(small: Served) -> None:
    """A prompt larger than the whole cache gets a 400 with both numbers instead of waiting for ever."""
    async with small.callers() as client:
        answer = await ask(client, long_chat(4, messages=[{"role": "user", "content": f"{SECRET} " * 100}]))
    assert answer.status == 400
    assert answer.error is not None
    assert answer.error["code"] == "context_length_exceeded"
    total = int(small.metric("interlace_engine_blocks_total")) * 32 - 1
    assert f"maximum context length is {total} tokens" in answer.error["message"]
    patiently(small.idle)
