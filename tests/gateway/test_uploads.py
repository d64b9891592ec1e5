"""Uploaded files that messages name: their content reaches guards and engines, of the caller's own project alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, ModelSettings, Settings
from interlace.engines.fields import ALL_KEPT
from interlace.engines.types import FilePart, ImagePart, Part
from interlace.gateway import uploads
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

PDF = b"%PDF-1.7 a paper"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NOTES = b"the word of the day is lamp"

Ask = dict[str, Any]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """An engine that takes pictures and files, and a denied pattern."""
    engines = {"seeing": ScriptedEngine(fates=ALL_KEPT)}
    settings = Settings(
        home=Path("/nonexistent"),
        models=(ModelSettings(name="seeing", checkpoint="seeing"),),
        guards=GuardSettings(deny=("open sesame",)),
        drain_seconds=5,
    )
    with running_gateway(settings, engines) as running:
        yield running


@pytest.fixture
def who(gateway: Gateway) -> Tenant:
    """A project of its own."""
    return tenant(gateway.registry)


def upload(gateway: Gateway, who: Tenant, name: str, content: bytes, purpose: str = "user_data") -> str:
    """The id of a file."""
    answer = httpx.post(
        f"{gateway.url}/v1/files",
        files={"file": (name, content)},
        data={"purpose": purpose},
        headers=who.headers,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def chat(id: str, *, picture: bool) -> tuple[str, Ask]:
    """A chat; it has no way to name an uploaded picture."""
    assert not picture
    part = {"type": "file", "file": {"file_id": id}}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}


def response(id: str, *, picture: bool) -> tuple[str, Ask]:
    """A response."""
    part = {"type": "input_image" if picture else "input_file", "file_id": id}
    return "/v1/responses", {"input": [{"role": "user", "content": [part]}]}


def message(id: str, *, picture: bool) -> tuple[str, Ask]:
    """A message in Anthropic's words."""
    part = {"type": "image" if picture else "document", "source": {"type": "file", "file_id": id}}
    return "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [part]}]}


def count(id: str, *, picture: bool) -> tuple[str, Ask]:
    """A count of a message's tokens."""
    body = message(id, picture=picture)[1]
    del body["max_tokens"]
    return "/v1/messages/count_tokens", body


ALL = [chat, response, message]


def post(gateway: Gateway, who: Tenant, asked: tuple[str, Ask]) -> httpx.Response:
    """Send it."""
    path, body = asked
    body = {"model": "seeing", **body}
    return httpx.post(gateway.url + path, json=body, headers=who.headers, trust_env=False, timeout=20)


def seen(gateway: Gateway) -> Part:
    """The part of the last request that the engine saw."""
    engine: Any = gateway.engines["seeing"]
    return engine.seen[-1].messages[-1].content[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("say", ALL)
def test_the_engine_sees_what_was_uploaded(gateway: Gateway, who: Tenant, say: Any) -> None:
    """A PDF as it is, and text as text, under its name."""
    assert post(gateway, who, say(upload(gateway, who, "paper.pdf", PDF), picture=False)).status_code == 200
    assert seen(gateway) == FilePart(base64.b64encode(PDF).decode(), "application/pdf", name="paper.pdf")
    assert post(gateway, who, say(upload(gateway, who, "notes.txt", NOTES), picture=False)).status_code == 200
    assert seen(gateway) == FilePart(media_type="text/plain", text=NOTES.decode(), name="notes.txt")


@pytest.mark.parametrize("say", [response, message])
def test_pictures_are_pictures(gateway: Gateway, who: Tenant, say: Any) -> None:
    """Whatever a file is called, its first bytes say what it is."""
    id = upload(gateway, who, "x.png", PNG, "vision")
    assert post(gateway, who, say(id, picture=True)).status_code == 200
    part = seen(gateway)
    assert isinstance(part, ImagePart)
    assert (part.media_type, base64.b64decode(part.data), part.uploaded) == ("image/png", PNG, "")
    assert post(gateway, who, say(id, picture=False)).status_code == 400
    assert post(gateway, who, say(upload(gateway, who, "y.png", PDF, "vision"), picture=True)).status_code == 400


@pytest.mark.parametrize("say", [*ALL, count])
def test_other_projects_have_no_such_file(gateway: Gateway, who: Tenant, say: Any) -> None:
    """Tenants are walls: a 404 as for a file that never was, and no engine is asked."""
    id = upload(gateway, who, "notes.txt", NOTES)
    engine: Any = gateway.engines["seeing"]
    asked = len(engine.seen)
    other = tenant(gateway.registry)
    refused, unknown = post(gateway, other, say(id, picture=False)), post(gateway, other, say("file-x", picture=False))
    assert (refused.status_code, unknown.status_code) == (404, 404)
    assert (
        refused.text.replace(id, "").split("request_id")[0] == unknown.text.replace("file-x", "").split("request_id")[0]
    )
    assert len(engine.seen) == asked


@pytest.mark.parametrize("say", [*ALL, count])
def test_guards_read_what_is_in_it(gateway: Gateway, who: Tenant, say: Any) -> None:
    """A text that may not be sent may not be uploaded and named either."""
    id = upload(gateway, who, "notes.txt", b"please open sesame now")
    engine: Any = gateway.engines["seeing"]
    asked = len(engine.seen)
    assert post(gateway, who, say(id, picture=False)).status_code == 400
    assert len(engine.seen) == asked


def test_text_in_a_data_url_is_read_by_guards(gateway: Gateway, who: Tenant) -> None:
    """Base64 hides nothing."""
    data = "data:text/plain;base64," + base64.b64encode(b"please open sesame now").decode()
    part = {"type": "file", "file": {"file_data": data, "filename": "notes.txt"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert post(gateway, who, ("/v1/chat/completions", body)).status_code == 400


def test_what_is_no_conversation_is_refused(gateway: Gateway, who: Tenant) -> None:
    """Files for batches are not read by models, and bytes that are no text are no document."""
    batch = upload(gateway, who, "lines.jsonl", b"{}\n", "batch")
    answer = post(gateway, who, chat(batch, picture=False))
    assert answer.status_code == 400
    assert "batch" in answer.json()["error"]["message"]
    answer = post(gateway, who, chat(upload(gateway, who, "x.txt", b"\xff\xfe\x00"), picture=False))
    assert answer.status_code == 400


def test_a_request_names_only_so_much(gateway: Gateway, who: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read into memory, so what one request may name of them is bounded, all of them together."""
    monkeypatch.setattr(uploads, "MOST_BYTES", 2 * len(NOTES))
    id = upload(gateway, who, "notes.txt", NOTES)
    part = {"type": "file", "file": {"file_id": id}}
    for parts, status in ((2, 200), (3, 413)):
        body = {"messages": [{"role": "user", "content": [part] * parts}]}
        assert post(gateway, who, ("/v1/chat/completions", body)).status_code == status
