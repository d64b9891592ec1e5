"""Stored responses: those that run in the background, whose they are, and how long they stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from interlace.deposits import Deposits, Responses, responses
from interlace.ledger import Outcome
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.operations.tenants import ProjectNamed
from interlace.ledger.schema import stored_responses
from tests.support.gateway_thread import Gateway, wait_for
from tests.support.responding import PATH, ended, engine, get, post, responding
from tests.support.response_events import check_stream, events_of, strict_items, strict_response
from tests.support.tenants import tenant


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """One engine for each way to answer; denied words, masked keys, and short conversations."""
    with responding() as running:
        yield running


@pytest.fixture(autouse=True)
def _engines_as_new(gateway: Gateway) -> None:
    """What one test released must hold the next one again."""
    gateway.engines["held"].release.clear()  # type: ignore[attr-defined]


# --- in the background -------------------------------------------------------------------------------------------


def test_one_that_runs_is_told_as_it_stands_and_cancelled(gateway: Gateway) -> None:
    """In progress with the text so far; cancelled, twice, with what was generated billed and kept."""
    first = post(gateway, "held", background=True).json()
    strict_response(first)
    id = first["id"]
    wait_for(lambda: get(gateway, id).json()["output"])
    running = get(gateway, id).json()
    strict_response(running)
    assert (running["status"], running["output"][0]["content"][0]["text"]) == ("in_progress", "The")
    strict_items(get(gateway, f"{id}/input_items").json())
    assert "nothing can go on from it" in post(gateway, "held", previous_response_id=id).text
    cancelled = post(gateway, "held", path=f"/{id}/cancel").json()
    strict_response(cancelled)
    assert cancelled["status"] == "cancelled"
    assert cancelled["usage"]["output_tokens"] == 1
    assert post(gateway, "held", path=f"/{id}/cancel").json() == cancelled
    assert get(gateway, id).json() == cancelled
    event = gateway.events[-1]
    assert (event.id, event.outcome, event.tokens.completion) == (id.removeprefix("resp_"), Outcome.CLIENT_GONE, 1)
    assert engine(gateway, "held").running == 0


def test_one_that_runs_can_be_deleted(gateway: Gateway) -> None:
    """It stops, and does not come back when its end is written."""
    id = post(gateway, "held", background=True).json()["id"]
    headers = gateway.headers
    gone = httpx.delete(f"{gateway.url}{PATH}/{id}", headers=headers, trust_env=False, timeout=20)
    assert gone.json() == {"id": id, "object": "response", "deleted": True}
    assert get(gateway, id).status_code == 404
    assert engine(gateway, "held").running == 0


def test_those_of_a_key_are_bounded_in_number_and_size() -> None:
    """Each is held in memory until it ends: one caller could otherwise take all there is. Another key has its own."""
    with responding(background_responses=2, background_bytes=1024) as there:
        kept = [post(there, "held", background=True, stream=False).json()["id"] for _ in range(2)]
        refused = post(there, "held", background=True)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "limit 2, used 2 (limits.background_responses)" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert post(there, "scripted").status_code == 200, "who waits is not counted"
        other = tenant(there.registry)
        assert post(there, "held", who=other, background=True).status_code == 200
        post(there, "held", path=f"/{kept[0]}/cancel")
        long = ended(there, post(there, "endless", background=True).json()["id"])
        assert long["status"] == "failed"
        assert "limits.background_bytes" in long["error"]["message"]
        event = there.events[-1]
        assert (event.outcome, 150 < event.tokens.completion < 300) == (Outcome.CLIENT_GONE, True), "billed as it stood"
        there.engines["held"].release.set()  # type: ignore[attr-defined]


def test_a_stream_in_the_background_is_taken_up_again(gateway: Gateway) -> None:
    """Who was cut off goes on after the last number it has seen; together it is one whole stream."""
    body = {"model": "held", "input": "Hi", "background": True, "stream": True}
    seen = b""
    with httpx.stream("POST", gateway.url + PATH, json=body, headers=gateway.headers, trust_env=False) as answer:
        for data in answer.iter_raw():
            seen += data
            if b"output_text.delta" in seen:
                break
    first = events_of(seen.decode())
    id = first[0]["response"]["id"]
    gateway.call(engine(gateway, "held").release.set)
    rest = events_of(get(gateway, f"{id}?stream=true&starting_after={first[-1]['sequence_number']}").text)
    response = check_stream([*first, *rest] if rest[0]["type"] != "response.completed" else _retold(gateway, id))
    assert response["status"] == "completed"
    assert get(gateway, id).json() == response


def _retold(gateway: Gateway, id: str) -> list[dict[str, Any]]:
    return events_of(get(gateway, f"{id}?stream=true").text)


def test_hanging_up_ends_a_stream(gateway: Gateway) -> None:
    """Without `background` the work stops with its caller; what was said is kept as cancelled, and billed."""
    body = {"model": "endless", "input": "Hi", "stream": True}
    with httpx.stream("POST", gateway.url + PATH, json=body, headers=gateway.headers, trust_env=False) as answer:
        seen = next(answer.iter_raw())
    id = events_of(seen.decode().rpartition("\n\n")[0] + "\n\n")[0]["response"]["id"]
    wait_for(lambda: get(gateway, id).status_code == 200)
    kept = get(gateway, id).json()
    strict_response(kept)
    assert kept["status"] == "cancelled"
    assert gateway.events[-1].outcome is Outcome.CLIENT_GONE


# --- whose, and how long -----------------------------------------------------------------------------------------


def test_a_response_is_there_for_its_project_only(gateway: Gateway) -> None:
    """To every other key it does not exist, whatever it asks for."""
    owner, stranger = tenant(gateway.registry), tenant(gateway.registry)
    id = post(gateway, "local", who=owner).json()["id"]
    item = get(gateway, f"{id}/input_items", who=owner).json()["data"][0]["id"]
    running = post(gateway, "held", who=owner, background=True).json()["id"]
    for one in (id, running):
        for path in (one, f"{one}/input_items", f"{one}?stream=true"):
            assert get(gateway, path, who=owner).status_code == (400 if one == running and "stream" in path else 200)
            assert get(gateway, path, who=stranger).status_code == 404
        assert post(gateway, "", who=stranger, path=f"/{one}/cancel").status_code == 404
        headers = stranger.headers
        assert httpx.delete(f"{gateway.url}{PATH}/{one}", headers=headers, trust_env=False).status_code == 404
        refused = post(gateway, "local", who=stranger, previous_response_id=one)
        assert refused.json()["error"]["code"] == "previous_response_not_found"
    refused = post(gateway, "local", who=stranger, input=[{"type": "item_reference", "id": item}])
    assert refused.json()["error"]["code"] == "item_not_found"
    assert post(gateway, "local", who=owner, input=[{"type": "item_reference", "id": item}]).status_code == 200
    assert post(gateway, "", who=owner, path=f"/{running}/cancel").json()["status"] == "cancelled"


def test_a_conversation_has_an_end(gateway: Gateway) -> None:
    """So many turns, and so many bytes, are taken up again; more is refused before it is read."""
    id = post(gateway, "local").json()["id"]
    for _ in range(2):
        id = post(gateway, "local", previous_response_id=id).json()["id"]
    refused = post(gateway, "local", previous_response_id=id)
    assert refused.status_code == 400
    assert "3 responses" in refused.json()["error"]["message"]
    large = post(gateway, "local", input="long " * 4000, max_output_tokens=5).json()["id"]
    assert "bytes" in post(gateway, "local", previous_response_id=large).json()["error"]["message"]


def test_what_is_referred_to_is_read_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request that names a thousand items of one large response would read it a thousand times; and what is read
    for one request has a bound."""
    found: list[str] = []
    find = Responses.find
    monkeypatch.setattr(Responses, "find", lambda self, project, one: found.append(one) or find(self, project, one))
    said = {"role": "user", "content": "hello"}
    one = post(gateway, "local", input=[said] * 9).json()["id"]
    items = [{"type": "item_reference", "id": f"msg_{one.removeprefix('resp_')}{0x8000 + i:04x}"} for i in range(9)]
    assert post(gateway, "local", input=items).status_code == 200
    assert found == [one]
    refused = post(gateway, "local", input=[{"type": "item_reference", "id": f"msg_{'0' * 24}8000"}, *items])
    assert refused.json()["error"]["code"] == "item_not_found"
    large = post(gateway, "local", input="long " * 4000, max_output_tokens=5).json()["id"]
    item = {"type": "item_reference", "id": f"msg_{large.removeprefix('resp_')}8000"}
    assert "bytes" in post(gateway, "local", input=[item]).json()["error"]["message"]
    several = [post(gateway, "local").json()["id"] for _ in range(4)]
    items = [{"type": "item_reference", "id": f"msg_{id.removeprefix('resp_')}8000"} for id in several]
    assert "responses" in post(gateway, "local", input=items).json()["error"]["message"]


