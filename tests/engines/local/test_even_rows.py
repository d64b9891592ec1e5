"""Steps whose rows cannot be cut into equal blocks have one more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.local.graph import BLOCK
from interlace.engines.local.runner import Run, Runner, even
from interlace.models import DecoderArchitecture, read_architecture
from tests.support.tiny import tiny_llama_gguf

steps = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 90)), min_size=1, max_size=40)


def runs_of(drawn: list[tuple[int, int]]) -> list[Run]:
    """Runs of so many tokens after so many, in as many blocks as they need."""
    return [Run(range(new), past, range(-(-(past + new) // BLOCK))) for new, past in drawn]


@given(steps)
def test_what_is_wanted_stays(drawn: list[tuple[int, int]]) -> None:
    """Whatever the step: at most one token more, within the blocks that a run has, and what is wanted are the logits of
    the same tokens of the same runs."""
    runs = runs_of(drawn)
    flat = [(number, token) for number, run in enumerate(runs) for token in run.tokens]
    wanted = np.arange(0, len(flat), 3)
    longer, moved = even(runs, wanted)
    after = [(number, place) for number, run in enumerate(longer) for place in range(len(run.tokens))]
    assert [after[at] for at in moved] == [flat[at] for at in wanted]
    assert len(after) - len(flat) in (0, 1)
    for run in longer:
        assert run.past + len(run.tokens) <= len(run.blocks) * BLOCK
        assert list(run.tokens)[:1] == [0]


def test_which_steps_are_longer() -> None:
    """71 rows become 72; 72, and anything up to 64, stay; 71 rows stay, too, where no run has room behind it."""

    def rows(*lengths: int) -> int:
        runs, _ = even(runs_of([(length, 0) for length in lengths]), np.zeros(1, np.int32))
        return sum(len(run.tokens) for run in runs)

    assert [rows(count) for count in (61, 64, 71, 72, 131)] == [61, 64, 72, 72, 132]
    assert rows(7, 64) == 72
    full = [Run([0], BLOCK - 1, [number]) for number in range(71)]
    assert even(full, np.zeros(1, np.int32))[0] is full


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_token_more_leaves_no_trace(tmp_path: Path, precision: str) -> None:
    """After a step with a token more, the sequence behind which it stood goes on as after one without."""
    path = tiny_llama_gguf(tmp_path / "m.gguf", "Q8_0")
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    runner = Runner(path, architecture, precision=precision, cache_bytes=1 << 20, threads=1)
    first, second = [1 + n % 90 for n in range(30)], [3 + n % 70 for n in range(41)]

    def go_on(blocks: tuple[list[int], list[int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        runs = [Run([5], 30, blocks[0]), Run([6], 41, blocks[1])]
        return np.array(runner.forward(runs, np.array([0, 1])))

    runner.forward([Run(first, 0, [1])], np.array([29]))
    runner.forward([Run(second, 0, [2, 3])], np.array([40]))
    apart = go_on(([1], [2, 3]))
    runs = [Run(first, 0, [4]), Run(second, 0, [5, 6])]
    assert len(even(runs, np.array([29, 70]))[0][1].tokens) == 42
    runner.forward(runs, np.array([29, 70]))
    np.testing.assert_allclose(go_on(([4], [5, 6])), apart, atol=0.06)
