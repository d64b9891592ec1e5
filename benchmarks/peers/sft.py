"""`python -m benchmarks.peers.sft WHOSE CHECKPOINT DATA PRECISION THREADS NICE`: a trainer that is loaded and waits.

WHOSE is `interlace` or `trl`: our trainer, or TRL's own, both with the settings that `SETTINGS` has, an adapter of rank
16 over all linear layers, on the same rows of tokens in the same order. A job is a JSON line: `{"steps": n}` or
`{"seconds": s}`, as long as it learns. Its measurement: the tokens a second between the first step's start and the
last one's end. With NICE it stands back as `interlace tune` does, in a session of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, ROW_TOKENS = 2, 256  # of a step
# What TRL's own documentation says makes it fast: rows packed without padding, nothing computed twice, and no more work
# between steps than there must be. Two rows at once were no quicker than one at a time: 169 and 171 tokens/s in float32
# on an Intel Xeon.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS, "max_length": ROW_TOKENS, "packing": True,
    "gradient_checkpointing": False, "learning_rate": 1e-4, "lr_scheduler_type": "constant", "max_steps": 1,
    "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    "dataloader_pin_memory": False, "seed": 1, "data_seed": 1,
}  # fmt: skip


def load(whose: str, checkpoint: Path, data: Path, precision: str, scratch: Path) -> Any:
    """The trainer, over a fresh adapter."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from interlace.tuning.base import load_model, load_tongue, rows_of
    from interlace.tuning.data import read_examples
    from interlace.tuning.folder import RunFolder
    from interlace.tuning.trainer import Trainer
    from interlace.tuning.work import Base, Placed

    template = json.loads((checkpoint / "tokenizer_config.json").read_text()).get("chat_template")
    template = template or (checkpoint / "chat_template.jinja").read_text()
    base = Base("bench", str(checkpoint), "", template, ROW_TOKENS, {}, None, "")
    tongue = load_tongue(base)
    examples = read_examples(data)
    rows = rows_of([Placed(row.line, row.chat()) for row in examples.rows], examples.file, tongue, ROW_TOKENS, base)
    given: dict[str, Any] = {
        "model": load_model(base),
        "args": SFTConfig(
            output_dir=str(scratch), bf16=precision == "bf16", use_cpu=not torch.cuda.is_available(), **SETTINGS
        ),
        "train_dataset": Dataset.from_dict(
            {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
        ),
        "processing_class": tongue.tokenizer,
        "peft_config": LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    }
    if whose == "trl":
        return SFTTrainer(**given)
    folder = RunFolder(scratch, "bench", "lora")
    return Trainer(**given, folder=folder, held_out=rows[:1], patience=0, tell=lambda _: None, stop=lambda: False)


def timed(trainer: Any) -> Any:
    """A function that does one job with the trainer."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When steps begin and end, and the time at which it is enough."""

        def __init__(self) -> None:
            self.began = self.ended = self.until = 0.0
            self.losses: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.began or time.perf_counter()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            self.ended = time.perf_counter()
            if self.until and self.ended > self.until:
                control.should_training_stop = True

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            self.losses += [logs["loss"]] if logs and "loss" in logs else []

    clock = Clock()
    trainer.add_callback(clock)

    def run(job: dict[str, Any]) -> dict[str, Any]:
        trainer.args.max_steps = job.get("steps", 1_000_000)
        clock.began, clock.losses = 0.0, []
        clock.until = time.perf_counter() + job["seconds"] if "seconds" in job else 0.0
        before, cpu = int(trainer._total_train_tokens), time.process_time()
        trainer.train()
        tokens, seconds = int(trainer._total_train_tokens) - before, clock.ended - clock.began
        cpu = time.process_time() - cpu
        return {"rate": tokens / seconds, "cpu_ms_per_token": 1000 * cpu / tokens, "losses": clock.losses}

    return run


def main() -> None:
    """Load, say so, and answer jobs until standard input ends."""
    whose, checkpoint, data, precision, threads, nice = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as `interlace tune` has it: what waits does not turn
    import torch

    from interlace.tuning.worker import _stand_back

    if int(nice):
        os.setsid()
        _stand_back(int(nice))
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory() as scratch:
        run = timed(load(whose, Path(checkpoint), Path(data), precision, Path(scratch)))
        run({"steps": 1})
        out.write("{}\n")
        for line in sys.stdin:
            out.write(json.dumps(run(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
