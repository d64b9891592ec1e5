"""Runs of `interlace tune --task classify` over tiny random encoders, as processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlace.models import resolve
from tests.support.encoders import tiny_encoder
from tests.support.tuned import Tuning

SETTINGS = (
    "{task: classify, epochs: 4, batch: 4, max_tokens: 24, learning_rate: 0.003, evaluate_every: 10, threads: 1, "
    "patience: 0, nice: 0, rank: 4, held_out: 0.35}"
)


def labelled_texts(count: int = 90) -> str:
    """Rows that a tiny encoder can learn: who is in the text says its label."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    said = (("dog barks dog", "canine"), ("cat sleeps cat", "feline"))
    rows = [
        {"text": f"{letters[number % 26]} {said[number % 2][0]} {letters[number // 26]}", "label": said[number % 2][1]}
        for number in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


class Classes(Tuning):
    """A folder with an encoder as base, texts with labels, settings and a home."""

    def __init__(
        self, folder: Path, settings: str = SETTINGS, *, family: str = "bert", head: str = "Model", **config: Any
    ) -> None:
        if not (folder / "base").exists():
            tiny_encoder(family, head, folder / "base", **config)
        super().__init__(folder, settings)
        (folder / "train.jsonl").write_text(labelled_texts())

    @property
    def checkpoint(self) -> Path:
        """What came of it, in the store."""
        return resolve("mine", self.home).path
