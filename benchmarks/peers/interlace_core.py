"""`python -m benchmarks.peers.interlace_core CHECKPOINT PRECISION THREADS [chat | ADAPTERS HOME]`: our engine, called
in process.

With `chat`, each prompt is a user's turn, whose words its ids choose. ADAPTERS is a folder of `benchmarks.lora`: then a
job may name an adapter for each prompt, such as `all/3`, `qv/3` or `many/999`, of which as many fit into memory as run
at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.lines import Latecomer, Run, Stopwatch, answer_jobs, chat_text
from interlace.config import AdapterSettings, ModelSettings
from interlace.engines.core import Core
from interlace.engines.local import load_core
from interlace.engines.types import Delta, GenerateRequest, Message, Sampling, Usage
from interlace.errors import InterlaceError

CACHE_BYTES = 384 << 20  # 8,192 tokens of SmolLM2-135M in float32: as many as vLLM is given
JOIN_STEPS = 2  # a stream of 64 tokens, of 32 at once, is replaced every other step


def load(checkpoint: str, precision: str, threads: int, how: str = "", home: str = "") -> tuple[Run, dict[str, Any]]:
    """Our engine with the settings `interlace serve` would give it, but for the size of the cache."""
    began = time.perf_counter()
    chat = how == "chat"
    more: dict[str, Any] = {} if chat or not how else _adapters(Path(how), precision)
    settings = ModelSettings(
        name="bench", checkpoint=checkpoint, precision=precision, threads=threads, cache_bytes=CACHE_BYTES, **more
    )
    core = load_core(settings, Path(home), lambda _: None)

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), streams: int = 0,
            tokens: bool = False, late: bool = False) -> dict[str, Any]:  # fmt: skip
        sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, logprobs=0 if tokens else None)
        requests = [
            _request(stream, prompt, sampling, adapters[stream] if adapters else "", chat=chat)
            for stream, prompt in enumerate(prompts)
        ]
        return _flow(core, requests, streams) if streams else _together(core, requests, prompts, new_tokens, late=late)

    return run, {"vocabulary": core.capabilities().vocabulary, "load_seconds": time.perf_counter() - began}


def _adapters(folder: Path, precision: str) -> dict[str, Any]:
    from benchmarks.lora import KINDS, REGISTERED, RESIDENT, adapter_bytes

    named = [AdapterSettings(f"{kind}/{n}", str(folder / kind / str(n))) for kind in KINDS for n in range(RESIDENT)]
    named += [AdapterSettings(f"many/{n}", str(folder / "all" / str(n % RESIDENT))) for n in range(REGISTERED)]
    each = adapter_bytes(folder, "all") // (2 if precision == "bf16" else 1)
    return {"adapters": tuple(named), "adapter_bytes": RESIDENT * each}


def _request(stream: int, prompt: list[int], sampling: Sampling, adapter: str, *, chat: bool) -> GenerateRequest:
    if chat:
        turn = Message(role="user", content=chat_text(prompt))
        return GenerateRequest(id=str(stream), messages=(turn,), sampling=sampling)
    return GenerateRequest(id=str(stream), prompt_ids=tuple(prompt), sampling=sampling, adapter=adapter)


def _together(core: Core, requests: list[GenerateRequest], prompts: list[list[int]], new_tokens: int, *,
              late: bool) -> dict[str, Any]:  # fmt: skip
    watch = Stopwatch(prompts, new_tokens)
    told: list[list[int]] = [[] for _ in prompts]
    last = Latecomer(watch, (lambda: core.add(core.prepare(requests[-1]))) if late else None)
    for request in requests[:-1] if late else requests:
        core.add(core.prepare(request))
    while core.has_work():
        deltas, _ = _step(core)
        watch.step({stream: delta.tokens for stream, delta in deltas})
        last.look()
        for stream, delta in deltas:
            told[stream] += [one.id for one in delta.logprobs]
    return watch.measured() | last.measured() | {"tokens": told}


def _flow(core: Core, requests: list[GenerateRequest], streams: int) -> dict[str, Any]:
    """Only so many streams run at once, a new one beginning every other step at most. `flow` is tokens per second from
    when so many run until none is left to begin."""
    waiting, running, steps, tokens = requests[::-1], 0, 0, 0
    began = 0.0
    while waiting:
        if steps % JOIN_STEPS == 0 and running < streams:
            core.add(core.prepare(waiting.pop()))
            running += 1
        if running == streams and not began:
            began = time.perf_counter()
        deltas, ended = _step(core)
        steps += 1
        running -= ended
        tokens += sum(delta.tokens for _, delta in deltas) if began else 0
    rate = tokens / (time.perf_counter() - began)
    while core.has_work():
        core.step()
    return {"flow": rate}


def _step(core: Core) -> tuple[list[tuple[int, Delta]], int]:
    """What each stream gained, and how many streams ended."""
    outcomes = core.step()
    for _, outcome in outcomes:
        if isinstance(outcome, InterlaceError):
            raise outcome
    deltas = [(int(id), outcome) for id, outcome in outcomes if isinstance(outcome, Delta)]
    return deltas, sum(isinstance(outcome, Usage) for _, outcome in outcomes)


if __name__ == "__main__":
    _, checkpoint_, precision_, threads_, *how_ = sys.argv
    answer_jobs(lambda: load(checkpoint_, precision_, int(threads_), *how_))
