"""Rows that are computed at once teach what they teach one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tuned import SETTINGS, Tuning, needs_parts

pytestmark = needs_parts

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, -100, 9], "seq_lengths": [3, 2]},
    {"input_ids": [4, 3], "labels": [-100, 3], "seq_lengths": [2]},
]


def _tiny() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def test_a_batch_has_each_row_and_where_its_examples_begin() -> None:
    """Positions that ran on would have one example see another; a label at a beginning would be guessed from the
    example before; filler that counts would make the rate a lie."""
    from interlace.tuning.side_by_side import side_by_side

    batch = side_by_side(0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 3, -100, -100, -100]]
    assert batch["tokens"].tolist() == [[5], [2]]
    alone = side_by_side(0)([{"input_ids": [1, 2], "labels": [1, 2]}])  # not packed: TRL gives no lengths
    assert (alone["position_ids"].tolist(), alone["labels"].tolist()) == ([[0, 1]], [[-100, 2]])


@pytest.mark.parametrize("counted", [True, False])
def test_the_loss_is_that_of_each_example_alone(counted: bool) -> None:
    """Else a GPU would teach something else than a processor does."""
    import torch

    from interlace.tuning.side_by_side import loss_of_rows, side_by_side

    model = _tiny()
    batch = side_by_side(0)(ROWS)
    batch.pop("tokens")
    loss = loss_of_rows(model, batch, torch.tensor(10) if counted else None)
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    whole = torch.zeros(())
    for ids, labels in (([5, 6, 7], [6, 7]), ([8, 9], [9]), ([4, 3], [3])):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        whole = whole + torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    whole = whole / (10 if counted else 4)
    whole.backward()
    assert torch.allclose(loss, whole, atol=1e-6)
    assert all(torch.allclose(found[name], each.grad, atol=1e-5) for name, each in model.named_parameters())


@pytest.mark.nightly
@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_run_comes_to_the_same_losses(packing: str, tmp_path: Path) -> None:
    """Step by step, to rounding, whatever is computed at once; and it counts the same tokens."""
    still = SETTINGS.replace("dropout: 0.1", f"dropout: 0, packing: {packing}").replace("batch: 2", "batch: 4")
    reports = []
    for rows in (1, 4):
        said = still.replace("epochs: 4", "epochs: 2").replace("}", f", rows_at_once: {rows}}}")
        tuning = Tuning(tmp_path / str(rows), said)
        done = tuning.run()
        assert done.returncode == 0, done.stderr
        reports.append(tuning.report())
    one, four = ([loss for _, loss in report["curve"]["train"]] for report in reports)
    assert four == pytest.approx(one, abs=1e-4)
    assert reports[0]["tokens"] == reports[1]["tokens"]
