"""Limits that several processes count in one memory: as with one, exact together, and whole after any death."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace import mapped
from interlace.errors import LedgerUnavailable
from interlace.ledger.limits import WINDOW_SECONDS, Exceeded, Rates
from interlace.ledger.mapped_limits import FIRST, KEPT_SECONDS, REQUESTS, RUNNING, TOKENS, TOTAL, MappedLimits
from interlace.mapped import SEGMENT_SLOTS, Area, Slot, area_file
from tests.support.limiters import RATES, compare, histories
from tests.support.mapped import counting


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file for an area."""
    made = area_file(tmp_path)
    yield made
    os.close(made)


@given(st.floats(0, 1e6, allow_nan=False), histories)
def test_one_process_counts_as_it_does_alone(start: float, history: list[tuple[float, str, int, int]]) -> None:
    """A plan means the same with one process and with several: whatever happens, both say the same, with the same
    numbers in their refusals and headers."""
    file = area_file(Path())
    try:
        compare(MappedLimits(file, 3, 1), start, history)
    finally:
        os.close(file)


HAMMER = """
rates, limits = Rates(rpm=40, tpm=900, concurrency=3), MappedLimits(fd, 3, me)
chance, log, running = random.Random(me), [], []
sys.stdin.readline()
now = lambda: time.monotonic() * SPEED
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    before = now()
    if running and chance.random() < 0.5:
        begun, counted, tokens = running.pop(chance.randrange(len(running)))
        used = chance.randrange(tokens + 1)
        log.append(("run", begun, before, 1))
        limits.settle_tokens("k", counted, tokens, used, now())
        log.append(("tokens", *took[id(counted)], used))
        limits.end("k")
    elif limits.begin("k", rates, before) is None:
        after = now()
        log.append(("requests", before, after, 1))
        tokens, before = chance.randrange(60), now()
        counted = limits.take_tokens("k", rates, tokens, before)
        if isinstance(counted, Exceeded):
            log.append(("run", after, now(), 1))
            limits.end("k")
        else:
            took = globals().setdefault("took", {})
            took[id(counted)] = before, now()
            running.append((after, counted, tokens))
    if chance.random() < 0.02:
        time.sleep(0.002)
for begun, counted, tokens in running:
    log.append(("run", begun, now(), 1))
    log.append(("tokens", *took[id(counted)], tokens))
    limits.end("k")
print(json.dumps(log))
"""


def test_processes_together_keep_to_the_limits(tmp_path: Path) -> None:
    """In no sixty seconds, wherever they begin, do three processes let more begin than one may; and at no instant do
    more run. A second of the machine is two hundred of the limits here."""
    code = HAMMER.replace("SPEED", "200").replace("SECONDS", "2.5")
    with counting(tmp_path, code, 3) as (fd, children):
        MappedLimits(fd, 3)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        logs = [json.loads(child.communicate(timeout=60)[0]) for child in children]
        assert MappedLimits(fd, 3).running("k") == 0
    happened = [tuple(each) for log in logs for each in log]
    most = {what: _most(happened, what) for what in ("requests", "tokens")}
    assert 30 <= most["requests"] <= 40
    assert 0 < most["tokens"] <= 900
    assert 0 < _most_at_once(happened) <= 3
    assert all(any(what == "requests" for what, *_ in log) for log in logs), "one of them never got in"


def _most(happened: list[tuple[Any, ...]], wanted: str) -> int:
    """The most of a kind that surely lay within sixty seconds. Of each it is known between which moments it was."""
    those = [(before, after, amount) for what, before, after, amount in happened if what == wanted]
    return max(
        sum(amount for before, after, amount in those if before >= begin and after < begin + WINDOW_SECONDS)
        for begin, _, _ in those
    )


def _most_at_once(happened: list[tuple[Any, ...]]) -> int:
    edges = [edge for what, on, off, _ in happened if what == "run" for edge in ((on, 1), (off, -1))]
    most = now = 0
    for _, change in sorted(edges):
        now += change
        most = max(most, now)
    return most


COUNTING = """
limits = MappedLimits(fd, 3, me)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30_000):
    limits.more_tokens("k", 1, 0.0)
"""


def test_no_count_is_lost(tmp_path: Path) -> None:
    """Two processes that add to one number at the same time must both be found in it."""
    with counting(tmp_path, COUNTING, 3) as (fd, children):
        limits = MappedLimits(fd, 3)
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        assert [child.wait(60) for child in children] == [0, 0, 0]
        assert limits.left("k", Rates(tpm=90_001), 0.0)["tokens"].remaining == 1
        os.close(fd)


