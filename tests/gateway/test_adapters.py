"""Adapters as models: by their public names, at their prices, and behind the walls of whoever owns them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import (
    AdapterSettings,
    GuardSettings,
    MemberSettings,
    ModelSettings,
    PlanSettings,
    RouteSettings,
    Settings,
)
from interlace.engines import GenerateRequest
from interlace.ledger.audit import audit
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.prices import costing, free
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

OURS, ALLS, THEIRS = "base:ours", "base:alls", "base:theirs"
GUESSES = (
    "base:", "base::", "base:../theirs", "base:theirs/", "base:theirs ", "base:THEIRS", "base:%74heirs",
    "base:./theirs", "base:theirs#", "base:*", ":theirs", "theirs", "base/theirs", "base:ours:theirs",
    "base:theirs\0", "nobody",
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A base with three adapters, of two organisations and of everybody, and a route to one of them."""
    engines = {"base": ScriptedEngine(), "other": ScriptedEngine(tokens=("No", "."))}
    adapters = (
        AdapterSettings("ours", "/nowhere/ours", "us"),
        AdapterSettings("alls", "/nowhere/alls"),
        AdapterSettings("theirs", "/nowhere/theirs", "them"),
    )
    settings = Settings(
        home=Path("/nonexistent"),
        models=(ModelSettings("base", "base", adapters=adapters), ModelSettings("other", "other")),
        routes=(
            RouteSettings("to-theirs", models=(MemberSettings(THEIRS), MemberSettings("other"))),
            RouteSettings("to-ours", models=(MemberSettings(OURS),)),
        ),
        prices=(costing("base", 1, 2), costing(OURS, 10, 20), *free(["other"])),
        guards=GuardSettings(deny=("open sesame",)),
        plans=(PlanSettings("starred", models=("base:*",)), PlanSettings("plain", models=("base",))),
    )
    with running_gateway(settings, engines) as running:
        yield running


@pytest.fixture(scope="module")
def us(gateway: Gateway) -> Tenant:
    """A key of the organisation `us`."""
    return tenant(gateway.registry, org="us", scopes=("inference",))


@pytest.fixture(scope="module")
def them(gateway: Gateway) -> Tenant:
    """A key of the organisation `them`."""
    return tenant(gateway.registry, org="them", scopes=("inference",))


