"""What the training process is given: settings, where the base lies, the examples, already checked and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from interlace.tuning.heads import Head

Turn = dict[str, str]


class Base(msgspec.Struct, frozen=True):
    """The checkpoint to train on. `folder` and `gguf` are what transformers' `from_pretrained` takes; `gguf` is ""
    where the weights are safetensors."""

    name: str
    folder: str
    gguf: str
    chat_template: str
    context_length: int
    digests: dict[str, str]
    licence: str | None
    source: str


class Placed(msgspec.Struct, frozen=True, omit_defaults=True):
    """An example, and the line of its file that it is from. A text with a label is one user's turn."""

    line: int
    messages: list[Turn]
    label: str | None = None


class Data(msgspec.Struct, frozen=True):
    """Examples to learn from, and those that are held out; with the files they come from, for messages."""

    train: list[Placed]
    held_out: list[Placed]
    train_file: str
    held_out_file: str


class Work(msgspec.Struct, frozen=True):
    """One training process's task. `folder` is the run's."""

    home: str
    settings: dict[str, Any]
    base: Base
    data: Data
    digests: dict[str, str]  # of the data files
    threads: int  # of one process
    hub: dict[str, dict[str, str]] = {}  # what of the data is from the Hub
    class_names: dict[str, list[str]] = {}  # by column of the data: what stands for its numbers
    resume: str = ""  # the checkpoint to go on from
    kind: Literal["lora", "full"] = "lora"  # what it makes: an adapter, or a checkpoint
    head: Head | None = None  # of a classifier
    anew: bool = False  # beside a finished run of that name, which stays until this one is finished
    identity: dict[str, Any] = {}  # what must be the same on every machine that takes part


def read_work(file: Path) -> Work:
    """What `write_work` wrote."""
    return msgspec.json.decode(file.read_bytes(), type=Work)
