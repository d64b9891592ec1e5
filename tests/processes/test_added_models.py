"""Checkpoints of the store come into service and go out of it while a real gateway serves, by command, with one process
and several."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from interlace.config import AddedModel, read_added_models
from interlace.errors import Conflict, InvalidRequest
from interlace.gateway.asking import Where
from interlace.gateway.model_placing import place_model
from interlace.models import pull
from tests.support.billing import priced, tenants
from tests.support.served import Served, served
from tests.support.serving import COMMAND, environment
from tests.support.tenants import Tenant
from tests.support.tiny import tiny_llama_safetensors, tiny_weights

CALLERS = httpx.Client(timeout=60, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))
OK, NOT_FOUND = httpx.codes.OK, httpx.codes.NOT_FOUND


@dataclass
class There:
    """A gateway over a tiny Llama, with two more in its store: `one` and `two`."""

    served: Served
    folder: Path

    @property
    def home(self) -> Path:
        """Its home folder."""
        return self.folder / "home"

    @property
    def where(self) -> Where:
        """The gateway, for commands of this process."""
        return Where(environment(self.home), url=self.served.url, config=self.folder / "interlace.yaml")

    def say(self, model: str, who: Tenant | None = None, **more: Any) -> httpx.Response:
        """One greedy completion."""
        body = {"model": model, "prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True, **more}
        headers = who.headers if who else {"authorization": f"Bearer {self.served.key}"}
        return CALLERS.post(f"{self.served.url}/v1/completions", json=body, headers=headers)

    def text(self, model: str, who: Tenant | None = None, **more: Any) -> str:
        """What it says."""
        answer = self.say(model, who, **more)
        assert answer.status_code == OK, answer.text
        found: str = answer.json()["choices"][0]["text"]
        return found

    def admin(self, method: str, path: str = "", body: Any = None) -> httpx.Response:
        """The admin API's models."""
        headers = {"authorization": f"Bearer {self.served.key}"}
        return CALLERS.request(method, f"{self.served.url}/admin/v1/models{path}", json=body, headers=headers)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`interlace models ...` against this server."""
        command = [*COMMAND, "models", *words, "--json", "--url", self.served.url, "--config", "interlace.yaml"]
        return subprocess.run(
            command, cwd=self.folder, env=environment(self.home), capture_output=True, text=True, check=False
        )


def model(folder: Path) -> dict[str, Any]:
    """Settings of the configuration's only model."""
    return {"name": "tiny", "checkpoint": str(folder / "base"), "cache_bytes": "2MiB", "threads": 1}


