"""Runs of `interlace tune` over a tiny random Llama, as processes of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlace.tuning.folder import seal
from tests.support.serving import environment
from tests.support.tiny import tiny_llama_safetensors

PARTS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
needs_parts = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PARTS),
    reason="the training parts are not installed: pip install 'interlace[tune]'",
)
SETTINGS = (
    "{epochs: 4, batch: 2, max_tokens: 32, rank: 4, dropout: 0.1, learning_rate: 0.01, evaluate_every: 3, threads: 1, "
    "patience: 0, nice: 0}"
)


def chats(count: int = 40) -> str:
    """Examples that a tiny Llama can learn: the answer follows from the question."""
    turns = [(f"the {number % 10} {number}", "ab" * (1 + number % 3)) for number in range(count)]
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}) + "\n"
        for asked, said in turns
    )


class Tuning:
    """A folder with a base, examples, settings and a home."""

    def __init__(self, folder: Path, settings: str = SETTINGS, home: Path | None = None) -> None:
        self.folder, self.home = folder, home or folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        if not (folder / "base").exists():
            tiny_llama_safetensors(folder / "base")
        (folder / "train.jsonl").write_text(chats())
        (folder / "tune.yaml").write_text(settings)

    def command(self, *more: str) -> list[str]:
        """The command line."""
        words = ["--data", "train.jsonl", "--name", "mine", "--config", "tune.yaml"]
        base = () if "--base" in more else ("--base", "./base")
        return [sys.executable, "-m", "interlace", "tune", *base, *words, *more]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Begin a run."""
        return subprocess.Popen(
            self.command(*more), cwd=self.folder, env=environment(self.home), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *more: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
        """A run to its end."""
        return subprocess.run(
            self.command(*more), cwd=self.folder, env=environment(self.home), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.home / "tuning" / "mine"

    def report(self) -> dict[str, Any]:
        """What a finished run says of itself."""
        found: dict[str, Any] = json.loads((self.path / "report.json").read_text())
        return found

    def sealed(self) -> list[int]:
        """The steps of the sound checkpoints there are."""
        return sorted(int(file.parent.name[11:]) for file in self.path.glob("checkpoints/*/sealed.json"))

    def say_memory(self, count: int) -> int:
        """Have what is kept with the checkpoints say that so many bytes were the most; what the last had said."""
        said = 0
        for step in self.sealed():
            place = self.path / "checkpoints" / f"checkpoint-{step}"
            spent = json.loads((place / "spent.json").read_text())
            said = spent["memory_bytes"]
            (place / "spent.json").write_text(json.dumps(spent | {"memory_bytes": count}))
            seal(place)
        return said
