"""Two processes come to what one does, in the shortest run that shows it; what else may happen the nightly set has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.together import DDP, FSDP2, is_as, logs
from tests.support.tuned import Tuning, needs_parts

pytestmark = needs_parts

SETTINGS = (
    "{epochs: 0.5, batch: 2, max_tokens: 32, packing: false, rank: 4, dropout: 0, learning_rate: 0.01, "
    "evaluate_every: 5, patience: 0, nice: 0, threads: 1, held_out: 0.15, launcher: LAUNCHER}"
)


def test_launchers_have_the_losses_of_one_process(tmp_path: Path) -> None:
    """By DDP, where each has the whole model; and by FSDP2, where none has: a run in which it would, ends."""
    alone = Tuning(tmp_path / "alone", SETTINGS.replace("LAUNCHER", "single"))
    assert (done := alone.run()).returncode == 0, done.stderr
    for name, launcher in (("ddp", DDP), ("fsdp2", FSDP2)):
        tuning = Tuning(tmp_path / name, SETTINGS.replace("LAUNCHER", launcher))
        done = tuning.run()
        assert done.returncode == 0, done.stderr + logs(tuning)
        is_as(alone, tuning)


def test_fsdp2_that_shares_nothing_out_is_refused(tmp_path: Path) -> None:
    """accelerate looks for GPUs, finds none, and goes on with a whole model in each process: not without a word."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('ACCELERATE_USE_FSDP') == 'true':\n"
        "    import interlace.tuning.together as together\n"
        "    together.share_on_processors = lambda: None\n"
    )
    tuning = Tuning(tmp_path / "run", SETTINGS.replace("LAUNCHER", FSDP2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        done = tuning.run()
    assert done.returncode == 2, done.stderr
    assert "launcher: fsdp2 does not come about" in done.stderr
    assert not tuning.sealed()
