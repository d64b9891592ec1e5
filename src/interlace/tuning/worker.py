"""The training process: `python -m interlace.tuning.worker FOLDER`, with its task in FOLDER/work.json. With
`--count` it only counts the tokens of the examples.

It tells what it does on standard output, one event a line, and ends when its standard input does, so that it never
outlives who started it. The word `stop` there has it keep the step and end. It gives way to everything else on the
machine: a low priority, and no more threads than it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import set_seed
from trl import SFTConfig

from interlace.tuning.answers import answers_of, wanted_of
from interlace.tuning.base import Tongue, load_model, load_tongue, rows_of
from interlace.tuning.classifying import Classifying, classifier_of, classifier_trainer, texts_in_tokens
from interlace.tuning.devices import check_gpus, names_of_gpus, same_sums, this_device
from interlace.tuning.endings import Ending, ending_of
from interlace.tuning.energy import Meter
from interlace.tuning.events import AnyEvent, Counted, Failed, Finished, Note, Stage, Stopped, Trained
from interlace.tuning.folder import RunFolder, is_done, write_whole
from interlace.tuning.launch import deepspeed_config
from interlace.tuning.metrics import needs_answers
from interlace.tuning.prompts import Row
from interlace.tuning.quick import give_back
from interlace.tuning.report import Curve, Outcome, Said, manifest_of, write_report
from interlace.tuning.scores import Known, mean_loss
from interlace.tuning.settings import TuneSettings, highest_rate, rows_together
from interlace.tuning.slices import leave_to_learn, targets_of
from interlace.tuning.together import Group, gone, told_as_lost
from interlace.tuning.trainer import SPENT, Lasting, Spent, Tell, Trainer, best_step, peak_memory
from interlace.tuning.work import Work, read_work

_PATIENCE_SECONDS = 30.0  # for the training process of a run that was killed; it ends at once
_LOOKS = 10  # at the held-out examples in a run, where nothing else is said


def main() -> None:
    """Train, tell, and leave the adapter in the run's folder."""
    first, counting = os.environ.get("LOCAL_RANK", "0") == "0", "--count" in sys.argv  # of this machine
    tell = _channel(speaks=first)
    stop = threading.Event() if counting else _watch_our_starter()
    work = read_work(Path(sys.argv[1]) / "work.json")
    settings = TuneSettings(**work.settings)
    if not counting:  # that is soon done, in the session of who waits for it
        _stand_back(settings.nice)
    torch.set_num_threads(work.threads)
    same_sums()
    folder = RunFolder(Path(work.home), settings.name, work.kind, settings.machine_rank, anew=work.anew)
    group = Group(settings) if "RANK" in os.environ else None
    try:
        if not counting:  # a plan may be for other machines
            check_gpus(settings.processes)
        with contextlib.ExitStack() as ends:
            if first and not counting:
                ends.enter_context(folder.locked("training", _PATIENCE_SECONDS))
            if group is not None:
                ends.enter_context(told_as_lost(settings.machines))
                tell(Stage(f"waiting for {group.everyone} processes to meet"))
                group.join(work.identity, stop, lambda what: _leave(tell, gone(what, settings.machines)))
            tell(_run(work, settings, folder, group, tell, stop))
    except Exception as error:  # noqa: BLE001 - whatever it is, the person is told; the rest is in the log
        traceback.print_exc()
        ending = ending_of(error, folder.path, settings, _rows(settings))
        if ending is None:
            ending = Ending("failed", f"Training failed: {type(error).__name__}: {error} (the log: {folder.log})")
        tell(Failed(ending.kind, ending.message))
        sys.exit(1)


def _leave(tell: Tell, ending: Ending) -> None:
    """At once, from whatever hangs."""
    tell(Failed(ending.kind, ending.message))
    os._exit(1)


