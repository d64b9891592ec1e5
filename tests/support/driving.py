"""Drive a `Core` by hand, as an engine host does, and collect what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings
from interlace.engines.core import Core
from interlace.engines.local import load_core
from interlace.engines.types import Delta, EmbedRequest, GenerateRequest, Outcome, Usage
from interlace.errors import InterlaceError

Outcomes = dict[str, list[Outcome]]


def load(
    checkpoint: Path,
    *,
    precision: str = "f32",
    cache_bytes: int = 256 << 20,
    home: Path | None = None,
    **settings: Any,
) -> Core:
    """The real engine on `checkpoint`, at f32 unless told otherwise, with a small cache."""
    model = ModelSettings(
        name="test", checkpoint=str(checkpoint), precision=precision, cache_bytes=cache_bytes, threads=2, **settings
    )
    return load_core(model, home or checkpoint.parent, lambda _: None)


def run(
    core: Core,
    requests: Iterable[GenerateRequest | EmbedRequest],
    *,
    each_step: Callable[[Outcomes], None] = lambda _: None,
) -> Outcomes:
    """Queue all requests, step until nothing is left, return each one's outcomes; refusals are outcomes too."""
    outcomes: Outcomes = {}
    for request in requests:
        outcomes[request.id] = []
        try:
            core.add(core.prepare(request))
        except InterlaceError as error:
            outcomes[request.id].append(error)
    while core.has_work():
        for request_id, outcome in core.step():
            outcomes[request_id].append(outcome)
        each_step(outcomes)
    return outcomes


def deltas(outcomes: list[Outcome], index: int = 0) -> list[Delta]:
    """The deltas of choice `index`."""
    return [o for o in outcomes if isinstance(o, Delta) and o.index == index]


def text(outcomes: list[Outcome], index: int = 0) -> str:
    """The whole text of choice `index`; fails on a request that did not finish well."""
    assert isinstance(outcomes[-1], Usage), outcomes[-1]
    return "".join(delta.text for delta in deltas(outcomes, index))


def token_ids(outcomes: list[Outcome], index: int = 0) -> list[int]:
    """The tokens of choice `index`, of a request that asked for logprobs."""
    return [entry.id for delta in deltas(outcomes, index) for entry in delta.logprobs]


def finish(outcomes: list[Outcome], index: int = 0) -> Delta:
    """The last delta of choice `index`."""
    return deltas(outcomes, index)[-1]
