"""The administrative verbs on a real ledger: what each does, what each refuses, and what never takes place."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from interlace.config import PlanSettings, Settings
from interlace.errors import Conflict, InterlaceError, InvalidRequest, NotFound
from interlace.gateway.wire import convert
from interlace.ledger import Outcome, Registry, Tokens, UsageEvent, bank
from interlace.ledger.clock import SystemClock
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.schema import api_keys
from interlace.money import DOLLAR, Micros, Nanos, parse_moment
from tests.support.prices import costing
from tests.support.stores import placed, store_fixture

pytestmark = pytest.mark.usefixtures("store")
store = store_fixture(pytest.mark.nightly)

FILE = Settings(
    prices=(costing("filed", 2, 5),),
    plans=(PlanSettings(name="bronze", rpm=10, budget_usd=Nanos(DOLLAR)),),
)
NOW = parse_moment("2026-03-31T23:30:00Z")

Do = Callable[..., Any]


class Clock(SystemClock):
    """Stands at `NOW` until it is set."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> Micros:
        """What it is set to."""
        return self.time


def _opened(home: Path, settings: Settings = FILE) -> Registry:
    registry = Registry.open(placed(dataclasses.replace(settings, home=home)), {}, Clock())
    registry.admit_first_key("sk-il-first-key-of-the-tests", from_environment=False)
    return registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A fresh ledger: organisation and project `default`, the key `first`, and what `FILE` names."""
    registry = _opened(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def do(registry: Registry) -> Do:
    """Carry out one operation as its callers do: from plain values to plain values."""
    return lambda name, /, **given: perform(registry, name, **given)


def perform(registry: Registry, name: str, /, **given: Any) -> Any:
    """One operation, from plain values to plain values."""
    operation = OPERATIONS[name]
    return msgspec.to_builtins(operation.run(registry, convert(given, operation.input)))


def _furnish(do: Do) -> None:
    """One of everything."""
    do("orgs.create", name="acme", budget_usd="10")
    do("projects.create", name="search", org="acme", budget_usd="5")
    do("projects.create", name="search")  # the default organisation may have one so called too
    do("plans.create", name="gold", rpm=600, budget_usd="2.5", models=["a", "b"])
    do("keys.create", project="search", org="acme", plan="gold", name="ci")
    do("prices.create", model="a", usd_per_million={"prompt": "0.15", "completion": "0.6"})


# --- what each does ----------------------------------------------------------------------------------------------

DOES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("orgs.create", {"name": "new"}, {"name": "new", "budget_nanos": None, "spent_nanos": 0}),
    ("orgs.show", {"org": "acme"}, {"budget_usd": "10.00", "budget_nanos": 10 * DOLLAR, "spent_usd": "0.00"}),
    ("orgs.set", {"org": "acme", "budget_usd": "0.000000001"}, {"budget_nanos": 1}),
    ("orgs.set", {"org": "acme", "budget_usd": None}, {"budget_nanos": None, "name": "acme"}),
    ("orgs.set", {"org": "acme", "name": "Acme & Söhne, (UK)"}, {"name": "Acme & Söhne, (UK)"}),
    ("orgs.set", {"org": "acme", "name": "acme"}, {"name": "acme"}),
    ("projects.create", {"name": "p"}, {"org": "default", "name": "p"}),
    ("projects.show", {"project": "search", "org": "acme"}, {"org": "acme", "budget_usd": "5.00"}),
    ("projects.set", {"project": "search", "org": "acme", "name": "find"}, {"name": "find", "budget_usd": "5.00"}),
    ("projects.erase", {"project": "search", "org": "acme"}, {"name": "search", "org": "acme", "erased_events": 0}),
    ("keys.create", {"project": "default"}, {"name": "key-1", "scopes": ["inference"], "plan": None}),
    (
        "keys.create",
        {"project": "default", "plan": "bronze", "scopes": ["admin", "admin"], "models": ["x", "x"], "budget_usd": "0",
         "expires_at": "2026-04-01T02:00:00+02:00"},
        {"plan": "bronze", "scopes": ["admin"], "models": ["x"], "budget_nanos": 0,
         "expires_at": "2026-04-01T00:00:00Z"},
    ),
    ("keys.show", {"key": "ci"}, {"name": "ci", "org": "acme", "project": "search", "plan": "gold"}),
    ("keys.set", {"key": "ci", "plan": None, "models": ["m"]}, {"plan": None, "models": ["m"], "name": "ci"}),
    ("keys.set", {"key": "ci", "expires_at": "2027-01-01"}, {"expires_at": "2027-01-01T00:00:00Z"}),
    ("keys.rotate", {"key": "ci"}, {"name": "ci", "state": "active"}),
    ("keys.revoke", {"key": "ci"}, {"name": "ci", "state": "revoked"}),
    ("keys.revoke", {"key": "first", "force": True}, {"state": "revoked"}),
    ("plans.create", {"name": "p", "concurrency": 0}, {"concurrency": 0, "rpm": None, "source": "db", "keys": 0}),
    ("plans.show", {"plan": "gold"}, {"rpm": 600, "budget_usd": "2.50", "models": ["a", "b"], "keys": 1}),
    ("plans.show", {"plan": "bronze"}, {"source": "file", "rpm": 10}),
    ("plans.set", {"plan": "gold", "rpm": None, "models": None}, {"rpm": None, "models": None, "budget_usd": "2.50"}),
    ("prices.create", {"model": "org/b", "usd_per_million": {"prompt": "0"}}, {"state": "current", "source": "db"}),
    (
        "prices.create",
        {"model": "filed", "usd_per_million": {"prompt": "1"}, "since": "2027-01-01", "batch_percent": 50,
         "usd_per_request": "0.000000001"},
        {"state": "future", "nanos_per_request": 1, "batch_percent": 50},
    ),
    ("prices.show", {"price": "a"}, {"model": "a", "state": "current", "since": "2026-03-31T23:30:00Z"}),
    ("prices.show", {"price": "1"}, {"model": "filed", "source": "file"}),
    ("usage", {}, {"by": [], "time_zone": "UTC"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "shown"), DOES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_each_verb_does(do: Do, name: str, given: dict[str, Any], shown: dict[str, Any]) -> None:
    """A verb that does something else than it says would be found by whoever is locked out or overcharged."""
    _furnish(do)
    answer = do(name, **given)
    assert {field: answer[field] for field in shown} == shown


LISTS = {
    "orgs.list": ["acme", "default"],
    "projects.list": ["search", "default", "search"],
    "keys.list": ["ci", "first"],
    "plans.list": ["bronze", "gold"],
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(do: Do, name: str) -> None:
    """All there are, in an order that does not change from one look to the next."""
    _furnish(do)
    assert [row["name"] for row in do(name)] == LISTS[name]


def test_lists_can_be_narrowed(do: Do) -> None:
    """A filter that let others through would show one organisation's keys to who asked for another's."""
    _furnish(do)
    do("keys.revoke", key="ci")
    assert [row["org"] for row in do("projects.list", org="acme")] == ["acme"]
    assert [row["name"] for row in do("keys.list", org="acme")] == ["ci"]
    assert [row["name"] for row in do("keys.list", state="active")] == ["first"]
    assert do("keys.list", project="search", org="acme", state="active") == []
    assert [row["model"] for row in do("prices.list", model="filed")] == ["filed"]
    assert {row["source"] for row in do("prices.list", state="current")} == {"file", "default", "db"}


def test_workers_are_listed_and_closed(do: Do, registry: Registry) -> None:
    """What a machine that does not come back holds of budgets could never be spent; what was closed is closed."""
    one, other = (
        registry.store.write(
            lambda c, place=place: bank.enrol(c, place, machine="m", boot="b", pid=7, now=registry.clock.now())
        )
        for place in ("m-w1", "m-w2")
    )
    assert [(row["id"], row["held_nanos"]) for row in do("workers.list")] == [(one.id, 0), (other.id, 0)]
    assert do("workers.close", worker=one.id)["id"] == one.id
    assert [row["id"] for row in do("workers.list")] == [other.id]
    with pytest.raises(bank.Fenced):
        registry.store.write(lambda c: bank.holdings(c, one))
    with pytest.raises(NotFound, match="no worker"):
        do("workers.close", worker=one.id)


def test_every_verb_is_tried_here() -> None:
    """A verb without a row in these tables is a verb nobody has tried."""
    tried = {name for name, _, _ in DOES} | set(LISTS) | {"prices.list", "prices.retire"}
    tried |= {"workers.list", "workers.close"}
    assert tried == set(OPERATIONS)


# --- what each refuses -------------------------------------------------------------------------------------------

REFUSES: list[tuple[str, dict[str, Any], type[InterlaceError], str]] = [
    ("orgs.create", {}, InvalidRequest, "name"),
    ("orgs.create", {"name": "acme"}, Conflict, "already"),
    ("orgs.create", {"name": "x", "colour": "red"}, InvalidRequest, "colour"),
    ("orgs.create", {"name": "x", "budget_usd": 5}, InvalidRequest, "budget_usd"),
    ("orgs.create", {"name": "x", "budget_usd": "-1"}, InvalidRequest, "budget_usd"),
    ("orgs.create", {"name": "x", "budget_usd": "1e-9"}, InvalidRequest, "budget_usd"),
    ("orgs.create", {"name": "x", "budget_usd": "0.0000000001"}, InvalidRequest, "nine decimals"),
    ("orgs.create", {"name": "x", "budget_usd": "1000000001"}, InvalidRequest, "billion"),
    ("orgs.show", {"org": "acm"}, NotFound, "Did you mean 'acme'"),
    ("orgs.set", {"org": "acme"}, InvalidRequest, "Nothing is to be changed"),
    ("orgs.set", {"org": "acme", "name": "default"}, Conflict, "already"),
    ("orgs.set", {"org": "acme", "name": None}, InvalidRequest, "name"),
    ("orgs.set", {"org": "nobody", "name": "x"}, NotFound, "no organisation 'nobody'"),
    ("projects.create", {"name": "search", "org": "acme"}, Conflict, "already"),
    ("projects.create", {"name": "p", "org": "acne"}, NotFound, "'acme'"),
    ("projects.show", {"project": "search"}, Conflict, "`org`"),
    ("projects.set", {"project": "search", "name": "x"}, Conflict, "`org`"),
    ("projects.set", {"project": "default", "name": "search"}, Conflict, "already"),
    ("projects.erase", {"project": "search"}, Conflict, "`org`"),
    ("projects.erase", {"project": "nowhere"}, NotFound, "nowhere"),
    ("keys.create", {"project": "nowhere"}, NotFound, "nowhere"),
    ("keys.create", {"project": "search"}, Conflict, "`org`"),
    ("keys.create", {"project": "default", "plan": "platinum"}, NotFound, "platinum"),
    ("keys.create", {"project": "default", "name": "first"}, Conflict, "already"),
    ("keys.create", {"project": "default", "scopes": []}, InvalidRequest, "scopes"),
    ("keys.create", {"project": "default", "scopes": ["root"]}, InvalidRequest, "scopes"),
    ("keys.create", {"project": "default", "models": [""]}, InvalidRequest, "models"),
    ("keys.create", {"project": "default", "models": ["m"] * 257}, InvalidRequest, "models"),
    ("keys.create", {"project": "default", "expires_at": "2026-03-31"}, InvalidRequest, "past"),
    ("keys.create", {"project": "default", "expires_at": "2027-01-01T00:00:00"}, InvalidRequest, "time zone"),
    ("keys.create", {"project": "default", "expires_at": "9999-12-31T23:59:59-23:59"}, InvalidRequest, "ahead"),
    ("keys.create", {"project": "default", "key": "sk-il-mine"}, InvalidRequest, "key"),
    ("keys.show", {"key": "cii"}, NotFound, "'ci'"),
    ("keys.set", {"key": "ci"}, InvalidRequest, "Nothing is to be changed"),
    ("keys.set", {"key": "first", "expires_at": "2027-01-01"}, Conflict, "force"),
    ("keys.set", {"key": "ci", "plan": "platinum"}, NotFound, "platinum"),
    ("keys.rotate", {"key": "first"}, Conflict, "force"),
    ("keys.revoke", {"key": "first"}, Conflict, "force"),
    ("plans.create", {"name": "gold"}, Conflict, "already"),
    ("plans.create", {"name": "bronze"}, Conflict, "interlace.yaml"),
    ("plans.create", {"name": "p", "rpm": -1}, InvalidRequest, "rpm"),
    ("plans.create", {"name": "p", "rpm": 10**30}, InvalidRequest, "rpm"),
    ("plans.create", {"name": "p", "rpm": 1.5}, InvalidRequest, "rpm"),
    ("plans.create", {"name": "p", "default_max_tokens": 0}, InvalidRequest, "default_max_tokens"),
    ("plans.show", {"plan": "golden"}, NotFound, "'gold'"),
    ("plans.set", {"plan": "bronze", "rpm": 20}, Conflict, "interlace.yaml"),
    ("plans.set", {"plan": "gold", "name": "bronze"}, Conflict, "interlace.yaml"),
    ("plans.set", {"plan": "gold"}, InvalidRequest, "Nothing is to be changed"),
    ("prices.create", {"model": "m", "usd_per_million": {}}, InvalidRequest, "needs an amount"),
    ("prices.create", {"model": "m", "usd_per_million": {"prompt": "a"}}, InvalidRequest, "usd_per_million.prompt"),
    ("prices.create", {"model": "m", "usd_per_million": {"promt": "1"}}, InvalidRequest, "promt"),
    ("prices.create", {"model": " m", "usd_per_million": {"prompt": "1"}}, InvalidRequest, "model"),
    ("prices.create", {"model": "m", "usd_per_million": {"prompt": "1"}, "batch_percent": 101}, InvalidRequest, "per"),
    ("prices.create", {"model": "m", "usd_per_million": {"prompt": "1"}, "since": "soon"}, InvalidRequest, "since"),
    ("prices.create", {"model": "filed", "usd_per_million": {"prompt": "1"}, "since": "1970-01-01"}, Conflict, "yaml"),
    ("prices.show", {"price": "none such"}, NotFound, "none such"),
    ("prices.show", {"price": "99"}, NotFound, "99"),
    ("prices.retire", {"id": "1"}, Conflict, "interlace.yaml"),
    ("prices.retire", {"id": "2"}, Conflict, "product"),
    ("prices.retire", {"id": "a"}, NotFound, "'a'"),
    ("usage", {"by": "colour"}, InvalidRequest, "colour"),
    ("usage", {"since": "2026-02-30"}, InvalidRequest, "since"),
    ("usage", {"until": "yesterday"}, InvalidRequest, "until"),
    ("usage", {"outcome": "splendid"}, InvalidRequest, "outcome"),
    ("usage", {"key": "nobody's"}, NotFound, "nobody"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given", "error", "words"), REFUSES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_each_verb_refuses(
    registry: Registry, do: Do, name: str, given: dict[str, Any], error: type[InterlaceError], words: str
) -> None:
    """A refusal names what is wrong, in an error of its kind, and leaves everything as it was."""
    _furnish(do)
    before = _everything(registry)
    with pytest.raises(error) as raised:
        do(name, **given)
    assert type(raised.value) is error
    assert words in raised.value.message
    assert _everything(registry) == before


def _everything(registry: Registry) -> list[Any]:
    return [perform(registry, f"{resource}.list") for resource in ("orgs", "projects", "keys", "plans", "prices")]


# --- names -------------------------------------------------------------------------------------------------------

HOSTILE = (
    "", " ", "a ", " a", "\x00", "a\x00b", "a\nb", "a\r\nSet-Cookie: x", "\x1b[31mred", "=1+1", "+1", "-1", "@SUM(A1)",
    "a\tb", "'; DROP TABLE organisations; --", 'a"b', "a/b", "../etc", "a?b", "a#b", "a%2fb", "<script>", "${jndi}",
    "a\u202eb", "a\u200bb", "\ufeffa", "a\u2028b", "none", "None", "org_0123456789abcdef0123", "x" * 129,
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize(
    ("verb", "given"), [("orgs.create", {}), ("projects.create", {}), ("plans.create", {}),
                        ("keys.create", {"project": "default"})], ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_names_that_could_do_something_are_refused(do: Do, verb: str, given: dict[str, Any], name: str) -> None:
    """A name is shown in terminals, logs, CSV files and URLs, so none may be a command to one of them."""
    with pytest.raises(InvalidRequest, match="letters, digits") as raised:
        do(verb, name=name, **given)
    assert raised.value.param == "name"


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=140))
@example(name="Robert'); DROP TABLE api_keys;--"[:7] + "(x)")
@example(name="e\u0301cole")
def test_any_name_is_refused_or_found_again(registry: Registry, name: str) -> None:
    """Whatever is taken as a name leads to its thing, as it was written or composed, and nothing else breaks."""
    try:
        made = perform(registry, "orgs.create", name=name)
    except (InvalidRequest, Conflict):
        return
    assert perform(registry, "orgs.show", org=name)["id"] == made["id"]
    assert made["name"].isprintable()
    assert made["name"][0].isalnum()


# --- keys --------------------------------------------------------------------------------------------------------


def _may(registry: Registry, text: str) -> bool:
    """Whether a request with the key would be let in."""
    caller = registry.directory.caller(registry.hasher.digest(text))
    return caller is not None and caller.key.revoked_at is None


def test_a_key_is_shown_once_and_kept_as_its_hash(registry: Registry, do: Do, tmp_path: Path) -> None:
    """A database, its side files or an answer that held the text would give the key to who reads them."""
    text = do("keys.create", project="default", name="ci")["key"]
    assert _may(registry, text)
    assert text not in repr([do("keys.show", key="ci"), do("keys.list")])
    for file in tmp_path.iterdir():
        assert text.encode() not in file.read_bytes()


def test_rotation_and_revocation_hold_at_once_and_for_good(registry: Registry, do: Do, tmp_path: Path) -> None:
    """An old text that worked on, or worked again after a restart, would be a key nobody can take back."""
    first = do("keys.create", project="default", name="ci", budget_usd="3")
    second = do("keys.rotate", key="ci")
    assert (second["id"], second["budget_usd"]) == (first["id"], "3.00")
    assert [_may(registry, one["key"]) for one in (first, second)] == [False, True]
    do("keys.revoke", key=second["id"])
    assert do("keys.revoke", key=second["id"])["state"] == "revoked"
    for verb in ("keys.rotate", "keys.set"):
        with pytest.raises(Conflict, match="revoked"):
            do(verb, key=second["id"], **({"name": "x"} if verb == "keys.set" else {}))
    registry.close()
    again = _opened(tmp_path)
    again.admit_first_key(first["key"], from_environment=False)
    assert not any(_may(again, one["key"]) for one in (first, second))
    again.close()


def test_a_name_is_free_again_once_its_key_is_revoked(do: Do) -> None:
    """Names belong to living keys; which is meant is asked only where two are left."""
    for _ in range(2):
        do("keys.create", project="default", name="ci")
        do("keys.revoke", key="ci")
    with pytest.raises(Conflict, match="2 keys called 'ci'"):
        do("keys.show", key="ci")
    living = do("keys.create", project="default", name="ci")
    assert do("keys.show", key="ci")["id"] == living["id"]
    assert do("keys.create", project="default")["name"] == "key-1"
    assert do("keys.create", project="default")["name"] == "key-2"


def test_with_a_second_admin_key_the_first_may_go(registry: Registry, do: Do) -> None:
    """The guard against locking oneself out must not keep a key alive that is known to others; one that will expire
    is no way back in."""
    do("keys.create", project="default", name="brief", scopes=["admin"], expires_at="2026-12-31")
    with pytest.raises(Conflict, match="last lasting key"):
        do("keys.revoke", key="first")
    do("keys.create", project="default", name="second", scopes=["admin"])
    assert do("keys.revoke", key="first")["state"] == "revoked"


def test_a_key_expires(registry: Registry, do: Do) -> None:
    """The state that is shown is the one that holds now."""
    do("keys.create", project="default", name="ci", expires_at="2026-04-01")
    registry.clock.time = parse_moment("2026-04-01")  # type: ignore[attr-defined]
    assert do("keys.show", key="ci")["state"] == "expired"


def test_ten_thousand_keys_are_looked_up_as_ten_are(registry: Registry, do: Do, tmp_path: Path) -> None:
    """A look-up that went through the keys would slow every request down as an organisation grows: here it hashes
    once and touches one key, and a start reads them all in one query."""
    project = registry.directory.projects[do("projects.show", project="default")["id"]]
    texts = [f"sk-il-{number}" for number in range(10_000)]
    rows = [
        {"id": f"key_{number:020x}", "project_id": project.id, "name": f"k{number}", "hint": "", "created_at": 0,
         "digest": registry.hasher.digest(text), "scopes": '["inference"]'}
        for number, text in enumerate(texts)
    ]  # fmt: skip
    registry.store.write(lambda connection: connection.execute(insert(api_keys), rows))
    registry.close()
    again = _opened(tmp_path)
    touched: list[Any] = []

    class Watched(dict[Any, Any]):
        """Tells what is looked up; going through it is an error."""

        def get(self, key: Any, default: Any = None) -> Any:
            touched.append(key)
            return super().get(key, default)

        def __iter__(self) -> Any:
            raise AssertionError("a look-up went through all keys")

        values = items = keys = __iter__  # type: ignore[assignment]

    again.directory._by_digest = Watched(again.directory._by_digest)
    digest = again.hasher.digest(texts[7777])
    caller = again.directory.caller(digest)
    assert caller is not None
    assert (caller.key.name, touched) == ("k7777", [digest])
    assert len(perform(again, "keys.list")) == 10_001
    again.close()


# --- changes -----------------------------------------------------------------------------------------------------


def test_what_was_changed_is_there_after_a_restart(registry: Registry, do: Do, tmp_path: Path) -> None:
    """What only memory knew would be gone: a budget lifted, a revoked key alive."""
    _furnish(do)
    do("keys.set", key="ci", budget_usd="1", models=["m"])
    do("plans.set", plan="gold", rpm=None)
    before = _everything(registry)
    registry.close()
    again = _opened(tmp_path)
    assert _everything(again) == before
    again.close()


def test_no_change_is_put_over_a_later_one(registry: Registry, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two administrators at once: memory must end as the database does, or a revoked key lives until the restart."""
    do("orgs.create", name="acme")
    later = threading.Thread(target=do, args=("orgs.set",), kwargs={"org": "acme", "budget_usd": "2"})
    put = registry.directory.put

    def put_slowly(entry: Any) -> None:
        monkeypatch.setattr(registry.directory, "put", put)
        later.start()
        later.join(0.5)  # time enough to overtake, for one that may
        put(entry)

    monkeypatch.setattr(registry.directory, "put", put_slowly)
    do("orgs.set", org="acme", budget_usd="1")
    later.join()
    with registry.store.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT budget_nanos FROM organisations WHERE name = 'acme'").one()
    assert do("orgs.show", org="acme")["budget_nanos"] == row[0] == 2 * DOLLAR


