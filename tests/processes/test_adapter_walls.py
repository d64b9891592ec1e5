"""An organisation's adapters behind their wall, over HTTP and a real engine: while they come and go, by what the cache
tells, under a crowd of others, and after a backup."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.models import copy_adapter
from tests.processes.test_adapters import There, there
from tests.support.billing import tenants
from tests.support.served import served
from tests.support.serving import COMMAND, environment
from tests.support.stores import ledger_url
from tests.support.tenants import Tenant

ROUNDS = 4
TURNS = 12
# Of all callers; a connection for each request, so that any worker may get it.
CALLERS = httpx.Client(timeout=60, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture
def both(tmp_path: Path) -> tuple[Tenant, Tenant]:
    """Keys of two organisations, `one` and `other`."""
    one, other = tenants(tmp_path, {"org": "one"}, {"org": "other"})
    return one, other


def _say(here: There, who: Tenant, model: str, prompt: str = "abc", **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **more}
    url = f"{here.served.url}/v1/completions"
    return CALLERS.post(url, json=body, headers=who.headers)


def _add(here: There, number: int, name: str, owner: str | None = None) -> None:
    """As `interlace adapters add` does, without the second that a command takes to start: what it does by itself is in
    `test_adapters`."""
    digest, _ = copy_adapter(here.folder / str(number), here.folder / "home", 1 << 20)
    given = {"model": "tiny", "name": name, "digest": digest} | ({} if owner is None else {"owner": owner})
    answer = _admin(here, "POST", "", given)
    assert answer.is_success, answer.text


def _remove(here: There, name: str) -> None:
    """As `interlace adapters rm` does."""
    answer = _admin(here, "DELETE", f"/tiny:{name}")
    assert answer.is_success, answer.text


def _admin(here: There, method: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {here.served.key}"}
    return CALLERS.request(method, f"{here.served.url}/admin/v1/adapters{path}", json=body, headers=headers)


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == httpx.codes.OK, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.mark.parametrize("workers", [1, 2])
def test_racing_an_unload(tmp_path: Path, both: tuple[Tenant, Tenant], workers: int) -> None:
    """While one name goes back and forth between two organisations and two adapters, each is answered by its own
    adapter or told that there is none: never by the other's, never by the base, never with an error of another kind."""
    with there(tmp_path, workers) as here:
        base, own = _text(_say(here, both[0], "tiny")), []
        for number, who in enumerate(both):
            _add(here, 1 + 4 * number, "x", ("one", "other")[number])
            own.append(_text(_say(here, who, "tiny:x")))
            _remove(here, "x")
        assert len({base, *own}) == 3
        heard: list[Counter[str | int]] = [Counter(), Counter()]
        stop = threading.Event()

        def keep_asking(at: int) -> None:
            while not stop.is_set():
                answer = _say(here, both[at], "tiny:x")
                heard[at][_text(answer) if answer.is_success else answer.status_code] += 1
                time.sleep(0.01)  # the server has to get on with what the commands ask of it

        threads = [threading.Thread(target=keep_asking, args=(at,)) for at in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(TURNS):
                number = turn % 2
                _add(here, 1 + 4 * number, "x", ("one", "other")[number])
                assert _text(_say(here, both[number], "tiny:x")) == own[number]
                assert _say(here, both[1 - number], "tiny:x").status_code == httpx.codes.NOT_FOUND
                _remove(here, "x")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    for at in (0, 1):
        assert set(heard[at]) <= {own[at], httpx.codes.NOT_FOUND}, heard
        assert heard[at][httpx.codes.NOT_FOUND]


def test_a_stream_that_has_begun_keeps_its_adapter(tmp_path: Path, both: tuple[Tenant, Tenant]) -> None:
    """Removed, and its name given to another organisation's, an adapter answers to the end whoever it was answering."""
    with there(tmp_path, 1) as here:
        one, other = both
        _add(here, 1, "x", "one")
        whole = _text(_say(here, one, "tiny:x", max_tokens=110))
        body = {"model": "tiny:x", "prompt": "abc", "max_tokens": 110, "temperature": 0, "ignore_eos": True,
                "stream": True}  # fmt: skip
        url = f"{here.served.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=one.headers, trust_env=False, timeout=60) as stream:
            lines = stream.iter_lines()
            read = [next(line for line in lines if line.startswith("data: "))]
            _remove(here, "x")
            _add(here, 5, "x", "other")
            read += [line for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
        said = "".join(choice["text"] for line in read for choice in json.loads(line[6:])["choices"])
        assert said == whole
        assert _text(_say(here, other, "tiny:x", max_tokens=110)) != whole


def test_the_cache_tells_nothing_of_others(tmp_path: Path, both: tuple[Tenant, Tenant]) -> None:
    """Whether a prompt was asked before shows in `cached_tokens`, and in the time that the answer takes: only to the
    same organisation, by the same adapter. An adapter that comes anew under an old name finds nothing either."""
    prompt = "a" * 80
    with there(tmp_path, 1) as here:
        one, other = both
        _add(here, 1, "x")
        _add(here, 5, "y", "one")

        def found(who: Tenant, model: str) -> int:
            answer = _say(here, who, model, prompt, max_tokens=1)
            assert answer.is_success, answer.text
            return int((answer.json()["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

        first = [found(one, model) for model in ("tiny", "tiny:x", "tiny:y")]
        assert first == [0, 0, 0]
        assert [found(other, model) for model in ("tiny", "tiny:x")] == [0, 0]
        again = [found(who, model) for who, model in ((one, "tiny"), (one, "tiny:x"), (one, "tiny:y"), (other, "tiny"))]
        assert all(again)
        _remove(here, "y")
        _add(here, 3, "y", "one")
        assert found(one, "tiny:y") == 0


def test_filling_the_memory(tmp_path: Path, both: tuple[Tenant, Tenant]) -> None:
    """Memory for hardly more than one adapter, and an organisation that uses four at once without a pause: another's is
    loaded all the same, and answers as it does alone."""
    with there(tmp_path, 1) as here:
        here.served.process.terminate()
        here.served.process.wait()
    sizes = [(tmp_path / str(number) / "adapter_model.safetensors").stat().st_size for number in range(6)]
    assert max(sizes) < 1 << 20, "else not even one fits"
    entries = [{"name": f"a{n}", "folder": str(tmp_path / str(n)), "owner": "one"} for n in range(5)]
    entries.append({"name": "b", "folder": str(tmp_path / "5"), "owner": "other"})
    model = {**here.model, "max_sequences": 3, "adapters": entries}
    with served(tmp_path, [model]) as running:
        here = There(running, tmp_path, model)
        one, other = both
        alone = _text(_say(here, other, "tiny:b"))
        stop, statuses = threading.Event(), Counter[int]()

        def flood(number: int) -> None:
            while not stop.is_set():
                statuses[_say(here, one, f"tiny:a{number % 5}", max_tokens=60).status_code] += 1

        threads = [threading.Thread(target=flood, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(ROUNDS):
                assert _text(_say(here, other, "tiny:b")) == alone
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert set(statuses) == {httpx.codes.OK}


def test_added_adapters_come_back_from_a_backup(tmp_path: Path) -> None:
    """The commands of the page on backups bring adapters that were added by command to another home: served again, to
    their owner alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    if ledger_url(first / "home"):
        pytest.skip("a database on a server has backups of its own")
    one, other = tenants(first, {"org": "one"}, {"org": "other"})
    with there(first, 1) as here:
        here.run("add", str(first / "1"), "--model", "tiny", "--name", "x", "--owner", "one")
        said = _text(_say(here, one, "tiny:x"))
        words = [*COMMAND, "ledger", "backup", str(tmp_path / "backup.db")]
        subprocess.run(words, env=environment(first / "home"), cwd=tmp_path, check=True)
        for name in ("secret", "adapters"):
            subprocess.run(["cp", "-a", str(first / "home" / name), str(tmp_path / f"{name}-backup")], check=True)
    shutil.move(first / "base", second / "base")
    shutil.rmtree(first)
    (second / "home").mkdir()
    for name in ("secret", "adapters"):
        subprocess.run(["cp", "-a", str(tmp_path / f"{name}-backup"), str(second / "home" / name)], check=True)
    words = [*COMMAND, "ledger", "restore", str(tmp_path / "backup.db")]
    subprocess.run(words, env=environment(second / "home"), cwd=tmp_path, check=True)
    model = {**here.model, "checkpoint": str(second / "base")}
    with served(second, [model]) as running:
        here = There(running, second, model)
        assert _text(_say(here, one, "tiny:x")) == said
        assert _say(here, other, "tiny:x").status_code == httpx.codes.NOT_FOUND
