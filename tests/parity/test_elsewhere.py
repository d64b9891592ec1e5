"""The other ways an answer comes by: later, in a batch, by a route, from memory; and a shadow that nobody sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from interlace.engines.fields import Refused
from interlace.gateway.batch_endpoints import ENDPOINTS
from interlace.ledger import Outcome
from tests.parity.conftest import ROUTES
from tests.parity.rig import FORBIDDEN, Answer, Rig, providers
from tests.parity.table import (
    ASKS,
    CHAT,
    CLASSIFY,
    COMPLETIONS,
    EMBEDDINGS,
    FAULTS,
    RERANK,
    RESPONSES,
    SILENT,
    STREAMING,
)
from tests.parity.test_outputs import TOOLS, cells, in_parallel
from tests.support.gateway_thread import wait_for

ENDS = {"completed", "failed", "cancelled", "expired", "incomplete"}
FILTERS = {"deny": True, "refuse": True, "mask": False}


def outcome_of(rig: Rig, name: str) -> Outcome:
    """How a request for that saying ends."""
    if name in FAULTS:
        return Outcome.PROVIDER_REFUSED if name == "fault" else Outcome.FAILED
    return Outcome.FILTERED if FILTERS[rig.kind] and name != "clean" else Outcome.FINISHED


def clean(rig: Rig) -> None:
    """Nothing forbidden is in the log, in the store or in a file, and the books are right."""
    assert [trace for line in rig.log.lines for trace in rig.traces(line)] == []
    assert rig.on_disk() == []
    assert rig.audited() == []


# --- later -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True], ids=["waited for", "in the background"])
def test_a_stored_response_tells_nothing_forbidden(behind: Rig, background: bool) -> None:
    """What is kept is what its caller was told: read again, in events, and its input; and it is billed once."""
    found = [(row, name) for row, name in cells(behind, RESPONSES) if name not in {"fault", "escaped"}]

    def ask(row: str, name: str) -> tuple[list[Answer], str]:
        body = {"model": f"{row}-{name}", **ASKS[RESPONSES](name), "tools": TOOLS[RESPONSES]}
        first = behind.ask(RESPONSES, body | ({"background": True} if background else {}))
        if first.status != 200:
            return [first], "failed"
        id = json.loads(first.raw)["id"]
        place = f"{RESPONSES}/{id}"
        wait_for(lambda: json.loads(behind.ask(place, method="GET").raw)["status"] in ENDS)
        again = [
            behind.ask(place, method="GET"),
            behind.ask(f"{place}?stream=true", method="GET"),
            behind.ask(f"{place}/input_items", method="GET"),
            behind.ask(RESPONSES, {"model": "local-clean", "input": "and?", "previous_response_id": id}),
        ]
        return [first, *again], json.loads(again[0].raw)["status"]

    answers = in_parallel(ask, found)
    events, wrong = behind.events(), []
    for (row, name), (told, status) in zip(found, answers, strict=True):
        wrong += [f"{row} {name}: told {traces}" for each in told if (traces := behind.traces(each.whole))]
        ended = [event.outcome for event in events.get(told[0].tag, [])]
        if ended != [outcome_of(behind, name)] and (row, name) != ("local", "escaped"):
            wrong.append(f"{row} {name}: ended {ended}")
        wanted = {Outcome.FILTERED: "incomplete", Outcome.FINISHED: "completed", Outcome.FAILED: "failed"}
        if (row, name) == ("anthropic", "refusal"):
            wanted[Outcome.FINISHED] = "incomplete"  # it has a stop reason of its own for it
        if status != wanted[outcome_of(behind, name)]:
            wrong.append(f"{row} {name}: {status}")
    assert not wrong, "\n".join(wrong)
    clean(behind)


# --- from a file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_uploaded_file_is_guarded_where_it_is_named(behind: Rig, stream: bool) -> None:
    """What is uploaded is nobody's input yet; a message that names the file has its words, and its name."""
    content = f"{FORBIDDEN} {stream}".encode()
    behind.uploads.add(content)
    given = {"files": {"file": ("a.txt", content)}, "data": {"purpose": "user_data"}}
    id = behind.client.post("/v1/files", **given).json()["id"]
    asks = {
        CHAT: {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": id}}]}]},
        RESPONSES: {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": id}]}]},
    }
    asked = behind.asked()
    for path, body in asks.items():
        answer = behind.ask(path, {"model": "local-clean", **body, "stream": stream})
        assert (answer.status == 200) == (behind.kind == "mask"), answer.raw
        assert behind.kind == "mask" or "content_filter" in answer.raw
        assert behind.traces(answer.whole) == []
    assert behind.kind == "mask" or behind.asked() == asked
    assert [
        behind.traces(str(engine.seen)) for engine in behind.local.values() if behind.traces(str(engine.seen))
    ] == []
    clean(behind)


# --- in a batch --------------------------------------------------------------------------------------------------


def test_every_batch_endpoint_has_its_row() -> None:
    """A new endpoint of batches is one that is asked here."""
    assert set(ENDPOINTS) <= set(ASKS)


def batches(rig: Rig) -> Iterator[tuple[str, str]]:
    """Endpoint and model of each batch; `reads` is asked with forbidden words."""
    for path in ENDPOINTS:
        if path in {EMBEDDINGS, RERANK, CLASSIFY}:
            yield path, "local-embedder" if path == EMBEDDINGS else f"local-{path.rpartition('/')[2]}"
            continue
        for row in ("local", *providers(rig.servers)):
            prompts = not isinstance(rig.gateway.engines[f"{row}-text"].fields()["prompt"], Refused)
            if path != COMPLETIONS or prompts:
                yield path, f"{row}-text"
        if path == CHAT:
            yield from ((path, f"{row}-{name}") for row in ("local", "openai") for name in ("arguments", "thought"))
            yield path, "openai-fault"


def test_a_line_of_a_batch_is_guarded(behind: Rig) -> None:
    """The output and error files hold nothing forbidden, each line has one result, and each is billed as it ended."""
    found = list(batches(behind))

    def run(path: str, model: str) -> tuple[Any, str, Answer]:
        bodies = [ASKS[path]("hello"), ASKS[path](FORBIDDEN)]
        lines = [
            {"custom_id": str(i), "method": "POST", "url": path, "body": {"model": model, **body}}
            for i, body in enumerate(bodies)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        behind.uploads.add(text)
        file = behind.client.post("/v1/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}).json()
        wanted = {"input_file_id": file["id"], "endpoint": path, "completion_window": "24h"}
        id = behind.client.post("/v1/batches", json=wanted).json()["id"]
        wait_for(lambda: behind.client.get(f"/v1/batches/{id}").json()["status"] in ENDS, 30)
        batch = behind.client.get(f"/v1/batches/{id}").json()
        files = [batch[name] for name in ("output_file_id", "error_file_id") if batch.get(name)]
        answers = [behind.ask(f"/v1/files/{one}/content", method="GET") for one in files]
        return batch, "\n".join(each.raw for each in answers), answers[0]

    events_of = behind.events
    ran = in_parallel(run, found)
    events, wrong = events_of(), []
    for (path, model), (batch, rows, _) in zip(found, ran, strict=True):
        where = f"{path} {model}"
        if traces := behind.traces(rows):
            wrong.append(f"{where}: told {traces}")
        told = {row["custom_id"]: row["response"] for row in map(json.loads, filter(None, rows.splitlines()))}
        if set(told) != {"0", "1"} or len(rows.split()) < 2:
            wrong.append(f"{where}: lines {set(told)} of {batch}")
            continue
        asked = 1 if behind.kind != "mask" else 2
        if (told["1"]["status_code"] == 200) != (behind.kind == "mask") and "fault" not in model:
            wrong.append(f"{where}: a forbidden line got {told['1']}")
        ended = sorted(event.outcome.value for event in events.get(batch["id"], []))
        name = model.partition("-")[2]
        wanted = [outcome_of(behind, "clean" if path in SILENT else name).value] * asked
        if ended != wanted:
            wrong.append(f"{where}: ended {ended}, not {wanted}: {rows[:400]}")
    assert not wrong, "\n".join(wrong)
    clean(behind)


# --- by a route --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", STREAMING)
def test_a_route_is_guarded_whoever_answers(behind: Rig, path: str, stream: bool) -> None:
    """First, after a failure, beside a slow one, after an open one, from memory: none tells what is forbidden."""
    more = {"stream": True} if stream else {}
    names = [route.name for route in ROUTES if path != COMPLETIONS or route.name not in {"fallback", "open-first"}]
    answers = in_parallel(lambda name: behind.ask(path, {"model": name, **ASKS[path]("hello"), **more}), zip(names))
    again = behind.ask(path, {"model": "reuse", **ASKS[path]("hello"), **more})
    events = behind.events()
    wrong = []
    for name, answer in zip([*names, "again"], [*answers, again], strict=True):
        if answer.status != 200 or behind.traces(answer.whole):
            wrong.append(f"{name}: told {answer.status} {answer.raw[:300]}")
        wanted = outcome_of(behind, "clean" if name == "shadow" else "text")
        billed = [(event.outcome, event.route) for event in events.get(answer.tag, [])]
        if billed != [(wanted, "reuse" if name == "again" else name)]:
            wrong.append(f"{name}: billed {billed}")
        if behind.kind == "mask" and name != "shadow" and "removed]" not in answer.whole:
            wrong.append(f"{name}: {answer.raw[:300]}")
    reused = again.headers["x-interlace-route"] == "reused"
    assert reused == (behind.kind == "mask"), "only an answer that was told whole is remembered"
    assert not wrong, "\n".join(wrong)
    clean(behind)


@pytest.mark.parametrize("path", STREAMING)
def test_no_model_of_a_route_reads_it(behind: Rig, path: str) -> None:
    """Neither who answers nor its shadow is asked with forbidden words."""
    asked = behind.asked()
    answers = in_parallel(
        lambda name: behind.ask(path, {"model": name, **ASKS[path](FORBIDDEN)}), [(route.name,) for route in ROUTES]
    )
    seen = [str(engine.seen) for engine in behind.local.values()]
    assert [behind.traces(text) for text in (*seen, behind.servers.seen()) if behind.traces(text)] == []
    if behind.kind == "mask":
        assert any("removed]" in text for text in seen)
    else:
        assert {answer.status for answer in answers} == {400}
        assert behind.asked() == asked
    clean(behind)


def test_an_answer_that_came_whole_is_billed_as_its_provider_says(behind: Rig) -> None:
    """It has been used to its end before a guard could see the first word of it."""
    answer = behind.ask(CHAT, {"model": "openai-whole", **ASKS[CHAT]("hello")})
    assert behind.traces(answer.whole) == []
    (event,) = behind.events()[answer.tag]
    assert (event.outcome, event.estimated) == (outcome_of(behind, "text"), False)
    assert (event.tokens.prompt, event.tokens.completion) == (30, 7)


def test_token_ids_go_to_no_shadow(behind: Rig) -> None:
    """They are guarded as the engine decodes them: of a shadow nobody hears what it read."""
    shadow = behind.local["local-shadow"]
    before = len(shadow.seen)
    assert behind.ask(COMPLETIONS, {"model": "shadow", "prompt": [7, 8]}).status == 200
    assert behind.ask(COMPLETIONS, {"model": "shadow", "prompt": "fine"}).status == 200
    wait_for(lambda: len(shadow.seen) > before)
    assert len(shadow.seen) == before + 1
