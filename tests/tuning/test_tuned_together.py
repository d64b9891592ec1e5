"""Several processes that learn together come to what one alone comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tuned import Tuning, needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]

# One example a row, 40 of them less the held-out ones: steps of four rows, without chance in what is left out.
SETTINGS = (
    "{epochs: 2, batch: 2, max_tokens: 32, packing: false, rank: 4, dropout: 0, learning_rate: 0.01, "
    "evaluate_every: 10, patience: 0, nice: 0, threads: 2, LAUNCHER}"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One process."""
    tuning = Tuning(tmp_path_factory.mktemp("alone"), SETTINGS.replace("LAUNCHER", "launcher: single"))
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    return tuning


@pytest.mark.parametrize("launcher", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one(alone: Tuning, tmp_path: Path, launcher: str) -> None:
    """With the same rows in a step, every loss is the same to float32's rounding: rows, averages and learning rate are
    shared out rightly, and what is kept of parts is the whole."""
    tuning = Tuning(tmp_path, SETTINGS.replace("LAUNCHER", f"launcher: {launcher}, processes: 2"))
    done = tuning.run()
    assert done.returncode == 0, done.stderr + (tuning.path / "log.txt").read_text()[-3000:]
    for curve in ("train", "held_out"):
        wanted, found = alone.report()["curve"][curve], tuning.report()["curve"][curve]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=2e-5)
    after = [one.report()["metrics"]["after"]["loss"]["value"] for one in (alone, tuning)]
    assert after[0] == pytest.approx(after[1], rel=1e-4)
