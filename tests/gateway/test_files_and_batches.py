"""`/v1/files` and `/v1/batches` through OpenAI's own SDK, over HTTP, on a running gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import select

from interlace.config import (
    GuardSettings,
    LedgerSettings,
    LimitSettings,
    ModelSettings,
    PerMillion,
    PriceSettings,
    Settings,
)
from interlace.errors import EngineUnavailable
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.operations.tenants import ProjectNamed
from interlace.ledger.registry import alter
from interlace.ledger.schema import api_keys, batches
from interlace.money import Micros, Nanos
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.hostile import OBJECT, TEXT, WHOLE, Target, hostile
from tests.support.prices import free
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

CHAT = "/v1/chat/completions"
MILLION = 10**6


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """Engines that answer, hold, break and embed; `scripted` costs two and five nano-dollars a token."""
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
    with _client(gateway, who) as made:
        yield made


@contextmanager
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


def test_lists_are_paged_in_both_directions(client: openai.OpenAI) -> None:
    """A page that skipped or repeated a file would lose it to whoever goes through all of them."""
    made = [client.files.create(file=(f"{i}.jsonl", b"{}"), purpose="batch" if i % 2 else "evals").id for i in range(5)]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == made
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="batch", order="asc")] == made[1::2]
    page = client.files.list(limit=3)
    assert (len(page.data), page.has_more) == (3, True)
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            client.files.list(**wrong)


def test_the_time_of_a_file_ends(client: openai.OpenAI, gateway: Gateway) -> None:
    """What was to be gone after an hour must be; files of batches go after thirty days by themselves."""
    after = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("a.txt", b"x"), purpose="user_data", expires_after=after)
    assert made.expires_at == made.created_at + 3600
    usual = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    assert usual.expires_at == usual.created_at + 30 * 86_400
    for seconds in (3599, 2_592_001):
        with pytest.raises(openai.BadRequestError):
            client.files.create(file=("a.txt", b"x"), purpose="user_data", expires_after={**after, "seconds": seconds})


@pytest.mark.parametrize(
    ("name", "purpose", "param"),
    [
        ("a.txt", "batch", "file"),
        ("a.exe", "user_data", "file"),
        ("a.txt", "vision", "file"),
        ("a", "assistants", "file"),
        ("a.txt", "nonsense", "purpose"),
        ("a" * 260 + ".txt", "user_data", "file"),
    ],
)
def test_types_are_bounded(client: openai.OpenAI, name: str, purpose: Any, param: str) -> None:
    """What nothing here can use is refused by name."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=(name, b"x"), purpose=purpose)
    assert refused.value.param == param
    assert list(client.files.list()) == []


def test_sizes_are_bounded(client: openai.OpenAI, gateway: Gateway) -> None:
    """A file, and all files of a project, have a largest size; what is refused leaves nothing on disk."""
    before = on_disk(gateway)
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a.txt", b"x" * 200_001), purpose="user_data")
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    for i in range(5):
        client.files.create(file=("a.txt", bytes([i]) * 190_000), purpose="user_data")
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a.txt", b"x" * 190_000), purpose="user_data")
    assert refused.value.status_code == 413
    assert len(on_disk(gateway)) == len(before) + 5
    for file in client.files.list():
        client.files.delete(file.id)
    assert on_disk(gateway) == before


def on_disk(gateway: Gateway) -> set[Path]:
    """Every content, partial ones too."""
    return {path for path in (gateway.registry.settings.home / "files").rglob("*") if path.is_file()}