def test_a_project_stores_only_so_much(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key would fill the disk that the ledger of everybody lies on: pictures cost few tokens and many bytes."""
    who, other = tenant(gateway.registry), tenant(gateway.registry)
    monkeypatch.setattr(responses, "COUNT_SECONDS", 0)
    few = dataclasses.replace(gateway.registry.settings.responses, project_bytes=20_000)
    monkeypatch.setattr(gateway.registry, "settings", dataclasses.replace(gateway.registry.settings, responses=few))
    large = post(gateway, "local", who=who, input="long " * 4000, max_output_tokens=5).json()["id"]
    refused = post(gateway, "local", who=who)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "response_quota_exceeded")
    assert post(gateway, "local", who=who, store=False).status_code == 200
    assert post(gateway, "local", who=other).status_code == 200
    httpx.delete(f"{gateway.url}{PATH}/{large}", headers=who.headers, trust_env=False)
    assert post(gateway, "local", who=who).status_code == 200


def test_a_conversation_that_lost_a_turn_is_not_gone_on_from(gateway: Gateway) -> None:
    """A deleted turn is not left out in silence: it is named."""
    first = post(gateway, "local").json()["id"]
    second = post(gateway, "local", previous_response_id=first).json()["id"]
    httpx.delete(f"{gateway.url}{PATH}/{first}", headers=gateway.headers, trust_env=False)
    refused = post(gateway, "local", previous_response_id=second)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert first in refused.json()["error"]["message"]
    assert get(gateway, second).status_code == 200


def test_an_erased_project_leaves_no_response(gateway: Gateway) -> None:
    """Others' stay."""
    who, other = tenant(gateway.registry), tenant(gateway.registry)
    gone, stays = (post(gateway, "local", who=one).json()["id"] for one in (who, other))
    OPERATIONS["projects.erase"].run(gateway.registry, ProjectNamed(project=who.project.id))
    assert get(gateway, gone, who=who).status_code == 404
    assert get(gateway, stays, who=other).status_code == 200
    Deposits(gateway.registry).erase(other.project.id)  # by itself, before any sweep
    assert get(gateway, stays, who=other).status_code == 404


def test_responses_expire(gateway: Gateway) -> None:
    """After the days that are set it is not there, and the next sweep deletes it."""
    id = post(gateway, "local").json()["id"]
    store = gateway.registry.store
    past = update(stored_responses).where(stored_responses.c.id == id).values(expires_at=gateway.registry.clock.now())
    count = select(func.count()).where(stored_responses.c.id == id)
    store.write(lambda connection: connection.execute(past))
    assert get(gateway, id).status_code == 404
    assert store.read(lambda connection: connection.scalar(count)) == 1
    Deposits(gateway.registry).responses.expire()
    assert store.read(lambda connection: connection.scalar(count)) == 0


def test_usage_is_found_by_the_response(gateway: Gateway) -> None:
    """The id of a response is that of its usage event, which was written with it."""
    id = post(gateway, "local").json()["id"]
    spent = httpx.get(f"{gateway.url}/v1/usage/{id}", headers=gateway.headers, trust_env=False)
    assert spent.json()["id"] == id.removeprefix("resp_")
