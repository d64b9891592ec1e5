"""The verbs of the ledger on the command line: on the database while no server runs, else through its admin API."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.main import get_command

from interlace.cli import app, main
from interlace.config import Settings
from interlace.ledger import Registry
from interlace.ledger.operations import OPERATIONS
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving import COMMAND, environment, free_port

COST = 2 + 7 * 5


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What a program reads."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`interlace WORDS`, in this process, in an empty folder with a home of its own."""
    for name in [name for name in os.environ if name.startswith("INTERLACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INTERLACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INTERLACE_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["interlace", *words])
        code: Any = 0
        capsys.readouterr()
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A server that has its ledger open."""
    with running_gateway(Settings(prices=(costing("m", 2, 5),)), {"m": ScriptedEngine()}) as running:
        yield running


@pytest.fixture
def beside(run: Run, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command line on the machine of a running server: same configuration, and the key it keeps at home."""
    home = gateway.registry.settings.home
    (home / "key").write_text(gateway.key)
    (tmp_path / "interlace.yaml").write_text(yaml.safe_dump({"home": str(home), "port": gateway.port}))
    monkeypatch.delenv("INTERLACE_HOME")
    monkeypatch.delenv("INTERLACE_PORT")
    return run


def _tour(run: Run, tag: str) -> str:
    """What an operator does first; the text of the key."""
    assert run("orgs", "create", f"acme {tag}", "--budget-usd", "10", "--json").json["budget_nanos"] == 10**10
    made = run("projects", "create", f"search {tag}", "--org", f"acme {tag}", "--json").json
    assert made["org"] == f"acme {tag}"
    assert run("plans", "create", f"gold {tag}", "--rpm", "100", "--models", "m, n", "--json").json["models"] == [
        "m",
        "n",
    ]
    key = run(
        "keys", "create", "--project", f"search {tag}", "--plan", f"gold {tag}", "--name", f"ci {tag}", "--json"
    ).json
    assert (key["project"], key["plan"], key["scopes"]) == (f"search {tag}", f"gold {tag}", ["inference"])
    price = run("prices", "create", f"n {tag}", "--prompt", "0.15", "--completion", "0.6", "--json").json
    assert (price["state"], price["nanos_per_million"]["cached"]) == ("current", 150_000_000)
    assert run("prices", "show", f"n {tag}", "--json").json == price
    assert run("prices", "retire", str(price["id"]), "--json").json["state"] == "retired"
    assert run("keys", "set", f"ci {tag}", "--expires", "2999-01-01", "--json").json["expires_at"][:4] == "2999"
    assert run("keys", "set", f"ci {tag}", "--expires", "none", "--json").json["expires_at"] is None
    assert run("plans", "set", f"gold {tag}", "--rpm", "none", "--priority", "5", "--json").json["rpm"] is None
    assert run("projects", "set", f"search {tag}", "--budget-usd", "3", "--json").json["budget_usd"] == "3.00"
    assert run("orgs", "set", f"acme {tag}", "--budget-usd", "none", "--json").json["budget_usd"] is None
    assert [row["name"] for row in run("keys", "list", "--org", f"acme {tag}", "--json").json] == [f"ci {tag}"]
    for words in (
        ("orgs", f"acme {tag}"),
        ("projects", f"search {tag}"),
        ("keys", f"ci {tag}"),
        ("plans", f"gold {tag}"),
    ):
        assert run(words[0], "show", words[1], "--json").json["name"] == words[1]
    return str(key["key"])


def test_every_operation_has_a_verb() -> None:
    """What only the API could do, an operator at the terminal could not."""
    groups: Any = get_command(app)
    names = {"orgs", "projects", "keys", "plans", "prices", "workers"}
    verbs = {f"{group}.{verb}" for group in names for verb in groups.commands[group].commands}
    assert verbs | {"usage"} >= set(OPERATIONS)


def test_a_tour_without_a_server(run: Run, tmp_path: Path) -> None:
    """Everything can be set up before the first start, and is there when the server opens the ledger."""
    text = _tour(run, "x")
    registry = Registry.open(Settings(home=tmp_path / "home"), {})
    caller = registry.directory.caller(registry.hasher.digest(text))
    assert caller is not None
    assert caller.organisation.name == "acme x"
    registry.close()


def test_a_tour_beside_a_server(beside: Run, gateway: Gateway) -> None:
    """The same words do the same while the server has the ledger open, and hold at its next request."""
    text = _tour(beside, "y")
    ask = lambda key: _ask(gateway, key)  # noqa: E731
    assert ask(text).status_code == 200
    rotated = beside("keys", "rotate", "ci y", "--json").json["key"]
    assert (ask(text).status_code, ask(rotated).status_code) == (401, 200)
    assert beside("plans", "set", "gold y", "--models", "n", "--json").json["models"] == ["n"]
    assert ask(rotated).status_code == 403
    assert beside("keys", "set", "ci y", "--plan", "none", "--json").json["plan"] is None
    assert ask(rotated).status_code == 200
    assert beside("keys", "revoke", "ci y", "--json").json["state"] == "revoked"
    assert ask(rotated).status_code == 401


def _ask(gateway: Gateway, key: str, **headers: str) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}", **headers}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, trust_env=False)


def test_usage(beside: Run, gateway: Gateway) -> None:
    """JSON and CSV have whole nano-dollars, the table dollars and a total; a tag that a spreadsheet would calculate is
    marked as text."""
    key = beside("keys", "create", "--project", "default", "--name", "counted", "--json").json["key"]
    assert _ask(gateway, key, **{"x-interlace-tags": "=1+1,plain"}).status_code == 200
    assert _ask(gateway, key).status_code == 200
    words = ("usage", "--of-key", "counted", "--by")
    (row,) = beside(*words, "org,project,key,model", "--since", "2020-01-01", "--json").json
    names = {name: row[name] for name in ("org", "project", "key", "model")}
    assert names == {"org": "default", "project": "default", "key": "counted", "model": "m"}
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (2, 2, 14)
    assert row["cost_nanos"] == 2 * COST
    assert type(row["cost_nanos"]) is int
    rows = list(csv.DictReader(io.StringIO(beside(*words, "tag", "--csv").out)))
    assert [(row["tag"], row["cost_nanos"]) for row in rows] == [("", "37"), ("'=1+1", "37"), ("plain", "37")]
    assert [row["tag"] for row in beside(*words, "tag", "--json").json] == [None, "=1+1", "plain"]
    table = beside(*words, "key,day").out.splitlines()
    assert table[0].split() == ["KEY", "DAY", "REQUESTS", "TOKENS", "IN", "TOKENS", "OUT", "USD"]
    assert table[-1].split() == ["TOTAL", "2", "2", "14", "0.000000074"]
    assert (
        beside("usage", "--since", "2999-01-01", "--by", "key", "--csv").out.splitlines()[0].startswith("key,requests,")
    )


def test_tables_for_people(beside: Run) -> None:
    """Each list has a heading and a row for each; what is shown of a new key says that it is shown this once."""
    made = beside("keys", "create", "--project", "default", "--name", "for people")
    assert made.out.splitlines()[-1].split()[1].startswith("sk-il-")
    assert "only time" in made.err
    for resource, heading in {"orgs": "BUDGET USD", "projects": "ORG", "keys": "SCOPES", "prices": "SINCE"}.items():
        lines = beside(resource, "list").out.splitlines()
        assert heading in lines[0]
        assert len(lines) > 1


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("keys", "show", "nobody"), 1, "no key 'nobody'"),
    (("projects", "create", "default"), 1, "already"),
    (("keys", "create", "--project", "defualt"), 1, "'default'"),
    (("orgs", "create", "=1+1"), 2, "letters, digits"),
    (("orgs", "create", "x", "--budget-usd", "five"), 2, "budget_usd"),
    (("orgs", "set", "default"), 2, "Nothing is to be changed"),
    (("plans", "create", "p", "--rpm", "many"), 2, "--rpm"),
    (("keys", "create"), 2, "--project"),
    (("keys", "list", "--state", "asleep"), 2, "state"),
    (("prices", "create", "m2"), 2, "needs an amount"),
    (("usage", "--by", "colour"), 2, "colour"),
    (("usage", "--json", "--csv"), 2, "exclude"),
]


