"""Models that belong to an organisation: behind its wall, at another's price until they have their own, as guards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from interlace.config import (
    AdapterSettings,
    ClassifierSettings,
    GuardSettings,
    MemberSettings,
    ModelSettings,
    RouteSettings,
    Settings,
)
from interlace.gateway.wire import convert
from interlace.ledger import Registry
from interlace.ledger.audit import audit
from interlace.ledger.operations import OPERATIONS
from tests.gateway.test_adapters import BODIES as TEXT_BODIES
from tests.gateway.test_adapters import bare, said
from tests.gateway.test_files_and_batches import batch, line, over, rows
from tests.gateway.test_judged_paths import Judging
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.prices import costing, free
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

OWNED, HERS = "agri", ("agri", "agri:plain", "judge", "embedder", "to-agri")
BODIES = TEXT_BODIES | {
    "/v1/embeddings": lambda model: {"model": model, "input": "Hello"},
    "/v1/classify": lambda model: {"model": model, "input": "Hello"},
    "/v1/rerank": lambda model: {"model": model, "query": "a", "documents": ["b"]},
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A model of everybody's; three of the organisation `them`, an adapter of nobody's over one, and a route to it;
    one of the three guards what all send."""
    engines = {
        "open": ScriptedEngine(),
        OWNED: ScriptedEngine(),
        "judge": Judging(),
        "embedder": ScriptedEngine(embeds=True),
    }
    settings = Settings(
        home=Path("/nonexistent"),
        models=(
            ModelSettings("open", "open"),
            ModelSettings(OWNED, "x", owner="them", priced_as="open", adapters=(AdapterSettings("plain", "/x"),)),
            ModelSettings("judge", "judge", owner="them"),
            ModelSettings("embedder", "embedder", owner="them"),
        ),
        routes=(RouteSettings("to-agri", models=(MemberSettings(OWNED), MemberSettings("open"))),),
        prices=(costing("open", 1, 2), *free(["judge", "embedder"])),
        guards=GuardSettings(classifiers=(ClassifierSettings("judge", ("spam",), 0.5),)),
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


def ask(gateway: Gateway, who: Tenant, path: str, model: str) -> httpx.Response:
    """One request for a model."""
    return httpx.post(gateway.url + path, json=BODIES[path](model), headers=who.headers, trust_env=False)


def seen(gateway: Gateway, model: str) -> int:
    """How many requests its engine has had."""
    engine = gateway.engines[model]
    assert isinstance(engine, ScriptedEngine)
    return len(engine.seen)


@pytest.mark.parametrize("path", BODIES)
def test_to_others_it_is_a_name_that_means_nothing(gateway: Gateway, us: Tenant, path: str) -> None:
    """Model, adapter over it, classifier, embedder and route: on every endpoint another organisation gets the status,
    body and headers of an unknown name, and no engine but the guard's hears of it."""
    before = seen(gateway, OWNED), seen(gateway, "embedder")
    unknown = bare(ask(gateway, us, path, "nobody"), "nobody")
    assert unknown[0] == httpx.codes.NOT_FOUND
    for name in HERS:
        assert bare(ask(gateway, us, path, name), name) == unknown, name
    assert (seen(gateway, OWNED), seen(gateway, "embedder")) == before


def test_its_owner_is_answered(gateway: Gateway, them: Tenant) -> None:
    """A wall that lets nobody in would be as wrong."""
    for path, model in (
        ("/v1/chat/completions", OWNED), ("/v1/chat/completions", "agri:plain"), ("/v1/chat/completions", "to-agri"),
        ("/v1/classify", "judge"), ("/v1/embeddings", "embedder"),
    ):  # fmt: skip
        answer = ask(gateway, them, path, model)
        assert answer.status_code == httpx.codes.OK, answer.text


def test_listed_and_retrieved_by_its_owner_alone(gateway: Gateway, us: Tenant, them: Tenant) -> None:
    """Neither dialect's list nor a retrieval tells another organisation of it."""
    for dialect in ({}, {"anthropic-version": "2023-06-01"}):

        def get(who: Tenant, path: str, dialect: dict[str, str] = dialect) -> httpx.Response:
            url = f"{gateway.url}/v1/models{path}"
            return httpx.get(url, headers=who.headers | dialect, trust_env=False)

        assert [row["id"] for row in get(us, "").json()["data"]] == ["open"]
        assert {row["id"] for row in get(them, "").json()["data"]} == {"open", *HERS}
        unknown = bare(get(us, "/nobody"), "nobody")
        for name in HERS:
            assert bare(get(us, f"/{name}"), name) == unknown
            assert get(them, f"/{name}").json()["id"] == name


def test_what_anybody_may_read_does_not_name_it(gateway: Gateway, us: Tenant, them: Tenant) -> None:
    """`/readyz` and `/metrics` ask for no key. Refused requests for it are counted as those for no model, else whoever
    sends one could look there whether it exists."""
    assert ask(gateway, them, "/v1/chat/completions", OWNED).status_code == httpx.codes.OK
    ready = httpx.get(f"{gateway.url}/readyz", trust_env=False).json()
    assert list(ready["models"]) == ["open"]

    def lines() -> list[str]:
        return httpx.get(f"{gateway.url}/metrics", trust_env=False).text.splitlines()

    def counted(label: str) -> list[str]:
        return [one for one in lines() if one.startswith("interlace_requests_total") and f'model="{label}"' in one]

    assert not [one for one in lines() if '"agri' in one and "_route_" not in one]
    assert not [one for one in lines() if '"judge"' in one or '"embedder"' in one]
    before = counted("private")
    assert before
    body = {**said(OWNED), "messages": [{"role": "user", "content": "so bad"}]}
    for model in (OWNED, "nobody"):
        url = f"{gateway.url}/v1/chat/completions"
        httpx.post(url, json={**body, "model": model}, headers=us.headers, trust_env=False)
    assert counted("private") == before
    assert 'interlace_engine_ready{model="private"} 1.0' in lines()


def test_by_a_batch_line(gateway: Gateway, us: Tenant) -> None:
    """A batch is no way round: its line ends as one for a name that means nothing."""
    told = {}
    with httpx.Client(trust_env=False) as http:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=us.text, max_retries=0, http_client=http)
        for model in (OWNED, "nobody"):
            done = over(client, batch(client, line("a", model=model)).id)
            told[model] = rows(client, done.error_file_id or done.output_file_id)["a"]
    assert told[OWNED]["response"]["status_code"] == httpx.codes.NOT_FOUND
    first, second = (json.dumps(one["error"] or one["response"]["body"]) for one in told.values())
    assert first.replace(OWNED, "nobody") == second