def _run(
    work: Work, settings: TuneSettings, folder: RunFolder, group: Group | None, tell: Tell, stop: threading.Event
) -> AnyEvent:
    tell(Stage(f"loading {work.base.name}"))
    prepare = _classifier if work.head is not None else _talker
    tokens, make_trainer, tongue = prepare(work, settings, folder, tell, stop)
    if "--count" in sys.argv:
        return Counted(*tokens, this_device(settings.precision))
    trainer = make_trainer()
    trainer.group, trainer.meter = group, Meter(names_of_gpus(settings.processes))
    trainer.meter.watch()
    _set_lengths(trainer, settings)
    tell(Stage("scoring the base"))
    before = _before(trainer, folder)
    said = _said_before(work, settings, trainer, tongue, folder)
    last = Path(work.resume) if work.resume else None
    if group is not None:
        last = group.fetch(last, folder.checkpoints)
    if last is not None:
        tell(Note(f"Going on at step {last.name.partition('-')[2]}."))
        trainer.spent = msgspec.json.decode((last / SPENT).read_bytes(), type=Spent)
    give_back()
    tell(Stage("learning"))
    if last is None or not is_done(last, settings.patience):
        set_seed(settings.seed)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        last = folder.last_sealed()
        if group is not None:
            group.part()
        if trainer.stopped and trainer.state.global_step < trainer.state.max_steps:
            return Stopped(trainer.state.global_step)
        if group is not None:
            return Trained()
    assert last is not None, "training ends with a checkpoint"
    return _finish(work, settings, folder, trainer, last, (before, said), tongue, tokens)


# --- parts -------------------------------------------------------------------------------------------------------

Prepared = tuple[tuple[int, int], Callable[[], Lasting], Tongue | None]
"""Tokens of the examples to learn from and of their answers, what makes the trainer over them, and how the model's
words are read."""


def _talker(work: Work, settings: TuneSettings, folder: RunFolder, tell: Tell, stop: threading.Event) -> Prepared:
    tongue = load_tongue(work.base)
    most, data = settings.max_tokens, work.data
    train = rows_of(data.train, data.train_file, tongue, most, work.base)
    held_out = rows_of(data.held_out, data.held_out_file, tongue, most, work.base)

    def make() -> Trainer:
        return _trainer(settings, load_model(work.base), tongue, (train, held_out), folder, tell, stop)

    return (sum(len(row.input_ids) for row in train), sum(row.learnt for row in train)), make, tongue


def _classifier(work: Work, settings: TuneSettings, folder: RunFolder, tell: Tell, stop: threading.Event) -> Prepared:
    rows = texts_in_tokens(work, settings)

    def make() -> Classifying:
        model = classifier_of(work, settings)  # before the arguments: ZeRO-3's would have it loaded in parts
        return classifier_trainer(work, settings, model, _arguments(settings, folder), rows, folder, tell, stop.is_set)

    tokens = sum(len(row.input_ids) for row in rows[0])
    return (tokens, tokens), make, None


def _trainer(
    settings: TuneSettings,
    model: Any,
    tongue: Tongue,
    rows: tuple[list[Row], list[Row]],
    folder: RunFolder,
    tell: Tell,
    stop: threading.Event,
) -> Trainer:
    train, held_out = rows
    lora = None
    if settings.method == "full":
        leave_to_learn(model, settings.private)
    else:
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets_of(model, settings.targets),
            task_type="CAUSAL_LM",
        )
    return Trainer(
        model=model,
        args=_arguments(settings, folder),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out),
        processing_class=tongue.tokenizer,
        peft_config=lora,
        folder=folder,
        held_out=held_out,
        patience=settings.patience,
        tell=tell,
        stop=stop.is_set,
    )


