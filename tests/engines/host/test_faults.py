"""Death of either side, at the worst moment: what it costs, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from interlace.engines import RestartPolicy
from interlace.engines.host.process import describe_exit
from interlace.errors import EngineFailed, EngineUnavailable
from tests.support.hosts import (
    PATIENCE_SECONDS,
    QUICK,
    host_processes,
    ready_engine,
    text_of,
    toy_engine,
    until,
)


@pytest.mark.parametrize(
    ("prompt", "reason"), [("segfault", "SIGSEGV"), ("exit 3", "status 3"), ("raise", "status 70")]
)
async def test_a_crash_under_30_streams_fails_just_those(
    prompt: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All in flight get `EngineFailed`; the next request, on the next host, is answered; the log says why."""
    async with ready_engine() as engine:
        streams = [asyncio.create_task(text_of(engine, "endless")) for _ in range(30)]
        await until(lambda: engine.health().running == 30)
        results = await asyncio.gather(text_of(engine, prompt), *streams, return_exceptions=True)
        assert [type(r) for r in results] == [EngineFailed] * 31
        await until(lambda: engine.health().restarts == 1)
        await asyncio.wait_for(engine.wait_ready(), PATIENCE_SECONDS)
        assert await text_of(engine, "echo again") == "again"
    assert reason in caplog.text


async def test_kill_9_of_the_host_twenty_times_under_load() -> None:
    """The host is back each time, requests meet 502 or 503 and nothing else, and no process or descriptor leaks."""
    us = psutil.Process()
    gc.collect()  # what other tests left open and forgot is no part of the count
    async with ready_engine() as engine:
        assert await text_of(engine, "echo x") == "x"
        processes, descriptors = len(us.children()), us.num_fds()
        for life in range(20):
            streams = [asyncio.create_task(text_of(engine, "endless")) for _ in range(8)]
            await asyncio.sleep(random.random() * 0.02)
            (host,) = host_processes()
            host.kill()
            ends = await asyncio.gather(*streams, return_exceptions=True)
            assert {type(e) for e in ends} <= {EngineFailed, EngineUnavailable}
            await asyncio.wait_for(engine.wait_ready(), PATIENCE_SECONDS)
            assert await text_of(engine, f"echo {life}") == str(life)
        assert engine.health().restarts == 20
        await until(lambda: len(us.children()) <= processes and us.num_fds() <= descriptors)
    assert host_processes() == []


GATEWAY = """
import asyncio, sys
from tests.support.hosts import ask, toy_engine, until
async def main():
    engine = toy_engine(sys.argv[1])
    await engine.start()
    await until(lambda: engine.health().detail == "loading the toy" or engine.health().state == "ready")
    if sys.argv[2]:
        await engine.wait_ready()
        stream = engine.generate(ask(sys.argv[2]))
        asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
    print("up", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("checkpoint", "prompt"),
    [("toy", "endless"), ("toy", "sleep 600"), ("toy:sleep=600", ""), ("toy:hold-gil", "")],
    ids=["under load", "in a long step", "while loading", "in native code that holds the GIL"],
)
def test_kill_9_of_the_gateway_leaves_no_host(checkpoint: str, prompt: str) -> None:
    """Whatever the host is busy with, it does not outlive the process that started it."""
    if "gil" in checkpoint and sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death without its help")
    with subprocess.Popen([sys.executable, "-c", GATEWAY, checkpoint, prompt], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        assert gateway.stdout.readline() == b"up\n"
        (host,) = host_processes(gateway.pid)
        gateway.kill()
    assert psutil.wait_procs([host], timeout=PATIENCE_SECONDS)[0] == [host]


async def test_ctrl_c_is_not_for_the_host() -> None:
    """SIGINT leaves a host as it is; SIGTERM from elsewhere costs it its life, and there is a next one."""
    async with ready_engine() as engine:
        (host,) = host_processes()
        host.send_signal(signal.SIGINT)
        assert await text_of(engine, "echo still here") == "still here"
        assert engine.health().restarts == 0
        assert os.getpgid(host.pid) == host.pid


@pytest.mark.parametrize("how", ["segfault", "raise"])
async def test_dying_while_loading_again_and_again_is_a_failure_with_its_reason(how: str) -> None:
    """After the set number of deaths the state is failed, with the reason, and it goes on trying."""
    engine = toy_engine(f"toy:{how}")
    await engine.start()
    with pytest.raises(EngineUnavailable, match="failed"):
        await asyncio.wait_for(engine.wait_ready(), PATIENCE_SECONDS)
    assert engine.health().restarts == QUICK.failed_after - 1
    assert {"segfault": "SIGSEGV while loading", "raise": "no weights today"}[how] in engine.health().detail
    await until(lambda: engine.health().restarts > QUICK.failed_after)
    assert engine.health().state == "failed"
    await engine.close()


async def test_a_failed_engine_that_loads_at_last_is_ready(tmp_path: Path) -> None:
    """The operator mends the cause; nobody has to restart anything."""
    mend = tmp_path / "mended"
    engine = toy_engine(f"toy:once={mend}")
    await engine.start()
    await until(lambda: engine.health().state == "failed")
    mend.touch()
    await until(lambda: engine.health().state == "ready")
    assert await text_of(engine, "echo x") == "x"
    await engine.close()


async def test_a_broken_checkpoint_is_reported_in_its_own_words_and_not_hammered() -> None:
    """One try, state failed with the error's message; the next try only after the cap, here an hour."""
    engine = toy_engine("toy:broken", RestartPolicy(first_seconds=0.0, cap_seconds=3600.0))
    await engine.start()
    await until(lambda: engine.health().state == "failed")
    assert engine.health().detail == "model.gguf is truncated: pull it again"
    assert host_processes() == []
    assert engine.health().restarts == 0
    await engine.close()


async def test_what_a_host_prints_is_in_our_log(caplog: pytest.LogCaptureFixture) -> None:
    """The stack of a crash, from the host's standard error, comes out in the gateway's log."""
    caplog.set_level(logging.INFO)
    async with ready_engine() as engine:
        with pytest.raises(EngineFailed):
            await text_of(engine, "segfault")
        await until(lambda: "_misbehave" in caplog.text)
    assert "Fatal Python error: Segmentation fault" in caplog.text


def test_waits_double_up_to_the_cap() -> None:
    """Without jitter 1, 2, 4, 5, 5; with it, within its share; endless deaths do not overflow."""
    policy = RestartPolicy(first_seconds=1.0, cap_seconds=5.0, jitter=0.0)
    assert [policy.wait_seconds(n, random.Random(0)) for n in (1, 2, 3, 4, 10_000)] == [1, 2, 4, 5, 5]
    shaken = RestartPolicy(first_seconds=1.0, cap_seconds=5.0, jitter=0.5)
    waits = {shaken.wait_seconds(1, random.Random(seed)) for seed in range(50)}
    assert len(waits) > 40
    assert all(0.5 <= w <= 1.5 for w in waits)


def test_an_exit_is_described_in_words() -> None:
    """A status, a signal, and what SIGKILL out of nowhere usually means."""
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert "memory" in describe_exit(-signal.SIGKILL)
