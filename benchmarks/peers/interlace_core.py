"""`python -m benchmarks.peers.interlace_core CHECKPOINT PRECISION THREADS [chat]`: our engine, called in process.

With `chat`, each prompt is a user's turn, whose words its ids choose.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.lines import Run, Stopwatch, answer_jobs, chat_text
from interlace.config import ModelSettings
from interlace.engines.core import Core
from interlace.engines.local import load_core
from interlace.engines.types import Delta, GenerateRequest, Message, Sampling
from interlace.errors import InterlaceError


def load(checkpoint: str, precision: str, threads: int, *, chat: bool) -> tuple[Run, dict[str, Any]]:
    """Our engine with the settings `interlace serve` would give it."""
    began = time.perf_counter()
    settings = ModelSettings(name="bench", checkpoint=checkpoint, precision=precision, threads=threads)
    core = load_core(settings, Path(), lambda _: None)

    def run(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        return _run(core, prompts, new_tokens, chat=chat)

    return run, {"vocabulary": core.capabilities().vocabulary, "load_seconds": time.perf_counter() - began}


def _run(core: Core, prompts: list[list[int]], new_tokens: int, *, chat: bool) -> dict[str, Any]:
    watch = Stopwatch(prompts, new_tokens)
    sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    for stream, prompt in enumerate(prompts):
        if chat:
            turn = Message(role="user", content=chat_text(prompt))
            request = GenerateRequest(id=str(stream), messages=(turn,), sampling=sampling)
        else:
            request = GenerateRequest(id=str(stream), prompt_ids=tuple(prompt), sampling=sampling)
        core.add(core.prepare(request))
    while core.has_work():
        outcomes = core.step()
        for _, outcome in outcomes:
            if isinstance(outcome, InterlaceError):
                raise outcome
        watch.step({int(id): outcome.tokens for id, outcome in outcomes if isinstance(outcome, Delta)})
    return watch.measured()


if __name__ == "__main__":
    _, checkpoint_, precision_, threads_, *how = sys.argv
    answer_jobs(lambda: load(checkpoint_, precision_, int(threads_), chat=how == ["chat"]))
