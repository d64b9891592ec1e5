"""Adapters of a real gateway come and go while it serves: by a reload and by command, with one process and with several."""

from __future__ import annotations

import signal
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

    def entry(self, number: int, **more: Any) -> dict[str, Any]:
        """Settings of adapter `number`."""
        return {"name": f"a{number}", "folder": str(self.folder / str(number)), **more}


@contextmanager
def there(folder: Path, workers: int, *numbers: int) -> Iterator[There]:
    """A running gateway with those of six adapters."""
    base = tiny_llama_safetensors(folder / "base")
    for number in range(6):
        random_adapter(folder / str(number), number)
    model = {"name": "tiny", "checkpoint": str(base), "cache_bytes": "2MiB", "threads": 1}
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