def _arguments(settings: TuneSettings, folder: RunFolder) -> SFTConfig:
    rows = _rows(settings)
    arguments = SFTConfig(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=settings.batch // int(os.environ.get("WORLD_SIZE", "1")) // rows,
        num_train_epochs=settings.epochs,
        learning_rate=highest_rate(settings),
        lr_scheduler_type="cosine",
        max_length=settings.max_tokens,
        packing=settings.packing,
        eval_packing=False,
        gradient_checkpointing=False,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        deepspeed=_deepspeed(settings),
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        save_strategy="steps",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        ddp_backend="gloo" if not torch.cuda.is_available() and "RANK" in os.environ else None,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    # one process, one device: transformers would give each of several GPUs a copy of the model, and a batch
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _rows(settings: TuneSettings) -> int:
    return rows_together(settings, gpu=torch.cuda.is_available())


def _deepspeed(settings: TuneSettings) -> dict[str, Any] | None:
    """Its configuration, where it is the launcher and there are several processes. On processors alone, it would
    compile a way of its own to add numbers up, which never ends where a process has died."""
    if settings.launcher != "deepspeed" or "RANK" not in os.environ:
        return None
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # it would unpickle whatever a checkpoint holds
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    return deepspeed_config(dataclasses.asdict(settings), _rows(settings))


def _dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _set_lengths(trainer: Lasting, settings: TuneSettings) -> None:
    """What depends on how many steps there are, which packing decides."""
    a_pass = math.ceil(len(trainer.train_dataset) / settings.batch)
    steps = math.ceil(a_pass * settings.epochs)
    trainer.args.warmup_steps = int(steps * settings.warmup)
    every = settings.evaluate_every or max(1, steps // _LOOKS)
    trainer.args.eval_steps = trainer.args.save_steps = every


def _before(trainer: Lasting, folder: RunFolder) -> list[Known]:
    """How well the base knows the held-out examples: a new adapter changes nothing."""
    file = folder.path / "before.json"
    if not trainer.args.should_save:
        return []
    if not file.exists():
        known = trainer.known()
        if not math.isfinite(mean_loss(known)):
            raise Ending("wrong", "The base's own loss on the held-out examples is not a finite number. Is it damaged?")
        write_whole(file, known)
    kept: list[Known] = msgspec.json.decode(file.read_bytes(), type=list[trainer.knows])  # type: ignore[name-defined]
    return kept


def _said_before(
    work: Work, settings: TuneSettings, trainer: Lasting, tongue: Tongue | None, folder: RunFolder
) -> list[str]:
    """What the base answers to the held-out questions, where the metric needs it; kept, for a run that goes on."""
    file = folder.path / "said.json"
    if tongue is None or not needs_answers(settings.metric) or trainer.group is not None:
        return []
    if not file.exists():
        began = time.monotonic()
        trainer.tell(Stage(f"the base answers {len(work.data.held_out)} held-out questions"))
        with trainer.rounded():
            said = answers_of(trainer.model, tongue, work.data.held_out, work.base.context_length)
        write_whole(file, said)
        trainer.began += time.monotonic() - began  # that was no learning
    return msgspec.json.decode(file.read_bytes(), type=list[str])


def _said_after(
    work: Work, settings: TuneSettings, trainer: Lasting, tongue: Tongue | None, before: list[str]
) -> Said | None:
    if tongue is None or not needs_answers(settings.metric):
        return None
    trainer.tell(Stage("answering the held-out questions"))
    with trainer.rounded():  # as the base did
        after = answers_of(trainer.model, tongue, work.data.held_out, work.base.context_length)
    return Said(wanted_of(work.data.held_out), before, after)


def _write_answers(folder: RunFolder, work: Work, said: Said) -> None:
    """`answers.jsonl`, for people to look at."""
    rows = zip(work.data.held_out, said.wanted, said.before, said.after, strict=True)
    lines = (
        msgspec.json.encode({"line": one.line, "wanted": wanted, "before": before, "after": after}) + b"\n"
        for one, wanted, before, after in rows
    )
    (folder.path / "answers.jsonl").write_bytes(b"".join(lines))


def _finish(
    work: Work,
    settings: TuneSettings,
    folder: RunFolder,
    trainer: Lasting,
    last: Path,
    before: tuple[list[Known], list[str]],
    tongue: Tongue | None,
    tokens: tuple[int, int],
) -> Finished:
    """Score the best checkpoint, and put it in place with its manifest, by one rename."""
    best = best_step(last / "trainer_state.json")
    place = folder.checkpoints / f"checkpoint-{best}"
    if settings.method == "lora":
        set_peft_model_state_dict(trainer.model, load_file(place / "adapter_model.safetensors"))
    else:
        every = trainer.model.named_parameters(remove_duplicate=False)
        learnt = {name for name, each in every if each.requires_grad}  # the rest is the base's, as it was
        trainer.model.load_state_dict(_weights_of(place, learnt), strict=False)  # a tied head is not stored
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    parameters = sum(each.numel() for each in trainer.model.parameters())
    after: list[Known] = []
    if isinstance(trainer, Classifying) and settings.method == "lora":
        trainer.merge()
        trainer.tell(Stage("scoring the merged weights"))
        after += trainer.known()
    else:
        after += trainer.known_at(place)
    state = msgspec.json.decode((last / "trainer_state.json").read_bytes())
    spent = trainer.now_spent(peak_memory()) if trainer.state.global_step else trainer.spent
    said = _said_after(work, settings, trainer, tongue, before[1])
    outcome = Outcome(
        before=before[0],
        after=after,
        curve=Curve.of(state["log_history"]),
        data_tokens=tokens[0],
        data_answers=tokens[1],
        steps=state["global_step"],
        best_step=best,
        spent=spent,
        memory_bytes=max(spent.memory_bytes, peak_memory()),  # where several learnt, this one has only scored
        trained=trained,
        parameters=parameters,
        device=this_device(settings.precision),
        said=said,
    )
    partial = folder.path / ".result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if work.kind == "lora":
        _copy_adapter(place, partial, work.base.name)
    else:
        trainer.write_model(partial)
    manifest = manifest_of(work, settings, outcome)
    write_whole(partial / "manifest.json", manifest)
    for file in partial.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    write_report(folder, manifest, outcome.curve)
    if outcome.said is not None:
        _write_answers(folder, work, outcome.said)
    partial.rename(folder.result)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return Finished()


def _copy_adapter(place: Path, to: Path, base: str) -> None:
    shutil.copyfile(place / "adapter_model.safetensors", to / "adapter_model.safetensors")
    config = json.loads((place / "adapter_config.json").read_bytes())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])  # a set: the same run writes the same file
    write_whole(to / "adapter_config.json", config)


def _weights_of(place: Path, names: set[str]) -> dict[str, torch.Tensor]:
    every = (one for file in place.glob("*.safetensors") for one in load_file(file).items())
    return {name: values for name, values in every if name in names}


def _stand_back(nice: int) -> None:
    """Let others go first. Linux may weigh sessions against each other before it weighs their processes, and this one
    has a session of its own, so that is told, too."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(max(nice - os.nice(0), 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


# --- who started us ----------------------------------------------------------------------------------------------


def _channel(*, speaks: bool) -> Tell:
    """Standard output, for events alone: what the libraries print goes where their errors go. Of several processes, one
    speaks, and the others where they fail."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def tell(event: AnyEvent) -> None:
        if speaks or isinstance(event, Failed):
            out.write(msgspec.json.encode(event) + b"\n")

    return tell


def _watch_our_starter() -> threading.Event:
    """Set once we are asked to stop; the process ends when its starter is gone."""
    stop = threading.Event()

    def watch() -> None:
        while word := os.read(0, 64):  # not through sys.stdin, whose lock would outlive the interpreter
            if b"stop" in word:
                stop.set()
        os._exit(70)

    threading.Thread(target=watch, daemon=True).start()
    return stop


if __name__ == "__main__":
    main()