def test_a_guard_of_another_organisations_reads_what_all_send(gateway: Gateway, us: Tenant) -> None:
    """Guards are the operator's: an owned classifier guards everybody, and its name stays its owner's secret."""
    body = {**said("open"), "messages": [{"role": "user", "content": "so bad"}]}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=us.headers, trust_env=False)
    assert answer.json()["error"]["code"] == "content_filter"
    assert "judge" not in answer.text


# --- price -------------------------------------------------------------------------------------------------------


def _cost(gateway: Gateway, who: Tenant, model: str) -> int:
    answer = ask(gateway, who, "/v1/chat/completions", model)
    assert answer.status_code == httpx.codes.OK, answer.text
    event = gateway.events[-1]
    assert event.model == model
    return event.cost_nanos


def _priced(registry: Registry, model: str, usd: str) -> None:
    """A price from now on, as `interlace prices create` makes one."""
    operation = OPERATIONS["prices.create"]
    given = {"model": model, "usd_per_million": {"prompt": usd, "completion": usd}}
    operation.run(registry, convert(given, operation.input))


def test_priced_as_another_until_it_has_its_own(gateway: Gateway, them: Tenant) -> None:
    """It costs what the other costs, also after the other's price has changed, and what it costs itself once that is
    said; its adapters follow; and the auditor finds nothing wrong with any of it."""
    base = _cost(gateway, them, "open")
    assert base > 0
    assert _cost(gateway, them, OWNED) == _cost(gateway, them, "agri:plain") == base
    _priced(gateway.registry, "open", "5000")
    dearer = _cost(gateway, them, "open")
    assert dearer > base
    assert _cost(gateway, them, OWNED) == _cost(gateway, them, "agri:plain") == dearer
    _priced(gateway.registry, OWNED, "70")
    own = _cost(gateway, them, OWNED)
    assert own not in (base, dearer)
    assert _cost(gateway, them, "agri:plain") == own
    assert _cost(gateway, them, "open") == dearer
    wrong = gateway.registry.store.read(lambda c: [f for f in audit(c, "UTC") if f.severity == "wrong"])
    assert not wrong
