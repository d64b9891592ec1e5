"""The admin API and a key's own usage page, over HTTP, on a running gateway: who may, what takes effect, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from interlace.config import LimitSettings, PlanSettings, Settings
from interlace.ledger.operations import OPERATIONS
from interlace.money import DOLLAR
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine

ADMIN = "/admin/v1"
COST = 2 + 7 * 5  # nano-dollars of one request here: a token in, seven out


@pytest.fixture(scope="module")
def gateway(module_store: str) -> Iterator[Gateway]:
    """Two models that can be asked, of which one has a price; a plan of the file."""
    chosen = Settings(
        prices=(costing("m", 2, 5),),
        plans=(PlanSettings(name="bronze", rpm=1000),),
        limits=LimitSettings(body_bytes=50_000),
    )
    engines = {"m": ScriptedEngine(), "unpriced": ScriptedEngine(), "held": ScriptedEngine(held=True)}
    with running_gateway(chosen, engines) as running:
        yield running


class Admin:
    """A caller of the admin API, and of models with the keys it makes."""

    def __init__(self, gateway: Gateway) -> None:
        self.http = httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=20)
        self.number = len(self.get("/projects"))

    def get(self, path: str, **query: str) -> Any:
        """What there is."""
        response = self.http.get(ADMIN + path, params=query)
        assert response.status_code == 200, response.text
        answer = response.json()
        return answer["data"] if answer.get("object") == "list" else answer

    def post(self, path: str, **body: Any) -> Any:
        """Do something that must be possible."""
        response = self.http.post(ADMIN + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def patch(self, path: str, **body: Any) -> Any:
        """Change something that must be changeable."""
        response = self.http.patch(ADMIN + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def key(self, **more: Any) -> dict[str, Any]:
        """A key in a project of its own."""
        self.number += 1
        project = self.post("/projects", name=f"p{self.number}")["id"]
        return dict(self.post("/keys", project=project, **more))

    def ask(self, key: str, model: str = "m") -> httpx.Response:
        """One question of whoever has the key."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return self.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

    def own(self, key: str, path: str = "", **query: str) -> httpx.Response:
        """A key's look at its own usage."""
        return self.http.get(f"/v1/usage{path}", params=query, headers={"authorization": f"Bearer {key}"})


@pytest.fixture
def admin(gateway: Gateway) -> Iterator[Admin]:
    """The administrator."""
    admin = Admin(gateway)
    yield admin
    admin.http.close()


# --- who may -----------------------------------------------------------------------------------------------------

EVERY = [pytest.param(operation.method, operation.path, id=name) for name, operation in OPERATIONS.items()]


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_nobody_but_administrators_may_do_anything(gateway: Gateway, admin: Admin, method: str, path: str) -> None:
    """Each operation, asked without a key, with a wrong one, and with one for models: refused before its body is
    looked at. A new operation is in this table by being in the other."""
    place = gateway.url + ADMIN + path.format(org="x", project="x", key="x", plan="x", price="x", worker="x", id="1")
    key = admin.key()["key"]
    for headers, status in [({}, 401), ({"authorization": "Bearer sk-il-wrong"}, 401),
                            ({"authorization": f"Bearer {key}"}, 403)]:  # fmt: skip
        body = None if method == "GET" else b"{not json"
        response = httpx.request(method, place, headers=headers, content=body, trust_env=False)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_key_for_administration_may_not_ask_models(admin: Admin) -> None:
    """Scopes are what was given, no more: an administrator's key in a script must not spend."""
    key = admin.key(scopes=["admin"])["key"]
    assert admin.ask(key).status_code == 403
    assert admin.own(key).status_code == 403
    assert admin.http.get(f"{ADMIN}/orgs", headers={"authorization": f"Bearer {key}"}).status_code == 200


# --- what takes effect at once -----------------------------------------------------------------------------------


