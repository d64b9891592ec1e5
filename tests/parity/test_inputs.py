"""What a caller sends, in every place of every dialect: no model reads what is forbidden, and nobody writes it down."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from interlace.config import PRESETS, PROVIDERS
from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Carried
from tests.parity.rig import CARD, FORBIDDEN, KEY, TRACES, WORD, Answer, Rig, providers
from tests.parity.table import (
    ASKS,
    ASKS_NOTHING,
    CLASSIFY,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    NO_WORDS,
    NOT_READ,
    PLACES,
    RERANK,
    SILENT,
    STREAMING,
    TELLS_LATER,
)
from tests.parity.test_outputs import in_parallel

ASKED = [(path, stream) for path in STREAMING for stream in (False, True)] + [(path, False) for path in SILENT]


def test_every_path_has_its_row(deny_rig: Rig) -> None:
    """A new path of the router must be in the table: as one that asks a model, or with the reason why it does not."""
    app: Any = deny_rig.gateway.server.config.app
    while not hasattr(app, "routes"):
        app = app.pages
    there = {
        f"{method} {route.path}"
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith("/admin/")  # of operators: no model is asked for them
    }
    assert there == {f"POST {path}" for path in ASKS} | set(ASKS_NOTHING) | set(TELLS_LATER)
    assert set(ASKS) == set(STREAMING) | set(SILENT) == set(PLACES)


def test_every_dialect_and_provider_has_its_row(deny_rig: Rig) -> None:
    """A new dialect or provider must be in the table, too."""
    assert {spoken.path for spoken in DIALECTS.values()} == set(ASKS)
    rows = {row.partition(":")[0] for row in providers(deny_rig.servers)}
    assert rows == set(PROVIDERS)
    assert set(PRESETS) < rows


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_that_is_carried_has_its_row(dialect: str) -> None:
    """A new field that goes to a model needs a body with forbidden words in it, or to be among those without words."""
    spoken = DIALECTS[dialect]
    with_words: set[str] = set()
    for body in PLACES[spoken.path].values():
        with_words |= set(_places_of(body, ""))
    carried = {path for path, place in spoken.table.items() if isinstance(place, Carried)}
    covered = {path for path in carried if any(_is_at(words, path) for words in with_words)}
    assert carried - covered - NOT_READ == NO_WORDS[spoken.path]


def _places_of(value: Any, place: str) -> list[str]:
    if isinstance(value, dict):
        found = [name for name in value if TRACES["deny"].search(str(name))]
        return [place] * len(found) + [
            at for name, each in value.items() for at in _places_of(each, f"{place}.{name}" if place else name)
        ]
    if isinstance(value, list):
        return [at for each in value for at in _places_of(each, f"{place}[]")]
    return [place] if isinstance(value, str) and (TRACES["deny"].search(value) or "amFiYmVy" in value) else []


def _is_at(words: str, path: str) -> bool:
    """Whether words stand in that field: in it or, where it is free, deeper, or in a text in place of its parts."""
    return words == path or words.startswith((f"{path}.", f"{path}[")) or path in {f"{words}[].text", f"{words}.text"}


@pytest.mark.parametrize(("path", "stream"), ASKED)
def test_no_model_reads_it(behind: Rig, path: str, stream: bool) -> None:
    """A denied word or a secret that is refused: 400 from the guard, no model asked, nothing billed. A secret that is
    masked: whoever answers has not read it. Nobody writes it down."""
    rows = itertools.cycle(("local", *providers(behind.servers)))
    cases = [
        (place, body, next(rows)) for place, body in PLACES[path].items() if behind.kind == "deny" or _secret(body)
    ]
    if path in {EMBEDDINGS, COUNT}:
        cases += [("with each", dict(PLACES[path]["a text" if path == EMBEDDINGS else "a message"]), "openai")]
    cases += [(f"at {row}", ASKS[path](FORBIDDEN), row) for row in ("local", *providers(behind.servers))]
    asked, wrong = behind.asked(), []

    def ask(_: str, body: Any, row: str) -> Answer:
        model = f"{row if row in {'local', 'openai', 'vertex'} else 'local'}-embedder" if path == EMBEDDINGS else None
        model = f"local-{path.rpartition('/')[2]}" if path in {RERANK, CLASSIFY} else model
        model = model or ("local-clean" if row in PRESETS else f"{row}-clean")
        return behind.ask(path, {"model": model, **body} | ({"stream": True} if stream else {}))

    answers = in_parallel(ask, cases)
    events = behind.events()
    for (place, _, row), answer in zip(cases, answers, strict=True):
        guarded = "content_filter" in answer.raw or "content guard" in answer.raw or "looks like" in answer.raw
        billed = events.get(answer.tag, [])
        logged = behind.logged(answer)
        if answer.status == 400 and guarded:
            if billed or logged["outcome"] != "content_filter":
                wrong.append(f"{place} ({row}): billed {billed}, logged {logged}")
        elif behind.kind != "mask" or (answer.status == 200 and path != COUNT and len(billed) != 1):
            wrong.append(f"{place} ({row}): {answer.status} {answer.raw[:300]}")
        if traces := behind.traces(answer.whole):
            wrong.append(f"{place} ({row}): told {traces}")
    assert not wrong, "\n".join(wrong)
    if behind.kind != "mask":
        assert behind.asked() == asked, "a model was asked"
    assert behind.traces(_seen(behind)) == []
    assert [trace for line in behind.log.lines for trace in behind.traces(line)] == []
    assert behind.on_disk() == []
    assert behind.audited() == []


def _secret(body: Any) -> bool:
    return any(secret in json.dumps(body) for secret in (KEY, CARD)) or "amFiYmVy" in json.dumps(body)


def _seen(rig: Rig) -> str:
    """All that any model was asked by this gateway."""
    here = [str(request) for engine in rig.local.values() for request in engine.seen]
    return "\n".join([*here, rig.servers.seen()])


def test_forbidden_words_are_what_they_are_said_to_be() -> None:
    """Were the words not found by the eyes of this table, it would see nothing anywhere."""
    for kind, trace in TRACES.items():
        assert trace.search(WORD if kind == "deny" else KEY), kind
    assert MESSAGES in ASKS
