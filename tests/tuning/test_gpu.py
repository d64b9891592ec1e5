"""What only a machine with a GPU shows. The other tests of runs use one, too, where it is there."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.tuned import Tuning, needs_parts

pytestmark = [
    needs_parts,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="this machine has no NVIDIA driver"),
]


def test_a_run_says_which_gpu_it_was_on_and_is_planned_with_it(whole: Tuning) -> None:
    """A plan of the processor beside a run on the GPU would be wrong by orders of magnitude, and memory that nobody
    counted would not be missed before it ends a run."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    name = torch.cuda.get_device_name()
    manifest = json.loads((whole.path / "adapter" / "manifest.json").read_text())
    assert manifest["machine"]["device"]["name"] == name
    assert 0 < manifest["peak_memory_bytes"] < manifest["machine"]["device"]["memory_bytes"]
    planned = whole.run("--plan")
    assert f"this machine's {name}" in planned.stdout, planned.stderr
