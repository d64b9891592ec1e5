"""Runs of `interlace tune` by several processes, on one machine or as on two, and the death of one of them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.served import patiently
from tests.support.serving import free_port
from tests.support.tuned import Tuning

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: see docs/how-to/tune.md"
)
DDP, FSDP2 = ("{kind: ddp, processes: 2}", "{kind: fsdp2, processes: 2}")
DEEPSPEED = [pytest.param(f"{{kind: deepspeed, zero_stage: {stage}, processes: 2}}", id=f"zero{stage}",
                          marks=needs_deepspeed) for stage in (1, 2, 3)]  # fmt: skip
KINDS = ["ddp", "fsdp2", pytest.param("deepspeed, zero_stage: 3", id="zero3", marks=needs_deepspeed)]
"""Of a launcher, where each of two machines has one process."""
BOUND_SECONDS = 45  # from a death to the end of all; they take about ten on an idle machine


def logs(*tunings: Tuning) -> str:
    """The ends of what their training processes said."""
    return "\n".join(file.read_text()[-3000:] for tuning in tunings for file in tuning.home.rglob("log.txt"))


def is_as(alone: Tuning, tuning: Tuning) -> None:
    """Every loss is the one that a process alone has, but for float32's rounding."""
    one, two = alone.report(), tuning.report()
    for curve in ("train", "held_out"):
        np.testing.assert_allclose(two["curve"][curve], one["curve"][curve], rtol=2e-5)
    after = [each["metrics"]["after"]["loss"]["value"] for each in (two, one)]
    np.testing.assert_allclose(*after, rtol=1e-4)


def lose_a_process_and_go_on(tuning: Tuning) -> None:
    """`kill -9` of the second process once there is a checkpoint: the command ends in time and says why. Then the same
    command again, to the end."""
    with _ended([tuning.start()]) as (running,):
        _await_checkpoint(tuning, running)
        workers = _workers(running)
        os.kill(workers[1], signal.SIGKILL)
        told = running.communicate(timeout=BOUND_SECONDS)[1]
        assert running.returncode == 1
    assert "was killed" in told
    patiently(lambda: not any(psutil.pid_exists(pid) for pid in workers))
    assert tuning.say_memory(1 << 40) > 1 << 20
    done = tuning.run()
    assert done.returncode == 0, done.stderr + logs(tuning)
    assert "Going on at step" in done.stderr
    assert tuning.report()["peak_memory_bytes"] == 1 << 40, "the memory told is that of the process that scores"


class Machines:
    """Two commands with homes of their own, as on two machines. `make` gives one of them, from a folder and the
    launcher's block."""

    def __init__(self, folder: Path, kind: str, make: Callable[[Path, str], Tuning]) -> None:
        block = f"{{kind: {kind}, machines: 2, main_address: 127.0.0.1, main_port: {free_port()}, join_seconds: 120}}"
        self.each = [make(folder / f"machine-{rank}", block) for rank in range(2)]

    def start(self) -> list[subprocess.Popen[str]]:
        """Both."""
        return [tuning.start("--machine-rank", str(rank)) for rank, tuning in enumerate(self.each)]

    def run(self) -> list[str]:
        """Both to the end; what they said."""
        with _ended(self.start()) as running:
            told = [one.communicate(timeout=200)[1] for one in running]
            assert [one.returncode for one in running] == [0, 0], "\n".join(told) + logs(*self.each)
        return told

    def lose_one_and_go_on(self) -> None:
        """`kill -9` of the second's training process once the main machine has a checkpoint: both commands end in time
        and say so. Then the same commands again, to the end; only the main machine keeps anything."""
        with _ended(self.start()) as running:
            _await_checkpoint(self.each[0], running[0])
            os.kill(_workers(running[1])[0], signal.SIGKILL)
            began = time.monotonic()
            main, other = (one.communicate(timeout=BOUND_SECONDS)[1] for one in running)
            assert time.monotonic() - began < BOUND_SECONDS
            assert [one.returncode for one in running] == [1, 1]
        assert "has ended (on this machine or another" in main
        assert "give the same command again on every machine" in main
        assert "was killed" in other
        assert "Traceback" not in main + other
        assert self.each[0].sealed()
        told = self.run()
        assert "Going on at step" in told[0]
        assert "Going on at step" in told[1]
        assert "This machine's part is done" in told[1]
        assert not self.each[1].path.exists()
        assert not list((self.each[1].home / "tuning" / ".machines").glob("mine*"))


@contextlib.contextmanager
def _ended(running: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.communicate()


def _await_checkpoint(tuning: Tuning, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not tuning.sealed():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1] + logs(tuning)
        time.sleep(0.02)


def _workers(command: subprocess.Popen[str]) -> Sequence[int]:
    return [child.pid for child in psutil.Process(command.pid).children()]