@pytest.mark.parametrize("where", ["run", "beside"])
@pytest.mark.parametrize(("words", "code", "said"), WRONG, ids=lambda value: " ".join(value) if value is tuple else "")
def test_what_cannot_be_done(
    request: pytest.FixtureRequest, where: str, words: tuple[str, ...], code: int, said: str
) -> None:
    """The same words on standard error and the same exit code, whichever way the ledger was reached."""
    done = request.getfixturevalue(where)(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


# --- which ledger is asked ---------------------------------------------------------------------------------------


def test_a_server_that_is_named_is_asked_first(
    run: Run, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--url` and `INTERLACE_URL` mean another machine's ledger: nothing is opened or made at home."""
    for words, variables in [(("--url", gateway.url), {}), ((), {"INTERLACE_URL": gateway.url})]:
        for name, value in {"INTERLACE_API_KEY": gateway.key, **variables}.items():
            monkeypatch.setenv(name, value)
        assert "m" in [row["model"] for row in run("prices", "list", *words, "--json").json]
    assert not (tmp_path / "home").exists()
    done = run("orgs", "list", "--url", "http://127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "No server answers" in done.err


def test_a_key_that_may_not_is_told_how_to_name_one_that_may(beside: Run) -> None:
    """The key in a developer's environment is usually one for models."""
    key = beside("keys", "create", "--project", "default", "--json").json["key"]
    done = beside("orgs", "list", "--key", key)
    assert done.code == 1
    assert "scope `admin`" in done.err
    assert "--key" in done.err
    assert key not in done.err


def test_a_ledger_that_another_has_open_and_no_server_to_ask(run: Run, tmp_path: Path) -> None:
    """Both ways are named that did not work, and what to do."""
    registry = Registry.open(Settings(home=tmp_path / "home"), {})
    done = run("orgs", "list")
    registry.close()
    assert (done.code, done.out) == (2, "")
    assert "has the ledger" in done.err
    assert "--url" in done.err


def test_a_command_without_a_file_leaves_what_the_file_names(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command run in another folder reads no interlace.yaml, which does not mean that its plans are gone."""
    (tmp_path / "interlace.yaml").write_text("plans: [{name: bronze, rpm: 3}]\n")
    assert run("plans", "show", "bronze", "--json").json["source"] == "file"
    assert "interlace.yaml" in run("plans", "set", "bronze", "--rpm", "4").err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("plans", "show", "bronze", "--json").json["state"] == "active"


def test_a_key_in_the_environment_is_not_made_one_of_the_ledger(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`INTERLACE_API_KEY` is what a caller shows; a command on the database must not give it every scope."""
    monkeypatch.setenv("INTERLACE_API_KEY", "sk-il-of-some-caller-or-other")
    assert run("keys", "list", "--json").json == []
    assert [row["name"] for row in run("projects", "list", "--json").json] == ["default"]
    assert not (tmp_path / "home" / "key").exists()


def test_the_command_itself(gateway: Gateway, tmp_path: Path) -> None:
    """As a process of its own: a project and a key beside a running server, and the key works."""
    home = gateway.registry.settings.home
    (home / "key").write_text(gateway.key)
    variables = {**environment(home), "INTERLACE_PORT": str(gateway.port)}

    def interlace(*words: str) -> Any:
        done = subprocess.run(
            [*COMMAND, *words], env=variables, cwd=tmp_path, capture_output=True, check=True, timeout=60
        )
        return json.loads(done.stdout)

    interlace("projects", "create", "by-command", "--json")
    key = interlace("keys", "create", "--project", "by-command", "--json")["key"]
    assert _ask(gateway, key).status_code == 200
    assert [row["cost_nanos"] for row in interlace("usage", "--project", "by-command", "--json")] == [COST]
