"""Responses that run in the background at one of several workers: to be found, followed and stopped through any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.billing import Books, billing
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently

PROCESSES = 3
TRIES = 12  # connections of their own, so that every worker is asked


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Served]:
    """A server of three processes."""
    limits = {"background_responses": 4}
    folder = tmp_path_factory.mktemp("served")
    with billing(folder, provider, ["slow:4000", "slow:300"], workers=PROCESSES, limits=limits) as running:
        yield running


def _call(there: Served, method: str, path: str, body: Any = None, key: str = "") -> httpx.Response:
    """On a connection of its own."""
    headers = {"authorization": f"Bearer {key or there.key}"}
    url = f"{there.url}/v1/responses{path}"
    return httpx.request(method, url, json=body, headers=headers, trust_env=False, timeout=60)


def _begin(there: Served, model: str = "slow:4000", *, stream: bool = False) -> str:
    body = {"model": model, "input": "hi", "background": True, "max_output_tokens": 4000, "stream": stream}
    if not stream:
        answer = _call(there, "POST", "", body)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])
    headers = {"authorization": f"Bearer {there.key}"}
    with httpx.stream(
        "POST", f"{there.url}/v1/responses", json=body, headers=headers, trust_env=False, timeout=60
    ) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("data: "))
        return str(json.loads(first.removeprefix("data: "))["response"]["id"])


def test_it_is_found_and_stopped_through_any_worker(there: Served) -> None:
    """By a worker that does not know of it, its caller would be told for ever that nothing has been said yet, and be
    refused the end of what it pays for."""
    id = _begin(there)
    patiently(lambda: _said(_call(there, "GET", f"/{id}")))
    seen = [_call(there, "GET", f"/{id}") for _ in range(TRIES)]
    assert {one.json()["status"] for one in seen} == {"in_progress"}
    lengths = [len(_said(one)) for one in seen]
    assert lengths == sorted(lengths)
    assert lengths[0] > 0
    assert all(len(one.headers.get_list("x-request-id")) == 1 for one in seen)
    assert {_call(there, "GET", f"/{id}", key="sk-nobody").status_code for _ in range(TRIES)} == {401}
    assert _call(there, "GET", f"/{id}?stream=true").status_code == 400
    ended = [_call(there, "POST", f"/{id}/cancel") for _ in range(TRIES)]
    assert {one.status_code for one in ended} == {200}
    assert {one.json()["status"] for one in ended} == {"cancelled"}
    assert {_call(there, "GET", f"/{id}").json()["status"] for _ in range(TRIES)} == {"cancelled"}


def _said(answer: httpx.Response) -> str:
    return "".join(part["text"] for item in answer.json()["output"] for part in item.get("content", ()))


def test_it_is_followed_through_any_worker(there: Served) -> None:
    """Every event once, from wherever one asks to the last, as it comes."""
    id = _begin(there, "slow:300", stream=True)
    with ThreadPoolExecutor(6) as pool:
        streams = list(pool.map(lambda _: _call(there, "GET", f"/{id}?stream=true&starting_after=3"), range(6)))
    for stream in streams:
        lines = [line for line in stream.text.split("\n") if line.startswith("data: {")]
        numbers = [json.loads(line.removeprefix("data: "))["sequence_number"] for line in lines]
        assert numbers == list(range(4, 4 + len(numbers)))
        assert len(numbers) > 300
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "response.completed"
    assert _call(there, "DELETE", f"/{id}").is_success
    assert {_call(there, "GET", f"/{id}").status_code for _ in range(TRIES)} == {404}


def test_a_stream_that_is_passed_on_breaks_off_with_its_worker(there: Served) -> None:
    """One that ended as if all had been said would be taken for the whole."""
    id = _begin(there, stream=True)
    victim = there.workers()[_runner(there, id)]

    def follow(_: int) -> str:
        headers = {"authorization": f"Bearer {there.key}"}
        url = f"{there.url}/v1/responses/{id}?stream=true"
        with httpx.stream("GET", url, headers=headers, trust_env=False, timeout=60) as answer:
            begun.append(answer.status_code)
            with pytest.raises(httpx.TransportError):
                answer.read()
        return "cut off"

    begun: list[int] = []
    with ThreadPoolExecutor(6) as pool:
        ends = pool.map(follow, range(6))
        patiently(lambda: begun == [200] * 6)
        victim.kill()
        assert list(ends) == ["cut off"] * 6
    patiently(lambda: _state(there, id) == "failed")
    patiently(lambda: len(there.workers()) == PROCESSES)


def test_so_many_of_a_key_run_at_all_workers_together(there: Served) -> None:
    """Each worker by itself would take on as many as all of them may; those that end make room."""
    with ThreadPoolExecutor(TRIES) as pool:
        body = {"model": "slow:4000", "input": "hi", "background": True, "max_output_tokens": 4000}
        answers = list(pool.map(lambda _: _call(there, "POST", "", body), range(TRIES)))
    assert Counter(one.status_code for one in answers) == {200: 4, 429: TRIES - 4}
    for one in answers:
        if one.is_success:
            assert _call(there, "DELETE", f"/{one.json()['id']}").is_success
    patiently(lambda: _call(there, "POST", f"/{_begin(there)}/cancel").is_success)


def test_one_whose_worker_dies_has_failed(there: Served) -> None:
    """It must not be told as running until the whole installation is started again; those of the living go on, also
    when the coordinator dies with it."""
    runners: dict[str, str] = {}
    id = ""
    while len(set(runners.values())) < 2:
        id = _begin(there)
        runners[id] = _runner(there, id)
    dead = runners[id]
    victim = there.workers()[dead]
    coordinator = there.coordinator()
    assert coordinator is not None
    coordinator.kill()
    victim.kill()
    patiently(lambda: there.workers().get(dead, victim).pid != victim.pid)
    theirs = [id for id, runner in runners.items() if runner == dead]
    patiently(lambda: {_state(there, id) for id in theirs} == {"failed"})
    assert _call(there, "GET", f"/{theirs[0]}").json()["error"]["code"] == "server_error"
    others = [id for id, runner in runners.items() if runner != dead]
    assert {_state(there, id) for id in others for _ in range(TRIES)} == {"in_progress"}
    assert {_call(there, "POST", f"/{id}/cancel").json()["status"] for id in others} == {"cancelled"}


def _runner(there: Served, id: str) -> str:
    """The worker that runs it."""
    (row,) = Books(there.folder).rows("SELECT runner FROM stored_responses WHERE id = ?", id)
    return str(row["runner"]).rpartition("/")[0].rpartition("-")[2]


def _state(there: Served, id: str) -> str:
    answer = _call(there, "GET", f"/{id}")
    return str(answer.json()["status"]) if answer.is_success else answer.text
