"""What the way through HTTP, gateway and engine host costs: the same engine, called directly and through the endpoint.

Both sides get the same chats at the same moment and answer the same number of tokens each; the rate is all tokens
over the time from the first byte sent (the first request queued) to the last token received. The time to the first
token is the mean of the chats that run at once. The load client's CPU
comes from the same two cores, as it would not with a client on another machine: it is reported beside.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

from rich.progress import Progress

from benchmarks import setup
from benchmarks.engine import OURS
from benchmarks.figures import added, compare
from benchmarks.hop import gathered
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.server import Server, serving
from benchmarks.turns import Shape, gather, take_turns
from benchmarks.worker import Worker

DIRECT, HTTP = "called directly", "through the endpoint"
SHAPES = tuple(Shape("whole", streams, 40, 128) for streams in (1, 4, 16, 32))
QUICK_SHAPES = (Shape("whole", 1, 40, 8), Shape("whole", 4, 40, 8))
MOST_FIRST_MS = 10.0


def measure_endpoint(progress: Progress, rounds: int, threads: int, *, quick: bool) -> Report:
    """Load the engine twice, once behind `interlace serve`, and let both take turns."""
    f32 = setup.f32_checkpoint(setup.gguf_checkpoint(progress.console), progress.console)
    about = describe() | {"threads": threads}
    direct_command = [sys.executable, "-m", "benchmarks.peers.interlace_core", str(f32), "f32", str(threads), "chat"]
    with Worker(OURS, direct_command) as direct, serving(f32, "f32", threads) as server:
        client_command = [sys.executable, "-m", "benchmarks.peers.http_client"]
        with Worker("load client", [*client_command, str(server.port), server.key, server.model]) as client:
            direct.wait_until_loaded()
            client.wait_until_loaded()
            return _rounds(direct, client, server, QUICK_SHAPES if quick else SHAPES, rounds, progress, about)


def _rounds(direct: Worker, client: Worker, server: Server, shapes: tuple[Shape, ...], rounds: int,
            progress: Progress, about: dict[str, Any]) -> Report:  # fmt: skip
    task = progress.add_task("warming up", total=2 * (rounds + 1) * len(shapes))
    spent: dict[str, list[dict[str, float]]] = {}
    firsts: list[tuple[str, str, str, float]] = []

    def measure(name: str, shape: Shape, prompts: list[list[int]]) -> float:
        before = server.cpu_seconds()
        answer = (direct if name == DIRECT else client).ask({"prompts": prompts, "new_tokens": shape.new_tokens})
        after = server.cpu_seconds()
        progress.advance(task)
        firsts.append(("first", shape.label, name, 1000 * answer["first_token_seconds"]))
        if name == HTTP:
            shares = {part: after[part] - before[part] for part in after} | {"client": answer["cpu_seconds"]}
            wall = answer["wall_seconds"]
            tokens = shape.streams * shape.new_tokens
            spent.setdefault(shape.label, []).append(
                {f"{part}_cpu_share": seconds / wall for part, seconds in shares.items()}
                | {f"{part}_us_per_token": 1e6 * seconds / tokens for part, seconds in shares.items()}
            )
        return float(answer["whole"])

    vocabulary = int(direct.about["vocabulary"])
    list(take_turns((DIRECT, HTTP), shapes, 1, vocabulary, measure))
    spent.clear()
    firsts.clear()
    measured = []
    for shape, name, value in take_turns((DIRECT, HTTP), shapes, rounds, vocabulary, measure):
        progress.update(task, description=f"{name}, {shape.label}: {value:,.0f} tokens/s")
        measured.append((shape, name, value))
    progress.remove_task(task)
    rates = gather(measured)
    beside = {label: {key: median(row[key] for row in rows) for key in rows[0]} for label, rows in spent.items()}
    compared = compare(rates, HTTP, DIRECT, 0.95)
    rates += gathered(firsts, ("first",), (DIRECT, HTTP))
    return Report("endpoint", "The engine through the endpoint", about, rates, compared, beside,
                  added=added(rates, "first", HTTP, DIRECT, MOST_FIRST_MS))  # fmt: skip