def test_a_revoked_or_rotated_key_is_refused_at_the_next_request(admin: Admin) -> None:
    """Taking a key back is useless if it works on."""
    made = admin.key()
    assert admin.ask(made["key"]).status_code == 200
    rotated = admin.post(f"/keys/{made['id']}/rotate")
    assert admin.ask(made["key"]).status_code == 401
    assert admin.ask(rotated["key"]).status_code == 200
    admin.post(f"/keys/{made['id']}/revoke")
    refused = admin.ask(rotated["key"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_change_of_plan_holds_for_the_next_request(admin: Admin) -> None:
    """Models, rates and budgets of a plan, changed under a key that is in use."""
    plan = admin.post("/plans", name="changing")["id"]
    key = admin.key(plan="changing")["key"]
    for change, status, code in [
        ({}, 200, None),
        ({"models": ["other"]}, 403, "model_not_found"),
        ({"models": None, "rpm": 0}, 429, "rate_limit_exceeded"),
        ({"rpm": None, "budget_usd": "0"}, 429, "insufficient_quota"),
        ({"budget_usd": None}, 200, None),
    ]:
        if change:
            admin.patch(f"/plans/{plan}", **change)
        response = admin.ask(key)
        assert response.status_code == status, (change, response.text)
        assert status == 200 or response.json()["error"]["code"] == code


@pytest.mark.parametrize("scope", ["orgs", "projects", "keys"])
def test_a_budget_holds_for_the_next_request(admin: Admin, scope: str) -> None:
    """Of organisation, project and key alike."""
    org = admin.post("/orgs", name=f"budget of {scope}")["id"]
    project = admin.post("/projects", name="p", org=org)["id"]
    made = admin.post("/keys", project=project)
    place = {"orgs": f"/orgs/{org}", "projects": f"/projects/{project}", "keys": f"/keys/{made['id']}"}[scope]
    assert admin.ask(made["key"]).status_code == 200
    admin.patch(place, budget_usd="0.00000004")
    assert admin.ask(made["key"]).json()["error"]["code"] == "insufficient_quota"
    shown = admin.get(place)
    assert (shown["spent_nanos"], shown["budget_nanos"]) == (COST, 40)


def test_a_model_is_served_once_it_has_a_price(admin: Admin) -> None:
    """No price, no service; with one, at the next request, and at that price."""
    key = admin.key()["key"]
    assert admin.ask(key, "unpriced").json()["error"]["code"] == "model_not_priced"
    price = admin.post("/prices", model="unpriced", usd_per_million={"prompt": "1", "completion": "2"})
    answer = admin.ask(key, "unpriced")
    assert answer.status_code == 200
    assert admin.own(key, "/" + answer.json()["id"]).json()["cost_nanos"] == 1000 + 7 * 2000
    admin.post(f"/prices/{price['id']}/retire")
    assert admin.ask(key, "unpriced").status_code == 403


def test_a_key_in_use_never_fails_while_it_is_changed(admin: Admin, gateway: Gateway) -> None:
    """An administrator's change must not make a request bounce that arrives in the same instant."""
    made = admin.key()
    caller = gateway.registry.directory.caller
    digest = gateway.registry.hasher.digest(made["key"])
    before = gateway.registry.directory.keys[made["id"]]
    seen: list[bool] = []

    class Watching(dict[bytes, Any]):
        """Looks the key up whenever anything is taken out or put in."""

        def __setitem__(self, key: bytes, value: Any) -> None:
            seen.append(caller(digest) is not None)
            super().__setitem__(key, value)
            seen.append(caller(digest) is not None)

        def pop(self, *words: Any) -> Any:
            result = super().pop(*words)
            seen.append(caller(digest) is not None)
            return result

    gateway.registry.directory._by_digest = Watching(gateway.registry.directory._by_digest)
    admin.patch(f"/keys/{made['id']}", budget_usd="1")
    assert gateway.registry.directory.keys[made["id"]] != before
    assert seen
    assert all(seen)


# --- the shape of the API ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/orgs", b"{", 400, "invalid_json"),
        ("POST", "/orgs", b"[]", 400, "invalid_type"),
        ("POST", "/orgs", b"", 400, "missing_required_parameter"),
        ("POST", "/orgs", b'{"name": "x", "colour": 1}', 400, "unknown_parameter"),
        ("POST", "/orgs", b'{"name": "default"}', 409, "conflict"),
        ("POST", "/orgs", b"[" * 60_000, 413, "request_too_large"),
        ("POST", "/orgs", b'{"name": ' + b"[" * 40_000, 400, "invalid_json"),
        ("PATCH", "/orgs/default", b'{"org": "x"}', 400, None),
        ("GET", "/orgs?colour=red", b"", 400, "unknown_parameter"),
        ("GET", "/projects?org=a&org=b", b"", 400, None),
        ("GET", "/keys?state=asleep", b"", 400, "invalid_value"),
        ("GET", "/projects/null", b"", 404, "project_not_found"),
        ("GET", "/projects?org=null", b"", 404, "organisation_not_found"),
        ("GET", "/usage?" + "&".join(f"a{n}=1" for n in range(200)), b"", 400, None),
        ("GET", "/plans/a%2Fb", b"", 404, "plan_not_found"),
        ("GET", "/plans/%00%0d%0aSet-Cookie:%20x", b"", 404, "unknown_url"),
        ("GET", "/nothing", b"", 404, "unknown_url"),
        ("DELETE", "/orgs/default", b"", 405, "method_not_allowed"),
    ],
)
def test_wrong_requests(gateway: Gateway, method: str, path: str, body: bytes, status: int, code: str | None) -> None:
    """Each is refused in OpenAI's shape, and none reaches an answer's headers."""
    response = httpx.request(
        method, gateway.url + ADMIN + path, content=body or None, headers=gateway.headers, trust_env=False
    )
    assert (response.status_code, "set-cookie" in response.headers) == (status, False), response.text
    assert response.json()["error"]["code"] == code