def test_a_content_lies_there_once_and_goes_with_its_last_file(client: openai.OpenAI, gateway: Gateway) -> None:
    """Two files of one content share it; deleting one must not take it from the other; and names are no paths."""
    before = on_disk(gateway)
    names = ("../../../etc/passwd.txt", "C:\\windows\\a.txt")
    one, two = (client.files.create(file=(name, b"same"), purpose="user_data") for name in names)
    (content,) = on_disk(gateway) - before
    assert (one.filename, two.filename) == ("passwd.txt", "a.txt")
    assert content.name == hashlib.sha256(b"same").hexdigest()
    assert (content.stat().st_mode & 0o777, content.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    client.files.delete(one.id)
    assert client.files.content(two.id).read() == b"same"
    client.files.delete(two.id)
    assert on_disk(gateway) == before


def test_files_and_batches_of_others_are_not_there(client: openai.OpenAI, gateway: Gateway) -> None:
    """Another project sees, reads, uses and deletes nothing of this one."""
    file = upload(client, line("a"))
    made = over(client, batch(client, line("a")).id)
    with _client(gateway, tenant(gateway.registry)) as stranger:
        for call in (
            lambda: stranger.files.retrieve(file),
            lambda: stranger.files.content(file),
            lambda: stranger.files.delete(file),
            lambda: stranger.files.content(made.output_file_id),
            lambda: stranger.batches.retrieve(made.id),
            lambda: stranger.batches.cancel(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        assert refused.value.param == "input_file_id"
        assert list(stranger.files.list()) == list(stranger.batches.list()) == []
    assert client.files.retrieve(file).id == file


def test_a_stranger_is_told_nothing(gateway: Gateway) -> None:
    """No key, no look at anything, whatever the method."""
    paths = ("/v1/files", "/v1/files/x", "/v1/files/x/content", "/v1/batches", "/v1/batches/x")
    for path in paths:
        assert httpx.get(gateway.url + path, trust_env=False).status_code == 401
    for path in ("/v1/files", "/v1/batches", "/v1/batches/x/cancel"):
        assert httpx.post(gateway.url + path, trust_env=False).status_code == 401
    assert httpx.delete(f"{gateway.url}/v1/files/x", trust_env=False).status_code == 401


FORMS: dict[str, tuple[str, bytes, int]] = {
    "no form": ("application/json", b"{}", 415),
    "no boundary": ("multipart/form-data", b"--x--", 415),
    "a long boundary": (f"multipart/form-data; boundary={'x' * 1000}", b"", 400),
    "nothing": ("multipart/form-data; boundary=x", b"", 400),
    "noise": ("multipart/form-data; boundary=x", b"\x00" * 5000, 400),
    "cut off": ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="file"; fi', 400),
    "no end": ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="p"\r\n\r\nba', 400),
    "no name": ("multipart/form-data; boundary=x", b"--x\r\ncontent-disposition: form-data\r\n\r\na\r\n--x--\r\n", 400),
    "no file": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
        400,
    ),
    "a header without end": ("multipart/form-data; boundary=x", b"--x\r\n" + b"a" * 90_000, 400),
    "many headers": ("multipart/form-data; boundary=x", b"--x\r\n" + b"a: b\r\n" * 5000, 400),
    "a long field": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"a" * 90_000 + b"\r\n--x--\r\n",
        400,
    ),
    "many parts": (
        "multipart/form-data; boundary=x",
        b"".join(
            b'--x\r\ncontent-disposition: form-data; name="f%d"\r\n\r\na\r\n' % i for i in range(100)
        ) + b"--x--\r\n",
        400,
    ),
    "an unknown field": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="nonsense"\r\n\r\nb\r\n--x--\r\n',
        400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_hostile_forms_are_refused(gateway: Gateway, name: str) -> None:
    """Each is a 4xx in OpenAI's shape, and leaves nothing on disk."""
    kind, body, status = FORMS[name]
    before = on_disk(gateway)
    headers = {**gateway.headers, "content-type": kind}
    answer = httpx.post(f"{gateway.url}/v1/files", content=body, headers=headers, trust_env=False)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert on_disk(gateway) == before


def test_the_head_of_a_content(client: openai.OpenAI, gateway: Gateway, who: Tenant, caplog: Any) -> None:
    """A body that is never ended is an error in the log at each request, and costs its caller the connection."""
    id = client.files.create(file=("a.html", b"<script>"), purpose="user_data").id
    url = f"{gateway.url}/v1/files/{id}/content"
    with httpx.Client(trust_env=False, headers=who.headers) as there:
        head, again = there.head(url), there.get(url)
    assert (head.headers["content-length"], head.content, again.content) == ("8", b"", b"<script>")
    assert again.headers["content-type"] == "application/octet-stream"
    assert again.headers["x-content-type-options"] == "nosniff"
    assert again.headers["content-disposition"].startswith("attachment")
    assert not caplog.records


# --- batches -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/embeddings"])
def test_other_endpoints(client: openai.OpenAI, endpoint: str) -> None:
    """Each endpoint's lines are read by its own parser and answered in its own shape."""
    if endpoint == "/v1/completions":
        lines = [line("a", url=endpoint, prompt=["x", "y"])]
    else:
        lines = [line("a", "embedder", endpoint, input=["x", "y"])]
    done = over(client, batch(client, *lines, endpoint=endpoint).id)
    body = rows(client, done.output_file_id)["a"]["response"]["body"]
    assert len(body["choices"] if endpoint == "/v1/completions" else body["data"]) == 2


WRONG: dict[str, tuple[list[dict[str, Any] | str], str, int | None]] = {
    "no JSON": ([line("a"), "{nonsense"], "invalid_json_line", 2),
    "no object": (["[]"], "invalid_request", 1),
    "nested too deeply": (
        ['{"custom_id": "a", "method": "POST", "url": "x", "body": ' + "[" * 15_000],
        "invalid_json_line",
        1,
    ),
    "a custom id twice": ([line("a"), "", line("a")], "duplicate_custom_id", 3),
    "another URL": ([line("a", url="/v1/embeddings", input="x")], "url_mismatch", 1),
    "another model": ([line("a"), line("b", "held")], "model_mismatch", 2),
    "no model": ([{**line("a"), "body": {}}], "missing_required_parameter", 1),
    "streamed": ([line("a", stream=True)], "unsupported_parameter", 1),
    "GET": ([{**line("a"), "method": "GET"}], "invalid_method", 1),
    "an unknown field": ([{**line("a"), "nonsense": 1}], "invalid_request", 1),
    "no custom id": ([{**line("a"), "custom_id": ""}], "invalid_custom_id", 1),
    "a line that is too large": ([line("a", stop="x" * 20_000)], "request_too_large", 1),
    "nothing": ([""], "empty_file", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_fails_as_a_whole(client: openai.OpenAI, gateway: Gateway, name: str) -> None:
    """Its batch says which line is wrong and how, and nothing of it runs or is billed."""
    lines, code, number = WRONG[name]
    before = len(gateway.events)
    failed = over(client, batch(client, *lines).id)
    assert failed.status == "failed"
    assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, number)
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert len(gateway.events) == before


def test_what_a_batch_is_made_of_is_checked(client: openai.OpenAI) -> None:
    """Endpoint, window, metadata and the file's purpose, before there is a batch."""
    file = upload(client, line("a"))
    other = client.files.create(file=("a.jsonl", b"{}"), purpose="evals").id
    good: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": other}, "input_file_id"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(**{**good, **wrong})
        assert refused.value.param == param
    assert list(client.batches.list()) == []
    after = {"anchor": "created_at", "seconds": 7200}
    made = client.batches.create(**good, metadata={"who": "me"}, output_expires_after=after)
    assert made.metadata == {"who": "me"}
    done = over(client, made.id)
    out = client.files.retrieve(done.output_file_id)
    assert (out.purpose, out.expires_at) == ("batch_output", out.created_at + 7200)
    assert [each.id for each in client.batches.list(limit=1)] == [made.id]


def test_deleting_the_input_does_not_stop_a_batch(client: openai.OpenAI, gateway: Gateway) -> None:
    """The content stays while the batch needs it, and goes when it is over."""
    before = on_disk(gateway)
    hold(gateway)
    made = batch(client, line("a", "held"))
    client.files.delete(made.input_file_id)
    gateway.call(held(gateway).release.set)
    done = over(client, made.id)
    assert done.status == "completed"
    client.files.delete(done.output_file_id)
    wait_for(lambda: on_disk(gateway) == before)


def held(gateway: Gateway) -> ScriptedEngine:
    """The engine that waits."""
    engine = gateway.engines["held"]
    assert isinstance(engine, ScriptedEngine)
    return engine


def hold(gateway: Gateway) -> None:
    """From now on it does."""
    gateway.call(held(gateway).release.clear)
    wait_for(lambda: not held(gateway).release.is_set())


def test_cancel_lets_what_runs_finish_and_begins_no_more(client: openai.OpenAI, gateway: Gateway) -> None:
    """Counts are live; every custom id is in one of the files; a batch that is over cannot be cancelled."""
    hold(gateway)
    made = batch(client, *(line(f"l{i}", "held") for i in range(20)))
    wait_for(lambda: held(gateway).running == 8)
    assert client.batches.retrieve(made.id).request_counts.total == 20
    assert client.batches.cancel(made.id).status == "cancelling"
    gateway.call(held(gateway).release.set)
    done = over(client, made.id)
    assert done.status == "cancelled"
    good, bad = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert (len(good), len(bad), len({*good, *bad})) == (8, 12, 20)
    assert {row["error"]["code"] for row in bad.values()} == {"batch_cancelled"}
    assert (done.request_counts.completed, done.request_counts.failed) == (8, 12)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)


def test_no_caller_waits_for_a_batch(client: openai.OpenAI, gateway: Gateway) -> None:
    """With as many lines running as may, callers still have every slot; and while half of them are taken no line
    begins."""
    hold(gateway)
    made = batch(client, *(line(f"l{i}", "held") for i in range(30)))
    wait_for(lambda: held(gateway).running == 8)
    admission = gateway.pipeline.admission
    assert (admission.running, admission.aside) == (0, 8)
    assert client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x"}]).choices
    admission.running += 128
    gateway.call(held(gateway).release.set)
    wait_for(lambda: admission.aside == 0)
    counts = client.batches.retrieve(made.id).request_counts
    assert 8 <= counts.completed < 30
    admission.running -= 128
    assert over(client, made.id).request_counts.completed == 30


def test_a_batch_leaves_half_of_a_plan_to_others(gateway: Gateway) -> None:
    """A batch that took all requests of a minute would lock out the people who have the same key. Upload and creation
    are two of the key's requests; whoever looks on has another."""
    who = tenant(gateway.registry, rpm=10, concurrency=1)
    onlooker = tenant(gateway.registry, beside=who)
    with _client(gateway, who) as client, _client(gateway, onlooker) as looking:
        made = batch(client, *(line(f"l{i}") for i in range(5)))
        wait_for(lambda: looking.batches.retrieve(made.id).request_counts.completed == 3)
        for _ in range(5):
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x"}])
        assert looking.batches.retrieve(made.id).request_counts.completed == 3
        looking.batches.cancel(made.id)
        assert over(looking, made.id).status == "cancelled"


def test_a_batch_waits_for_a_budget_and_goes_on_when_there_is_one(gateway: Gateway) -> None:
    """What a budget cannot pay is tried again, never charged beyond it."""
    cost = -(-(2 + 7 * 5) // 2)
    who = tenant(gateway.registry, key_budget=2 * cost)
    with _client(gateway, who) as client:
        made = batch(client, *(line(f"l{i}", max_tokens=7) for i in range(4)))
        wait_for(lambda: client.batches.retrieve(made.id).request_counts.completed == 2)
        gateway.registry.change(lambda connection: [alter(connection, api_keys, who.key.id, budget_nanos=100 * cost)])
        assert over(client, made.id).request_counts.completed == 4
    assert [event.cost_nanos for event in gateway.events if event.key_id == who.key.id] == 4 * [cost]


def standing(gateway: Gateway, id: str) -> str:
    """The status of a batch, whoever may see it."""
    query = select(batches.c.status).where(batches.c.id == id)
    return str(gateway.registry.store.read(lambda connection: connection.scalar(query)))


def test_a_revoked_key_ends_its_batch(client: openai.OpenAI, gateway: Gateway) -> None:
    """Work in the name of a key that opens nothing any more would be work for nobody."""
    hold(gateway)
    second = tenant(gateway.registry)
    with _client(gateway, second) as other:
        made = batch(other, *(line(f"l{i}", "held") for i in range(12)))
        wait_for(lambda: held(gateway).running == 8)
        gateway.registry.change(lambda connection: [alter(connection, api_keys, second.key.id, revoked_at=1)])
        gateway.call(held(gateway).release.set)
        with pytest.raises(openai.AuthenticationError):
            other.batches.retrieve(made.id)
        wait_for(lambda: standing(gateway, made.id) == "failed", 20)
    gateway.registry.change(lambda connection: [alter(connection, api_keys, second.key.id, revoked_at=None)])
    with _client(gateway, second) as other:
        done = over(other, made.id)
        assert (done.status, done.errors.data[0].code) == ("failed", "invalid_api_key")
        good, bad = rows(other, done.output_file_id), rows(other, done.error_file_id)
        assert (len(good), len(bad)) == (8, 4)
        assert {row["error"]["code"] for row in bad.values()} == {"invalid_api_key"}


def test_an_engine_that_fails_is_tried_again_and_then_told(client: openai.OpenAI, gateway: Gateway) -> None:
    """Three attempts, each on record and none charged, and then the engine's error is the line's."""
    done = over(client, batch(client, line("a", "broken")).id)
    assert done.status == "completed"
    row = rows(client, done.error_file_id)["a"]
    assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (502, "engine_failed")
    events = [event for event in gateway.events if event.model == "broken"]
    assert [(event.outcome.value, event.cost_nanos) for event in events] == 3 * [("failed", 0)]


def test_guards_hold_for_lines(client: openai.OpenAI) -> None:
    """A forbidden input is refused in its line; a forbidden output is cut, billed, and never in a file."""
    asked = over(client, batch(client, line("a", messages=[{"role": "user", "content": "open sesame"}])).id)
    row = rows(client, asked.error_file_id)["a"]
    assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (400, "content_filter")
    said = over(client, batch(client, line("a", "leaky")).id)
    choice = rows(client, said.output_file_id)["a"]["response"]["body"]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Well, ", "content_filter")


def test_the_window_ends(client: openai.OpenAI, gateway: Gateway) -> None:
    """What has no answer when the window is over is told so, and what had one is delivered."""
    made = batch(client, *(line(f"l{i}", "loading") for i in range(3)))
    wait_for(lambda: client.batches.retrieve(made.id).status == "in_progress")
    runner = gateway.server.state.batches
    assert runner is not None
    work = runner._works[made.id]
    work.batch = dataclasses.replace(work.batch, expires_at=0)
    done = over(client, made.id)
    assert done.status == "expired"
    bad = rows(client, done.error_file_id)
    assert {(row["response"], row["error"]["code"]) for row in bad.values()} == {(None, "batch_expired")}
    assert len(bad) == 3


def test_lines_that_are_refused_together_wait_once(gateway: Gateway) -> None:
    """Were each of them to double the pause, a model that is away for a moment would hold up its batch for a minute."""
    away = EngineUnavailable("Its provider is away.")
    late = ScriptedEngine(delay=0.05, fail_after=1, error=away)
    settings = dataclasses.replace(
        gateway.registry.settings,
        models=(ModelSettings(name="late", checkpoint="late"),),
        prices=(),
        ledger=LedgerSettings(),
    )
    with running_gateway(settings, {"late": late}) as there, _client(there, tenant(there.registry)) as client:
        made = batch(client, *(line(f"l{i}", "late") for i in range(20)))
        runner = there.server.state.batches
        assert runner is not None
        wait_for(lambda: made.id in runner._works and runner._works[made.id].refusals)
        late.fail_after = None
        assert over(client, made.id).request_counts.completed == 20


def test_an_erased_project_leaves_nothing_here(gateway: Gateway) -> None:
    """Files, batches and answers are what a person said: an erasure that left them would be none."""
    before, who = on_disk(gateway), tenant(gateway.registry)
    hold(gateway)
    with _client(gateway, who) as client:
        client.files.create(file=("a.txt", b"mine"), purpose="user_data")
        over(client, batch(client, line("a")).id)
        batch(client, line("a", "held"))
        wait_for(lambda: held(gateway).running)
        OPERATIONS["projects.erase"].run(gateway.registry, ProjectNamed(project=who.project.id))
        assert list(client.files.list()) == list(client.batches.list()) == []
        gateway.call(held(gateway).release.set)
    wait_for(lambda: on_disk(gateway) == before)


def test_an_answer_that_cannot_be_kept_is_not_billed(
    client: openai.OpenAI, gateway: Gateway, who: Tenant, caplog: pytest.LogCaptureFixture, module_store: str
) -> None:
    """The result of a line and its usage event are one transaction: where one cannot be written, neither is."""
    store = gateway.registry.store
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON batch_results BEGIN SELECT RAISE(ABORT, 'no'); END"
    allow = "DROP TRIGGER refuse"
    if module_store == "postgresql":
        refuse = "ALTER TABLE batch_results ADD CONSTRAINT refuse CHECK (false) NOT VALID"
        allow = "ALTER TABLE batch_results DROP CONSTRAINT refuse"
    store.write(lambda connection: connection.exec_driver_sql(refuse))
    try:
        done = over(client, batch(client, line("a")).id)
    finally:
        store.write(lambda connection: connection.exec_driver_sql(allow))
    assert (done.request_counts.completed, done.request_counts.failed) == (0, 1)
    assert rows(client, done.error_file_id)["a"]["error"]["code"] == "server_error"
    assert [event for event in gateway.events if event.key_id == who.key.id] == []
    assert "usage events could not be written" in caplog.text
    assert over(client, batch(client, line("a")).id).request_counts.completed == 1


def test_lines_in_other_dialects(client: openai.OpenAI) -> None:
    """Responses are answered and stored as if somebody had waited; messages speak Anthropic's way, errors too."""
    url = "/v1/responses"
    lines = [line("a", url=url, input="hello"), line("b", url=url, input="hello", store=False)]
    lines.append(line("c", url=url, input="hello", previous_response_id="resp_1"))
    done = over(client, batch(client, *lines, endpoint=url).id)
    good, bad = rows(client, done.output_file_id), rows(client, done.error_file_id)
    first, second = (good[name]["response"]["body"] for name in ("a", "b"))
    assert first["output"][0]["content"][0]["text"] == "The capital of France is Paris."
    assert client.responses.retrieve(first["id"]).output_text == "The capital of France is Paris."
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second["id"])
    assert bad["c"]["response"]["body"]["error"]["param"] == "previous_response_id"
    url = "/v1/messages"
    said = [{"role": "user", "content": "hello"}]
    lines = [line("a", url=url, messages=said, max_tokens=20), line("b", url=url, messages=said)]
    done = over(client, batch(client, *lines, endpoint=url).id)
    body = rows(client, done.output_file_id)["a"]["response"]["body"]
    assert (body["type"], body["content"][0]["text"]) == ("message", "The capital of France is Paris.")
    assert rows(client, done.error_file_id)["b"]["response"]["body"]["type"] == "error"


def test_hostile_bodies_make_no_batch(client: openai.OpenAI, gateway: Gateway, who: Tenant) -> None:
    """Each is a 4xx in OpenAI's shape, and leaves nothing that would run."""
    good = {"input_file_id": upload(client, line("a")), "endpoint": CHAT, "completion_window": "24h"}
    after = {"anchor": "created_at"}
    wrong: dict[str, tuple[Any, ...]] = {
        "input_file_id": (*TEXT, "", "../../etc/passwd", "file-" + "0" * 24, "a\u0000b"),
        "endpoint": (*TEXT, "", "/v1/batches", "http://127.0.0.1/v1/chat/completions"),
        "completion_window": (*TEXT, "", "48h"),
        "metadata": (*OBJECT, {"a": 1}, {"a" * 65: "x"}, {"a": "x" * 513}),
        "output_expires_after": (*OBJECT, {}, after, *({**after, "seconds": value} for value in (*WHOLE, 0))),
    }
    target = Target("/v1/batches", good, "input_file_id", wrong)
    bodies = [one for one in hostile(target) if one.name != "no model"]
    assert len(bodies) > 100
    for one in bodies:
        headers = {**who.headers, **one.headers}
        answer = httpx.post(gateway.url + target.path, content=one.body, headers=headers, trust_env=False, timeout=20)
        assert 400 <= answer.status_code < 500, one.name
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert list(client.batches.list()) == []
