"""What stored responses survive: `kill -9` while many are made, and a server that is told to stop."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import Books, billing
from tests.support.provider import Provider, running_provider
from tests.support.served import PATIENCE_SECONDS, Served, until

pytestmark = pytest.mark.usefixtures("store")

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def get(there: Served, id: str) -> httpx.Response:
    """Retrieve a response."""
    headers = {"authorization": f"Bearer {there.key}"}
    return httpx.get(f"{there.url}{PATH}/{id}", headers=headers, trust_env=False, timeout=PATIENCE_SECONDS)


def post(there: Served, model: str, **more: Any) -> httpx.Response:
    """Make a response."""
    headers, body = {"authorization": f"Bearer {there.key}"}, {"model": model, "input": "Hi", **more}
    return httpx.post(f"{there.url}{PATH}", json=body, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS)


async def test_kill_9_loses_no_response_that_somebody_saw(tmp_path: Path, provider: Provider) -> None:
    """Whoever has read the end of a response finds it after the restart, as it was told and billed once; and there is
    none that was billed and is not there, or there and not billed."""
    told: dict[str, dict[str, Any]] = {}

    async def respond_on_and_on(client: httpx.AsyncClient, *, stream: bool) -> None:
        while True:
            body = {"model": "slow:2", "input": "Hi", "stream": stream}
            answer = await client.post(PATH, json=body)
            last = answer.text.rstrip().rpartition("data: ")[2] if stream else answer.text
            response = json.loads(last)["response"] if stream else json.loads(last)
            assert response["status"] == "completed"
            told[response["id"]] = response

    with billing(tmp_path, provider, ["slow:2"]) as there:
        async with there.callers() as client:
            asking = [asyncio.create_task(respond_on_and_on(client, stream=bool(i % 2))) for i in range(16)]
            await until(lambda: len(told) > 30)
            there.process.kill()
            await asyncio.gather(*asking, return_exceptions=True)
    with billing(tmp_path, provider, ["slow:2"]) as there:
        for id, response in told.items():
            assert get(there, id).json() == response
        last = next(reversed(told))
        assert post(there, "slow:2", previous_response_id=last).status_code == 200
    books = Books(tmp_path)
    books.check()
    stored = {row["id"].removeprefix("resp_") for row in books.rows("SELECT id FROM stored_responses")}
    assert stored == {event["id"] for event in books.events()}


async def test_one_that_ran_in_the_background_has_failed_after_kill_9(tmp_path: Path, provider: Provider) -> None:
    """It is there and says why; it does not look as if it still ran, and can be deleted."""
    with billing(tmp_path, provider, ["slow:100000"]) as there:
        id = post(there, "slow:100000", background=True).json()["id"]
        await until(lambda: get(there, id).json()["output"])
        there.process.kill()
    with billing(tmp_path, provider, ["slow:100000"]) as there:
        await until(lambda: get(there, id).json()["status"] == "failed")
        response = get(there, id).json()
        assert response["error"] == {
            "code": "server_error",
            "message": "The server was restarted before the response was complete. Ask again.",
        }
        refused = post(there, "slow:100000", previous_response_id=id)
        assert refused.status_code == 400


async def test_a_server_that_stops_tells_what_ran_in_the_background(tmp_path: Path, provider: Provider) -> None:
    """One that ends in time is complete; one that does not has failed, with what was said until then billed."""
    with billing(tmp_path, provider, ["slow:40", "slow:100000"], drain_seconds=2) as there:
        short, long = (post(there, model, background=True).json()["id"] for model in ("slow:40", "slow:100000"))
        await until(lambda: get(there, long).json()["output"])
        there.process.send_signal(signal.SIGTERM)
        assert there.process.wait(PATIENCE_SECONDS) == 0
    with billing(tmp_path, provider, ["slow:40", "slow:100000"]) as there:
        assert get(there, short).json()["status"] == "completed"
        response = get(there, long).json()
        assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
        assert "shut down" in response["error"]["message"]
        assert response["output"][0]["content"][0]["text"]
    books = Books(tmp_path)
    books.check()
    (event,) = [event for event in books.events() if event["id"] == long.removeprefix("resp_")]
    assert (event["outcome"], event["completion_tokens"]) == ("cancelled", response["usage"]["output_tokens"])
