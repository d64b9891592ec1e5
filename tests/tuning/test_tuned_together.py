"""Several processes, on one machine or on several, come to what one alone comes to; and who dies is noticed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.served import patiently
from tests.support.serving import free_port
from tests.support.tuned import Tuning, needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: see docs/how-to/tune.md"
)

# One example a row, 40 of them less the held-out ones: steps of two rows, without chance in what is left out.
SETTINGS = (
    "{epochs: 2, batch: 2, max_tokens: 32, packing: false, rank: 4, dropout: 0, learning_rate: 0.01, "
    "evaluate_every: EVERY, patience: 0, nice: 0, threads: 1, launcher: LAUNCHER}"
)
DEEPSPEED = [pytest.param(f"{{kind: deepspeed, zero_stage: {stage}, processes: 2}}", id=f"zero{stage}",
                          marks=needs_deepspeed) for stage in (1, 2, 3)]  # fmt: skip
DDP, FSDP2 = ("{kind: ddp, processes: 2}", "{kind: fsdp2, processes: 2}")
BOUND_SECONDS = 45  # from a death to the end of all; they take about ten on an idle machine


def _tuning(folder: Path, launcher: str, every: int = 10) -> Tuning:
    return Tuning(folder, SETTINGS.replace("LAUNCHER", launcher).replace("EVERY", str(every)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One process."""
    tuning = _tuning(tmp_path_factory.mktemp("alone"), "single")
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    return tuning


def _is_as(alone: Tuning, tuning: Tuning) -> None:
    for curve in ("train", "held_out"):
        wanted, found = alone.report()["curve"][curve], tuning.report()["curve"][curve]
        steps = [step for step, _ in wanted]
        if curve == "train":
            assert [step for step, _ in found] == steps
        assert [loss for step, loss in found if step in steps] == pytest.approx([loss for _, loss in wanted], rel=2e-5)
    after = [one.report()["metrics"]["after"]["loss"]["value"] for one in (alone, tuning)]
    assert after[0] == pytest.approx(after[1], rel=1e-4)


def _logs(tuning: Tuning) -> str:
    return "\n".join(file.read_text()[-3000:] for file in tuning.home.rglob("log.txt"))


@pytest.mark.parametrize("launcher", [pytest.param(DDP, id="ddp"), pytest.param(FSDP2, id="fsdp2"), *DEEPSPEED])
def test_two_processes_have_the_losses_of_one(alone: Tuning, tmp_path: Path, launcher: str) -> None:
    """With the same rows in a step, every loss is the same to float32's rounding: rows, averages and learning rate are
    shared out rightly, and what is kept of parts is the whole."""
    tuning = _tuning(tmp_path, launcher)
    done = tuning.run()
    assert done.returncode == 0, done.stderr + _logs(tuning)
    _is_as(alone, tuning)


@needs_deepspeed
def test_whole_weights_are_gathered_from_their_parts(tmp_path: Path) -> None:
    """Under ZeRO-3 no process has a whole weight, and the checkpoint must have all of them."""
    block = "{kind: deepspeed, zero_stage: 3, processes: 2}"
    losses = []
    for name, launcher in (("one", "single"), ("parts", block)):
        tuning = _tuning(tmp_path / name, launcher)
        done = tuning.run("--method", "full", "--epochs", "1")
        assert done.returncode == 0, done.stderr + _logs(tuning)
        losses.append(tuning.report()["metrics"]["after"]["loss"]["value"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- several machines --------------------------------------------------------------------------------------------


class Machines:
    """Two commands with homes of their own, as on two machines."""

    def __init__(self, folder: Path, kind: str, every: int = 10) -> None:
        self._block = (
            f"{{kind: {kind}, machines: 2, main_address: 127.0.0.1, main_port: {free_port()}, join_seconds: 120}}"
        )
        self.each = [_tuning(folder / f"machine-{rank}", self._block, every) for rank in range(2)]

    def start(self) -> list[subprocess.Popen[str]]:
        """Both."""
        return [tuning.start("--machine-rank", str(rank)) for rank, tuning in enumerate(self.each)]

    def run(self) -> list[str]:
        """Both to the end; what they said."""
        with _ended(self.start()) as running:
            told = [one.communicate(timeout=200)[1] for one in running]
            assert [one.returncode for one in running] == [0, 0], "\n".join(told) + "".join(map(_logs, self.each))
        return told


@contextlib.contextmanager
def _ended(running: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.communicate()


def _workers(command: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(command.pid).children()]


KINDS = ["ddp", "fsdp2", pytest.param("deepspeed, zero_stage: 3", id="zero3", marks=needs_deepspeed)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_come_to_what_one_does_and_survive_the_death_of_one(
    alone: Tuning, tmp_path: Path, kind: str
) -> None:
    """`kill -9` of one machine's training process: both commands end soon and say so; the same commands go on where
    the main machine has a checkpoint, though nothing is shared, and come to the losses of one process. Only the main
    machine keeps anything."""
    machines = Machines(tmp_path, kind, every=5)
    with _ended(machines.start()) as running:
        deadline = time.monotonic() + 150
        while not machines.each[0].sealed():
            assert time.monotonic() < deadline
            assert running[0].poll() is None, running[0].communicate()[1] + _logs(machines.each[0])
            time.sleep(0.02)
        os.kill(_workers(running[1])[0], signal.SIGKILL)
        began = time.monotonic()
        main, other = (one.communicate(timeout=BOUND_SECONDS)[1] for one in running)
        assert time.monotonic() - began < BOUND_SECONDS
        assert [one.returncode for one in running] == [1, 1]
    assert "has ended (on this machine or another" in main
    assert "give the same command again on every machine" in main
    assert "was killed" in other
    assert "Traceback" not in main + other
    assert machines.each[0].sealed()
    told = machines.run()
    assert "Going on at step" in told[0]
    assert "Going on at step" in told[1]
    assert "This machine's part is done" in told[1]
    _is_as(alone, machines.each[0])
    assert not machines.each[1].path.exists()
    assert not list((machines.each[1].home / "tuning" / ".machines").glob("mine*"))


@pytest.mark.parametrize("launcher", [pytest.param(DDP, id="ddp"), pytest.param(FSDP2, id="fsdp2"), DEEPSPEED[2]])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(alone: Tuning, tmp_path: Path, launcher: str) -> None:
    """`kill -9` of the second process: the first would wait for ever. The command ends, says why, and the same command
    comes to the losses of one process."""
    tuning = _tuning(tmp_path, launcher, every=5)
    with _ended([tuning.start()]) as (running,):
        deadline = time.monotonic() + 150
        while not tuning.sealed():
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()[1] + _logs(tuning)
            time.sleep(0.02)
        workers = _workers(running)
        os.kill(workers[1], signal.SIGKILL)
        told = running.communicate(timeout=BOUND_SECONDS)[1]
        assert running.returncode == 1
    assert "was killed" in told
    patiently(lambda: not any(psutil.pid_exists(pid) for pid in workers))
    done = tuning.run()
    assert done.returncode == 0, done.stderr + _logs(tuning)
    assert "Going on at step" in done.stderr
    _is_as(alone, tuning)
