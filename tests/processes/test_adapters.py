"""Adapters of a real gateway come and go while it serves: by a reload and by command, with one process and several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.adapters import random_adapter
from tests.support.served import Served, patiently, served
from tests.support.serving import COMMAND, environment
from tests.support.tiny import tiny_llama_safetensors

DONE, REFUSED = "the configuration was reloaded", "the configuration was not reloaded"


@dataclass
class There:
    """A gateway over a tiny Llama, and its configuration file."""

    served: Served
    folder: Path
    model: dict[str, Any]

    def say(self, model: str = "tiny") -> httpx.Response:
        """One greedy completion."""
        body = {"model": model, "prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        headers = {"authorization": f"Bearer {self.served.key}"}
        return httpx.post(f"{self.served.url}/v1/completions", json=body, headers=headers, trust_env=False, timeout=60)

    def text(self, model: str = "tiny") -> str:
        """What it says."""
        answer = self.say(model)
        assert answer.status_code == httpx.codes.OK, answer.text
        found: str = answer.json()["choices"][0]["text"]
        return found

    def write(self, *adapters: dict[str, Any]) -> None:
        """Another configuration, with these adapters."""
        file = self.folder / "interlace.yaml"
        config = yaml.safe_load(file.read_text())
        config["models"] = [{**self.model, "adapters": list(adapters)}]
        file.write_text(yaml.safe_dump(config))

    def reload(self) -> str:
        """SIGHUP; what the coordinator, or the only process, logged of it."""
        before = len(self.served.logged(DONE) + self.served.logged(REFUSED))
        self.served.process.send_signal(signal.SIGHUP)
        patiently(lambda: len(self.served.logged(DONE) + self.served.logged(REFUSED)) > before)
        return self.served.log

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`interlace adapters ...` against this server."""
        command = [*COMMAND, "adapters", *words, "--json", "--url", self.served.url, "--config", "interlace.yaml"]
        return subprocess.run(
            command, cwd=self.folder, env=environment(self.folder / "home"), capture_output=True, text=True, check=False
        )

    def run(self, *words: str) -> Any:
        """What it prints, which must go well."""
        done = self.command(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def entry(self, number: int, **more: Any) -> dict[str, Any]:
        """Settings of adapter `number`."""
        return {"name": f"a{number}", "folder": str(self.folder / str(number)), **more}


@contextmanager
def there(folder: Path, workers: int, *numbers: int) -> Iterator[There]:
    """A running gateway with those of six adapters."""
    base = tiny_llama_safetensors(folder / "base")
    for number in range(6):
        random_adapter(folder / str(number), number)
    model = {"name": "tiny", "checkpoint": str(base), "cache_bytes": "2MiB", "threads": 1, "adapter_bytes": "1MiB"}
    entries = [{"name": f"a{n}", "folder": str(folder / str(n))} for n in numbers]
    with served(folder, [{**model, "adapters": entries}], workers=workers) as running:
        yield There(running, folder, model)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_brings_and_takes_adapters_over_the_engine_there_is(tmp_path: Path, workers: int) -> None:
    """Different adapters answer differently; a reload changes which there are for every worker, and no engine starts
    anew; one that cannot be loaded, or is given to others, changes nothing for its base."""
    with there(tmp_path, workers, 1) as here:
        (host,) = here.served.hosts().values()
        plain, one = here.text(), here.text("tiny:a1")
        assert plain != one
        here.write(here.entry(1), here.entry(5))
        here.reload()
        patiently(lambda: all(here.say("tiny:a5").status_code == httpx.codes.OK for _ in range(4)))
        five = here.text("tiny:a5")
        assert five not in (plain, one)
        here.write(here.entry(5, owner="default"), here.entry(1, owner="somebody else"))
        here.reload()
        patiently(lambda: all(here.say("tiny:a1").status_code == httpx.codes.NOT_FOUND for _ in range(4)))
        assert here.text("tiny:a5") == five
        (tmp_path / "3" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
        here.write(here.entry(3), here.entry(1))
        here.reload()
        assert "tiny:a3 cannot be loaded" in here.served.logged(REFUSED)[-1]["error"]
        assert here.say("tiny:a3").status_code == httpx.codes.NOT_FOUND
        assert here.text("tiny:a5") == five
        assert here.text() == plain
        (still,) = here.served.hosts().values()
        assert still.pid == host.pid


@pytest.mark.parametrize("workers", [1, 2])
def test_added_and_removed_by_command_and_there_after_a_restart(tmp_path: Path, workers: int) -> None:
    """What a command adds is served by every worker at once, from a copy that nobody can change afterwards, to its
    owner alone, still after a restart, and no more once it is removed, which a configuration that cannot be read puts
    off whole; its engine never starts anew meanwhile."""
    with there(tmp_path, workers) as here:
        (host,) = here.served.hosts().values()
        added = here.run("add", str(tmp_path / "1"), "--model", "tiny", "--name", "one", "--owner", "default")
        assert added["id"] == "tiny:one"
        assert added["owner"] == "default"
        assert Path(added["folder"]).parent == tmp_path / "home" / "adapters"
        one = here.text("tiny:one")
        assert one != here.text()
        shutil.rmtree(tmp_path / "1")
        assert [row["id"] for row in here.run("list")] == ["tiny:one"]
        assert here.run("show", "tiny:one") == added
        assert {here.say("tiny:one").status_code for _ in range(4)} == {httpx.codes.OK}
        (still,) = here.served.hosts().values()
        assert still.pid == host.pid
    with served(tmp_path, [here.model], workers=workers) as again:
        here = There(again, tmp_path, here.model)
        assert here.text("tiny:one") == one
        config, file = tmp_path / "interlace.yaml", tmp_path / "home" / "adapters" / "added.json"
        sound, entries = config.read_text(), file.read_bytes()
        config.write_text(sound + "nonsense: 1\n")
        url, headers = f"{again.url}/admin/v1/adapters/tiny:one", {"authorization": f"Bearer {again.key}"}
        refused = httpx.delete(url, headers=headers, trust_env=False, timeout=60)
        assert refused.status_code == httpx.codes.BAD_REQUEST, refused.text
        config.write_text(sound)
        assert file.read_bytes() == entries
        assert here.run("list") == [added]
        here.run("rm", "tiny:one")
        assert {here.say("tiny:one").status_code for _ in range(4)} == {httpx.codes.NOT_FOUND}
        assert here.run("list") == []
        other = here.run("add", str(tmp_path / "5"), "--model", "tiny", "--name", "one", "--owner", "default")
        assert other["folder"] != added["folder"]
        assert here.text("tiny:one") != one


def test_what_cannot_be_served_is_not_added(tmp_path: Path) -> None:
    """Refused, with the reason: a name that is taken or cannot be one, an owner or a model that is not there, files
    that are broken, links, too large or none, and a copy that nobody made; nothing of it is left behind, and only a
    key with the scope `admin` gets so far."""
    with there(tmp_path, 1, 0) as here:
        store = tmp_path / "home" / "adapters"
        weights = "adapter_model.safetensors"
        (tmp_path / "2" / weights).write_bytes(b"\xff" * 64)
        (tmp_path / "3" / weights).unlink()
        (tmp_path / "3" / weights).symlink_to(tmp_path / "1" / weights)
        os.truncate(tmp_path / "4" / weights, 3 << 20)
        for number, name, more, reason in (
            (4, "x", (), "over the 2,097,152 that an adapter may have here"),
            (1, "a0", (), "There is something called tiny:a0 already"),
            (1, "a:b", (), "`name` must be"),
            (1, "../x", (), "`name` must be"),
            (1, "x", ("--owner", "nobody"), "There is no organisation 'nobody'"),
            (2, "x", (), "tiny:x cannot be loaded"),
            (3, "x", (), "is a link"),
            (9, "x", (), "adapter_config.json is missing"),
        ):
            command = ("add", str(tmp_path / str(number)), "--model", "tiny", "--name", name, *more)
            refused = here.command(*command)
            assert refused.returncode != 0
            assert reason in refused.stderr, refused.stderr
            assert not list(store.glob("sha256-*")), reason
        assert here.command("rm", "tiny:a0").returncode != 0
        for place in (tmp_path / "0").iterdir():
            place.unlink()
        broken = here.say("tiny:a0")
        assert broken.status_code == httpx.codes.BAD_GATEWAY
        assert "tiny:a0 cannot be loaded: adapter_config.json is missing" in broken.json()["error"]["message"]
        url, admin = f"{here.served.url}/admin/v1/adapters", {"authorization": f"Bearer {here.served.key}"}
        for digest in ("0" * 64, "../../base", "/etc"):
            given = {"model": "tiny", "name": "x", "digest": digest}
            assert httpx.post(url, json=given, headers=admin, trust_env=False).status_code == httpx.codes.BAD_REQUEST
        made = httpx.post(
            f"{here.served.url}/admin/v1/keys",
            json={"project": "default", "name": "plain"},
            headers=admin,
            trust_env=False,
        ).json()
        plain = {"authorization": f"Bearer {made['key']}"}
        assert httpx.get(url, headers=plain, trust_env=False).status_code == httpx.codes.FORBIDDEN
        assert here.text()
