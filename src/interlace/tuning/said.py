"""Where each setting of a run was said, so that what is wrong with it is told where a person can mend it: as the option
that was typed, or by file, line and field of the YAML."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

OPTIONS: Mapping[str, str] = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("base", "data", "columns", "name", "owner", "licence", "source", "epochs", "seed", "threads",
                     "task", "method", "private", "metric", "log_to", "machine_rank")
    },
    "held_out_data": "--held-out",
}  # fmt: skip
"""The settings that the command line takes, and what they are called there."""

_ELSEWHERE = {
    "model": "base", "model_id": "base", "model_name": "base", "model_name_or_path": "base", "checkpoint": "base",
    "dataset": "data", "dataset_name": "data", "train": "data", "train_file": "data", "eval_file": "held_out_data",
    "lr": "learning_rate", "batch_size": "batch", "train_batch_size": "batch", "per_device_train_batch_size": "batch",
    "micro_batch_size": "rows_at_once", "num_epochs": "epochs", "num_train_epochs": "epochs",
    "max_length": "max_tokens", "max_seq_length": "max_tokens", "seq_length": "max_tokens",
    "context_length": "max_tokens", "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha",
    "lora_dropout": "dropout", "target_modules": "targets", "eval_steps": "evaluate_every", "warmup_ratio": "warmup",
    "report_to": "log_to", "license": "licence", "dtype": "precision", "bf16": "precision", "world_size": "processes",
    "nproc_per_node": "processes", "nnodes": "machines", "node_rank": "machine_rank", "master_addr": "main_address",
    "master_port": "main_port",
}  # fmt: skip
"""What other trainers call the same."""


@dataclass(frozen=True, slots=True)
class Said:
    """The settings that the command line says, and the places of those that the `file` does ("": there is none)."""

    typed: Collection[str] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def where(self, name: str) -> str:
        """The setting as it was said; one that nobody has said, as it can be."""
        if name in self.typed or name not in self.places:
            return OPTIONS.get(name) or (f"{self.file}: {name}" if self.file else name)
        return f"{self.places[name]}: {name}"

    def told(self, message: str, known: Collection[str]) -> str:
        """A message, each of whose lines may begin with the name of a setting, with where it was said instead."""
        return "\n".join(self._placed(line, known) for line in message.split("\n"))

    def write(self, name: str, value: str) -> str:
        """How a person would say it: by the option, where the command line says that setting or all of them."""
        if name in OPTIONS and (name in self.typed or not self.file):
            return f"{OPTIONS[name]} {value}"
        return f"{name}: {value}"

    def _placed(self, line: str, known: Collection[str]) -> str:
        name, mark, rest = line.partition(": ")
        return f"{self.where(name)}: {rest}" if mark and name in known else line


def meant(name: str, known: Collection[str]) -> str:
    """The setting that was probably meant by a name that is none: "" where nothing is like it."""
    plain = name.strip().lower().lstrip("-").replace("-", "_")
    if plain in known:
        return plain
    return _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, known, 1)), "")
