"""A hold shared by attempts never holds too little or too much, and the auditor adds attempts up for itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.ledger import Bound, Ledger, Outcome, Price, Registry, Share, Tokens, Tried, Used, read_events
from interlace.ledger.audit import audit
from interlace.ledger.prices import charge
from interlace.money import MOST_NANOS
from tests.support.ledgers import open_ledger, tamper
from tests.support.prices import costing
from tests.support.tenants import Tenant, tenant

pytestmark = pytest.mark.usefixtures("store")

BUDGET = 10_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A ledger with a cheap and a dear model."""
    with open_ledger(tmp_path, prices=(costing("cheap", 1, 2), costing("dear", 10, 20))) as opened:
        yield opened


def price(registry: Registry, model: str) -> Price:
    """What a model costs now."""
    found = registry.directory.price(model, registry.clock.now())
    assert found is not None
    return found


def caller_of(registry: Registry, who: Tenant):
    """The tenant as a caller."""
    caller = registry.directory.caller(registry.hasher.digest(who.text))
    assert caller is not None
    return caller


steps = st.lists(
    st.tuples(
        st.sampled_from(("cheap", "dear")),
        st.integers(0, 300),  # prompt tokens
        st.none() | st.integers(0, 200),  # the bound of the answer
        st.integers(0, 250),  # tokens that come
        st.booleans(),  # whether it ends before the next one begins
        st.booleans(),  # whether it is charged
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_hold_covers_those_that_run_and_what_the_others_cost(
    registry: Registry, steps: list[tuple[str, int, int | None, int, bool, bool]]
) -> None:
    """At every moment: what running attempts may still cost and what ended ones did cost is reserved, and no more is
    reserved than the budget has. Afterwards nothing is."""

    async def attempt_by_attempt() -> None:
        ledger = Ledger(registry)
        caller = caller_of(registry, tenant(registry, key_budget=BUDGET))
        model, prompt, bound, *_ = steps[0]
        limit = Bound(prompt, bound)
        try:
            hold = await ledger.reserve(
                "x" * 24, caller, price(registry, model), limit, model=model, engine="e", endpoint="c"
            )
        except Exception:  # noqa: BLE001 - too dear for the budget: there is nothing to share
            return
        running: list[tuple[Share, int]] = []
        ended, first = 0, True

        def check() -> None:
            due = ended + sum(
                charge(share.price, Tokens(share.bound.prompt, completion=come)) for share, come in running
            )
            account = ledger.book.account(caller.accounts(hold.day[:7])[2])
            assert due <= hold.reservation.nanos <= BUDGET
            assert account.reserved == hold.reservation.nanos
            assert sum(share.nanos for share, _ in running) + ended == hold.taken

        for model, prompt, bound, tokens, ends, charged in steps:
            share = hold.first if first else hold.begin(price(registry, model), Bound(prompt, bound))
            first = False
            if share is None:
                continue
            come = 0
            while come < tokens and (bound is None or come < bound) and share.cover(come + 1):
                come += 1
            running.append((share, come))
            check()
            if ends:
                running.pop()
                used = Tokens(share.bound.prompt, completion=come)
                share.end(used, charged=charged)
                ended += charge(share.price, used) if charged else 0
                check()
        ledger.book.settle(hold.reservation, ended)
        assert all(account.reserved == 0 for account in ledger.book.accounts.values())

    asyncio.run(attempt_by_attempt())


def tried(registry: Registry, model: str, end: str, completion: int) -> Tried:
    """An attempt that used one token of prompt and so many of the answer."""
    tokens = Tokens(1, completion=completion)
    return Tried(model, "e", price(registry, model), "primary", end, tokens, 5)  # type: ignore[arg-type]


async def settled(registry: Registry, outcome: Outcome, *attempts: Tried) -> None:
    """An event with these attempts, written."""
    ledger, caller = Ledger(registry), caller_of(registry, tenant(registry))
    limit = Bound(1, 100)
    hold = await ledger.reserve(
        "e" * 24, caller, attempts[0].price, limit, model="cheap", engine="e", endpoint="c", route="r"
    )
    await ledger.settle(hold, Used(outcome, Tokens(), 9, tried=attempts))


async def test_an_event_is_the_sum_of_its_attempts(registry: Registry) -> None:
    """It says what the one that served says, and costs what all of them cost but those that failed."""
    ends = [("dear", "failed", 0), ("cheap", "rejected", 4), ("dear", "cancelled", 1), ("dear", "served", 2)]
    await settled(registry, Outcome.FINISHED, *(tried(registry, *end) for end in ends))
    (event,) = registry.store.read(lambda connection: list(read_events(connection)))
    assert [one.cost_nanos for one in event.attempts] == [0, 9, 30, 50]
    assert (event.cost_nanos, event.model, event.route, event.tokens) == (89, "dear", "r", Tokens(1, completion=2))
    assert event.attempt_us == (5, 5, 5, 5)
    assert registry.store.read(lambda connection: list(audit(connection))) == []


async def test_an_event_that_is_not_charged_charges_no_attempt(registry: Registry) -> None:
    """An answer that failed in the middle costs nothing, and neither do the attempts that it grew out of."""
    await settled(
        registry, Outcome.FAILED, tried(registry, "cheap", "rejected", 4), tried(registry, "dear", "failed", 2)
    )
    (event,) = registry.store.read(lambda connection: list(read_events(connection)))
    assert (event.cost_nanos, [one.cost_nanos for one in event.attempts]) == (0, [0, 0])
    assert registry.store.read(lambda connection: list(audit(connection))) == []


async def test_no_sum_of_attempts_is_beyond_what_can_be_written(registry: Registry) -> None:
    """Two providers that each claim the largest amount there is must not stop the thread that writes for all."""
    mad = [Tried("dear", "e", price(registry, "dear"), "w", "cancelled", Tokens(2**53), 5)] * 20
    await settled(registry, Outcome.FINISHED, *mad, tried(registry, "dear", "served", 1))
    (event,) = registry.store.read(lambda connection: list(read_events(connection)))
    assert event.cost_nanos <= MOST_NANOS
    assert [one for one in registry.store.read(lambda c: list(audit(c))) if one.severity == "wrong"] == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((0, "percent"), 50, "attempt 1: only what is reused costs a part"),
        ((0, "cost_nanos"), 10, "attempt 1: its cost is not its tokens"),
        ((1, "tokens"), {"prompt": 2}, "attempt 2: its cost is not its tokens"),
        ((1, "end"), "failed", "attempt 2: its cost is not its tokens"),
        ((1, "end"), "gone", "attempt 2: may not end so"),
        ((0, "end"), "served", "more than one of its attempts served"),
        ((0, "price_id"), 999, "attempt 1: its price is not one of its model"),
        ((1, "model"), "cheap", "it does not say what its attempt that served says"),
        ((0, "tokens"), {"prompt": -1}, "attempt 1: prompt_tokens is negative"),
        ((0, "tokens"), {"prompt": "1"}, "its attempts cannot be read"),
        ((), None, "its attempts cannot be read"),
        ((), [], "its attempts cannot be read"),
    ],
)
async def test_the_auditor_finds_what_is_wrong_with_an_attempt(
    registry: Registry, path: tuple[int, str] | tuple[()], value: object, words: str
) -> None:
    """Whoever changes one attempt changes what somebody owes."""
    await settled(
        registry, Outcome.FINISHED, tried(registry, "cheap", "rejected", 4), tried(registry, "dear", "served", 2)
    )
    (event,) = registry.store.read(lambda connection: list(read_events(connection)))
    attempts = json.loads(msgspec.json.encode(event.attempts))
    if path:
        attempts[path[0]][path[1]] = value
    else:
        attempts = value
    tamper(registry, f"UPDATE usage_events SET attempts = '{json.dumps(attempts)}'")
    assert any(words in str(finding) for finding in registry.store.read(lambda c: list(audit(c))))


async def test_the_auditor_adds_attempts_up(registry: Registry) -> None:
    """A sum that does not agree with its parts is a bill that nobody can check."""
    await settled(registry, Outcome.FINISHED, tried(registry, "dear", "served", 2))
    tamper(registry, "UPDATE usage_events SET cost_nanos = cost_nanos + 1")
    words = "its cost is not the sum of its attempts: expected 50 nano-dollars, found 51"
    assert any(words in str(finding) for finding in registry.store.read(lambda c: list(audit(c))))
