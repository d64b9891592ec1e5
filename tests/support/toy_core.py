"""A real, tiny `Core` for the tests of the engine host: what it does stands in the prompt.

    count N        N deltas "0 ", "1 ", ..., one a step
    endless        deltas until it is cancelled
    echo TEXT      one delta with TEXT
    report         one delta: JSON of `{"cancelled": {id: tokens made}, "running": [ids of others]}`
    sleep S [PATH] a step that makes the file PATH, blocks for S seconds, GIL and all threads free, then ends
    segfault       dies in a step;  exit N: leaves with that status in a step
    raise          a step raises;  raise-in-add, raise-in-prepare: there
    refuse         `prepare` refuses with an `InvalidRequest`;  overload: `add` refuses with `Overloaded`
    fail           the core ends it by an `EngineFailed` of its own
    surrogate      a delta that cannot be carried
    slow-prepare S `prepare` takes S seconds, then as echo

`settings.checkpoint` says how loading goes: "toy"; "toy:sleep=S"; "toy:hold-gil" (native code that never lets go of
the GIL); "toy:segfault"; "toy:raise"; "toy:broken" (CheckpointError); "toy:once=PATH" (dies unless PATH exists).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interlace.config import ModelSettings
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Health,
    Outcome,
    Started,
    Usage,
)
from interlace.errors import CheckpointError, EngineFailed, InvalidRequest, Overloaded


@dataclass
class Run:
    """A request inside the toy, and how many tokens it has made."""

    request: GenerateRequest | EmbedRequest
    verb: str = ""
    argument: str = ""
    made: int = 0


class ToyCore:
    """Implements `interlace.engines.types.Core`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.cancelled: dict[str, int] = {}

    def prepare(self, request: GenerateRequest | EmbedRequest) -> Run:
        """Split the prompt in verb and argument."""
        if isinstance(request, EmbedRequest):
            return Run(request)
        verb, _, argument = (request.prompt or "").partition(" ")
        if verb == "refuse":
            raise InvalidRequest("no such thing", param="prompt", code="refused")
        if verb == "raise-in-prepare":
            raise KeyError(argument)
        if verb == "slow-prepare":
            time.sleep(float(argument))
        return Run(request, verb, argument)

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Words of the prompt; `refuse` and `raise-in-prepare` as in `prepare`."""
        run = self.prepare(request)
        return len(run.argument.split()) + 1

    def add(self, prepared: Run) -> None:
        """Take it on."""
        if prepared.verb == "overload":
            raise Overloaded("too much", retry_after_seconds=2.5)
        if prepared.verb == "raise-in-add":
            raise KeyError(prepared.argument)
        self.runs[prepared.request.id] = prepared

    def cancel(self, request_id: str) -> None:
        """Forget it, and remember how many tokens it had made."""
        if run := self.runs.pop(request_id, None):
            self.cancelled[request_id] = run.made

    def has_work(self) -> bool:
        """Whether anything runs."""
        return bool(self.runs)

    def step(self) -> list[tuple[str, Outcome]]:
        """One outcome or a few for each that runs."""
        return [(id, outcome) for id, run in list(self.runs.items()) for outcome in self._outcomes(id, run)]

    def _outcomes(self, id: str, run: Run) -> list[Outcome]:
        if isinstance(run.request, EmbedRequest):
            return self._last(id, Embeddings(tuple(struct.pack("<f", len(t)) for t in run.request.texts), 1, 1))
        if run.made == 0:
            _misbehave(run)
        run.made += 1
        started: list[Outcome] = [Started(1)] if run.made == 1 else []
        if run.verb == "fail":
            return started + self._last(id, EngineFailed("it could not be done"))
        if run.verb == "endless" or (run.verb == "count" and run.made < int(run.argument)):
            return [*started, Delta(text=f"{run.made - 1} ", tokens=1)]
        last = Delta(text=self._text(run), tokens=1, finish_reason="stop")
        return [*started, last, *self._last(id, Usage(1, run.made))]

    def _last(self, id: str, outcome: Outcome) -> list[Outcome]:
        del self.runs[id]
        return [outcome]

    def _text(self, run: Run) -> str:
        if run.verb == "report":
            others = [id for id, other in self.runs.items() if other is not run]
            return json.dumps({"cancelled": self.cancelled, "running": others})
        if run.verb == "surrogate":
            return "\ud800"
        return f"{run.made - 1} " if run.verb == "count" else run.argument

    def capabilities(self) -> Capabilities:
        """Of a toy."""
        return Capabilities(generate=True, embed=True, context_length=1000, vocabulary=10, dimensions=1)

    def health(self) -> Health:
        """How many run."""
        return Health("ready", running=len(self.runs))


def _misbehave(run: Run) -> None:
    if run.verb == "sleep":
        seconds, _, mark = run.argument.partition(" ")
        if mark:
            Path(mark).touch()
        time.sleep(float(seconds))
    elif run.verb == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif run.verb == "exit":
        os._exit(int(run.argument))
    elif run.verb == "raise":
        raise RuntimeError("the toy broke")


def load_toy_core(settings: ModelSettings, home: Path, progress: Callable[[str], None]) -> ToyCore:
    """The factory; see the module for what `settings.checkpoint` may say."""
    progress("loading the toy")
    _, _, how = settings.checkpoint.partition(":")
    how, _, argument = how.partition("=")
    if how == "sleep":
        time.sleep(float(argument))
    elif how == "hold-gil":
        ctypes.PyDLL(None).sleep(600)
    elif how == "segfault" or (how == "once" and not Path(argument).exists()):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "raise":
        raise RuntimeError("no weights today")
    elif how == "broken":
        raise CheckpointError("model.gguf is truncated: pull it again")
    return ToyCore()
