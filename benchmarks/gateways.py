"""The gateways that are measured, each started the same way: on its core, in front of the same provider.

Every one gets what its own documentation says for speed: no debug output, one process. Interlace runs as its users run
it, `interlace serve`, with key, plan (requests and tokens a minute, concurrency), budgets of organisation, project and
key, price, guards, metrics, and its ledger in SQLite, synced.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console

from benchmarks import setup
from benchmarks.processes import Cores, Running, free_port, on, running
from benchmarks.tenants import Amount, fill

INTERLACE, BARE, LITELLM, PORTKEY, NGINX = "Interlace", "bare proxy", "LiteLLM", "Portkey", "nginx"
MODEL = "bench"  # what callers ask for; the provider's name of it is "upstream"
PROVIDER_KEY = "provider-key-of-the-benchmark"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that runs. `callers` are the headers of each caller; `ledger` is Interlace's database."""

    name: str
    port: int
    callers: Sequence[Mapping[str, str]]
    running: Running
    ledger: Path | None = None
    listening_seconds: float = 0.0  # from its start until it answered for the first time
    listening_cpu_seconds: float = 0.0  # what its processes had used by then

    def events(self) -> int:
        """How many usage events the ledger has."""
        assert self.ledger is not None
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM usage_events").fetchone()
        return int(count)

    def outcomes(self) -> dict[str, int]:
        """How many events the ledger has of each outcome."""
        assert self.ledger is not None
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            return dict(connection.execute("SELECT outcome, count(*) FROM usage_events GROUP BY outcome"))


Start = Callable[[int, Cores, Console], AbstractContextManager[Gateway]]
"""Start the gateway in front of a provider at this port. Raises `NotHere`, `ContestantFailed`."""


@contextmanager
def bare(provider: int, cores: Cores, console: Console) -> Iterator[Gateway]:
    """The twenty lines of `peers/bare_proxy.py`."""
    port = free_port()
    command = [
        str(setup.bare_python(console)), "-m", "uvicorn", "bare_proxy:app", "--app-dir", "benchmarks/peers",
        "--loop", "uvloop", "--http", "httptools", "--host", "127.0.0.1", "--port", str(port), "--no-access-log",
        "--log-level", "warning", "--lifespan", "off",
    ]  # fmt: skip
    env = {"BARE_UPSTREAM": f"http://127.0.0.1:{provider}/v1/chat/completions"}
    with running(BARE, on(cores.gateway, command), env) as started:
        started.wait_for(f"http://127.0.0.1:{port}/", status=500)  # it answers nothing but requests to forward
        yield Gateway(BARE, port, [{}], started)


@contextmanager
def litellm(provider: int, cores: Cores, console: Console) -> Iterator[Gateway]:
    """LiteLLM's proxy without a database: a master key, one model."""
    python, port, key = setup.litellm_python(console), free_port(), "sk-" + secrets.token_hex(24)
    params = {"model": "openai/upstream", "api_base": f"http://127.0.0.1:{provider}/v1", "api_key": PROVIDER_KEY}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        "general_settings": {"master_key": key},
        "litellm_settings": {"telemetry": False, "request_timeout": 600},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "litellm.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [str(python), "-m", "litellm.proxy.proxy_cli", "--config", str(path), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        with running(LITELLM, on(cores.gateway, command), env) as started:
            started.wait_for(f"http://127.0.0.1:{port}/health/liveliness")
            yield Gateway(LITELLM, port, [{"Authorization": f"Bearer {key}"}], started)


@contextmanager
def portkey(provider: int, cores: Cores, console: Console) -> Iterator[Gateway]:
    """Portkey's open gateway, told by headers where the provider is."""
    script, port = setup.portkey_script(console), free_port()
    headers = {
        "Authorization": f"Bearer {PROVIDER_KEY}", "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{provider}/v1",
    }  # fmt: skip
    command = ["node", str(script), f"--port={port}", "--headless"]
    with running(PORTKEY, on(cores.gateway, command), {"NODE_ENV": "production"}) as started:
        started.wait_for(f"http://127.0.0.1:{port}/")
        yield Gateway(PORTKEY, port, [headers], started)


@contextmanager
def nginx(provider: int, cores: Cores, console: Console) -> Iterator[Gateway]:
    """nginx's `proxy_pass`: bytes in, bytes out, the ceiling."""
    port = free_port()
    place = """location / {
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;
    }
    location = /alive { return 200; }"""
    upstream = f"upstream provider {{ server 127.0.0.1:{provider}; keepalive 1024; keepalive_requests 1000000000; }}"
    with nginx_serving(NGINX, port, place, cores.gateway, console, upstream) as started:
        yield Gateway(NGINX, port, [{}], started)


