"""What a gateway costs a stream: time to the first token, delay of each chunk, CPU a chunk, beside no gateway at all.

Each chunk carries the moment at which the provider wrote it. "Direct" is the load client at the provider itself: what
the others take beyond it, in the same round, is theirs. Provider and client share the cores that the gateway has not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from rich.progress import Progress

from benchmarks import gateways, setup
from benchmarks.figures import Added, Comparison, Rate, added, compare
from benchmarks.gateways import BARE, INTERLACE, LITELLM, MODEL, NGINX, PORTKEY, Gateway, Start
from benchmarks.hop import chosen, gathered, in_turn, leaving_out, start_all
from benchmarks.machine import describe
from benchmarks.processes import cores, free_port, keeping_off, on, running
from benchmarks.report import Report
from benchmarks.worker import ContestantFailed, Worker

DIRECT = "direct"
STARTS: dict[str, Start] = {
    INTERLACE: gateways.interlace(streams=True),
    BARE: gateways.bare,
    PORTKEY: gateways.portkey,
    LITELLM: gateways.litellm,
    NGINX: gateways.nginx,
}
WARM_UP_SECONDS = 60.0  # some load half of themselves with their first request
_OURS = (INTERLACE, BARE, DIRECT)  # what others are held against is measured in every round
PHASES = ("first", "first99", "delay", "delay99", "gap99", "chunk", "arrived")


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, of so many chunks each, so many milliseconds apart."""

    streams: int
    chunks: int
    pace_ms: int
    ramp_seconds: float = 1.0

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.streams} streams"

    @property
    def most_seconds(self) -> float:
        """When the measurement of one that cannot keep up is ended: twice as long as it should take."""
        return 2 * (self.ramp_seconds + self.chunks * self.pace_ms / 1000)


LOADS = (Load(64, 200, 25), Load(512, 200, 60))  # a round of all takes a minute and a half
QUICK_LOADS = (Load(8, 40, 25, 0.2),)


def measure_streaming(progress: Progress, rounds: int, *, quick: bool, peers: bool) -> Report:
    """Start all gateways, warm them up, and let them take turns at each load."""
    placed, loads = cores(), QUICK_LOADS if quick else LOADS
    about = describe() | {"cores_used": placed.text()}
    values: list[tuple[str, str, str, float]] = []
    with ExitStack() as stack:
        stack.enter_context(keeping_off(placed))
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.stream_provider", str(port)]
        provider = stack.enter_context(running("provider", on(placed.others, command)))
        provider.wait_for(f"http://127.0.0.1:{port}/")
        command = on(placed.others, [sys.executable, "-m", "benchmarks.peers.stream_client"])
        client = stack.enter_context(Worker("load client", command))
        client.wait_until_loaded()
        started, left_out = start_all(chosen(STARTS, peers=peers), port, placed, progress, stack)
        started.append(Gateway(DIRECT, port, [{}], provider))
        about["versions"] |= setup.peer_versions()
        task = progress.add_task("warming up", total=len(started) + rounds * len(loads) * len(started))
        for gateway in list(started):
            with leaving_out(gateway, started, left_out):
                _turn(gateway, client, QUICK_LOADS[0], WARM_UP_SECONDS)
            progress.advance(task)
        for turn in range(rounds):
            for load in loads:
                for gateway in in_turn(started, turn):
                    if (at := f"{gateway.name} at {load.label}") in left_out:
                        progress.advance(task)
                        continue
                    with leaving_out(gateway, started, left_out):
                        measured = _turn(gateway, client, load, load.most_seconds)
                        values += [(phase, load.label, gateway.name, measured[phase]) for phase in PHASES]
                        if measured["arrived"] < 100 and gateway.name not in _OURS:  # each time takes minutes
                            left_out[at] = f"from round {turn + 2} on: it could not keep up"
                        note = f"{gateway.name}, {load.label}: {measured['delay']:.2f} ms"
                        progress.update(task, advance=1, description=note)
        progress.remove_task(task)
    of_gateways = [value for value in values if value[0] != "chunk" or value[2] != DIRECT]
    rates = gathered(of_gateways, PHASES, [gateway.name for gateway in started])
    about["loads"] = [asdict(load) for load in loads]
    return Report("streaming", "Streaming", about, rates, _compared(rates), added=_added(rates), left_out=left_out)


def _turn(gateway: Gateway, client: Worker, load: Load, most_seconds: float) -> dict[str, float]:
    """One measurement. A gateway that refuses or cuts a stream is an error; one that is late shows in `arrived`."""
    before = gateway.running.cpu_seconds()
    job: dict[str, Any] = {"port": gateway.port, "headers": gateway.callers[0], "model": MODEL}
    job |= asdict(load) | {"most_seconds": most_seconds}
    told = client.ask(job)
    spent = gateway.running.cpu_seconds() - before
    if told["late"]:
        gateway.running.wait_until_idle()
    if told["failed"] or not told["chunks"]:
        raise ContestantFailed(f"{gateway.name}: streams failed: {told}\n{gateway.running.last_words()}")
    told["chunk"] = 1e6 * spent / told["chunks"]
    told["arrived"] = 100 * told["chunks"] / (load.streams * load.chunks)
    return {phase: float(told[phase]) for phase in PHASES}


def _compared(rates: Sequence[Rate]) -> list[Comparison]:
    chunk = [rate for rate in rates if rate.phase == "chunk"]
    return [one for peer in (BARE, PORTKEY, LITELLM) for one in compare(chunk, INTERLACE, peer, None)]


def _added(rates: Sequence[Rate]) -> list[Added]:
    names = list(dict.fromkeys(rate.contestant for rate in rates if rate.contestant != DIRECT))
    beyond_direct = [
        one
        for phase in ("first", "delay", "gap99")
        for name in names
        for one in added(rates, phase, name, DIRECT, None)
    ]
    times = ("first", "first99", "delay", "delay99", "gap99")
    return beyond_direct + [one for phase in times for one in added(rates, phase, INTERLACE, BARE, None)]
