"""Whether a gateway grows slower: with thousands of keys, of organisations, a million past events, several processes.

Every gateway runs with its ledger filled before, and all take turns under the same load, which asks with every key in
turn. Memory is that of the gateway's processes after the load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.progress import Progress

from benchmarks import setup, wrk
from benchmarks.figures import AtMost, Bound, Rate, Spread, compare
from benchmarks.gateways import Gateway, Home, has_workers
from benchmarks.hop import gathered, in_turn, providing
from benchmarks.machine import describe
from benchmarks.processes import Cores, cores, keeping_off
from benchmarks.report import Report
from benchmarks.tenants import Amount

SMALL, KEYS, ORGANISATIONS, EVENTS, PROCESSES = (
    "small", "10,000 keys", "10,000 organisations", "a million events", "4 processes",
)  # fmt: skip
WITHIN, START_SECONDS = AtMost(1.1), 2.0
PHASES = ("cpu", "p50", "rate")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """One gateway: what is in its ledger, and how many processes it has."""

    amount: Amount
    workers: int = 1


SIZES = {
    SMALL: Size(Amount(10, 10, 1_000)),
    KEYS: Size(Amount(10_000, 10, 1_000)),
    ORGANISATIONS: Size(Amount(10_000, 10_000, 1_000)),
    EVENTS: Size(Amount(10, 10, 1_000_000)),
    PROCESSES: Size(Amount(10, 10, 1_000), workers=4),
}
QUICK_EVENTS = 20_000


def measure_growth(progress: Progress, rounds: int, seconds: float, *, quick: bool) -> Report:
    """Fill the ledgers, start the gateways, warm them up and let them take turns. A quick run has fewer events."""
    placed, console = cores(), progress.console
    about = describe() | {"cores_used": placed.text(), "seconds": seconds}
    sizes, left_out = dict(SIZES), {}
    if not has_workers():
        del sizes[PROCESSES]
        left_out[PROCESSES] = "`interlace serve` has no --workers"
    if quick:
        sizes[EVENTS] = Size(Amount(10, 10, QUICK_EVENTS))
    values: list[tuple[str, str, str, float]] = []
    shape = f"{wrk.CONNECTIONS} connections"
    with ExitStack() as stack:
        stack.enter_context(keeping_off(placed))
        provider = stack.enter_context(providing(placed, console))
        about["versions"] |= {
            name: number for name, number in setup.peer_versions().items() if name in {"nginx", "wrk"}
        }
        homes = _fill(sizes, provider, progress, stack)
        for _ in range(rounds):
            for name, home in homes.items():
                with home.serving(placed, workers=sizes[name].workers) as gateway:
                    values.append(("start", shape, name, gateway.listening_seconds))
                    values.append(("start_cpu", shape, name, gateway.listening_cpu_seconds))
        gateways = [
            stack.enter_context(home.serving(placed, workers=sizes[name].workers, name=name))
            for name, home in homes.items()
        ]
        turns = _turns(gateways, rounds, seconds, placed, progress)
        values += [(phase, shape, name, value) for phase, name, value in turns]
    rates = gathered(values, (*PHASES, "memory", "start", "start_cpu"), list(sizes))
    compared = [
        one
        for phase in ("cpu", "p50")
        for name in sizes
        if name != SMALL
        for one in compare([rate for rate in rates if rate.phase == phase], name, SMALL, WITHIN)
    ]
    return Report("growth", "Growth", about, rates, compared, bounds=_bounds(rates, shape), left_out=left_out)


def _fill(sizes: Mapping[str, Size], provider: int, progress: Progress, stack: ExitStack) -> dict[str, Home]:
    task = progress.add_task("filling", total=len(sizes))
    homes = {}
    for name, size in sizes.items():
        progress.update(task, description=f"filling the ledger: {name}")
        folder = Path(stack.enter_context(TemporaryDirectory()))
        homes[name] = Home.make(folder, provider, size.amount)
        progress.advance(task)
    progress.remove_task(task)
    return homes


def _turns(gateways: Sequence[Gateway], rounds: int, seconds: float, placed: Cores, progress: Progress
           ) -> list[tuple[str, str, float]]:  # fmt: skip
    """Phase, gateway and value of each turn; the first round warms up."""
    found = []
    task = progress.add_task("warming up", total=(rounds + 1) * len(gateways))
    for turn in range(rounds + 1):
        for gateway in in_turn(gateways, turn):
            measured = wrk.load(gateway, seconds, placed, progress.console)
            progress.update(task, advance=1, description=f"{gateway.name}: {measured['cpu']:,.0f} µs a request")
            if turn:
                found += [(phase, gateway.name, measured[phase]) for phase in PHASES]
                found.append(("memory", gateway.name, gateway.running.memory_bytes() / _MIB))
    progress.remove_task(task)
    return found


def _bounds(rates: Sequence[Rate], shape: str) -> list[Bound]:
    of = {(rate.phase, rate.contestant): rate for rate in rates}
    thousands = (SIZES[KEYS].amount.keys - SIZES[SMALL].amount.keys) / 1000
    small = median(of["memory", SMALL].values)
    more = Spread.of([(value - small) / thousands for value in of["memory", KEYS].values])
    return [
        Bound("start", shape, EVENTS, of["start", EVENTS].spread, START_SECONDS),
        Bound("per_thousand", shape, KEYS, more, None),
    ]
