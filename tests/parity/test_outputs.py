"""What a model says, at every provider, told in every dialect, streamed or not: caught, billed and logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from interlace.config import PRESETS
from interlace.engines.fields import Refused
from interlace.ledger import Outcome
from tests.parity.rig import Answer, Rig, providers
from tests.parity.table import (
    ASKS,
    COMPLETIONS,
    FAULTS,
    MESSAGES,
    RESPONSES,
    SAID_BY_PRESETS,
    SAYINGS,
    STREAMING,
)

TOOLS = {
    "/v1/chat/completions": [{"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}],
    RESPONSES: [{"type": "function", "name": "note", "parameters": {"type": "object"}, "strict": False}],
    MESSAGES: [{"name": "note", "input_schema": {"type": "object"}}],
}


def cells(rig: Rig, path: str) -> list[tuple[str, str]]:
    """Provider and saying, as far as that endpoint can ask for it."""
    found = []
    for row in ("local", *providers(rig.servers)):
        for name in SAYINGS:
            engine = rig.gateway.engines[f"{row}-{name}"]
            if path == COMPLETIONS and (
                isinstance(engine.fields()["prompt"], Refused) or name not in ("text", "fault")
            ):
                continue
            if row in PRESETS and name not in SAID_BY_PRESETS:
                continue
            if row == "local" and name in FAULTS:
                continue  # it speaks for itself
            found.append((row, name))
    return found


def in_parallel(work: Callable[..., Any], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Each case's result, in order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda case: work(*case), cases))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", STREAMING)
def test_nothing_forbidden_is_told(behind: Rig, path: str, stream: bool) -> None:
    """No byte of it reaches the caller, and the books and the log say how the request ended."""
    found = cells(behind, path)

    def ask(row: str, name: str) -> Answer:
        body = {"model": f"{row}-{name}", **ASKS[path](f"{row} {name}")}
        if path in TOOLS:
            body["tools"] = TOOLS[path]
        return behind.ask(path, body | ({"stream": True} if stream else {}))

    answers = in_parallel(ask, found)
    events = behind.events()
    wrong = [
        f"{row} {name}: {fault}"
        for (row, name), answer in zip(found, answers, strict=True)
        for fault in faults_of(behind, name, answer, events.get(answer.tag, []))
    ]
    assert not wrong, "\n".join(wrong)
    assert [trace for line in behind.log.lines for trace in behind.traces(line)] == []
    assert behind.audited() == []


def faults_of(rig: Rig, name: str, answer: Answer, events: list[Any]) -> Iterator[str]:
    """What is wrong with one cell."""
    if traces := rig.traces(answer.whole):
        yield f"forbidden words were told: {traces}"
    logged = rig.logged(answer)
    if name == "fault":
        recorded = [(event.outcome, event.cost_nanos) for event in events]
        if answer.status != 400 or recorded != [(Outcome.PROVIDER_REFUSED, 0)]:
            yield f"a refused request: {answer.status} {answer.raw[:200]} {events}"
        return
    if answer.status != 200 and name != "late":
        yield f"{answer.status} {answer.raw[:300]}"
        return
    if len(events) != 1:
        yield f"{len(events)} usage events"
        return
    (event,) = events
    caught = (rig.kind != "mask" or (name == "escaped" and "\\u" in answer.raw)) and name not in {"clean", *FAULTS}
    wanted = Outcome.FAILED if name == "late" else Outcome.FILTERED if caught else Outcome.FINISHED
    if event.outcome is not wanted:
        yield f"the outcome is {event.outcome}, not {wanted}: {answer.raw[:300]}"
    if logged.get("outcome") not in (
        {"failed", "engine_failed", "invalid_request"} if name == "late" else {wanted.value}
    ):
        yield f"the log says {logged}"
    if not event.tokens.prompt or not event.tokens.completion:
        yield f"billed {event.tokens}"
    if rig.kind == "mask" and name not in {"clean", *FAULTS} and not caught and "removed]" not in answer.whole:
        yield f"nothing says what was removed: {answer.raw[:300]}"
    if caught and not any(word in answer.raw for word in ("content_filter", "refusal")):
        yield f"nobody is told that it was filtered: {answer.raw[:300]}"
