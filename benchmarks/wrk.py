"""wrk as load: chat bodies over so many connections, and what it and the gateway say of them afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import setup
from benchmarks.gateways import MODEL, Gateway
from benchmarks.processes import Cores, on
from benchmarks.worker import ContestantFailed

CONNECTIONS = 32
_SCRIPT = Path(__file__).parent / "peers" / "load.lua"
_TIMEOUT = 60

BODY = json.dumps({
    "model": MODEL, "temperature": 0.2, "max_tokens": 64,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant of a travel agency. Answer in one sentence."},
        {"role": "user", "content": "Which city is the capital of France, and what is there to see when it rains?"},
    ],
})  # fmt: skip
"""About 300 bytes."""

ANSWER = json.dumps({
    "id": "chatcmpl-BfKpXm3e8n4wP1QzLr7sT2uVyA9", "object": "chat.completion", "created": 1_780_000_000,
    "model": "upstream-2026-01-01",
    "choices": [{
        "index": 0, "logprobs": None, "finish_reason": "stop",
        "message": {
            "role": "assistant", "refusal": None,
            "content": "The capital of France is Paris; on a rainy day, see the Louvre or the Musée d'Orsay.",
        },
    }],
    "usage": {
        "prompt_tokens": 46, "completion_tokens": 25, "total_tokens": 71,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    },
    "service_tier": "default", "system_fingerprint": "fp_1234567890",
}, separators=(",", ":"))  # fmt: skip
"""What the provider says each time, about 600 bytes."""


def provider_place() -> str:
    """nginx's locations of a provider that answers every chat with `ANSWER`."""
    text = ANSWER.replace("\\", "\\\\").replace("'", "\\'")
    return f"location / {{ default_type application/json; return 200 '{text}'; }}\nlocation = /alive {{ return 200; }}"


def load(gateway: Gateway, seconds: float, cores: Cores, console: Console, connections: int = CONNECTIONS
         ) -> dict[str, float]:  # fmt: skip
    """Ask for so long; every request that began is answered before this returns.

    Returns `rate` (answers/s), `cpu` (µs of the gateway's processes an answer), `p50`, `p99` (ms), and `answered`.
    Raises `ContestantFailed` unless every request was answered with success, and, by Interlace, recorded.
    """
    before, cpu = gateway.events() if gateway.ledger else 0, gateway.running.cpu_seconds()
    told = _run(gateway, seconds, cores, console, connections)
    cpu = gateway.running.cpu_seconds() - cpu
    answered = int(told["answered"])
    if told["refused"] or told["broken"] or not answered or answered != told["asked"]:
        raise ContestantFailed(
            f"{gateway.name}: not every request was answered: {told}\n{gateway.running.last_words()}"
        )
    if gateway.ledger and (recorded := gateway.events() - before) != answered:
        raise ContestantFailed(
            f"{gateway.name} answered {answered} requests and recorded {recorded}: {gateway.outcomes()}"
        )
    return {
        "rate": answered / told["seconds"], "cpu": 1e6 * cpu / answered, "p50": told["p50_ms"], "p99": told["p99_ms"],
        "answered": answered,
    }  # fmt: skip


def _run(gateway: Gateway, seconds: float, cores: Cores, console: Console, connections: int) -> dict[str, Any]:
    program = setup.debian("wrk", "wrk", console)
    with tempfile.TemporaryDirectory() as folder:
        headers, body = Path(folder) / "headers", Path(folder) / "body"
        headers.write_text("".join(_line(caller) for caller in gateway.callers))
        body.write_text(BODY)
        command = [
            program, "--threads", "1", "--connections", str(connections), "--duration", str(int(seconds) + _TIMEOUT),
            "--timeout", "20s", "--script", str(_SCRIPT), f"http://127.0.0.1:{gateway.port}/v1/chat/completions",
        ]  # fmt: skip
        env = {"BENCH_SECONDS": str(seconds), "BENCH_CONNECTIONS": str(connections)}
        env |= {"BENCH_HEADERS": str(headers), "BENCH_BODY": str(body)}
        done = subprocess.run(
            on(cores.others, command), env=os.environ | env, capture_output=True, text=True, check=False
        )
    for line in done.stdout.splitlines():
        if line.startswith("BENCH "):
            told: dict[str, Any] = json.loads(line.removeprefix("BENCH "))
            return told
    raise ContestantFailed(f"wrk said nothing of {gateway.name}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")


def _line(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """One caller's headers, as `load.lua` reads them; never empty."""
    pairs = {"Accept": "application/json"} | dict(headers)
    return "\t".join(word for pair in pairs.items() for word in pair) + "\n"