def test_of_many_who_want_a_name_one_gets_it(registry: Registry, do: Do) -> None:
    """Two things of one name could not be told apart; the loser is told, not left with a failure of the database."""
    told: list[str] = []

    def ask() -> None:
        try:
            do("orgs.create", name="wanted")
        except Conflict:
            told.append("taken")

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 11
    assert [row["name"] for row in do("orgs.list")] == ["default", "wanted"]


def test_a_plan_that_left_the_file_takes_no_new_keys(registry: Registry, do: Do, tmp_path: Path) -> None:
    """Keys on it keep their limits, but nobody is put on limits that no file states any more."""
    do("keys.create", project="default", name="ci", plan="bronze")
    registry.close()
    again = _opened(tmp_path, Settings())
    shown = perform(again, "plans.show", plan="bronze")
    assert (shown["state"], shown["keys"]) == ("retired", 1)
    with pytest.raises(Conflict, match=r"interlace\.yaml has no plan"):
        perform(again, "keys.create", project="default", plan="bronze")
    again.close()


def test_without_a_file_to_read_its_plans_stay(registry: Registry, do: Do, tmp_path: Path) -> None:
    """A command run in another folder, where no interlace.yaml is, must not retire what the server's names."""
    registry.close()
    again = Registry.open(placed(Settings(home=tmp_path)), {}, Clock(), take_over=False)
    assert perform(again, "plans.show", plan="bronze")["state"] == "active"
    assert perform(again, "prices.show", price="filed")["source"] == "file"
    again.close()


