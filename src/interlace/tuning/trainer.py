"""Trainers with what a run needs to survive: checked numbers, sealed checkpoints, a held-out score of our own.
`Trainer` is TRL's; `classifying.py` has the one of classifiers."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

import msgspec
import torch
from accelerate.utils import is_peft_model
from transformers import Trainer as AnyTrainer
from transformers import TrainerCallback
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import SFTTrainer
from trl.kernels import chunked_logprob

from interlace.tuning.answer_loss import loss_of_answers
from interlace.tuning.endings import check_room, diverged
from interlace.tuning.energy import Meter, with_earlier
from interlace.tuning.events import AnyEvent, Held, Stage, Step
from interlace.tuning.folder import RunFolder, seal, write_whole
from interlace.tuning.memory import TILE_TOKENS
from interlace.tuning.prompts import NO_LOSS, Row
from interlace.tuning.quick import give_back, quicken, round_once
from interlace.tuning.scores import Known, mean_loss, out_of_patience
from interlace.tuning.side_by_side import TOKENS, loss_of_rows, side_by_side
from interlace.tuning.together import Group, check_shared, mind_sharing, share_on_processors

Tell = Callable[[AnyEvent], None]
SPENT, KNOWN = "spent.json", "known.json"  # what a checkpoint has beside its weights
if not torch.cuda.is_available():  # there TRL's head copies a tile several times: of 4,096 tokens, into gigabytes
    chunked_logprob.TOKEN_CHUNK_SIZE = min(chunked_logprob.TOKEN_CHUNK_SIZE, TILE_TOKENS)


class Spent(msgspec.Struct, frozen=True):
    """What a run took so far, over all its parts; energy of what tells it, by its name; and the peak memory of the
    process that had most, over all processes."""

    seconds: float = 0.0
    tokens: int = 0
    joules: dict[str, float] = {}
    memory_bytes: int = 0


class Lasting(AnyTrainer):  # type: ignore[misc]
    """What all of them have. One that stands on this says what it knows of the held-out rows, and how it is written."""

    control: Any
    model: Any
    knows: type[Known] = Known  # of one held-out row
    _total_train_tokens: float

    def __init__(
        self,
        *,
        folder: RunFolder,
        held_out: Sequence[Any],
        patience: int,
        tell: Tell,
        stop: Callable[[], bool],
        **more: Any,
    ) -> None:
        self.run, self.held_out, self.patience, self.tell = folder, held_out, patience, tell
        self.spent, self.began = Spent(), time.monotonic()
        self.meter: Meter | None = None
        self.group: Group | None = None
        self.stopped = False
        self.looked: tuple[int, Sequence[Known]] = -1, ()  # the step of the last look at the held-out rows; and it
        share_on_processors()
        super().__init__(**more)
        if self.is_fsdp_enabled:
            mind_sharing(self.accelerator.state.fsdp_plugin, self.model)
        self.add_callback(_Watch(self, stop))

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """As ever, but a loss that is no number ends the run before anything is learnt from it."""
        loss: torch.Tensor = super().training_step(*arguments, **named)
        if not torch.isfinite(loss):
            raise diverged(self.state.global_step + 1, "loss")
        return loss

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *more: Any, **named: Any) -> Any:
        """As ever, but each row of a pass counts once, however many processes share them."""
        return super().get_batch_samples(self._each_once(epoch_iterator), *more, **named)

    def _each_once(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Where the last rows of a pass are too few to be shared out, accelerate has the first ones again behind them:
        nothing is learnt of those."""
        pace, together = self.accelerator.gradient_state, self.accelerator.num_processes
        for batch in batches:
            labels = batch["labels"]
            left = len(self.train_dataset) % (len(labels) * together)
            if together > 1 and left and pace.end_of_dataloader:
                place = self.accelerator.process_index * len(labels) + torch.arange(len(labels), device=labels.device)
                again = (place >= left).view(-1, *[1] * (labels.dim() - 1))
                batch["labels"] = labels.masked_fill(again, NO_LOSS)
            yield batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss, a token each weighing the same; every process computes it whole."""
        give_back()
        self.looked = self.state.global_step, self.known()
        give_back()
        loss = mean_loss(self.looked[1])
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        best = self.state.best_metric is None or loss < self.state.best_metric
        self.tell(Held(self.state.global_step, loss, best))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def known(self) -> Sequence[Known]:
        """How well each held-out example is known now."""
        raise NotImplementedError

    def known_at(self, place: Path) -> Sequence[Known]:
        """How well each held-out example is known with the weights of that checkpoint, which the model has: as they
        were looked at before it was saved, where one process did that; else looked at now."""
        file = place / KNOWN
        if not file.exists():
            self.tell(Stage("scoring what came of it"))
            return self.known()
        kept: list[Known] = msgspec.json.decode(file.read_bytes(), type=GenericAlias(list, (self.knows,)))
        return kept

    def write_model(self, folder: Path) -> None:
        """A checkpoint that can be served, with its tokenizer."""
        raise NotImplementedError

    def place(self) -> torch.device:
        """Where the model's inputs go. FSDP2 and DeepSpeed move a model as they share it out, at the beginning of the
        training; until then it lies where it was loaded."""
        shared_out = self.model_wrapped is not None and self.model_wrapped is not self.model
        return self.args.device if shared_out else next(self.model.parameters()).device

    def rounded(self) -> torch.autocast:
        """The precision of the run, for what is computed outside its steps."""
        return torch.autocast(self.place().type, torch.bfloat16, enabled=bool(self.args.bf16))

    def all_agree(self, stop: bool) -> bool:
        """Whether any process is asked to stop: all must do so after one and the same step."""
        if self.group is not None:
            said = torch.tensor([int(stop)], device=self.args.device)
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
            stop = bool(said)
        self.stopped |= stop
        return stop

    def now_spent(self, memory_bytes: int) -> Spent:
        """All parts of the run together; this one's peak memory is that of the process that had most."""
        return Spent(
            self.spent.seconds + time.monotonic() - self.began,
            self.spent.tokens + int(self._total_train_tokens),
            with_earlier(self.spent.joules if self.spent.seconds else None, self.meter.used() if self.meter else {}),
            max(self.spent.memory_bytes, memory_bytes),
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the manifest says what the adapter is."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As ever, sealed; then the ones that nobody needs any more go."""
        place = self.run.checkpoints / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            check_room(self.run.checkpoints, _bytes_of(self))
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.group is not None:
            self.group.gather(place)
        memory = peak_memory() if self.group is None else self.group.most(peak_memory())
        if self.args.should_save:
            write_whole(place / SPENT, self.now_spent(memory))
            step, known = self.looked
            if self.group is None and step == self.state.global_step and math.isfinite(mean_loss(known)):
                write_whole(place / KNOWN, known)
            seal(place)
            self.run.keep_only({self.state.global_step, self.state.best_global_step or 0})
        self.accelerator.wait_for_everyone()


class Trainer(Lasting, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over rows in tokens."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        if is_peft_model(self.model) and self.args.device.type == "cpu":
            quicken(self.model)
        if self.args.per_device_train_batch_size > 1:
            self.data_collator = side_by_side(self.processing_class.pad_token_id)

    def compute_loss(self, model: Any, inputs: Any, *more: Any, num_items_in_batch: Any = None, **named: Any) -> Any:
        """As ever, but the head is computed at the answers' places alone, where that can be done."""
        if TOKENS in inputs:
            tokens = inputs.pop(TOKENS).sum()
            loss: torch.Tensor | None = loss_of_rows(model, inputs, num_items_in_batch)
        else:
            tokens = torch.tensor(inputs["input_ids"].numel(), device=inputs["input_ids"].device)
            loss = loss_of_answers(model, inputs, num_items_in_batch, self._most_of_all)
        if loss is None:
            return super().compute_loss(model, inputs, *more, num_items_in_batch=num_items_in_batch, **named)
        self._total_train_tokens += int(self.accelerator.gather_for_metrics(tokens).sum())
        # the gradients of several processes are averaged, and `num_items_in_batch` is of all of them
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def known(self) -> Sequence[Known]:
        """How well each held-out example is known now, in the precision of the run."""
        with _whole_yet(self), self.rounded():
            return known_of(self.model_wrapped or self.model, self.held_out, self.args.max_length, self.place())

    def write_model(self, folder: Path) -> None:
        """Weights, config, tokenizer and chat template."""
        self.model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def _most_of_all(self, number: int) -> int:
        return int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())


@contextlib.contextmanager
def _whole_yet(trainer: Trainer) -> Iterator[None]:
    """Have TRL know that a model which ZeRO-3 will share out is whole before the training begins: the base is scored
    then."""
    config = getattr(trainer.args, "hf_deepspeed_config", None)
    if config is None or trainer.deepspeed is not None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how far it is; ends what must be ended."""

    def __init__(self, trainer: Lasting, stop: Callable[[], bool]) -> None:
        self._trainer, self._stop = trainer, stop
        self._last: tuple[float, int] | None = None
        self._pace = 0.0  # seconds a step, of late

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.monotonic(), 0
        check_shared(self._trainer.model_wrapped)
        if self._rounds():
            round_once(self._trainer.model)

    def _rounds(self) -> bool:
        trainer = self._trainer
        one = trainer.accelerator.num_processes == 1
        return bool(trainer.args.bf16) and one and isinstance(trainer, SFTTrainer) and is_peft_model(trainer.model)

    def on_pre_optimizer_step(self, _: Any, state: Any, __: Any, **more: Any) -> None:
        """A gradient that is no number would spoil the weights, so it ends the run before the step."""
        if not _all_finite([each.grad for each in more["model"].parameters() if each.grad is not None]):
            raise diverged(state.global_step + 1, "gradient")

    def on_log(self, _: Any, state: Any, __: Any, **more: Any) -> None:
        logs = more.get("logs") or {}
        if "loss" not in logs:
            return
        now, tokens = time.monotonic(), int(self._trainer._total_train_tokens)
        then, before = self._last or (now, tokens)
        took = max(now - then, 1e-9)
        self._pace = took if not self._pace else 0.7 * self._pace + 0.3 * took
        left = self._pace * (state.max_steps - state.global_step)
        pace, rate = (tokens - before) / took, logs.get("learning_rate", 0.0)
        self._trainer.tell(Step(state.global_step, state.max_steps, logs["loss"], pace, left, peak_memory(), rate))
        self._last = now, tokens

    def on_evaluate(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        if out_of_patience(state.log_history, self._trainer.patience):
            control.should_training_stop = True
        self._last = time.monotonic(), int(self._trainer._total_train_tokens)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        engine = self._trainer.deepspeed  # which keeps the gradients to itself
        norm = None if engine is None else engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(norm):
            raise diverged(state.global_step, "gradient")
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        if self._trainer.all_agree(self._stop()):
            control.should_save = control.should_training_stop = True


def _all_finite(gradients: Sequence[Any]) -> bool:
    """Asked once of all together: each question has a GPU finish all its work first."""
    here = [each.to_local() if hasattr(each, "to_local") else each for each in gradients]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm([one for one in here if one.numel()], math.inf)))


def known_of(model: Any, rows: Sequence[Row], most_tokens: int, device: Any) -> list[Known]:
    """How well a model knows each row's answers. Rows are laid one behind the other; none sees another."""
    learning = model.training
    model.eval()
    known: list[Known] = []
    with torch.no_grad():
        for group in _groups(rows, most_tokens):
            ids = [each for row in group for each in row.input_ids]
            labels = [each for row in group for each in (NO_LOSS, *row.labels[1:])]
            places = [place for row in group for place in range(len(row.input_ids))]
            outputs = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([places], device=device),
                labels=torch.tensor([labels], device=device),
                fused_lm_head=True,
            )
            sure = outputs.log_probs[0].double().cpu()
            first = outputs.is_top1[0].cpu()
            start = 0
            for row in group:
                here = slice(start, start + len(row.input_ids) - 1)  # the token after each place is guessed there
                known.append(Known(-float(sure[here].sum()), row.learnt, int(first[here].sum()) == row.learnt))
                start += len(row.input_ids)
    model.train(learning)
    return known


def _groups(rows: Sequence[Row], most_tokens: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group and sum(len(one.input_ids) for one in group) + len(row.input_ids) > most_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _bytes_of(trainer: Lasting) -> int:
    """Of a checkpoint, about, in float32: the weights that are kept and, of those that are learnt, both of Adam's
    averages. Beside an adapter the base is not kept."""
    learnt = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    kept = learnt if is_peft_model(trainer.model) else sum(each.numel() for each in trainer.model.parameters())
    return int(4 * (kept + 2 * learnt))


def peak_memory() -> int:
    """Bytes of this process at its largest; on a GPU, the device's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def best_step(state_file: Path) -> int:
    """The step whose checkpoint knew the held-out examples best."""
    state = msgspec.json.decode(state_file.read_bytes())
    return int(state.get("best_global_step") or state["global_step"])
