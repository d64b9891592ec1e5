"""Where a run computes, and in which precision: one device of a process, the model's own, one precision throughout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlace.tuning.hardware import quicker_precision
from interlace.tuning.settings import TuneSettings, rows_together
from tests.support.tuned import needs_parts

pytestmark = needs_parts


def test_one_process_learns_on_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine with several, transformers would put a copy on each and give each a batch: a step of more examples
    than were asked for, and a cut that this code has never run. The rows of a step are computed at once there: one by
    one, a GPU waits for the processor."""
    import torch
    from accelerate.state import AcceleratorState

    from interlace.tuning.worker import _arguments

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    try:
        arguments = _arguments(TuneSettings(), SimpleNamespace(checkpoints=tmp_path))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert (arguments.device.type, arguments.n_gpu) == ("cuda", 1)
    assert (arguments.train_batch_size, arguments.gradient_accumulation_steps) == (4, 1)


def test_the_quicker_precision_is_the_same_each_time() -> None:
    """Whatever else the machine does meanwhile: it decides over the numbers of a run."""
    assert len({quicker_precision() for _ in range(3)}) == 1


@pytest.mark.parametrize("has", [True, False], ids=["with bfloat16", "without"])
def test_a_gpu_learns_in_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, *, has: bool) -> None:
    """A V100 or T4 has none: PyTorch would go through float32 for each number."""
    import torch

    from interlace.tuning import devices

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has or including_emulation)
    assert devices.quicker_precision() == ("bf16" if has else "f32")


def _trainer(**more: Any) -> Any:
    """What a trainer knows of its model: in the processor's memory, of a run on another device."""
    import torch

    from interlace.tuning.trainer import Lasting

    class Standing(Lasting):
        """Never begun."""

        def __init__(self) -> None:
            self.model = self.model_wrapped = torch.nn.Linear(2, 2)
            self.args = SimpleNamespace(device=torch.device("meta"), bf16=True)
            self.group, self.began, self.tell = None, 0.0, lambda _: None
            vars(self).update(more)

    return Standing()


def test_fewer_gpus_than_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses two processes on one GPU, and what the person would hear is that another process has ended."""
    import torch

    from interlace.tuning.devices import check_gpus
    from interlace.tuning.endings import Ending

    check_gpus(64)  # on processors there may be as many as one likes
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_gpus(1)
    with pytest.raises(Ending) as caught:
        check_gpus(2)
    assert "processes: is 2, but there is 1 GPU here" in caught.value.message
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.message


@pytest.mark.parametrize(
    ("said", "gpu", "rows"),
    [
        ({"batch": 8}, False, 1),
        ({"batch": 8}, True, 8),
        ({"batch": 64, "max_tokens": 512}, True, 32),
        ({"batch": 6, "rows_at_once": 4}, False, 3),
        ({"batch": 8, "rows_at_once": 1}, True, 1),
        ({"batch": 8, "max_tokens": 32768}, True, 1),
        ({"batch": 8, "launcher": "ddp", "processes": 4}, True, 2),
        ({"batch": 16, "task": "classify", "method": "full", "rows_at_once": 2}, False, 16),
    ],
)
def test_rows_at_once_leave_no_rest(said: dict[str, Any], gpu: bool, rows: int) -> None:
    """A step with a rest would be one of other rows than were asked for; more at once than said, one out of memory."""
    assert rows_together(TuneSettings(**said), gpu=gpu) == rows


def test_gradients_that_are_no_numbers_are_found_among_many() -> None:
    """One is enough to spoil the weights; none at all, or empty ones, are sound."""
    import torch

    from interlace.tuning.trainer import _all_finite

    sound = [torch.ones(3), torch.zeros(0), torch.ones(2, 2)]
    assert _all_finite(sound)
    assert _all_finite([])
    for wrong in (float("nan"), float("inf")):
        assert not _all_finite([*sound, torch.tensor([1.0, wrong]), torch.ones(1)])


def test_inputs_go_where_the_model_lies() -> None:
    """FSDP2 and DeepSpeed move it when the training begins; before that, the base is scored where it was loaded."""
    import torch

    assert _trainer().place().type == "cpu"
    assert _trainer(model_wrapped=torch.nn.Linear(2, 2)).place().type == "meta"  # weights may be put off to memory


@pytest.mark.parametrize("rounds", [True, False], ids=["bf16", "f32"])
def test_answers_before_and_after_are_of_one_precision(
    rounds: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base that answers in float32, and an adapter in bfloat16, would differ by more than what was learnt."""
    import torch

    from interlace.tuning import worker

    def answers(*_: Any) -> list[str]:
        return [str(torch.ones(1, 1).matmul(torch.ones(1, 1)).dtype)]

    monkeypatch.setattr(worker, "answers_of", answers)
    work: Any = SimpleNamespace(
        data=SimpleNamespace(held_out=[SimpleNamespace(messages=[{"content": "?"}])]),
        base=SimpleNamespace(context_length=0),
    )
    tongue: Any = object()
    folder: Any = SimpleNamespace(path=tmp_path)
    settings, trainer = TuneSettings(metric="token_f1"), _trainer()
    trainer.args.bf16 = rounds
    before = worker._said_before(work, settings, trainer, tongue, folder)
    said = worker._said_after(work, settings, trainer, tongue, before)
    assert said is not None
    assert said.before == said.after == ["torch.bfloat16" if rounds else "torch.float32"]
