"""Breakers that several workers share: one state for all, and one probe among all their requests."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace.config import BreakerSettings, ModelSettings
from interlace.gateway.routing import MappedBreakers
from interlace.mapped import area_file
from tests.support.mapped import counting

MODEL = ModelSettings(name="m", breaker=BreakerSettings(failures=4, window_seconds=10, open_seconds=5))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file for an area."""
    made = area_file(tmp_path)
    yield made
    os.close(made)


def test_workers_open_it_together_and_one_of_them_probes(fd: int) -> None:
    """Failures of all count, and of all who wait one is sent to the sick model; its end is the end for all."""
    now = [100.0]
    first, second = (MappedBreakers(fd, worker, lambda: now[0]).breaker(MODEL) for worker in (0, 1))
    for breaker in (first, second, first):
        breaker.failed()
    assert (first.state, second.state) == ("closed", "closed")
    second.failed()
    assert (first.state, second.state) == ("open", "open")
    now[0] += 5
    assert (first.state, second.state) == ("half_open", "half_open")
    assert [second.enter(), first.enter(), second.enter()] == [True, False, False]
    first.leave()
    assert first.state == "probing", "only who probes can leave"
    second.failed(probe=True)
    assert (first.state, second.state) == ("open", "open")
    now[0] += 5
    assert first.enter()
    first.succeeded()
    assert (first.state, second.state) == ("closed", "closed")
    for _ in range(3):
        second.failed()
    assert second.state == "closed", "a success forgets the failures before it"


def test_the_probe_of_a_dead_worker_is_given_to_another(fd: int) -> None:
    """Else nobody would ever ask that model again."""
    now = [100.0]
    workers = [MappedBreakers(fd, worker, lambda: now[0]) for worker in (0, 1)]
    first, second = (each.breaker(MODEL) for each in workers)
    for _ in range(4):
        first.failed()
    now[0] += 6
    assert first.enter()
    MappedBreakers(fd).clear(1)
    assert second.state == "probing", "another's death changes nothing"
    MappedBreakers(fd).clear(0)
    assert [second.state, second.enter()] == ["half_open", True]
    MappedBreakers(fd, 1)
    assert first.state == "half_open", "a worker that has just begun probes nothing"


def test_a_model_with_other_settings_is_another_one(fd: int) -> None:
    """After a reload that mends it, nobody must wait until the broken one would have been tried again."""
    workers = MappedBreakers(fd, 0)
    for _ in range(4):
        workers.breaker(MODEL).failed()
    assert workers.breaker(MODEL).state == "open"
    assert workers.breaker(dataclasses.replace(MODEL, base_url="http://elsewhere/v1")).state == "closed"


PROBING = """
from interlace.config import BreakerSettings, ModelSettings
model = ModelSettings(name="m", breaker=BreakerSettings(failures=1, window_seconds=10, open_seconds=0.01))
breaker = MappedBreakers(fd, me).breaker(model)
print("ready", flush=True)
for _ in sys.stdin:
    until, entered = time.monotonic() + 0.1, 0
    while time.monotonic() < until:
        entered += breaker.enter()
    print(entered, flush=True)
"""


def test_of_processes_that_all_try_one_probes(tmp_path: Path) -> None:
    """Also where they try within the same microsecond; and one that is killed with the probe gives it up."""
    model = dataclasses.replace(MODEL, breaker=BreakerSettings(failures=1, window_seconds=10, open_seconds=0.01))
    with counting(tmp_path, PROBING, 2) as (fd, children):
        breaker = MappedBreakers(fd, 2).breaker(model)
        streams = [(child.stdin, child.stdout) for child in children]
        for _, out in streams:
            assert out is not None
            assert out.readline() == "ready\n"
        for _ in range(10):
            breaker.failed(probe=True)
            for into, _ in streams:
                assert into is not None
                into.write("go\n")
                into.flush()
            assert sorted(int(out.readline()) for _, out in streams if out is not None) == [0, 1]
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
        for worker in (0, 1):
            MappedBreakers(fd).clear(worker)
        assert breaker.enter()
        os.close(fd)
