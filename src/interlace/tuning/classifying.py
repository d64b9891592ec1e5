"""A sequence classifier in training: texts in tokens, the model with its head, the trainer, and how well it knows.

Texts become tokens as `/v1/classify` makes them: by the server's own tokenizer, in which control tokens are text. So
what was learnt is what is asked. A step's texts are padded to the longest of each device's share.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from interlace.engines.local.tokenizer import load_tokenizer
from interlace.tuning.class_scores import Judged
from interlace.tuning.endings import Ending
from interlace.tuning.folder import RunFolder
from interlace.tuning.heads import Head
from interlace.tuning.prompts import NO_LOSS
from interlace.tuning.settings import TuneSettings
from interlace.tuning.slices import leave_to_learn, targets_of
from interlace.tuning.trainer import Lasting, Tell
from interlace.tuning.work import Base, Placed, Work

_MOST_SHOWN = 20  # problems of the data in one message
_SCORED_TOKENS = 4096  # of one batch of held-out texts, padding included
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "sentence_bert_config.json",
)  # fmt: skip
_HEADS = frozenset({"classifier", "pooler"})  # modules behind the blocks, in all families
# The least rate of a new head, as an adapter's: Adam moves a weight by about the rate a step, and it has far to go.
_NEW_HEAD = 5e-4


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text in tokens, and the number of its label."""

    input_ids: list[int]
    label: int


def texts_in_tokens(work: Work, settings: TuneSettings) -> tuple[list[TextRow], list[TextRow]]:
    """Those to learn from, and those held out. Raises `Ending` that lists the ones that are too long; none is cut."""
    assert work.head is not None
    encode = load_tokenizer(Path(work.base.folder)).encode_pairs
    numbers = {label: number for number, label in enumerate(work.head.labels)}
    reads = work.base.context_length or settings.max_tokens
    limit, mend = (
        (reads, f"over the {reads} that {work.base.name} reads. Shorten it.")
        if reads <= settings.max_tokens
        else (settings.max_tokens, f"over the {settings.max_tokens} of max_tokens. Shorten it, or raise max_tokens.")
    )

    def rows_of(placed: Sequence[Placed], file: str) -> list[TextRow]:
        rows, problems = [], []
        for one, (ids, _) in zip(placed, encode(None, [each.messages[0]["content"] for each in placed]), strict=True):
            if len(ids) > limit:
                problems.append(f"{file}:{one.line}: text: has {len(ids)} tokens, {mend}")
            rows.append(TextRow(ids, numbers[str(one.label)]))
        if problems:
            more = len(problems) - _MOST_SHOWN
            shown = problems[:_MOST_SHOWN] + ([f"... and {more} more."] if more > 0 else [])
            raise Ending("wrong", "\n".join(shown))
        return rows

    data = work.data
    return rows_of(data.train, data.train_file), rows_of(data.held_out, data.held_out_file)