def said(model: str, **more: Any) -> dict[str, Any]:
    """A chat's body."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more}


BODIES = {
    "/v1/chat/completions": said,
    "/v1/completions": lambda model: {"model": model, "prompt": "Hello", "max_tokens": 8},
    "/v1/responses": lambda model: {"model": model, "input": "Hello", "store": False},
    "/v1/messages": said,
    "/v1/messages/count_tokens": lambda model: {"model": model, "messages": said(model)["messages"]},
}


def ask(gateway: Gateway, who: Tenant, path: str, model: str) -> httpx.Response:
    """One request for a model."""
    return httpx.post(gateway.url + path, json=BODIES[path](model), headers=who.headers, trust_env=False)


def bare(answer: httpx.Response, model: str) -> tuple[int, str, list[tuple[str, str]]]:
    """An answer without what every answer has of its own: its ids, its time, and the name that was asked for."""
    ids = re.sub(r"req_[0-9a-f]+|[0-9a-f]{32}", "ID", answer.text)
    shown = ids.replace(json.dumps(model)[1:-1], "NAME")
    changing = {"x-request-id", "request-id", "date", "content-length"}
    headers = [(name, value) for name, value in answer.headers.items() if name not in changing]
    limits = [(name, "…" if "ratelimit" in name else value) for name, value in headers]
    return answer.status_code, shown, sorted(limits)


# --- use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
def test_served_by_its_name_on_every_endpoint(gateway: Gateway, us: Tenant, path: str) -> None:
    """An adapter is a model wherever one is named, and its engine is told which; else it would answer as the base."""
    engine = gateway.engines["base"]
    assert isinstance(engine, ScriptedEngine)
    seen = len(engine.seen)
    answer = ask(gateway, us, path, OURS)
    assert answer.status_code == httpx.codes.OK, answer.text
    if "count" not in path:
        (request,) = engine.seen[seen:]
        assert isinstance(request, GenerateRequest)
        assert request.adapter.startswith("ours#")
        assert request.tenant == us.organisation.id


def test_billed_by_its_name_at_its_price_or_its_bases(gateway: Gateway, us: Tenant) -> None:
    """The usage event names base and adapter, the price is the adapter's own or else the base's, and the auditor finds
    nothing wrong with either."""
    before = len(gateway.events)
    for model in ("base", OURS, ALLS):
        assert ask(gateway, us, "/v1/chat/completions", model).status_code == httpx.codes.OK
    base, ours, alls = gateway.events[before:]
    assert [event.model for event in (base, ours, alls)] == ["base", OURS, ALLS]
    assert base.cost_nanos > 0
    assert (ours.cost_nanos, alls.cost_nanos) == (10 * base.cost_nanos, base.cost_nanos)
    assert ours.price_id != base.price_id == alls.price_id
    wrong = gateway.registry.store.read(
        lambda connection: [f for f in audit(connection, "UTC") if f.severity == "wrong"]
    )
    assert not wrong


def test_counted_as_its_base(gateway: Gateway, us: Tenant) -> None:
    """Names of adapters are their owners', and there are many: `/metrics` and `/readyz`, which anybody may read, show
    none of them."""
    assert ask(gateway, us, "/v1/chat/completions", OURS).status_code == httpx.codes.OK
    for page in ("/metrics", "/readyz"):
        text = httpx.get(gateway.url + page, trust_env=False).text
        assert "base" in text
        assert not [line for line in text.splitlines() if "base:" in line and "_route_" not in line]


def test_guarded_like_any_model(gateway: Gateway, us: Tenant) -> None:
    """What is denied is denied to an adapter, too."""
    body = {**said(OURS), "messages": [{"role": "user", "content": "open sesame"}]}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=us.headers, trust_env=False)
    assert answer.json()["error"]["code"] == "content_filter"


def test_makes_no_embeddings(gateway: Gateway, us: Tenant) -> None:
    """An adapter's name never leads to embeddings of its base alone."""
    answer = httpx.post(
        f"{gateway.url}/v1/embeddings", json={"model": OURS, "input": "x"}, headers=us.headers, trust_env=False
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_supported")


def test_allow_lists_name_exactly_or_with_a_star(gateway: Gateway, us: Tenant) -> None:
    """`base` in a list allows no adapter, `base:*` all of them and not the base; a star is no way through a wall."""
    plain, star, one = (
        tenant(gateway.registry, beside=us, models=models) for models in (("base",), ("base:*",), (ALLS,))
    )
    expected = {
        "base": (200, 403, 403), OURS: (403, 200, 403), ALLS: (403, 200, 200), THEIRS: (404, 404, 404),
    }  # fmt: skip
    for model, statuses in expected.items():
        found = tuple(ask(gateway, who, "/v1/chat/completions", model).status_code for who in (plain, star, one))
        assert found == statuses, model


# --- walls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
def test_by_name_another_organisations_is_unknown(gateway: Gateway, us: Tenant, path: str) -> None:
    """Status, body and headers are those of a name that means nothing; and no engine hears of it."""
    engine = gateway.engines["base"]
    assert isinstance(engine, ScriptedEngine)
    seen = len(engine.seen)
    unknown = bare(ask(gateway, us, path, "base:nobody"), "base:nobody")
    assert unknown[0] == httpx.codes.NOT_FOUND
    assert bare(ask(gateway, us, path, THEIRS), THEIRS) == unknown
    assert bare(ask(gateway, us, path, "to-theirs"), "to-theirs") == unknown
    assert len(engine.seen) == seen


def test_by_guess_nothing_is_found(gateway: Gateway, them: Tenant) -> None:
    """Names that are nearly right, or look like paths, are unknown models, even to the owner."""
    unknown = bare(ask(gateway, them, "/v1/chat/completions", "zzz"), "zzz")
    for guess in GUESSES:
        assert bare(ask(gateway, them, "/v1/chat/completions", guess), guess) == unknown, guess


def test_listed_and_retrieved_by_its_owner_alone(gateway: Gateway, us: Tenant, them: Tenant) -> None:
    """Neither dialect's list, nor a page of it, nor a retrieval tells one organisation of another's adapter or of a
    route to it."""
    for who, own, other in ((us, ("ours", "to-ours"), "theirs"), (them, ("theirs", "to-theirs"), "ours")):
        for dialect in ({}, {"anthropic-version": "2023-06-01"}):
            headers = who.headers | dialect

            def get(path: str, headers: dict[str, str] = headers) -> httpx.Response:
                return httpx.get(f"{gateway.url}/v1/models{path}", headers=headers, trust_env=False)

            listed = [row["id"] for row in get("").json()["data"]]
            assert listed == ["base", "other", *(f"base:{n}" for n in ("ours", "alls", "theirs") if n != other), own[1]]
            assert get(f"/base:{own[0]}").json()["id"] == f"base:{own[0]}"
            unknown = bare(get("/base:nobody"), "base:nobody")
            assert unknown[0] == httpx.codes.NOT_FOUND
            assert bare(get(f"/base:{other}"), f"base:{other}") == unknown
            assert bare(get(f"/to-{other}"), f"to-{other}") == unknown
            if dialect:
                assert bare(get(f"?after_id=base:{other}"), f"base:{other}") == bare(get("?after_id=zz"), "zz")


def test_by_a_route_the_owner_passes(gateway: Gateway, them: Tenant) -> None:
    """The wall before a route's adapter is open to the adapter's owner, whose usage event names it."""
    answer = ask(gateway, them, "/v1/chat/completions", "to-theirs")
    assert answer.status_code == httpx.codes.OK
    assert gateway.events[-1].model in {THEIRS, "other"}


def test_by_a_batch_line(gateway: Gateway, us: Tenant) -> None:
    """A batch is no way round: its line ends as one for a name that means nothing."""
    errors = {model: _batch(gateway, us, model) for model in (THEIRS, "base:nobody", OURS)}
    told = json.dumps(errors[THEIRS]["error"] or errors[THEIRS]["response"]["body"])
    assert told.replace(THEIRS, "NAME") == json.dumps(
        errors["base:nobody"]["error"] or errors["base:nobody"]["response"]["body"]
    ).replace("base:nobody", "NAME")
    assert errors[THEIRS]["response"]["status_code"] == httpx.codes.NOT_FOUND
    assert errors[OURS]["response"]["status_code"] == httpx.codes.OK


def _batch(gateway: Gateway, who: Tenant, model: str) -> dict[str, Any]:
    """What became of a batch's only line."""
    path = "/v1/chat/completions"
    with httpx.Client(base_url=gateway.url, headers=who.headers, trust_env=False, timeout=30) as client:
        line = json.dumps({"custom_id": "one", "method": "POST", "url": path, "body": said(model)})
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", line)}).json()
        given = {"input_file_id": file["id"], "endpoint": path, "completion_window": "24h"}
        batch = client.post("/v1/batches", json=given).json()
        end = time.monotonic() + 30
        while batch["status"] not in {"completed", "failed"}:
            assert time.monotonic() < end, batch
            time.sleep(0.05)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        content = client.get(f"/v1/files/{batch['output_file_id'] or batch['error_file_id']}/content").text
        found: dict[str, Any] = json.loads(content)
        return found