@contextmanager
def there(folder: Path, workers: int = 1, **settings: Any) -> Iterator[There]:
    """The gateway, running."""
    if not (folder / "base").exists():
        tiny_llama_safetensors(folder / "base")
        for seed, name in ((1, "one"), (2, "two")):
            pull(str(tiny_llama_safetensors(folder / name, weights=tiny_weights(seed))), folder / "home", name=name)
    settings.setdefault("prices", [priced("tiny")])
    with served(folder, [model(folder)], workers=workers, **settings) as running:
        yield There(running, folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_added_and_removed_by_command_and_there_after_a_restart(tmp_path: Path, workers: int) -> None:
    """What a command adds is served by every worker at once, to its owner alone, at the price of the model it is like,
    still after a restart, and no more once it is removed; the other model's engine never starts anew meanwhile."""
    one, other = tenants(tmp_path, {"org": "one"}, {"org": "other"})
    with there(tmp_path, workers) as here:
        host = here.served.hosts()["tiny"].pid
        done = here.command("add", "agri", "--checkpoint", "one", "--owner", "one", "--like", "tiny")
        assert done.returncode == 0, done.stderr
        added = json.loads(done.stdout)
        assert added == {
            "id": "agri", "checkpoint": "one", "owner": "one", "source": "added", "engine": "local", "state": "ready",
            "detail": "", "priced_as": "tiny",
        }  # fmt: skip
        said = here.text("agri", one)
        assert said != here.text("tiny")
        assert {here.say("agri", one).status_code for _ in range(4)} == {OK}
        assert {here.say("agri", other).status_code for _ in range(4)} == {NOT_FOUND}
        assert here.admin("GET", "/agri").json() == added
        assert [row["id"] for row in json.loads(here.command("list").stdout)] == ["tiny", "agri"]
        assert here.served.hosts()["tiny"].pid == host
        costs = {event.model: event.cost_nanos for event in here.served.usage()}
        assert costs["agri"] == costs["tiny"] > 0
    with there(tmp_path, workers) as again:
        assert again.text("agri", one) == said
        assert again.say("agri", other).status_code == NOT_FOUND
        assert json.loads(again.command("rm", "agri").stdout)["id"] == "agri"
        assert {again.say("agri", one).status_code for _ in range(4)} == {NOT_FOUND}
        assert read_added_models(again.home) == ()


def test_what_cannot_be_served_is_not_added(tmp_path: Path) -> None:
    """Refused, with the reason, and the list is as it was: names that are taken or cannot be one, a checkpoint that is
    no name of the store's, an owner or a model that is not there, one that cannot be loaded or has no room; and only a
    key with the scope `admin` gets so far."""
    with there(tmp_path) as here:
        place = here.home / "checkpoints"
        for name, size in (("huge", 10**15), ("broken", None)):
            pull(str(tmp_path / "one"), here.home, name=name)
            if size is None:
                (place / name / "files" / "model.safetensors").write_bytes(b"\xff" * 100)
            else:
                manifest = json.loads((place / name / "manifest.json").read_text())
                (place / name / "manifest.json").write_text(json.dumps(manifest | {"bytes": size}))
        for given, status, reason in (
            ({"name": "tiny", "checkpoint": "one"}, 409, "There is something called tiny already"),
            ({"name": "a:b", "checkpoint": "one"}, 400, "`name` must be"),
            ({"name": "x", "checkpoint": "../../base"}, 400, "There is no checkpoint"),
            ({"name": "x", "checkpoint": str(tmp_path / "base")}, 400, "There is no checkpoint"),
            ({"name": "x", "checkpoint": "nope"}, 400, "There is no checkpoint"),
            ({"name": "x", "checkpoint": "one", "owner": "nobody"}, 404, "There is no organisation"),
            ({"name": "x", "checkpoint": "one", "like": "nobody"}, 404, "No model 'nobody' is served"),
            ({"name": "x", "checkpoint": "huge"}, 400, "of memory"),
            ({"name": "x", "checkpoint": "broken"}, 400, "could not be started, so nothing was changed"),
        ):
            refused = here.admin("POST", "", given)
            assert (refused.status_code, reason in refused.text) == (status, True), refused.text
            assert read_added_models(here.home) == (), given
        assert here.admin("DELETE", "/tiny").status_code == httpx.codes.CONFLICT
        key = CALLERS.post(
            f"{here.served.url}/admin/v1/keys", json={"project": "default", "name": "plain"},
            headers={"authorization": f"Bearer {here.served.key}"},
        ).json()["key"]  # fmt: skip
        plain = {"authorization": f"Bearer {key}"}
        url = f"{here.served.url}/admin/v1/models"
        assert CALLERS.get(url, headers=plain).status_code == httpx.codes.FORBIDDEN
        assert here.text("tiny")


def test_another_takes_its_place_while_the_first_answers(tmp_path: Path) -> None:
    """A stream that has begun ends by the weights it began with, the next request is answered by the new ones; the same
    again changes nothing, without `replace` nothing is replaced, and one that cannot be loaded leaves what was there.
    A list that says more than the server has heard, after a crash between the two, is made true."""
    with there(tmp_path) as here:
        view = place_model("mine", "one", "", "tiny", here.where, replace=False)
        assert view is not None
        assert view.checkpoint == "one"
        assert place_model("mine", "one", "", "tiny", here.where, replace=False) == view
        whole = here.text("mine", max_tokens=110)
        body = {"model": "mine", "prompt": "abc", "max_tokens": 110, "temperature": 0, "ignore_eos": True,
                "stream": True}  # fmt: skip
        headers = {"authorization": f"Bearer {here.served.key}"}
        with CALLERS.stream("POST", f"{here.served.url}/v1/completions", json=body, headers=headers) as stream:
            lines = stream.iter_lines()
            read = [next(line for line in lines if line.startswith("data: "))]
            with pytest.raises(Conflict, match="interlace models rm mine"):
                place_model("mine", "two", "", "tiny", here.where, replace=False)
            second = place_model("mine", "two", "", "tiny", here.where, replace=True)
            read += [line for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
        assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in read) == whole
        assert second is not None
        assert second.checkpoint == "two"
        now = here.text("mine", max_tokens=110)
        assert now != whole
        with pytest.raises(Conflict, match="belongs to everybody"):
            place_model("mine", "one", "default", "tiny", here.where, replace=True)
        pull(str(tmp_path / "one"), here.home, name="broken")
        (here.home / "checkpoints" / "broken" / "files" / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(InvalidRequest, match="nothing was changed"):
            place_model("mine", "broken", "", "tiny", here.where, replace=True)
        assert read_added_models(here.home) == (AddedModel("mine", "two", "", "tiny"),)
        assert here.text("mine", max_tokens=110) == now
        file = here.home / "models" / "added.json"
        file.write_text(file.read_text().replace("two", "one"))
        place_model("mine", "one", "", "tiny", here.where, replace=False)
        assert here.text("mine", max_tokens=110) == whole


def test_without_a_server_it_is_noted_and_what_is_gone_is_passed_over(tmp_path: Path) -> None:
    """The next start serves it. Where the configuration has its name now, or its checkpoint has gone, the start passes
    over it with a warning; where a guard would read nothing then, nothing starts."""
    with there(tmp_path) as here:
        where = here.where
    for name in ("mine", "gone", "tiny2"):
        assert place_model(name, "one", "", "", where, replace=False) is None
    with pytest.raises(Conflict, match="The configuration has a model tiny"):
        place_model("tiny", "one", "", "", where, replace=False)
    file = here.home / "models" / "added.json"
    entries = json.loads(file.read_text())
    entries[1]["checkpoint"] = "went"
    entries[2]["name"] = "tiny"
    file.write_text(json.dumps(entries))
    with there(tmp_path) as here:
        assert here.say("mine").json()["error"]["code"] == "model_not_priced"
        assert {line["model"] for line in here.served.logged(_PASSED)} == {"gone", "tiny"}
        assert [row["id"] for row in here.admin("GET").json()["data"]] == ["tiny", "mine"]
    config = tmp_path / "interlace.yaml"
    guards = {"classifiers": [{"model": "gone", "refuse": ["spam"]}]}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"guards": guards}))
    done = subprocess.run(
        [*COMMAND, "serve", "--config", str(config)], env=environment(here.home), cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "guards.classifiers[0].model names 'gone'" in done.stderr


_PASSED = "an added model is not served: its name is taken, or its checkpoint gone"