def load_classifier(base: Base, head: Head) -> Any:
    """The base from its folder alone, in float32, with a head for these labels: its own, or one that follows from
    torch's random numbers alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
        id2label=dict(enumerate(head.labels)), label2id={label: number for number, label in enumerate(head.labels)},
        problem_type="single_label_classification", ignore_mismatched_sizes=head.fresh,
    )  # fmt: skip
    if head.fresh:  # one of as many other labels would have been taken over
        for module in model.classifier.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(0.0, model.config.initializer_range)
                module.bias.data.zero_()
    return model


class Classifying(Lasting):
    """transformers' trainer over texts in tokens."""

    knows = Judged

    def __init__(self, *, base: str, pad: int, fresh: bool, **more: Any) -> None:
        self.base, self.pad, self.fresh = Path(base), pad, fresh
        self._total_train_tokens = 0
        super().__init__(data_collator=self._padded, **more)
        self.model_accepts_loss_kwargs = False  # the mean of a step's texts, whatever the model's forward takes

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The mean over the step's texts of the negative log-likelihood of their labels, in nats."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        labels = inputs["labels"]
        nats = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, ignore_index=NO_LOSS, reduction="sum")
        counts = torch.stack([(labels != NO_LOSS).sum(), inputs["attention_mask"].sum()])
        texts, tokens = self.accelerator.gather(counts[None]).sum(0)
        self._total_train_tokens += int(tokens)
        loss = nats / texts * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """As ever, but a head that begins at random learns no slower than an adapter, which does, too."""
        optimizer = super().create_optimizer(model)
        if self.fresh:
            _quicken_head(optimizer, self.model if model is None else model)
        return optimizer

    def known(self) -> Sequence[Judged]:
        """How well each held-out text is known now, in the precision of the run."""
        with self.rounded():
            return judged_of(self.model_wrapped or self.model, self.held_out, self.pad, self.place())

    def merge(self) -> None:
        """What a low-rank adapter has learnt becomes part of the weights."""
        self.model = self.model_wrapped = self.model.merge_and_unload()

    def write_model(self, folder: Path) -> None:
        """Weights and config, and the base's own tokenizer, byte for byte."""
        self.model.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self.base / name).is_file():
                shutil.copyfile(self.base / name, folder / name)

    def _padded(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = _padded([row["input_ids"] for row in rows], self.pad)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def classifier_of(work: Work, settings: TuneSettings) -> Any:
    """The base with a head, and with what of it is learnt; the same in every process."""
    assert work.head is not None
    set_seed(settings.seed)  # a new head is random
    model = load_classifier(work.base, work.head)
    if settings.method == "lora":
        return _with_adapter(model, settings)
    if settings.private:
        leave_to_learn(model, settings.private)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or not _HEADS.isdisjoint(name.split(".")))
    return model


def classifier_trainer(
    work: Work,
    settings: TuneSettings,
    model: Any,
    arguments: Any,
    rows: tuple[list[TextRow], list[TextRow]],
    folder: RunFolder,
    tell: Tell,
    stop: Any,
) -> Classifying:
    """The trainer over these rows, with `arguments` of transformers."""
    assert work.head is not None
    arguments.remove_unused_columns = False
    train, held_out = rows
    return Classifying(
        base=work.base.folder,
        pad=model.config.pad_token_id or 0,
        fresh=work.head.fresh,
        model=model,
        args=arguments,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out),
        folder=folder,
        held_out=held_out,
        patience=settings.patience,
        tell=tell,
        stop=stop,
    )


def judged_of(model: Any, rows: Sequence[TextRow], pad: int, device: Any) -> list[Judged]:
    """How well a model knows each text's label, in the order of the rows."""
    learning = model.training
    model.eval()
    judged: dict[int, Judged] = {}
    with torch.no_grad():
        for group in _groups(rows):
            ids, mask = _padded([rows[index].input_ids for index in group], pad)
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
            sure = torch.log_softmax(logits, dim=-1)
            for index, line in zip(group, sure, strict=True):
                label, guess = rows[index].label, int(line.argmax())
                judged[index] = Judged(-float(line[label]), 1, guess == label, label, guess)
    model.train(learning)
    return [judged[index] for index in range(len(rows))]


# --- parts -------------------------------------------------------------------------------------------------------


def _with_adapter(model: Any, settings: TuneSettings) -> Any:
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets_of(model, settings.targets),
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    return get_peft_model(model, lora)


def _quicken_head(optimizer: Any, model: Any) -> None:
    """Move the weights of the head into groups of their own, behind the others: the first one's rate is told."""
    head = {id(each) for name, each in model.named_parameters() if "classifier" in name.split(".")}
    for group in list(optimizer.param_groups):
        if moved := [each for each in group["params"] if id(each) in head]:
            group["params"] = [each for each in group["params"] if id(each) not in head]
            optimizer.add_param_group({**group, "params": moved, "lr": max(group["lr"], _NEW_HEAD)})


def _dataset(rows: Sequence[TextRow]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.label for row in rows]})


def _padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [texts, longest] each."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])


def _groups(rows: Sequence[TextRow]) -> Iterator[list[int]]:
    """Numbers of rows of about equal length, the longest first."""
    group: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids)):
        if group and (len(group) + 1) * len(rows[group[0]].input_ids) > _SCORED_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
