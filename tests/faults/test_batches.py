"""A batch survives `kill -9`, SIGTERM and a provider that fails: each line is answered once and billed once."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.billing import Books, billing, priced
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently

CHAT = "/v1/chat/completions"
LINES = 400


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


def caller(there: Served) -> httpx.Client:
    """Asks that server."""
    headers = {"authorization": f"Bearer {there.key}"}
    return httpx.Client(base_url=there.url, headers=headers, timeout=60, trust_env=False)


def left(there: Served, model: str, count: int = LINES) -> str:
    """A batch of so many lines; its id. Every fifth line is one that the endpoint refuses."""
    lines = []
    for i in range(count):
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": f"{model}-{i}"}]}
        body |= {"nonsense": 1} if i % 5 == 0 else {}
        lines.append(json.dumps({"custom_id": f"line-{i}", "method": "POST", "url": CHAT, "body": body}))
    with caller(there) as client:
        file = client.post("/v1/files", files={"file": ("in.jsonl", "\n".join(lines))}, data={"purpose": "batch"})
        wanted = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        return str(client.post("/v1/batches", json=wanted).json()["id"])


def look(there: Served, id: str) -> dict[str, Any]:
    """The batch as it stands."""
    with caller(there) as client:
        return dict(client.get(f"/v1/batches/{id}").json())


def over(there: Served, id: str) -> dict[str, Any]:
    """The batch, once it is over."""
    patiently(lambda: look(there, id)["status"] in {"completed", "failed", "cancelled", "expired"})
    return look(there, id)


def rows(there: Served, file_id: str | None) -> list[dict[str, Any]]:
    """The rows of a file."""
    if file_id is None:
        return []
    with caller(there) as client:
        return [json.loads(text) for text in client.get(f"/v1/files/{file_id}/content").text.splitlines()]


def check(books: Books, there: Served, batch: dict[str, Any], count: int = LINES) -> None:
    """Every custom id once in both files together; one charged event for each good line, of its id, with its usage."""
    good, bad = rows(there, batch["output_file_id"]), rows(there, batch["error_file_id"])
    ids = Counter(row["custom_id"] for row in (*good, *bad))
    assert ids == {f"line-{i}": 1 for i in range(count)}
    assert (batch["request_counts"]["completed"], batch["request_counts"]["failed"]) == (len(good), len(bad))
    books.check()
    events = books.by_tag()[batch["id"]]
    charged = {event["id"]: event for event in events if event["outcome"] == "finished"}
    assert len(charged) == len([event for event in events if event["cost_nanos"]]) == len(good)
    for row in good:
        event, usage = charged[row["id"].removeprefix("batch_req_")], row["response"]["body"]["usage"]
        assert (event["prompt_tokens"], event["completion_tokens"]) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
        assert event["batch"] == 1
    patiently(lambda: not books.rows("SELECT line FROM batch_results WHERE batch_id = ?", batch["id"]))


def moved_on(there: Served, id: str, seen: int, lines: int) -> int:
    """How many lines have a result, once so many have one beyond those `seen`, or all have."""
    counts: dict[str, int] = {}

    def moved() -> bool:
        batch = look(there, id)
        counts.update(batch["request_counts"])
        return counts["completed"] + counts["failed"] >= seen + lines or batch["status"] == "completed"

    patiently(moved)
    return counts["completed"] + counts["failed"]


@pytest.mark.parametrize(
    "kills", [4, pytest.param(30, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])], ids=lambda n: f"{n} kills"
)
def test_kill_9_answers_and_bills_each_line_once(tmp_path: Path, provider: Provider, kills: int) -> None:
    """Were a result written apart from its usage event, a line would be paid and lost, or answered twice and paid
    twice; were the output files written in place, they would be cut off."""
    chance, books, model = random.Random(kills), Books(tmp_path), "instant:8"
    prices = [priced(model) | {"batch_percent": 50}]
    id, seen = "", 0
    for number in range(kills):
        with billing(tmp_path, provider, [model], prices=prices, limits={"batch_lines": 4}) as there:
            if number == 0:
                id = left(there, model)
            seen = moved_on(there, id, seen, LINES // (2 * kills))
            time.sleep(chance.uniform(0, 0.02))
            there.process.kill()
            there.process.wait()
        books.check()
    with billing(tmp_path, provider, [model], prices=prices) as there:
        done = over(there, id)
        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": LINES, "completed": LINES * 4 // 5, "failed": LINES // 5}
        check(books, there, done)
    assert sum(provider.said.values()) >= LINES * 4 // 5 * 8


def test_sigterm_lets_lines_finish_and_the_next_start_goes_on(tmp_path: Path, provider: Provider) -> None:
    """A line that was cut off by a shutdown leaves an event that costs nothing; under the same id, its next attempt
    could not be billed and would never be answered."""
    books, model = Books(tmp_path), "slow:100"
    with billing(tmp_path, provider, [model], drain_seconds=0, limits={"batch_lines": 4}) as there:
        id = left(there, model, 20)
        patiently(lambda: look(there, id)["request_counts"]["completed"])
        there.process.send_signal(signal.SIGTERM)
        assert there.process.wait(20) == 0
    cut = [event for event in books.events() if event["outcome"] == "cancelled"]
    assert 0 < len(cut) <= 4
    with billing(tmp_path, provider, [model]) as there:
        done = over(there, id)
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 16)
        check(books, there, done, 20)


def test_a_batch_goes_on_under_the_configuration_that_is_loaded(tmp_path: Path, provider: Provider) -> None:
    """A runner that stayed with what was loaded first would ask engines that are closed, and never a new model; a
    second runner would answer lines twice."""
    books, model, later = Books(tmp_path), "slow:20", "instant:3"
    with billing(tmp_path, provider, [model], limits={"batch_lines": 2}) as there:
        id = left(there, model, 40)
        patiently(lambda: look(there, id)["request_counts"]["completed"])
        config = yaml.safe_load((tmp_path / "interlace.yaml").read_text())
        config["models"].append({"name": later, "engine": "openai", "base_url": provider.url, "model": later})
        config |= {"prices": [priced(model), priced(later)], "limits": {"batch_lines": 4}}
        for number in range(3):
            config["guards"] = {"deny": [f"nobody says this {number}"]}
            (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
            with caller(there) as client:
                assert client.post("/admin/v1/reload").status_code == 200
        second = left(there, later, 10)
        for one, count in ((second, 10), (id, 40)):
            done = over(there, one)
            assert (done["status"], done["request_counts"]["completed"]) == ("completed", count * 4 // 5)
            check(books, there, done, count)