# --- prices ------------------------------------------------------------------------------------------------------


def test_a_later_price_takes_over_and_a_retired_one_steps_back(registry: Registry, do: Do) -> None:
    """Which price holds follows from beginnings alone; one that was taken out never held afterwards."""
    old = do("prices.create", model="m", usd_per_million={"prompt": "1", "completion": "2"})
    new = do("prices.create", model="m", usd_per_million={"prompt": "3", "completion": "4"}, since="2026-04-01")
    assert [row["state"] for row in do("prices.list", model="m")] == ["current", "future"]
    registry.clock.time = parse_moment("2026-04-02")  # type: ignore[attr-defined]
    assert [row["state"] for row in do("prices.list", model="m")] == ["past", "current"]
    assert do("prices.retire", id=str(new["id"]))["state"] == "retired"
    assert do("prices.retire", id=str(new["id"]))["state"] == "retired"
    assert do("prices.show", price="m")["id"] == old["id"]
    assert do("prices.show", price="m")["nanos_per_million"]["cached"] == DOLLAR
    assert do("prices.show", price="m")["usd_per_million"]["cached"] is None


# --- usage -------------------------------------------------------------------------------------------------------


def _record(registry: Registry, key: str, *, number: int, day: str = "2026-03-30", tags: tuple[str, ...] = ()) -> None:
    caller = registry.directory.keys[perform(registry, "keys.show", key=key)["id"]]
    project = registry.directory.projects[caller.project_id]
    event = UsageEvent(
        id=f"{number:024x}", org_id=project.org_id, project_id=project.id, key_id=caller.id, model="m", engine="local",
        endpoint="chat", outcome=Outcome.FINISHED, price_id=1, tokens=Tokens(prompt=10, cached=4, completion=3),
        cost_nanos=7, day=day, started_us=parse_moment(f"{day}T12:00:00Z"), latency_us=1, tags=tags,
    )  # fmt: skip
    registry.store.record(event)


