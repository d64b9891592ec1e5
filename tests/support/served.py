"""`interlace serve` in a process of its own, over real checkpoints, and callers of it: for tests that hurt it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from interlace.ledger import UsageEvent, read_events
from interlace.ledger.database import sqlite_url
from interlace.ledger.store import Store
from tests.support.prices import free_in_yaml
from tests.support.serving import COMMAND, environment
from tests.support.stores import ledger_url

PATIENCE_SECONDS = 90.0  # far beyond what anything here takes on a busy machine; only a hang meets it
SECRET = "zebra quartz 7731"  # in every prompt; no log may ever show it
WORKERS = int(os.environ.get("INTERLACE_TEST_WORKERS", "1"))
"""How many gateway processes every server under test has, unless a test says otherwise: `make faults` runs both."""
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

# `interlace serve`, but hosts are restarted with hardly a wait: for tests that kill one many times.
HASTY = (
    sys.executable,
    "-c",
    """
import sys
from pathlib import Path
from interlace.config import load_settings
from interlace.engines import HostedEngine, RestartPolicy
from interlace.gateway.serve import serve
policy = RestartPolicy(first_seconds=0.05, cap_seconds=0.2)
sys.exit(serve(load_settings(Path(sys.argv[-1])), build=lambda model, home: HostedEngine(model, home, policy=policy)))
""",
)


@dataclass(frozen=True)
class Served:
    """A server under test, and what can be seen of it from outside."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    key: str

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """Standard error so far."""
        return (self.folder / "err").read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """Its lines, each of which must be JSON but for the first ones, `interlace: …`, which
        are for the person at the terminal."""
        lines = itertools.dropwhile(lambda line: line.startswith("interlace: "), self.log.split("\n")[:-1])
        return [json.loads(line) for line in lines]

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The lines with that message."""
        return [line for line in self.log_lines() if line["message"] == message]

    def usage(self) -> list[UsageEvent]:
        """The usage events recorded so far, read beside the server."""
        url = ledger_url(self.folder / "home") or sqlite_url(self.folder / "home" / "ledger.db")
        with contextlib.closing(Store(url)) as store:
            return store.read(lambda connection: list(read_events(connection)))

    def get(self, path: str) -> httpx.Response:
        """GET without a key, on a connection of its own."""
        return httpx.get(self.url + path, trust_env=False, timeout=PATIENCE_SECONDS)

    def ready(self) -> bool:
        """Whether every model is."""
        return self.get("/readyz").status_code == httpx.codes.OK

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the samples that have these labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [s for family in families for s in family.samples if s.name == name]
        assert samples, f"no metric {name}"
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def idle(self) -> bool:
        """Whether nothing runs, waits or holds a block of cache any more."""
        names = ("requests_running", "requests_queued", "engine_running", "engine_waiting", "engine_blocks_used")
        return sum(self.metric(f"interlace_{name}") for name in names) == 0

    def hosts(self) -> dict[str, psutil.Process]:
        """The living engine hosts by their model's name."""
        return {words[-1]: child for child, words in self._children("interlace.engines.host")}

    def workers(self) -> dict[str, psutil.Process]:
        """The living workers by their name; none where the server is one process."""
        return {words[5]: child for child, words in self._children("interlace.gateway.processes", "worker")}

    def coordinator(self) -> psutil.Process | None:
        """The living coordinator; None where the server is one process, or it is dead just now."""
        return next((child for child, _ in self._children("interlace.gateway.processes", "coordinator")), None)

    def _children(self, *words: str) -> Iterator[tuple[psutil.Process, list[str]]]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    command = child.cmdline()
                    if all(word in command for word in words):
                        yield child, command

    @asynccontextmanager
    async def callers(self) -> AsyncGenerator[httpx.AsyncClient]:
        """A client with the key and as many connections as it is asked for."""
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, timeout=PATIENCE_SECONDS, trust_env=False
        ) as client:
            yield client


