"""Both trainers of `make bench-tune` do what they are asked, and learn from the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny import tiny_llama_safetensors
from tests.support.tuned import chats, needs_parts

pytestmark = needs_parts


def test_both_trainers_take_the_same_steps(tmp_path: Path) -> None:
    """Other rows, or another count of steps, would make the ratio of their speeds mean nothing. Before anything is
    learnt, the loss of the first step is the same to rounding."""
    from benchmarks.peers.sft import load, timed

    base, data = tiny_llama_safetensors(tmp_path / "base"), tmp_path / "train.jsonl"
    data.write_text(chats())
    first = {}
    for whose in ("interlace", "trl"):
        run = timed(load(whose, base, data, "f32", tmp_path / whose))
        (first[whose],) = run({"steps": 1})["losses"]
        more = run({"steps": 3})
        assert len(more["losses"]) == 3
        assert more["rate"] > 0
        assert more["cpu_ms_per_token"] > 0
        assert len(run({"seconds": 0.01})["losses"]) == 1
    assert first["interlace"] == pytest.approx(first["trl"], rel=1e-3)