@contextmanager
def nginx_serving(name: str, port: int, place: str, cores: frozenset[int], console: Console, upstream: str = ""
                  ) -> Iterator[Running]:  # fmt: skip
    """nginx with one worker and these locations; one of them answers /alive."""
    program = setup.debian("nginx", "nginx-light", console)
    with TemporaryDirectory() as folder:
        temporary = " ".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path = Path(folder) / "nginx.conf"
        path.write_text(f"""daemon off; pid {folder}/nginx.pid; error_log stderr error; worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 8192; }}
http {{
  access_log off; {temporary} keepalive_requests 1000000000; keepalive_timeout 1h; client_body_buffer_size 64k;
  {upstream}
  server {{
    listen 127.0.0.1:{port};
    {place}
  }}
}}
""")
        with running(name, on(cores, [program, "-c", str(path), "-p", folder])) as started:
            started.wait_for(f"http://127.0.0.1:{port}/alive")
            yield started


# --- Interlace ---------------------------------------------------------------------------------------------------


def interlace(*, streams: bool = False, workers: int = 1) -> Start:
    """Interlace with one key."""

    @contextmanager
    def start(provider: int, cores: Cores, console: Console) -> Iterator[Gateway]:  # noqa: ARG001
        with TemporaryDirectory() as folder:
            home = Home.make(Path(folder), provider, Amount(), streams=streams)
            with home.serving(cores, workers=workers) as gateway:
                yield gateway

    return start


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder with configuration and a filled ledger, which `interlace serve` can be started on again and
    again."""

    folder: Path
    port: int
    keys: Sequence[str]

    @classmethod
    def make(cls, folder: Path, provider: int, amount: Amount, *, streams: bool = False) -> Home:
        """Write the configuration and fill the ledger. `streams`: whether the provider can stream."""
        from interlace.config import load_settings
        from interlace.ledger import Registry

        port = free_port()
        path = folder / "interlace.yaml"
        path.write_text(yaml.safe_dump(_config(folder, port, provider, streams=streams)))
        registry = Registry.open(load_settings(path, {"PROVIDER_KEY": PROVIDER_KEY}), {})
        with closing(registry):
            keys = fill(registry, amount, MODEL)
        return cls(folder, port, keys)

    @contextmanager
    def serving(self, cores: Cores, *, workers: int = 1, name: str = INTERLACE) -> Iterator[Gateway]:
        """`interlace serve`, ready."""
        command = [sys.executable, "-m", "interlace", "serve", "--config", str(self.folder / "interlace.yaml")]
        if workers > 1:
            command += ["--workers", str(workers)]
        env = {"PROVIDER_KEY": PROVIDER_KEY, "INTERLACE_API_KEY": secrets.token_hex(16)}
        callers = [{"Authorization": f"Bearer {key}"} for key in self.keys]
        with running(name, on(cores.gateway, command), env) as started:
            listening = started.wait_for(f"http://127.0.0.1:{self.port}/healthz", pause=0.005)
            cpu = started.cpu_seconds()
            started.wait_for(f"http://127.0.0.1:{self.port}/readyz")
            yield Gateway(name, self.port, callers, started, self.folder / "ledger.db", listening, cpu)


def has_workers() -> bool:
    """Whether `interlace serve` knows `--workers`."""
    command = [sys.executable, "-m", "interlace", "serve", "--help"]
    return "--workers" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _config(folder: Path, port: int, provider: int, *, streams: bool) -> dict[str, Any]:
    secret = {"card": "mask", "api_key": "mask", "private_key": "refuse"}
    return {
        "home": str(folder),
        "port": port,
        "models": [
            {
                "name": MODEL, "engine": "openai", "base_url": f"http://127.0.0.1:{provider}/v1", "model": "upstream",
                "api_key": "${PROVIDER_KEY}", "stream": streams, "connections": 2048,
            }
        ],
        "prices": [
            {"model": MODEL, "since": "2024-01-01", "usd_per_million": {"prompt": "0.15", "completion": "0.60"}}
        ],
        "guards": {
            "deny": [r"(?i)project\s+nightingale", r"\b\d{3}-\d{2}-\d{4}\b"],
            "secrets_input": secret, "secrets_output": secret,
        },
        "limits": {"concurrency": 2048, "queue": 4096},
    }  # fmt: skip