@contextmanager
def served(
    folder: Path,
    models: list[dict[str, Any]],
    *,
    ready: bool = True,
    command: tuple[str, ...] = COMMAND,
    **settings: Any,
) -> Iterator[Served]:
    """A server of `models` (and further settings, as in interlace.yaml) with its home in `folder`, once it listens or,
    by default, is ready. Gone at the end, whatever was done to it; what it wrote stays in `out` and `err`."""
    config = folder / "interlace.yaml"
    home = folder / "home"
    settings.setdefault("prices", free_in_yaml(model["name"] for model in models))
    settings.setdefault("workers", WORKERS)
    if url := ledger_url(home):
        settings["ledger"] = {"url": url, **settings.get("ledger", {})}
    config.write_text(yaml.safe_dump({"port": 0, "models": models, **settings}))
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [*command, "serve", "--config", str(config)],
            env=environment(home), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
    try:
        url = _listening(process, folder)
        there = Served(process, folder, url, (home / "key").read_text().strip())
        if ready:
            patiently(there.ready)
        yield there
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def _listening(process: subprocess.Popen[bytes], folder: Path) -> str:
    """The URL of its first line, which it prints when it listens."""
    patiently(lambda: process.poll() is not None or (folder / "out").read_text().count("\n"))
    first = (folder / "out").read_text().partition("\n")[0]
    assert first.startswith("Interlace listens on "), (folder / "err").read_text()
    return first.removeprefix("Interlace listens on ").partition(";")[0]


def decoder(checkpoint: Path, **more: Any) -> dict[str, Any]:
    """Settings of the model `talker`."""
    return {"name": "talker", "checkpoint": str(checkpoint), "cache_bytes": "256MiB", **more}


def embedder(checkpoint: Path) -> dict[str, Any]:
    """Settings of the model `embedder`."""
    return {"name": "embedder", "checkpoint": str(checkpoint)}


# --- waiting -----------------------------------------------------------------------------------------------------


def patiently(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds; a hang fails the test."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    """`patiently`, while this loop's other tasks go on."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


# --- calling -----------------------------------------------------------------------------------------------------


def long_chat(tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a streamed chat that is answered with exactly so many tokens."""
    messages = [{"role": "user", "content": f"Tell me about the {SECRET}."}]
    return {
        "model": "talker", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True, **more
    }  # fmt: skip


@dataclass
class Answer:
    """What came back: whole, or as the events of a stream that ended as HTTP says it must."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False  # the stream's last event was [DONE]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error it ended with."""
        return self.events[-1].get("error") if self.events else None

    @property
    def finish_reason(self) -> str | None:
        """The first choice's."""
        reasons = [c["finish_reason"] for e in self.events for c in e.get("choices", ()) if c["index"] == 0]
        return reasons[-1] if reasons else None

    @property
    def text(self) -> str:
        """What a chat's first choice says."""
        choices = [c for e in self.events for c in e.get("choices", ()) if c["index"] == 0]
        said = [c["delta"] if "delta" in c else c["message"] for c in choices]
        return "".join(message.get("content") or "" for message in said)


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    path: str = CHAT,
    into: Answer | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request, read to its end; a body cut off in the middle raises. `into` fills while it runs; `headers` go
    beside, or instead of, the client's."""
    answer = Answer() if into is None else into
    async with client.stream("POST", path, json=body, headers=headers) as response:
        answer.status, answer.headers = response.status_code, response.headers
        if response.headers["content-type"].startswith("text/event-stream"):
            async for line in response.aiter_lines():
                if line:
                    _take_event(answer, line)
        else:
            answer.events.append(json.loads(await response.aread()))
    return answer


def _take_event(answer: Answer, line: str) -> None:
    assert not answer.done, "something follows [DONE]"
    assert line.startswith("data: "), line
    if line == "data: [DONE]":
        answer.done = True
    else:
        answer.events.append(json.loads(line.removeprefix("data: ")))
