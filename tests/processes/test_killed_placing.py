"""`kill -9` of a process of the gateway while it takes up a model or an adapter: what was served before is served
afterwards, or what was to be; and the same again ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.errors import InterlaceError
from interlace.gateway.adapter_placing import place_adapter
from interlace.gateway.asking import Where
from interlace.gateway.model_placing import place_model
from interlace.models import pull
from tests.support.adapters import random_adapter
from tests.support.billing import priced
from tests.support.killing import Armed, Moment, killed_at, preload
from tests.support.served import Served, patiently, served
from tests.support.serving import COMMAND, environment
from tests.support.tiny import tiny_llama_safetensors, tiny_weights

CALLERS = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
preload(__name__)
KINDS: dict[str, str] = {"model": "mine", "adapter": "tiny:mine"}


def place(folder: Path, url: str, kind: str, which: str) -> None:
    """Put `one` or `two` into service, instead of what is there."""
    where = Where(environment(folder / "home"), url=url, config=folder / "interlace.yaml")
    if kind == "model":
        place_model("mine", which, "", "tiny", where, replace=True)
    else:
        place_adapter(folder / f"adapter-{which}", "tiny", "mine", "", where, replace=True)


@dataclass
class There:
    """A gateway over a tiny Llama. `kind`: what is put into service, `one` or `two`."""

    served: Served
    folder: Path
    kind: str

    def place(self, which: str) -> None:
        """As a command does at the end of a run."""
        place(self.folder, self.served.url, self.kind, which)

    def said(self) -> set[str | None]:
        """What it says, a few times; None where it is not served."""
        body = {"model": KINDS[self.kind], "prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        headers = {"authorization": f"Bearer {self.served.key}"}
        answers = [CALLERS.post(f"{self.served.url}/v1/completions", json=body, headers=headers) for _ in range(4)]
        assert {answer.status_code for answer in answers} <= {httpx.codes.OK, httpx.codes.NOT_FOUND}
        return {answer.json()["choices"][0]["text"] if answer.is_success else None for answer in answers}

    def text(self) -> str | None:
        """What every worker says."""
        (text,) = self.said()
        return text

    def placed(self, which: str) -> str:
        """What it says once that is in service."""
        self.place(which)
        said = self.text()
        assert said
        return said

    def remove(self) -> None:
        """Out of service."""
        headers = {"authorization": f"Bearer {self.served.key}"}
        url = f"{self.served.url}/admin/v1/{self.kind}s/{KINDS[self.kind]}"
        assert CALLERS.delete(url, headers=headers).status_code == httpx.codes.OK

    def listed(self) -> bool:
        """Whether `interlace models list`, or `adapters list`, has it."""
        command = [*COMMAND, f"{self.kind}s", "list", "--json", "--url", self.served.url]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(self.folder / "home"), capture_output=True, text=True, check=True
        )
        return f'"{KINDS[self.kind]}"' in done.stdout


@contextmanager
def there(folder: Path, kind: str, workers: int) -> Iterator[There]:
    """The gateway, running."""
    if not (folder / "base").exists():
        tiny_llama_safetensors(folder / "base")
        for seed, name in ((1, "one"), (2, "two")):
            pull(str(tiny_llama_safetensors(folder / name, weights=tiny_weights(seed))), folder / "home", name=name)
            random_adapter(folder / f"adapter-{name}", seed)
    model: dict[str, Any] = {
        "name": "tiny", "checkpoint": str(folder / "base"), "cache_bytes": "2MiB", "threads": 1,
        "adapter_bytes": "1MiB",
    }  # fmt: skip
    with served(folder, [model], workers=workers, prices=[priced("tiny")]) as running:
        yield There(running, folder, kind)


def _try(place: Callable[[], None]) -> None:
    try:
        place()
    except (InterlaceError, httpx.HTTPError):
        pass  # whom it asked is dead


def _killed(folder: Path, armed: Armed, kind: str, workers: int, moment: Moment, texts: tuple[str | None, str]) -> bool:
    """Put `two` into service, have somebody killed at that moment, and look. `texts`: what may be said afterwards, the
    last of which is right. Whether somebody was killed."""

    def look(here: There) -> None:
        assert here.text() in texts
        assert here.listed() is (here.text() is not None)
        assert here.placed("two") == texts[-1]

    with there(folder, kind, workers) as here:
        armed.arm(moment)
        _try(lambda: here.place("two"))
        if not armed.fired:
            assert here.text() == texts[-1]
            return False
        if workers > 1:
            patiently(
                lambda: len(here.served.workers()) == workers and here.served.coordinator() and here.served.ready()
            )
            look(here)
    with there(folder, kind, workers) as again:
        look(again)
        assert again.placed("two") == texts[-1]
    assert not list((folder / "home").glob("*/.added-*"))
    return True


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Armed:
    """Before any server is started."""
    armed = Armed(tmp_path, os.environ)
    for name, value in armed.environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    return armed


def _texts(folder: Path, kind: str) -> tuple[str, str]:
    """What `one` and `two` say; and the home is left with `one` in service."""
    with there(folder, kind, 1) as here:
        two, one = (here.placed(which) for which in ("two", "one"))
    assert one != two
    return one, two


@pytest.mark.parametrize(
    ("kind", "workers", "moment"),
    [
        ("adapter", 2, "after os.rename"),
        *(
            pytest.param("model", *case, marks=pytest.mark.nightly)
            for case in ((1, "os.rename"), (1, "subprocess.Popen"), (2, "after os.rename"), (2, "subprocess.Popen"))
        ),
    ],
)
def test_a_process_that_takes_it_up_is_killed(
    tmp_path: Path, armed: Armed, kind: str, workers: int, moment: str
) -> None:
    """Before the list has it, and after, while its engine is to start: no worker serves half of it, or another than its
    neighbour, and the command can be given again."""
    with there(tmp_path, kind, 1) as here:
        two = here.placed("two")
    (tmp_path / "home" / f"{kind}s" / "added.json").unlink()
    assert _killed(tmp_path, armed, kind, workers, moment, (None, two))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("kind", "first"), [("model", True), ("model", False), ("adapter", True)])
def test_killed_at_any_change(tmp_path: Path, armed: Armed, kind: str, workers: int, first: bool) -> None:
    """The same at every change of the disk, also where it takes the place of another: of an adapter that does, the
    command changes the list, and the gateway nothing."""
    one, two = _texts(tmp_path, kind)
    if first:
        (tmp_path / "home" / f"{kind}s" / "added.json").unlink()
    shutil.move(tmp_path / "home", tmp_path / "first")
    for moment in range(100):
        shutil.copytree(tmp_path / "first", tmp_path / "home")
        if not _killed(tmp_path, armed, kind, workers, moment, (None if first else one, two)):
            assert moment
            return
        shutil.rmtree(tmp_path / "home")
    raise AssertionError


def test_the_command_is_killed_before_the_server_hears(tmp_path: Path) -> None:
    """The list says another adapter than the server has: the same command must not take the one for the other."""
    with there(tmp_path, "adapter", 1) as here:
        two, one = (here.placed(which) for which in ("two", "one"))
        assert killed_at("after os.rename", place, tmp_path, here.served.url, "adapter", "two")
        assert here.text() == one
        assert here.placed("two") == two


@pytest.mark.nightly
@pytest.mark.parametrize("first", [True, False], ids=["first", "instead"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_is_killed_anywhere(tmp_path: Path, kind: str, first: bool) -> None:
    """At its files or in the middle of what it asks of the server, that serves what it did or what it is to, and the
    same command ends it."""
    with there(tmp_path, kind, 1) as here:
        two = here.placed("two")
        for moment in count():
            one = here.placed("one")
            if first:
                here.remove()
            if not killed_at(moment, place, tmp_path, here.served.url, kind, "two"):
                break
            assert here.said() <= {None if first else one, two}  # what it has asked for may just be done
            assert here.placed("two") == two, f"killed at moment {moment}"
        assert moment >= 3
        assert here.text() == two
