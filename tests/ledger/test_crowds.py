"""Crowds of callers on the real ledger in simulated time: seeded, so that a failure can be run again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from interlace.config import LedgerSettings, Settings
from interlace.errors import InsufficientQuota, LedgerUnavailable, RateLimited
from interlace.ledger import Bound, Caller, Hold, Outcome, Tokens, Used, read_events
from interlace.ledger.audit import Finding, audit, audit_book
from interlace.ledger.registry import add, alter
from interlace.ledger.schema import api_keys, prices
from tests.support.simulation import Fate, Hands, World, world
from tests.support.tenants import Tenant, tenant

PROMPT, COMPLETION = 2, 5  # nano-dollars for a token
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def here() -> Iterator[World]:
    """A world with one priced model, on the last day of a month."""
    hands = Hands(round(START.timestamp()) * 10**6)
    with world(Settings(ledger=LedgerSettings(wait_seconds=30.0)), hands) as made:
        values = {"model": "m", "since": 0, "prompt": PROMPT * 10**6, "completion": COMPLETION * 10**6, "request": 0}
        values |= {"batch_percent": 100, "source": "db", "recorded_at": 0}
        made.registry.change(lambda connection: [add(connection, prices, **values)])
        yield made


def caller_of(here: World, who: Tenant) -> Caller:
    """The caller behind a key, now."""
    caller = here.registry.directory.caller(who.key.digest)
    assert caller is not None
    return caller


async def reserve(here: World, who: Tenant, id: str, prompt: int, completion: int | None) -> Hold:
    """What the pipeline does before a request runs."""
    price = here.ledger.price("m", embedding=False)
    bound = Bound(prompt, completion)
    return await here.ledger.reserve(
        id, caller_of(here, who), price, bound, model="m", engine="local", endpoint="chat", tags=("crowd",)
    )


def used(prompt: int, completion: int, outcome: Outcome = Outcome.FINISHED) -> Used:
    """What it says afterwards."""
    return Used(outcome, Tokens(prompt=prompt, completion=completion), latency_us=1)


async def disk(here: World, chance: random.Random, worst: float = 0.02, *, fails: bool = False) -> None:
    """Commits again and again, with pauses, and with failures where it `fails`."""
    while True:
        await asyncio.sleep(chance.random() * worst)
        trouble = chance.choices([(), (Fate.FAILED,), (Fate.UNKNOWN,)], [8, 1, 1])[0] if fails else ()
        ends = Fate.FAILED if trouble and chance.random() < 0.3 else Fate.COMMITTED
        here.store.pump(chance.randint(1, 40), *trouble, ends)


def wrong(here: World) -> list[Finding]:
    """What the auditor says of the record, and of the running book beside it."""
    ledger = here.ledger
    found = here.store.read(lambda c: [*audit(c), *audit_book(c, ledger.book.accounts, ledger.unwritten.values())])
    return [finding for finding in found if finding.severity == "wrong"]


@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_leaves_every_book_right(here: World, seed: int) -> None:
    """Hundreds of callers at once, who answer, fail, hang up while they wait or run, on budgets too small for all."""
    chance = random.Random(seed)
    people = [tenant(here.registry, org_budget=9000), tenant(here.registry, key_budget=4000), tenant(here.registry)]
    people.append(tenant(here.registry, budget_nanos=6000))
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        await asyncio.sleep(chance.random() * 3)
        who, prompt = chance.choice(people), chance.randint(1, 20)
        most = chance.choice([None, None, chance.randint(1, 60)])
        try:
            hold = await reserve(here, who, f"r{number}", prompt, most)
        except (InsufficientQuota, RateLimited, LedgerUnavailable) as refusal:
            ends[type(refusal).__name__] += 1
            return
        said, outcome, length = 0, Outcome.FINISHED, chance.randint(1, 80)
        try:
            while said < length and (most is None or said < most):
                await asyncio.sleep(chance.random() * 0.05)
                if not hold.cover(said + 1):
                    outcome = Outcome.BUDGET_ENDED
                    break
                said += 1
            if chance.random() < 0.1:
                outcome = Outcome.FAILED
        except asyncio.CancelledError:
            outcome = Outcome.CLIENT_GONE
        cost = await here.ledger.settle(hold, used(prompt, said, outcome))
        assert cost == (0 if outcome is Outcome.FAILED else PROMPT * prompt + COMPLETION * said)
        assert hold.id not in here.ledger.unwritten
        ends[outcome] += 1

    async def crowd() -> None:
        writing = asyncio.create_task(disk(here, chance, fails=True))
        tasks = [asyncio.create_task(one(number)) for number in range(250)]
        for _ in range(25):
            await asyncio.sleep(chance.random() * 0.3)
            chance.choice(tasks).cancel()
            assert wrong(here) == []
            assert all(within(here, who) for who in people)
        await asyncio.gather(*tasks, return_exceptions=True)
        failed = [task.exception() for task in tasks if not task.cancelled() and task.exception()]
        assert failed == []
        writing.cancel()

    here.loop.complete(crowd())
    assert {"finished", "budget_ended", "failed", "client_gone", "InsufficientQuota"} <= set(ends), ends
    assert wrong(here) == []
    assert here.ledger.book.waiting == 0
    assert all(account.reserved == 0 for account in here.ledger.book.accounts.values())
    assert not any(event.overrun_nanos for event in here.store.read(lambda c: list(read_events(c))))


def within(here: World, who: Tenant) -> bool:
    """Whether what is spent and reserved of every account of a tenant fits its budget."""
    book = here.ledger.book
    return all(
        (room := book.room((account,))) is None or room >= 0 for account in caller_of(here, who).accounts("2026-01")
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("short", [False, True])
def test_a_budget_for_exactly_37_serves_exactly_37(here: World, seed: int, short: bool) -> None:
    """Whatever the order in which a hundred settle: no 38th, and nobody refused whom it would have paid for; `short`
    answers use half of what they hold, so that those who wait get what comes back."""
    chance = random.Random(seed)
    bound = PROMPT * 3 + COMPLETION * 20
    length = 10 if short else 20
    cost = PROMPT * 3 + COMPLETION * length
    who = tenant(here.registry, project_budget=37 * cost + (bound - cost))
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        await asyncio.sleep(chance.random())
        try:
            hold = await reserve(here, who, f"r{number}", 3, 20)
        except InsufficientQuota:
            ends["refused"] += 1
            return
        await asyncio.sleep(chance.random())
        await here.ledger.settle(hold, used(3, length))
        ends["served"] += 1

    async def crowd() -> None:
        writing = asyncio.create_task(disk(here, chance, worst=0.005))
        await asyncio.gather(*(one(number) for number in range(100)))
        writing.cancel()

    here.loop.complete(crowd())
    assert ends == {"served": 37, "refused": 63}
    assert wrong(here) == []


def test_who_waits_is_served_in_the_order_of_arrival(here: World) -> None:
    """Ten who want the same budget one at a time: first come, first served."""
    who, order = tenant(here.registry, key_budget=10 * 100 + 400), []

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.001)
        hold = await reserve(here, who, f"r{number}", 0, 100)
        order.append(number)
        await asyncio.sleep(0.1)
        await here.ledger.settle(hold, used(0, 20))

    async def crowd() -> None:
        writing = asyncio.create_task(disk(here, random.Random(0), worst=0.001))
        await asyncio.gather(*(one(number) for number in range(10)))
        writing.cancel()

    here.loop.complete(crowd())
    assert order == list(range(10))


def test_waiting_has_an_end(here: World) -> None:
    """Who waits behind an answer that does not end is told to come back, after the time that is set and no sooner."""
    who = tenant(here.registry, key_budget=500)

    async def two() -> float:
        await reserve(here, who, "first", 0, 100)
        began = here.hands.monotonic()
        with pytest.raises(RateLimited) as refused:
            await reserve(here, who, "second", 0, 100)
        assert refused.value.code == "budget_reserved"
        assert refused.value.retry_after_seconds
        return here.hands.monotonic() - began

    assert here.loop.complete(two()) == pytest.approx(30.0, abs=0.01)
    assert here.ledger.book.waiting == 0


def test_who_waits_over_the_end_of_a_month_is_paid_by_the_new_one(here: World) -> None:
    """January is used up while it waits; February has room, so it is served, and February pays."""
    who = tenant(here.registry, key_budget=500)
    here.hands.micros = round(datetime(2026, 1, 31, 23, 59, 55, tzinfo=UTC).timestamp()) * 10**6

    async def two() -> Hold:
        writing = asyncio.create_task(disk(here, random.Random(0)))
        first = await reserve(here, who, "first", 0, 100)
        second = asyncio.create_task(reserve(here, who, "second", 0, 100))
        await asyncio.sleep(10)
        await here.ledger.settle(first, used(0, 100))
        hold = await second
        await here.ledger.settle(hold, used(0, 7))
        writing.cancel()
        return hold

    hold = here.loop.complete(two())
    assert hold.day == "2026-02-01"
    events = here.store.read(lambda c: list(read_events(c)))
    assert [(event.id, event.month, event.cost_nanos) for event in events] == [
        ("first", "2026-01", 500),
        ("second", "2026-02", 35),
    ]
    assert wrong(here) == []


@pytest.mark.parametrize("change", ["raise", "lift"])
def test_a_budget_that_is_raised_lets_those_in_who_wait(here: World, change: str) -> None:
    """Also before anything has ever settled, and at once."""
    who = tenant(here.registry, key_budget=500)

    async def two() -> float:
        await reserve(here, who, "first", 0, 100)
        began = here.hands.monotonic()
        second = asyncio.create_task(reserve(here, who, "second", 0, 100))
        await asyncio.sleep(1)
        budget = 1000 if change == "raise" else None
        here.registry.change(lambda c: [alter(c, api_keys, who.key.id, budget_nanos=budget)])
        await second
        return here.hands.monotonic() - began

    assert here.loop.complete(two()) == pytest.approx(1.0, abs=0.01)


def test_nothing_is_said_to_be_settled_before_the_disk_has_it(here: World) -> None:
    """A disk that takes a minute: the answer's last byte waits for it; a disk that is full stops new work."""
    who = tenant(here.registry)

    async def slow() -> None:
        hold = await reserve(here, who, "first", 1, 1)
        settling = asyncio.create_task(here.ledger.settle(hold, used(1, 1)))
        await asyncio.sleep(60)
        assert not settling.done()
        here.store.pump(10, Fate.FAILED)
        with pytest.raises(LedgerUnavailable) as refused:
            await reserve(here, who, "second", 1, 1)
        assert refused.value.retry_after_seconds
        await asyncio.sleep(60)
        assert not settling.done()
        here.store.pump(10, Fate.UNKNOWN, Fate.COMMITTED)
        assert await settling == PROMPT + COMPLETION
        await reserve(here, who, "third", 1, 1)

    here.loop.complete(slow())
    assert [event.id for event in here.store.read(lambda c: list(read_events(c)))] == ["first"]
    assert wrong(here) == []
