"""`/v1/files` and `/v1/batches` through OpenAI's own SDK, over HTTP, on a running gateway."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from interlace.config import GuardSettings, LimitSettings, ModelSettings, PerMillion, PriceSettings, Settings
from interlace.money import Micros, Nanos
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import free
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

CHAT = "/v1/chat/completions"
MILLION = 10**6


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Engines that answer, hold, break and embed; `scripted` costs two and five nano-dollars a token, half in a batch."""
    engines = {
        "scripted": ScriptedEngine(),
        "leaky": ScriptedEngine(tokens=("Well", ", op", "en se", "same", " and", " more")),
        "held": ScriptedEngine(held=True),
        "broken": ScriptedEngine(fail_after=2),
        "embedder": ScriptedEngine(embeds=True),
        "loading": ScriptedEngine(state="loading"),
    }
    amounts = PerMillion(prompt=Nanos(2 * MILLION), completion=Nanos(5 * MILLION))
    price = PriceSettings(model="scripted", since=Micros(0), usd_per_million=amounts, batch_percent=50)
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in engines),
        prices=(price, *free(name for name in engines if name != "scripted")),
        guards=GuardSettings(deny=("open sesame",)),
        limits=LimitSettings(file_bytes=200_000, project_file_bytes=1_000_000, body_bytes=20_000, body_seconds=2),
        drain_seconds=5,
    )
    with running_gateway(settings, engines) as running:
        yield running


@pytest.fixture
def who(gateway: Gateway) -> Tenant:
    """A project of its own."""
    return tenant(gateway.registry)


@pytest.fixture
def client(gateway: Gateway, who: Tenant) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK with that project's key."""
    yield from _client(gateway, who)


def _client(gateway: Gateway, who: Tenant) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key=who.text, max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as made:
        yield made


def line(custom_id: str, model: str = "scripted", url: str = CHAT, **body: Any) -> dict[str, Any]:
    """One request of a batch."""
    if url == CHAT:
        body.setdefault("messages", [{"role": "user", "content": "hello"}])
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model, **body}}


def upload(client: openai.OpenAI, *lines: dict[str, Any] | str) -> str:
    """A file of requests; its id."""
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch").id


def batch(client: openai.OpenAI, *lines: dict[str, Any] | str, endpoint: Any = CHAT, **more: Any) -> Any:
    """A batch of these requests."""
    return client.batches.create(
        input_file_id=upload(client, *lines), endpoint=endpoint, completion_window="24h", **more
    )


def over(client: openai.OpenAI, id: str) -> Any:
    """The batch, once it is over."""
    ends = {"completed", "failed", "cancelled", "expired"}
    wait_for(lambda: client.batches.retrieve(id).status in ends, 20)
    return client.batches.retrieve(id)


def rows(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The rows of a file by their custom id, each of which is there once."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


# --- files -------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_went(client: openai.OpenAI) -> None:
    """Create, retrieve, read, list and delete, as OpenAI's SDK calls and parses them."""
    content = bytes(range(256)) * 300
    made = client.files.create(file=("notes.txt", content), purpose="user_data")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), "notes.txt", "user_data")
    assert made.id.startswith("file-")
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    assert list(client.files.list()) == []


def test_a_batch_answers_every_line(client: openai.OpenAI, gateway: Gateway, who: Tenant) -> None:
    """Each custom id once, good answers in one file and refusals in the other, at half the price."""
    made = batch(client, line("a"), line("b", n=2), line("c", nonsense=1), line("d", temperature=9))
    assert made.status == "validating"
    done = over(client, made.id)
    assert (done.status, done.model) == ("completed", "scripted")
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 2, 2)
    good, bad = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert (set(good), set(bad)) == ({"a", "b"}, {"c", "d"})
    assert good["a"]["response"]["status_code"] == 200
    assert good["a"]["response"]["body"]["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert bad["c"]["response"]["status_code"] == 400
    assert bad["c"]["response"]["body"]["error"]["code"] == "unknown_parameter"
    events = [event for event in gateway.events if event.key_id == who.key.id]
    assert sorted(event.cost_nanos for event in events) == [-(-(2 + 7 * 5) // 2), -(-(2 + 14 * 5) // 2)]
    assert all(event.batch for event in events)
    assert done.usage.output_tokens == 21