def test_usage(registry: Registry, do: Do) -> None:
    """Rows add up to the whole, by any grouping but tags, and a filter takes exactly what it names."""
    _furnish(do)
    _record(registry, "ci", number=1, tags=("a", "b"))
    _record(registry, "ci", number=2, day="2026-03-31", tags=("a",))
    _record(registry, "first", number=3, day="2026-02-28")
    registry.store.write(lambda _: None)  # a turn after theirs
    report = do("usage", by="org,project,key,model,day")
    assert [(row["org"], row["key"], row["day"], row["requests"], row["cost_nanos"]) for row in report["data"]] == [
        ("acme", "ci", "2026-03-30", 1, 7), ("acme", "ci", "2026-03-31", 1, 7), ("default", "first", "2026-02-28", 1, 7)
    ]  # fmt: skip
    assert report["total"]["cost_nanos"] == 21
    assert report["total"]["cost_usd"] == "0.000000021"
    assert (report["total"]["prompt_tokens"], report["total"]["cached_tokens"]) == (30, 12)
    tags = do("usage", by="tag")
    assert [(row["tag"], row["requests"]) for row in tags["data"]] == [(None, 1), ("a", 2), ("b", 1)]
    assert tags["total"]["requests"] == 3
    for which, requests in [
        ({"since": "2026-03-31"}, 1), ({"until": "2026-03-30"}, 2), ({"since": "2026-03-30", "until": "2026-03-30"}, 1),
        ({"since": "2026-03-30T12:00:00Z"}, 2), ({"until": "2026-03-30T12:00:00Z"}, 1), ({"org": "acme"}, 2),
        ({"project": "search", "org": "acme"}, 2), ({"key": "first"}, 1), ({"tag": "b"}, 1), ({"model": "other"}, 0),
        ({"outcome": "finished"}, 3), ({"outcome": "failed"}, 0),
    ]:  # fmt: skip
        assert do("usage", **which)["total"]["requests"] == requests, which
    assert do("orgs.show", org="acme")["spent_nanos"] == 14
    assert do("keys.show", key="first")["spent_nanos"] == 0  # that was last month
    assert {row["name"]: row["spent_usd"] for row in do("orgs.list")} == {"acme": "0.000000014", "default": "0.00"}


def test_two_of_one_name_are_two_rows(registry: Registry, do: Do) -> None:
    """Projects of two organisations may be called alike; one row for both would bill one for the other."""
    _furnish(do)
    other = do("keys.create", project="search", org="default", name="ci")
    _record(registry, do("keys.show", key="ci", project="search", org="acme")["id"], number=1)
    _record(registry, other["id"], number=2)
    registry.store.write(lambda _: None)
    rows = do("usage", by="project,key")["data"]
    assert [(row["project"], row["key"], row["requests"]) for row in rows] == [("search", "ci", 1)] * 2
    assert len({row["project_id"] for row in rows}) == 2
