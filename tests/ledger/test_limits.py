"""Rates and concurrency: in no sixty seconds more than the limit begins, and what is given back is given back once.
Wherever they are counted: in memory, in memory that several processes map, on Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.ledger.limits import NO_RATES, WINDOW_SECONDS, Counted, Exceeded, Limiter, Limits, Rates, Window
from tests.support.limiters import mapped, on_redis, used

Fresh = Callable[[], Limiter]
pauses = st.sampled_from([0.0, 0.001, 0.4, 0.999, 1.0, 5.0, 29.5, 59.0, 60.0, 61.0, 200.0])
starts = st.floats(0, 1e6, allow_nan=False)


@pytest.fixture(scope="module", params=["memory", "mapped", "redis"])
def fresh(request: pytest.FixtureRequest) -> Iterator[Fresh]:
    """Makes limits, in each of the three places."""
    if request.param == "memory":
        yield Limits
    elif request.param == "mapped":
        with mapped() as make:
            yield make
    else:
        with on_redis(request.getfixturevalue("redis_server")) as far:
            yield far


def most_in_any_minute(happened: list[tuple[float, int]]) -> int:
    """The largest sum in any window of sixty seconds, wherever it begins."""
    return max(
        (sum(n for at, n in happened if begin <= at < begin + WINDOW_SECONDS) for begin, _ in happened), default=0
    )


@given(starts, st.integers(1, 5), st.lists(pauses, max_size=60))
def test_no_minute_has_more_requests_than_the_limit(fresh: Fresh, start: float, rpm: int, waits: list[float]) -> None:
    """A fixed window would let twice the limit through where two of them meet."""
    limits, rates, now, begun = fresh(), Rates(rpm=rpm), start, []
    for wait in waits:
        now += wait
        if limits.begin("key", rates, now) is None:
            begun.append((now, 1))
            limits.end("key")
    assert most_in_any_minute(begun) <= rpm


@given(starts, st.integers(1, 5), st.lists(pauses, max_size=60))
def test_who_waits_as_long_as_told_gets_in(fresh: Fresh, start: float, rpm: int, waits: list[float]) -> None:
    """`Retry-After` that is too short brings callers back for nothing; one of more than a minute is never right."""
    limits, rates, now = fresh(), Rates(rpm=rpm), start
    for wait in waits:
        now += wait
        exceeded = limits.begin("key", rates, now)
        if exceeded is None:
            continue
        assert 0 < exceeded.retry_after_seconds <= WINDOW_SECONDS + 1
        assert exceeded.used == rpm == exceeded.most
        now += exceeded.retry_after_seconds + 1e-6
        assert limits.begin("key", rates, now) is None


@given(starts, st.integers(1, 5), st.lists(pauses, max_size=60))
def test_a_limit_is_not_stricter_than_it_says(fresh: Fresh, start: float, rpm: int, waits: list[float]) -> None:
    """Whoever has begun fewer than the limit within the last 61 seconds (it counts by whole seconds) gets in."""
    limits, rates, now, begun = fresh(), Rates(rpm=rpm), start, []
    for wait in waits:
        now += wait
        recent = sum(at > now - WINDOW_SECONDS - 1 - 1e-6 for at in begun)
        refused = limits.begin("key", rates, now)
        if refused is None:
            begun.append(now)
        else:
            assert recent >= rpm


@dataclass
class Running:
    """A request that runs. `entry`: when it began, and what it is charged with in the end."""

    tokens: int
    counted: Counted
    entry: list[float]


steps = st.lists(
    st.tuples(pauses, st.integers(0, 60), st.integers(0, 80), st.booleans(), st.integers(0, 10)), max_size=50
)


@given(starts, st.integers(10, 100), steps)
def test_no_minute_takes_more_tokens_than_the_limit_lets_begin(
    fresh: Fresh, start: float, tpm: int, history: list[tuple[float, int, int, bool, int]]
) -> None:
    """Tokens are counted before a request runs and corrected after it: a refund that outlives what it cancels would
    let a later minute have more, one that is forgotten would let it have less."""
    limits, rates, now = fresh(), Rates(tpm=tpm), start
    running: list[Running] = []
    entries: list[list[float]] = []  # all that ever happened
    for wait, wanted, took, finish, pick in history:
        now += wait
        if finish and running:
            request = running.pop(pick % len(running))
            limits.settle_tokens("key", request.counted, request.tokens, took, now)
            if took > request.tokens:
                entries.append([now, took - request.tokens])
            else:
                request.entry[1] -= request.tokens - took
            continue
        recent = sum(tokens for at, tokens in entries if int(at) >= int(now) - WINDOW_SECONDS)
        answer = limits.take_tokens("key", rates, wanted, now)
        if isinstance(answer, Exceeded):
            assert recent + wanted > tpm, "refused, and would fit"
            assert answer.used == recent
            assert answer.hopeless == (wanted > tpm)
        else:
            assert recent + wanted <= tpm or wanted == 0, "let in, and does not fit"
            running.append(Running(wanted, answer, [now, wanted]))
            entries.append(running[-1].entry)
        recent = sum(tokens for at, tokens in entries if int(at) >= int(now) - WINDOW_SECONDS)
        assert used(limits, "tokens", now) == recent


@given(starts, st.lists(st.tuples(pauses, st.integers(0, 9), st.booleans()), max_size=80))
def test_a_window_keeps_to_its_memory_and_its_sum(start: float, happened: list[tuple[float, int, bool]]) -> None:
    """However much happens, a key costs sixty-one small entries; and the sum is never less than nothing."""
    window, now, entries = Window(), start, []
    for wait, amount, back in happened:
        now += wait
        if back and entries:
            entry, counted = entries.pop()
            window.take_back(entry, counted, now)
        else:
            entries.append((window.add(amount, now), amount))
        assert window.used(now) >= 0
        assert len(window._seconds) <= WINDOW_SECONDS + 1
        assert window.total == sum(entry.amount for entry in window._seconds)
    assert window.used(now + WINDOW_SECONDS + 1) == 0


@given(starts, st.integers(1, 9), st.integers(1, 99), st.lists(st.tuples(pauses, st.integers(0, 20)), max_size=40))
def test_what_is_left_is_what_can_be_had(start: float, rpm: int, tpm: int, history: list[tuple[float, int]]) -> None:
    """`x-ratelimit-remaining-*` that promises too much makes callers fail, one that promises too little makes them
    wait; after `reset` all of it is there again."""
    limits, rates, now = Limits(), Rates(rpm=rpm, tpm=tpm), start
    for wait, tokens in history:
        now += wait
        if limits.begin("key", rates, now) is None:
            limits.take_tokens("key", rates, tokens, now)
        left = limits.left("key", rates, now)
        assert {name: each.limit for name, each in left.items()} == {"requests": rpm, "tokens": tpm}
        for name, window in (("requests", limits.use("key").requests), ("tokens", limits.use("key").tokens)):
            remaining, reset = left[name].remaining, left[name].reset_seconds
            assert 0 <= remaining <= left[name].limit
            assert window.seconds_until(remaining, left[name].limit, now) == 0
            assert window.seconds_until(remaining + 1, left[name].limit, now) > 0
            assert 0 <= reset <= WINDOW_SECONDS + 1
            assert (reset == 0) == (remaining == left[name].limit)
        reset = max(each.reset_seconds for each in left.values())
    later = limits.left("key", rates, now + WINDOW_SECONDS + 1)
    assert all(each.remaining == each.limit and each.reset_seconds == 0 for each in later.values())


def test_concurrency_counts_what_runs(fresh: Fresh) -> None:
    """A key that runs as much as its plan allows is refused, until one of them ends; other keys do not notice."""
    limits, rates = fresh(), Rates(concurrency=2)
    assert limits.begin("key", rates, 0) is None
    assert limits.begin("key", rates, 0) is None
    refused = limits.begin("key", rates, 0)
    assert refused is not None
    assert (refused.what, refused.most, refused.used) == ("concurrent requests", 2, 2)
    assert limits.begin("other", rates, 0) is None
    limits.end("key")
    assert limits.begin("key", rates, 0) is None


def test_a_refused_request_takes_nothing(fresh: Fresh) -> None:
    """Callers who knock again and again must not lock themselves out."""
    limits, rates = fresh(), Rates(rpm=1, concurrency=5)
    assert limits.begin("key", rates, 0.0) is None
    for second in range(1, 60):
        assert limits.begin("key", rates, float(second)) is not None
    assert limits.running("key") == 1
    assert limits.begin("key", rates, 61.0) is None


def test_without_a_plan_nothing_is_refused(fresh: Fresh) -> None:
    """Keys without limits have none."""
    limits = fresh()
    assert all(limits.begin("key", NO_RATES, 0.0) is None for _ in range(1000))
    assert not isinstance(limits.take_tokens("key", NO_RATES, 10**12, 0.0), Exceeded)
    assert limits.left("key", NO_RATES, 0.0) == {}


@pytest.mark.parametrize("tpm", [0, 10])
def test_what_never_fits_is_said_to_be_hopeless(fresh: Fresh, tpm: int) -> None:
    """Waiting would not help: the caller should ask for less."""
    refused = fresh().take_tokens("key", Rates(tpm=tpm), 11, 0.0)
    assert isinstance(refused, Exceeded)
    assert refused.hopeless


def test_idle_work_leaves_half_of_everything_to_others(fresh: Fresh) -> None:
    """A batch that took the last request of a minute, or the last tokens, would refuse somebody who waits."""
    rates, limits = Rates(rpm=5, tpm=100, concurrency=2), fresh()
    begun = [limits.begin("key", rates, 0.0, idle=True) is None for _ in range(5)]
    assert begun == [True, True, True, False, False]
    assert limits.running("key") == 0
    assert [limits.begin("key", rates, 0.0) is None for _ in range(3)] == [True, True, False]
    assert not isinstance(limits.take_tokens("key", rates, 30, 0.0, idle=True), Exceeded)
    assert isinstance(limits.take_tokens("key", rates, 30, 0.0, idle=True), Exceeded)
    assert not isinstance(limits.take_tokens("key", rates, 50, 0.0), Exceeded)
    assert limits.begin("busy", Rates(concurrency=1), 0.0) is None
    assert isinstance(limits.begin("busy", Rates(concurrency=1), 0.0, idle=True), Exceeded)
    large = limits.take_tokens("other", rates, 80, 0.0, idle=True)
    assert not isinstance(large, Exceeded), "larger than half of the limit, it runs when all of it is free"
    hopeless = limits.take_tokens("other", rates, 101, 0.0, idle=True)
    assert isinstance(hopeless, Exceeded)
    assert hopeless.hopeless
