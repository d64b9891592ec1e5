"""One precision, tried in a process of its own: `python -m interlace.engines.local.trial`, a `Task` on standard input.

A process of its own gives back all its memory at the end, and where it crashes or takes too much, only the trial is
lost. Standard output gets one line of JSON for each `Report`; the last one has the outcome.

The model continues `TEXTS` greedily, many at once. At the reference's precision the tokens are its own; at another they
are the reference's, whatever it would choose itself (teacher forcing), and what it would choose is compared.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from interlace.engines.local.blocks import blocks_for
from interlace.engines.local.constants import Array, Precision
from interlace.engines.local.graph import BLOCK
from interlace.engines.local.runner import Run, Runner
from interlace.engines.local.trial_texts import TEXTS
from interlace.errors import CheckpointError, InterlaceError
from interlace.models import DecoderArchitecture, read_architecture

STREAMS = len(TEXTS)
ALONE_STEPS = 24
WARM_STEPS = 3  # the first ones pack weights and touch memory
PROMPT_TOKENS = 32  # at most
SHORTEST_PROMPT = 4


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to try. `reference`: the tokens that follow each text, where they are known already."""

    path: str
    precision: Precision
    threads: int
    tokens: int  # to compare at least
    reference: list[list[int]] | None = None


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trial found; the words are `interlace.models.measured.Trial`'s."""

    agreed: int
    tokens: int
    one: float
    many: float
    bytes: int
    chosen: list[list[int]]  # after each text, the tokens it would choose


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a trial is, from 0 to 1; at its end what it found, or why it cannot."""

    share: float
    found: Found | None = None
    problem: str = ""


def steps_for(tokens: int) -> int:
    """How many tokens follow each text so that there are so many in all."""
    return -(-tokens // STREAMS)


def cache_bytes_of(architecture: DecoderArchitecture, tokens: int) -> int:
    """What the cache of a trial takes, where numbers have four bytes."""
    per_block = 2 * architecture.layers * architecture.kv_heads * architecture.head_dim * BLOCK * 4
    return per_block * (1 + STREAMS * blocks_for(PROMPT_TOKENS + max(steps_for(tokens), ALONE_STEPS) + 1))


def run(task: Task, tell: Callable[[float], None]) -> Found:
    """Load, compare and time; `tell` hears how far it is, from 0 to 1. CheckpointError for one that cannot be tried."""
    path = Path(task.path)
    architecture = read_architecture(path)
    if not isinstance(architecture, DecoderArchitecture):
        raise CheckpointError(f"{path} is a {architecture.family} model, whose precision is not chosen.")
    prompts = prompts_of(path, architecture)
    cache = cache_bytes_of(architecture, task.tokens)
    runner = Runner(path, architecture, precision=task.precision, cache_bytes=cache, threads=task.threads)
    tell(0.2)
    steps = steps_for(task.tokens)
    together = _continue(runner, prompts, steps, task.reference, lambda done: tell(0.2 + 0.6 * done))
    chosen = together.chosen
    right = chosen if task.reference is None else np.array(task.reference)
    alone = _continue(runner, prompts[:1], ALONE_STEPS, None, lambda done: tell(0.8 + 0.2 * done))
    return Found(
        agreed=int((chosen == right).sum()),
        tokens=chosen.size,
        one=1 / alone.step_seconds,
        many=len(prompts) / together.step_seconds,
        bytes=_peak_bytes(),
        chosen=chosen.tolist(),
    )


def prompts_of(path: Path, architecture: DecoderArchitecture) -> list[list[int]]:
    """`TEXTS` as tokens. Of a text that a tokenizer makes next to nothing of, tokens at random, the same every time."""
    from interlace.engines.local.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    random = np.random.default_rng(1)
    prompts = []
    for text in TEXTS:
        ids = [token for token in tokenizer.encode(text, special=False, framed=True) if token < architecture.vocabulary]
        if len(ids) < SHORTEST_PROMPT:
            ids = random.integers(0, architecture.vocabulary, PROMPT_TOKENS).tolist()
        prompts.append(ids[:PROMPT_TOKENS])
    return prompts


@dataclass(frozen=True, slots=True)
class _Continued:
    chosen: Array  # [streams, steps]
    step_seconds: float  # of one step of all streams, the median


def _continue(
    runner: Runner, prompts: list[list[int]], steps: int, forced: list[list[int]] | None, tell: Callable[[float], None]
) -> _Continued:
    """Choose `steps` tokens after each prompt, greedily; what follows is the chosen token, or the `forced` one."""
    per_stream = blocks_for(PROMPT_TOKENS + steps + 1)
    blocks = [range(1 + at * per_stream, 1 + (at + 1) * per_stream) for at in range(len(prompts))]
    texts, computed = [list(prompt) for prompt in prompts], [0] * len(prompts)
    chosen = np.zeros((len(prompts), steps), np.int64)
    seconds = []
    for step in range(steps):
        runs = [Run(text[past:], past, own) for text, past, own in zip(texts, computed, blocks, strict=True)]
        last = np.cumsum([len(one.tokens) for one in runs]) - 1
        began = time.perf_counter()
        best = runner.forward(runs, last).argmax(axis=1)
        seconds.append(time.perf_counter() - began)
        chosen[:, step] = best
        for at, text in enumerate(texts):
            computed[at] = len(text)
            text.append(int(best[at]) if forced is None else forced[at][step])
        tell((step + 1) / steps)
    decoding = seconds[1 + WARM_STEPS :] or seconds[1:] or seconds
    return _Continued(chosen, statistics.median(decoding))


def _peak_bytes() -> int:
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


# --- the process -----------------------------------------------------------------------------------------------


def main() -> None:
    """Read the task, tell how far it is, and end with what was found."""
    _end_with_parent()
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no report
    share = -1.0

    def tell(now: float) -> None:
        nonlocal share
        if now >= share + 0.02:
            share = now
            send(Report(now))

    def send(report: Report) -> None:
        told.write(msgspec.json.encode(report) + b"\n")
        told.flush()

    try:
        task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
        send(Report(1.0, found=run(task, tell)))
    except InterlaceError as error:
        send(Report(1.0, problem=error.message))
    except MemoryError:
        send(Report(1.0, problem="the memory does not suffice"))
    except Exception as error:  # noqa: BLE001 - whatever it is, others go on without this precision
        send(Report(1.0, problem=f"{type(error).__name__}: {error}"[:400]))


def _end_with_parent() -> None:
    """Have the kernel end us with who started us, and take us first where memory runs out (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
