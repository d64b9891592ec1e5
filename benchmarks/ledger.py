"""What keys, rates, budgets, prices, guards, metrics and durable usage cost a request: the whole pipeline beside a bare
one, both over an engine that answers at once, in processes of their own that take turns.

CPU is that of the gateway's process, user and system, over the requests of a turn; latencies are the load client's, on
the same cores. Each request of the whole pipeline is in the database, synced, before its last byte leaves.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import psutil
from rich.progress import Progress

from benchmarks.figures import Added, Rate, added
from benchmarks.machine import describe
from benchmarks.report import Report
from benchmarks.worker import Worker

BARE, FULL, MANY = "bare pipeline", "whole pipeline", "whole, 10,000 keys"
CONTESTANTS = {BARE: ("bare", "10"), FULL: ("full", "10"), MANY: ("full", "10000")}
CONNECTIONS = {1: 1_500, 32: 8_000}  # → requests of a turn
MOST_CPU_US, MOST_P50_MS = 60.0, 5.0


def measure_ledger(progress: Progress, rounds: int, *, quick: bool) -> Report:
    """Start all contestants and the load client, warm up, and let them take turns."""
    about = describe()
    values: dict[tuple[str, str, str], list[float]] = {}
    with ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.peers.gateway"]
        gateways = {name: stack.enter_context(Worker(name, [*command, *how])) for name, how in CONTESTANTS.items()}
        client = stack.enter_context(Worker("load client", [sys.executable, "-m", "benchmarks.peers.request_client"]))
        for worker in (*gateways.values(), client):
            worker.wait_until_loaded()
        task = progress.add_task("warming up", total=(rounds + 1) * len(CONNECTIONS) * len(gateways))
        for turn in range(rounds + 1):
            for connections, requests in CONNECTIONS.items():
                shape = "1 connection" if connections == 1 else f"{connections} connections"
                job = {"connections": connections, "requests": requests // 10 if quick or turn == 0 else requests}
                for name, gateway in gateways.items():
                    measured = _turn(gateway, client, job)
                    progress.update(task, advance=1, description=f"{name}, {shape}: {measured['cpu']:,.0f} µs")
                    if turn:
                        for phase, value in measured.items():
                            values.setdefault((phase, shape, name), []).append(value)
        progress.remove_task(task)
    rates = [Rate(*key, tuple(measured)) for key, measured in sorted(values.items(), key=_order)]
    return Report("ledger", "What the ledger costs", about, rates, (), added=_added(rates))


def _turn(gateway: Worker, client: Worker, job: dict[str, Any]) -> dict[str, float]:
    process = psutil.Process(gateway.process.pid)
    before = process.cpu_times()
    answer = client.ask({**gateway.about, **job})
    after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    return {
        "cpu": 1e6 * seconds / job["requests"],
        "p50": answer["p50_ms"],
        "p99": answer["p99_ms"],
        "rate": answer["per_second"],
    }


def _order(item: tuple[tuple[str, str, str], list[float]]) -> tuple[int, int, int]:
    phase, shape, name = item[0]
    return (("cpu", "p50", "p99", "rate").index(phase), len(shape), list(CONTESTANTS).index(name))


def _added(rates: list[Rate]) -> list[Added]:
    goals = {"cpu": MOST_CPU_US, "p50": MOST_P50_MS}
    against_bare = [one for phase, most in goals.items() for one in added(rates, phase, FULL, BARE, most)]
    return [*against_bare, *added(rates, "cpu", MANY, FULL, None)]
