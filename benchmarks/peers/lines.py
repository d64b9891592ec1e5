"""The loop of every contestant: a job comes as a JSON line on standard input, its measurement leaves likewise.

A job: `{"prompts": [[token ids], ...], "new_tokens": n}`: run all prompts at once, greedily, `new_tokens` each; end of
text ignored. Its measurement is made by a `Stopwatch`. Contestants that know adapters take further fields. Only the
standard library, and any Python from 3.10: contestants from other environments import it too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[..., dict[str, Any]]

_TEXT = (
    "river stone apple morning quick silver window garden letter yellow mountain winter paper music open table "
    "forest little engine copper summer bridge island candle number market orange simple planet travel"
)
_WORDS = _TEXT.split()


def chat_text(prompt: list[int]) -> str:
    """A user's turn of as many words as the prompt has ids, the same for the same ids."""
    return " ".join(_WORDS[id % len(_WORDS)] for id in prompt)


class Stopwatch:
    """Counts the tokens of all streams and takes the time of the two phases, alike for every contestant.

    Prefill lasts from the start until every stream has its first token. Decode lasts from then until the first stream
    has its last one: all streams run all the while, and only tokens that come meanwhile count.
    """

    def __init__(self, prompts: list[list[int]], new_tokens: int) -> None:
        self.prompt_tokens = sum(map(len, prompts))
        self.new_tokens = new_tokens
        self.counts = dict.fromkeys(range(len(prompts)), 0)
        self.silent = set(self.counts)
        self.firsts: list[float] = []
        self.prefill_seconds: float | None = None
        self.decode_seconds = 0.0
        self.decoded = 0
        self._full = True
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def step(self, streams: dict[int, int]) -> None:
        """Note that a step is over in which each of `streams` gained so many tokens."""
        now = time.perf_counter() - self._began
        for stream, tokens in streams.items():
            self.counts[stream] += tokens
        if self.prefill_seconds is None:
            self.firsts += [now] * len(self.silent & streams.keys())
            self.silent -= streams.keys()
            if not self.silent:
                self.prefill_seconds = now
        elif self._full:
            self.decoded += sum(streams.values())
            self.decode_seconds = now - self.prefill_seconds
        if any(self.counts[stream] >= self.new_tokens for stream in streams):
            self._full = False

    def measured(self) -> dict[str, Any]:
        """The measurement; rates in tokens per second, `decode` None where nothing was decoded."""
        assert self.prefill_seconds is not None
        assert set(self.counts.values()) == {self.new_tokens}, "every stream gets every token"
        wall = time.perf_counter() - self._began
        return {
            "prefill": self.prompt_tokens / self.prefill_seconds,
            "decode": self.decoded / self.decode_seconds if self.decoded else None,
            "whole": sum(self.counts.values()) / wall,
            "first_token_seconds": sum(self.firsts) / len(self.firsts),
            "cpu_seconds": time.process_time() - self._cpu,
            "wall_seconds": wall,
        }


class Latecomer:
    """The last stream comes once all others have `AFTER` tokens: how long it waits for its first one is what a caller
    feels of a busy server. `begin` sends it off; of `None`, nothing is held back."""

    AFTER = 4

    def __init__(self, watch: Stopwatch, begin: Callable[[], object] | None) -> None:
        self._watch = watch
        self._begin = begin
        self._stream = max(watch.counts)
        self._began: float | None = None
        self._seconds: float | None = None

    def look(self) -> None:
        """After each step."""
        if self._begin is None or self._seconds is not None:
            return
        counts, now = self._watch.counts, time.perf_counter()
        if self._began is not None:
            self._seconds = now - self._began if counts[self._stream] else None
        elif all(count >= self.AFTER for stream, count in counts.items() if stream != self._stream):
            self._began = now
            self._begin()

    def measured(self) -> dict[str, Any]:
        """`late_seconds`, where there was one."""
        return {} if self._seconds is None else {"late_seconds": self._seconds}


def answer_jobs(load: Callable[[], tuple[Run, dict[str, Any]]]) -> None:
    """Load, say what was loaded, then answer jobs until the parent closes our standard input.

    Whatever libraries print goes to standard error: the descriptor of standard output is ours alone.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run, about = load()
    _write(answers, about)
    for line in sys.stdin:
        _write(answers, run(**json.loads(line)))


def _write(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