def test_the_methods_of_a_path_are_all_allowed(gateway: Gateway) -> None:
    """A 405 names every method there is, so that whoever meets it can go on."""
    response = httpx.delete(f"{gateway.url}{ADMIN}/orgs", headers=gateway.headers, trust_env=False)
    assert {"GET", "POST"} <= {word.strip() for word in response.headers["allow"].split(",")}


def test_changes_are_logged_without_secrets(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    """Who gave whom a key can be found out afterwards; the key itself cannot."""
    with caplog.at_level("INFO", logger="interlace"):
        made = admin.key()
        wait_for(lambda: any("changed the ledger" in record.message for record in caplog.records))
    fields = [record.__dict__["fields"] for record in caplog.records if "changed the ledger" in record.message]
    assert fields[-1]["operation"] == "keys.create"
    assert fields[-1]["id"] == made["id"]
    assert fields[-1]["by"].startswith("key_")
    assert made["key"] not in repr([record.__dict__ for record in caplog.records])


# --- a key's own usage -------------------------------------------------------------------------------------------


def test_a_key_sees_its_own_use_limits_and_what_is_left(admin: Admin) -> None:
    """What it was charged, what remains of every budget that holds for it, and of its rates; to the nano-dollar."""
    org = admin.post("/orgs", name="seen", budget_usd="1")["id"]
    project = admin.post("/projects", name="seen too", org=org)["id"]
    admin.post("/plans", name="seen", rpm=100, tpm=1000, concurrency=3, budget_usd="0.5", models=["m"])
    made = admin.post("/keys", project=project, plan="seen", budget_usd="0.25", models=["m", "x"])
    other = admin.post("/keys", project=project)
    for key in (made["key"], made["key"], other["key"]):
        assert admin.ask(key).status_code == 200
    mine = admin.own(made["key"], by="model,day").json()
    standing, usage = mine["standing"], mine["usage"]
    assert (standing["plan"], standing["organisation"], standing["project"]) == ("seen", "seen", "seen too")
    left = {
        one["scope"]: (one["spent_nanos"], one["remaining_nanos"], one["reserved_nanos"]) for one in standing["budgets"]
    }
    assert left == {"org": (3 * COST, DOLLAR - 3 * COST, 0), "key": (2 * COST, DOLLAR // 4 - 2 * COST, 0)}
    limits = standing["limits"]
    assert (limits["requests"]["limit"], limits["requests"]["remaining"]) == (100, 98)
    assert limits["tokens"]["remaining"] == 1000 - 2 * 8
    assert limits["concurrency"] == {"limit": 3, "running": 0}
    assert limits["models"] == ["m"]
    assert usage["total"]["cost_nanos"] == 2 * COST
    assert [(row["model"], row["requests"]) for row in usage["data"]] == [("m", 2)]
    assert "x-ratelimit-limit-requests" not in mine


def test_what_runs_is_shown_as_reserved(admin: Admin, gateway: Gateway) -> None:
    """A caller that sees too much left asks for what it cannot have."""
    admin.post("/prices", model="held", usd_per_million={"prompt": "1", "completion": "1"})
    made = admin.key(budget_usd="1")
    body = {"model": "held", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10, "stream": True}
    headers = {"authorization": f"Bearer {made['key']}"}
    engine = gateway.engines["held"]
    assert isinstance(engine, ScriptedEngine)
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=headers, trust_env=False):
        (budget,) = admin.own(made["key"]).json()["standing"]["budgets"]
        assert budget["reserved_nanos"] == 11 * 1000
        assert budget["remaining_nanos"] == DOLLAR - 11 * 1000
        gateway.call(engine.release.set)
    wait_for(lambda: admin.own(made["key"]).json()["standing"]["budgets"][0]["reserved_nanos"] == 0)


def test_the_cost_of_one_request(admin: Admin) -> None:
    """By the id of its answer, of its headers, or bare; for the key that asked, and nobody else."""
    key, other = admin.key()["key"], admin.key()["key"]
    answer = admin.ask(key)
    id = answer.json()["id"]
    bare = id.removeprefix("chatcmpl-")
    for name in (id, bare, f"req_{bare}", answer.headers["x-request-id"]):
        shown = admin.own(key, f"/{name}").json()
        assert (shown["cost_nanos"], shown["outcome"], shown["tokens"]["completion"]) == (COST, "finished", 7)
    for who, name in [
        (other, id),
        (key, "chatcmpl-" + "0" * 24),
        (key, "x"),
        (key, "%27%20OR%201=1"),
        (key, bare.upper()),
    ]:
        refused = admin.own(who, f"/{name}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "usage_not_found")


def test_own_usage_takes_no_others_names(admin: Admin) -> None:
    """A filter by project or key, or a grouping by them, is not there: there is nothing to learn of others."""
    key = admin.key()["key"]
    assert admin.own(key, project="default").status_code == 400
    assert admin.own(key, by="key").status_code == 400
    assert admin.own(key, since="1970-01-01").json()["usage"]["total"]["requests"] == 0


def test_hostile_tags_are_data(admin: Admin, gateway: Gateway) -> None:
    """Tags are recorded as they came, whatever SQL or a spreadsheet would make of them, and odd ones are refused."""
    made = admin.key()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for tags, status in [("=1+1,@SUM(A1)", 400), ("=1+1,-2,@x", 200), ("a'--", 400), ("x" * 65, 400), ("a b", 400)]:
        headers = {"authorization": f"Bearer {made['key']}", "x-interlace-tags": tags}
        assert admin.http.post("/v1/chat/completions", json=body, headers=headers).status_code == status
    rows = admin.get("/usage", by="tag", key=made["id"])["data"]
    assert [row["tag"] for row in rows] == ["-2", "=1+1", "@x"]


def test_tags_of_two_headers_both_count(admin: Admin) -> None:
    """A caller's proxy may add its own: dropped without a word, its part of the bill would be nobody's."""
    made = admin.key()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    headers = [("authorization", f"Bearer {made['key']}"), ("x-interlace-tags", "a, b"), ("x-interlace-tags", "c,a")]
    assert admin.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    assert [row["tag"] for row in admin.get("/usage", by="tag", key=made["id"])["data"]] == ["a", "b", "c"]
    headers[-1] = ("x-interlace-tags", "b d")
    assert admin.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 400


# --- any request at all ------------------------------------------------------------------------------------------

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


def test_requests_drawn_from_the_schema(gateway: Gateway) -> None:
    """Whatever the document allows is answered as the document says, and nothing is a 500."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}{ADMIN}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == len(OPERATIONS) + 11, "the ledger's, those on routes, adapters and models, and the reload"
    for operation in operations:

        @QUIET
        @given(case=operation.as_strategy())
        def answer(case: Any) -> None:
            response = case.call(headers=gateway.headers, timeout=20)
            case.validate_response(response, checks=CHECKS)

        answer()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["default", "m", "1", "0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["name", "org", "project", "plan", "key", "scopes", "models", "expires_at", "budget_usd", "rpm", "tpm", "priority",
     "model", "usd_per_million", "since", "batch_percent", "usd_per_request", "nonsense"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/orgs"), ("POST", "/projects"), ("POST", "/keys"), ("POST", "/plans"), ("POST", "/prices"),
     ("PATCH", "/orgs/default"), ("PATCH", "/projects/default"), ("PATCH", "/plans/bronze")],
)  # fmt: skip
@QUIET
@given(body=st.dictionaries(FIELDS, VALUES, max_size=6) | VALUES)
def test_bodies_with_any_values(gateway: Gateway, method: str, path: str, body: Any) -> None:
    """Any value in any field is taken or refused in OpenAI's shape, NaN and lone surrogates included."""
    _check(httpx.request(
        method, gateway.url + ADMIN + path, content=json.dumps(body), headers=gateway.headers, trust_env=False
    ))  # fmt: skip


@QUIET
@given(path=st.sampled_from(["/admin/v1/usage", "/admin/v1/keys", "/v1/usage"]), noise=st.dictionaries(
    st.sampled_from(["by", "since", "until", "model", "tag", "outcome", "org", "project", "key", "state"]),
    st.text() | st.sampled_from(["2026-01-01", "9999-12-31", "0001-01-01T00:00:00Z", "model,day", "null"]), max_size=4,
))  # fmt: skip
def test_queries_with_any_values(gateway: Gateway, path: str, noise: dict[str, str]) -> None:
    """Any text in any parameter is answered or refused."""
    _check(httpx.get(gateway.url + path, params=noise, headers=gateway.headers, trust_env=False))


def _check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
