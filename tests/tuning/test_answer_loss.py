"""The loss of answers alone is the loss of the whole row, less what is thrown away."""

from __future__ import annotations

import pytest

from tests.support.tuned import needs_parts

pytestmark = needs_parts


def _tiny() -> object:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


def _row() -> dict:
    import torch

    ids = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :9] = labels[0, 12:17] = -100
    places = torch.tensor([[*range(12), *range(12)]])  # two examples in one row
    return {"input_ids": ids, "labels": labels, "position_ids": places}


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "LoRA"])
def test_loss_and_gradients_are_those_of_each_example_whole(wrapped: bool) -> None:
    """A place shifted by one, or one left out, would teach something else than what was asked for."""
    import torch

    from interlace.tuning.answer_loss import loss_of_answers

    model = _tiny()
    if wrapped:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    row = _row()
    count = torch.tensor(20)
    loss = loss_of_answers(model, row, count)
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    whole = torch.zeros(())
    for half in (slice(0, 12), slice(12, 24)):  # each example by itself
        logits = model(input_ids=row["input_ids"][:, half]).logits[0, :-1]
        whole += torch.nn.functional.cross_entropy(logits, row["labels"][0, half][1:], reduction="sum") / count
    whole.backward()
    assert torch.allclose(loss, whole, atol=1e-6)
    wanted = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_what_cannot_be_computed_so_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows have places of their own each; a long row with a large vocabulary would not fit into memory."""
    import torch

    from interlace.tuning import answer_loss

    model, row = _tiny(), _row()
    rows = {name: torch.cat([each, each]) for name, each in row.items()}
    assert answer_loss.loss_of_answers(model, rows, None) is None
    assert answer_loss.loss_of_answers(model, row, None) is not None
    monkeypatch.setattr(answer_loss, "MOST_BYTES", 1000)
    assert answer_loss.loss_of_answers(model, row, None) is None


def test_processes_go_the_same_way() -> None:
    """TRL's way has processes speak to each other more often: one that went it alone would hang all. So the most places
    of any decide for all, and a row without an answer has a loss of nothing, which every weight takes part in."""
    import torch

    from interlace.tuning.answer_loss import MOST_BYTES, loss_of_answers

    model, row, asked = _tiny(), _row(), []

    def another_has_many(mine: int) -> int:
        asked.append(mine)
        return MOST_BYTES

    none = {**row, "labels": torch.full_like(row["labels"], -100)}
    assert loss_of_answers(model, row, None, another_has_many) is None
    assert loss_of_answers(model, none, None, another_has_many) is None
    assert asked == [10, 0]
    for one in (none, {name: each[:, :1] for name, each in none.items()}):  # a row of one token, too
        loss = loss_of_answers(model, one, torch.tensor(20))
        loss.backward()
        assert loss.item() == 0
        assert all(each.grad is not None and not each.grad.any() for each in model.parameters())