TORN = """
limits = MappedLimits(fd, 3, me)
limits.begin("k", Rates(rpm=10), 100.0)
limits.take_tokens("k", Rates(tpm=100), 30, 100.0)
slot = limits._area.slot("k")
with slot:
    slot.view[slot.at + WINDOW + 3 + 100 % 61] += 7   # and the sum does not follow
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("records", [False, True], ids=["mutex", "record lock"])
def test_what_a_death_leaves_torn_is_repaired(tmp_path: Path, records: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed between two writes leaves its lock free, and no sum that is not the sum of its parts;
    what it ran is dropped once it is buried."""
    choice = "import functools\nfrom interlace.ledger import mapped_limits\n"
    choice += f"mapped_limits.Area = functools.partial(Area, records={records})\n"
    monkeypatch.setattr("interlace.ledger.mapped_limits.Area", lambda *given: Area(*given, records=records))
    for window, used in ((TOKENS, 37), (REQUESTS, 8)):
        with counting(tmp_path, choice + TORN.replace("WINDOW", str(window)), 1) as (fd, (child,)):
            limits = MappedLimits(fd, 3, 2)
            assert child.wait(30) == -signal.SIGKILL
            rates = Rates(rpm=10, tpm=100)
            refused = limits.take_tokens("k", rates, 101, 100.0)
            assert isinstance(refused, Exceeded)
            shown = {"requests": 10 - limits.left("k", rates, 100.0)["requests"].remaining, "tokens": refused.used}
            assert shown["tokens" if window == TOKENS else "requests"] == used
            assert limits.running("k") == 1
            limits.clear(0)
            assert limits.running("k") == 0
            os.close(fd)


KILLED = """
rates, limits = Rates(rpm=10**6, tpm=10**9, concurrency=1000), MappedLimits(fd, 3, me)
print("ready", flush=True)
while True:
    limits.begin("k", rates, time.monotonic() * 50)
    counted = limits.take_tokens("k", rates, 10, time.monotonic() * 50)
    limits.settle_tokens("k", counted, 10, 5, time.monotonic() * 50)
    limits.end("k")
"""


def test_processes_that_are_killed_at_any_moment_leave_the_sums_right(tmp_path: Path) -> None:
    """And nobody waits for what they held."""
    fd = area_file(tmp_path)
    limits = MappedLimits(fd, 3, 2)
    rates = Rates(rpm=10**6, tpm=10**9)
    for _ in range(4):
        with counting(tmp_path, KILLED, 2, fd) as (_, children):
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
            for child in children:
                time.sleep(0.05)
                child.kill()
                child.wait()
                limits.visit("k", rates, 0.0)
                limits.more_tokens("k", 1, 0.0)
        slot = limits._area.slot("k")
        for window in (REQUESTS, TOKENS):
            at = slot.at + window
            assert slot.view[at + TOTAL] == sum(slot.view[at + FIRST : at + FIRST + KEPT_SECONDS])
        assert all(0 <= slot.view[slot.at + RUNNING + worker] <= 1 for worker in (0, 1))
    os.close(fd)


STOPPED = """
slot = MappedLimits(fd, 3, me)._area.slot("k")
with slot:
    print("inside", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
print("outside", flush=True)
"""


def test_a_process_that_is_stopped_inside_holds_nobody_up_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New requests of that key are refused and may come again; those that have run settle all the same, or their usage
    events would be lost."""
    monkeypatch.setattr(mapped, "PATIENCE_SECONDS", 0.05)
    with counting(tmp_path, STOPPED, 1) as (fd, (child,)):
        limits = MappedLimits(fd, 3, 2)
        counted = limits.more_tokens("k", 5, 0.0)
        assert child.stdout is not None
        assert child.stdout.readline() == "inside\n"
        with pytest.raises(LedgerUnavailable) as refused:
            limits.begin("k", RATES, 0.0)
        assert refused.value.retry_after_seconds
        assert limits.begin("other", RATES, 0.0) is None
        limits.settle_tokens("k", counted, 5, 3, 0.0)
        limits.settle_tokens("k", limits.more_tokens("k", 5, 0.0), 5, 3, 0.0)
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == "outside\n"
        assert limits.begin("k", RATES, 0.0) is None
        os.close(fd)


def test_names_have_the_same_slots_at_every_process(fd: int) -> None:
    """Also those that came while the file grew; a slot of another name must never be taken for one's own."""
    here, there = Area(fd, 5), Area(fd, 5)
    names = [f"key_{n}" for n in range(2 * SEGMENT_SLOTS + 10)]
    for place, name in enumerate(names):
        (here, there)[place % 2].slot(name).view[(slot := here.slot(name)).at] = place
        assert isinstance(slot, Slot)
    assert [there.slot(name).view[there.slot(name).at + 0] for name in names] == list(range(len(names)))
    ends = sorted(slot.at for slot in here.all())
    assert len(list(here.all())) == len(names)
    assert all(b - a >= 5 for a, b in pairwise(sorted(set(ends))))


def test_where_there_is_no_room_the_next_key_is_refused(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must be an error with a word to the caller: found by a write to the mapping, it ends the process."""
    area = Area(fd, 5)
    for n in range(SEGMENT_SLOTS - 1):
        area.slot(str(n))
    monkeypatch.setattr(os, "pwrite", lambda *_: 100)
    with pytest.raises(LedgerUnavailable):
        area.slot("one more")
    assert area.slot("7") is area.slot("7")
    monkeypatch.undo()
    area.slot("one more").view[area.slot("one more").at] = 1


def test_a_worker_that_begins_again_runs_nothing(fd: int) -> None:
    """What the one before it ran died with it; what other workers run goes on."""
    first, second = MappedLimits(fd, 2, 0), MappedLimits(fd, 2, 1)
    for limits in (first, first, second):
        assert limits.begin("k", RATES, 0.0) is None
    assert MappedLimits(fd, 2, 0).running("k") == 1
