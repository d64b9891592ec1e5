"""Several processes, on one machine or on several, come to what one alone comes to; and who dies is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.together import (
    DDP,
    DEEPSPEED,
    FSDP2,
    KINDS,
    Machines,
    is_as,
    logs,
    lose_a_process_and_go_on,
)
from tests.support.tuned import Tuning, needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]

# One example a row, 37 of them to learn from: steps of two rows, without chance in what is left out. The last step of a
# pass has one, which two processes cannot share out.
SETTINGS = (
    "{epochs: 2, batch: 2, max_tokens: 32, packing: false, rank: 4, dropout: 0, learning_rate: 0.01, "
    "evaluate_every: 5, patience: 0, nice: 0, threads: 1, held_out: 0.15, launcher: LAUNCHER}"
)


def _tuning(folder: Path, launcher: str) -> Tuning:
    return Tuning(folder, SETTINGS.replace("LAUNCHER", launcher))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One process."""
    tuning = _tuning(tmp_path_factory.mktemp("alone"), "single")
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    assert tuning.report()["data"]["examples"] % 2 == 1
    return tuning


@pytest.mark.parametrize("launcher", [pytest.param(DDP, id="ddp"), pytest.param(FSDP2, id="fsdp2"), *DEEPSPEED])
def test_two_processes_have_the_losses_of_one(alone: Tuning, tmp_path: Path, launcher: str) -> None:
    """With the same rows in a step, every loss is the same to float32's rounding: rows, averages and learning rate are
    shared out rightly, no row is learnt twice in a pass, and what is kept of parts is the whole."""
    tuning = _tuning(tmp_path, launcher)
    done = tuning.run()
    assert done.returncode == 0, done.stderr + logs(tuning)
    is_as(alone, tuning)


@pytest.mark.parametrize("block", [pytest.param(FSDP2, id="fsdp2"), DEEPSPEED[2]])
def test_whole_weights_are_gathered_from_their_parts(tmp_path: Path, block: str) -> None:
    """Under FSDP2 and ZeRO-3 no process has a whole weight, and the checkpoint must have all of them."""
    losses = []
    for name, launcher in (("one", "single"), ("parts", block)):
        tuning = _tuning(tmp_path / name, launcher)
        done = tuning.run("--method", "full", "--epochs", "1")
        assert done.returncode == 0, done.stderr + logs(tuning)
        losses.append(tuning.report()["metrics"]["after"]["loss"]["value"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- several machines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_come_to_what_one_does_and_survive_the_death_of_one(
    alone: Tuning, tmp_path: Path, kind: str
) -> None:
    """`kill -9` of one machine's training process: both commands end soon and say so; the same commands go on where
    the main machine has a checkpoint, though nothing is shared, and come to the losses of one process. Only the main
    machine keeps anything."""
    machines = Machines(tmp_path, kind, _tuning)
    machines.lose_one_and_go_on()
    is_as(alone, machines.each[0])


@pytest.mark.parametrize("launcher", [pytest.param(DDP, id="ddp"), pytest.param(FSDP2, id="fsdp2"), DEEPSPEED[2]])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(alone: Tuning, tmp_path: Path, launcher: str) -> None:
    """`kill -9` of the second process: the first would wait for ever. The command ends, says why, and the same command
    comes to the losses of one process."""
    tuning = _tuning(tmp_path, launcher)
    lose_a_process_and_go_on(tuning)
    is_as(alone, tuning)
