"""What a gateway costs a request: Interlace with everything on, beside a bare proxy, LiteLLM, Portkey and nginx.

nginx answers as the provider, wrk asks over 32 connections; the gateway has a core to itself, and all others share the
rest. The gateways take turns, round by round. CPU is that of a gateway's processes, all of them. After each of
Interlace's turns its ledger has exactly as many usage events as there were answers, or the measurement fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import Progress

from benchmarks import gateways, setup, wrk
from benchmarks.figures import AtMost, Comparison, Rate, compare
from benchmarks.gateways import BARE, INTERLACE, LITELLM, NGINX, PORTKEY, Gateway, Start
from benchmarks.machine import describe
from benchmarks.processes import Cores, cores, free_port, keeping_off
from benchmarks.report import Report
from benchmarks.worker import ContestantFailed

STARTS: dict[str, Start] = {
    INTERLACE: gateways.interlace(),
    BARE: gateways.bare,
    PORTKEY: gateways.portkey,
    LITELLM: gateways.litellm,
    NGINX: gateways.nginx,
}
WARM_UP_SECONDS = 2.0
PHASES = ("rate", "cpu", "p50", "p99")


def measure_hop(progress: Progress, rounds: int, seconds: float, *, peers: bool) -> Report:
    """Start all gateways, warm them up, and let them take turns of so many seconds.

    Without `peers`: Interlace and nginx alone.
    """
    placed, console = cores(), progress.console
    about = describe() | {"cores_used": placed.text(), "seconds": seconds}
    shape = f"{wrk.CONNECTIONS} connections"
    values: list[tuple[str, str, str, float]] = []
    with ExitStack() as stack:
        stack.enter_context(keeping_off(placed))
        provider = stack.enter_context(providing(placed, console))
        started, left_out = start_all(chosen(STARTS, peers=peers), provider, placed, progress, stack)
        about["versions"] |= setup.peer_versions()
        task = progress.add_task("warming up", total=(rounds + 1) * len(started))
        for turn in range(rounds + 1):
            for gateway in in_turn(started, turn):
                with leaving_out(gateway, started, left_out):
                    measured = wrk.load(gateway, seconds if turn else min(seconds, WARM_UP_SECONDS), placed, console)
                    values += [(phase, shape, gateway.name, measured[phase]) for phase in PHASES if turn]
                    progress.update(task, advance=1, description=f"{gateway.name}: {measured['rate']:,.0f} requests/s")
        progress.remove_task(task)
    rates = gathered(values, PHASES, [gateway.name for gateway in started])
    return Report("hop", "The hop", about, rates, _compared(rates), left_out=left_out)


def _compared(rates: Sequence[Rate]) -> list[Comparison]:
    def of(phase: str, against: str, goal: float | AtMost | None) -> list[Comparison]:
        return compare([rate for rate in rates if rate.phase == phase], INTERLACE, against, goal)

    return [
        *of("rate", BARE, 1.25), *of("rate", PORTKEY, 6), *of("rate", LITELLM, 60), *of("rate", NGINX, None),
        *of("cpu", BARE, AtMost(0.8)), *of("cpu", PORTKEY, None), *of("cpu", LITELLM, None),
        *of("p99", BARE, AtMost(1.0)),
    ]  # fmt: skip


# --- what other measurements of gateways share -------------------------------------------------------------------


@contextmanager
def providing(placed: Cores, console: Console) -> Iterator[int]:
    """nginx as the provider; its port. Raises `ContestantFailed` where there is no nginx."""
    port = free_port()
    try:
        serving = gateways.nginx_serving("provider", port, wrk.provider_place(), placed.others, console)
        setup.debian("wrk", "wrk", console)
        with serving:
            yield port
    except setup.NotHere as error:
        raise ContestantFailed(f"nothing can be measured without provider and load: {error}") from error


def chosen(starts: Mapping[str, Start], *, peers: bool) -> dict[str, Start]:
    """All of them, or those that need no environment of their own."""
    return {name: start for name, start in starts.items() if peers or name in {INTERLACE, NGINX}}


def start_all(starts: dict[str, Start], provider: int, placed: Cores, progress: Progress, stack: ExitStack
              ) -> tuple[list[Gateway], dict[str, str]]:  # fmt: skip
    """All that can be started, and why the others cannot. Our own must."""
    task = progress.add_task("starting", total=len(starts))
    started, left_out = [], {}
    for name, start in starts.items():
        progress.update(task, description=f"starting {name}")
        try:
            started.append(stack.enter_context(start(provider, placed, progress.console)))
        except (setup.NotHere, ContestantFailed) as error:
            if name == INTERLACE:
                raise
            left_out[name] = " ".join(str(error).split())[:300]
        progress.advance(task)
    progress.remove_task(task)
    return started, left_out


@contextmanager
def leaving_out(gateway: Gateway, started: list[Gateway], left_out: dict[str, str]) -> Iterator[None]:
    """A peer that fails under load takes part no longer, and the report says why. Our own must not fail."""
    try:
        yield
    except ContestantFailed as error:
        if gateway.name not in STARTS or gateway.name == INTERLACE:
            raise
        started.remove(gateway)
        left_out[gateway.name] = " ".join(str(error).split())[:300]


def gathered(values: Iterable[tuple[str, str, str, float]], phases: Sequence[str], names: Sequence[str]) -> list[Rate]:
    """Values of phase, shape and contestant together, phases and contestants in this order; others are left out."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for phase, shape, name, value in values:
        found.setdefault((phase, shape, name), []).append(value)
    shapes = dict.fromkeys(shape for _, shape, _ in found)
    return [
        Rate(phase, shape, name, tuple(found[phase, shape, name]))
        for phase in phases
        for shape in shapes
        for name in names
        if (phase, shape, name) in found
    ]


def in_turn(gateways: Sequence[Gateway], turn: int) -> list[Gateway]:
    """Each round begins with another one, so that none always follows the same."""
    first = turn % len(gateways)
    return [*gateways[first:], *gateways[:first]]
