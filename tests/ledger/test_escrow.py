"""Budgets that several processes share are exact, whatever happens to processes, messages, clocks and budgets."""

from __future__ import annotations

import random

import msgspec
import pytest

from interlace.ledger import bank
from interlace.ledger.escrow import Answer, Ask, Draws, Drop, Fenced, GiveBack, Need, Worker
from tests.support.offices import OWNED, Message, Office, Process


def unbounded(**budgets: int) -> dict[tuple[str, str], int | None]:
    """No budget but these, by id."""
    return {(scope, id): budgets.get(id) for scope, id in OWNED}


def shuffled_round(office: Office, chance: random.Random) -> None:
    """Everything that is under way arrives, in some order, and everybody looks around once."""
    for process in office.processes.values():
        process.write(chance.randint(0, 5))
        if chance.random() < 0.5:
            process.tick()
    if chance.random() < 0.5:
        office.look_for_recalls()
    for _ in range(chance.randint(0, len(office.net))):
        office.deliver(office.net.pop(chance.randrange(len(office.net))))
    office.now += 50_000
    office.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_for_exactly_37_serves_exactly_37(seed: int) -> None:
    """Slices that strand at one worker would leave fewer; slices of more than there is, more."""
    chance = random.Random(seed)
    office = Office(unbounded(a=37 * 10))
    workers = [office.hire(f"w{n}") for n in range(3)]
    for _ in range(100):
        chance.choice(workers).arrive("k1", 10, 10)
        if chance.random() < 0.3:
            shuffled_round(office, chance)
    rounds = 0
    while any(worker.waiting or worker.running for worker in workers):
        shuffled_round(office, chance)
        for worker in workers:
            if worker.running and chance.random() < 0.7:
                worker.settle(chance.choice(worker.running), 10)
        rounds += 1
        assert rounds < 2000
    assert (len(office.served), len(office.refused)) == (37, 63)


# --- each thing that may go wrong, by itself -----------------------------------------------------------------------

ORG = ("org", "a", "2026-01")


def pass_on(office: Office, rounds: int = 6) -> None:
    """All messages arrive, in order, and everybody looks around, a few times."""
    for _ in range(rounds):
        office.look_for_recalls()
        while office.net:
            office.deliver(office.net.pop(0))
        for process in office.processes.values():
            process.tick()
        office.now += 50_000
        office.check()


def two(budget: int) -> tuple[Office, Process, Process]:
    """An organisation with a budget, and two workers."""
    office = Office(unbounded(a=budget))
    return office, office.hire("w0"), office.hire("w1")


def test_nothing_waits_for_the_bank_while_there_is_plenty() -> None:
    """A round trip for each request would be the price that leases are there to save."""
    office, here, _ = two(10**9)
    here.arrive("k1", 10, 10)
    asked = 0
    for _ in range(2000):
        while office.net:
            asked += isinstance(office.net[0].what, Ask)
            office.deliver(office.net.pop(0))
        here.arrive("k1", 10, 10)
        assert not here.waiting or len(office.served) == 0
        here.settle(here.running[0], 7)
    assert asked <= 15
    assert len(office.served) == 2001


def test_what_has_no_budget_never_asks() -> None:
    """Whoever has no budgets at all would pay for those of others."""
    office = Office(unbounded())
    here = office.hire("w0")
    here.settle(here.arrive("k1", 10, 10), 10)
    assert office.net == []


def test_a_free_slice_comes_back_for_who_waits_elsewhere() -> None:
    """Money that nobody uses would refuse a request that its budget has room for."""
    office, here, there = two(100)
    here.settle(here.arrive_at_once("k1", 40), 0)
    assert here.teller.leases[ORG].nanos == 40
    request = there.arrive("k1", 100, 100)
    pass_on(office)
    assert request.reservation is not None


def test_what_comes_free_goes_first_to_who_has_waited_longer_elsewhere() -> None:
    """A stream of small requests here would starve a large one there."""
    office, here, there = two(100)
    first = [here.arrive_at_once("k1", 10) for _ in range(10)]
    large = there.arrive("k1", 60, 60)
    pass_on(office)
    small = [here.arrive("k1", 10, 10) for _ in range(10)]
    for request in first[:6]:
        here.settle(request, 0)
        pass_on(office)
        if large.reservation is None:
            assert all(request.reservation is None for request in small), "overtaken"
    assert large.reservation is not None
    there.settle(large, 0)
    pass_on(office, 20)
    assert sum(request.reservation is not None for request in small) == 6


def test_an_older_request_keeps_what_it_has_together() -> None:
    """Two who give back to each other what each lacks would both wait for ever."""
    office, here, there = two(100)
    holds = [here.arrive_at_once("k1", 25), there.arrive_at_once("k1", 25)]
    parts = [here.arrive_at_once("k1", 25), there.arrive_at_once("k1", 25)]
    older, younger = here.arrive("k1", 50, 50), there.arrive("k1", 50, 50)
    here.settle(parts[0], 0)
    there.settle(parts[1], 0)
    pass_on(office)
    assert (older.reservation is not None, younger.reservation) == (True, None)
    here.settle(older, 0)
    pass_on(office)
    assert younger.reservation is not None
    assert [request.reservation is not None for request in holds] == [True, True]


def test_an_answer_that_is_lost_is_learnt_at_the_next_connection() -> None:
    """What was granted, and nobody knows of, would be nobody's until the worker dies."""
    office, here, there = two(100)
    here.arrive("k1", 40, 40)
    office.deliver(office.net.pop(), answer=False)
    assert office.leased()[ORG] == 40
    here.leave(here.waiting[0])
    here.reconnect()
    assert here.teller.leases[ORG].nanos == 40
    request = there.arrive("k1", 90, 90)
    pass_on(office)
    assert request.reservation is not None


def test_what_is_called_back_before_it_has_come_goes_back_once_it_has() -> None:
    """A slice that nobody here has a use for would stay, and a request elsewhere would be refused in error: whoever
    calls back does so from what the bank has written, of which the worker may hear later."""
    office, here, there = two(100)
    here.arrive("k1", 40, 40)
    office.deliver(office.net.pop())
    here.leave(here.waiting[0])
    here.teller.recalled({ORG: 40})
    (answer,) = [message for message in office.net if isinstance(message.what, Answer)]
    office.net.remove(answer)
    office.deliver(answer)
    assert here.teller.leases[ORG].nanos == 0
    request = there.arrive("k1", 100, 100)
    pass_on(office)
    assert request.reservation is not None


def test_a_return_that_is_lost_is_made_again_at_the_next_connection() -> None:
    """The bank would keep for the worker what that one has given up."""
    office, here, there = two(100)
    here.settle(here.arrive_at_once("k1", 40), 0)
    request = there.arrive("k1", 100, 100)
    office.deliver(office.net.pop())
    office.net.clear()
    there.reconnect()
    here.teller.recalled({ORG: 40})
    here.teller.effects()  # and they never arrive
    here.reconnect()
    pass_on(office)
    assert request.reservation is not None


def test_returns_that_come_late_or_twice_return_nothing_more() -> None:
    """Each would make money of nothing, or take it."""
    office, here, _ = two(100)
    requests = [here.arrive_at_once("k1", 10) for _ in range(4)]
    sent = []
    for request in requests[:3]:
        here.settle(request, 0)
        here.teller.recalled({ORG: 10})
        sent += here.teller.effects()
    assert [each.totals for each in sent] == [{ORG: 10}, {ORG: 20}, {ORG: 30}]
    for each in (sent[2], sent[0], sent[2], sent[1]):
        office.deliver(Message(here, here.line, each))
    assert office.leased()[ORG] == 10
    office.check()


def test_what_a_provider_used_beyond_its_limit_is_not_taken_from_the_holds_of_others() -> None:
    """A request that runs would have no lease to be paid from, and another worker its money."""
    office, here, there = two(1000)
    one, other = here.arrive_at_once("k1", 50), here.arrive_at_once("k1", 50)
    here.settle(one, 120)
    here.write(1)
    office.check()
    assert office.leased()[ORG] == 50
    assert (office.spent()[ORG], office.flagged[ORG]) == (120, 70)
    elsewhere = [there.arrive("k1", 10, 10) for _ in range(100)]
    pass_on(office, 60)
    for request in [request for request in elsewhere if request.reservation]:
        there.settle(request, 10)
    here.settle(other, 50)
    here.write(9)
    there.write(999)
    assert office.spent()[ORG] == 1000


def test_an_old_refusal_says_nothing_of_a_new_budget() -> None:
    """A request would be refused for a budget that was raised before it came."""
    office, here, _ = two(10)
    first = here.arrive("k1", 50, 50)
    asked = office.net.pop()
    office.deliver(asked)
    late = office.net.pop()
    office.set_budget(("org", "a"), 100)
    here.hear()
    office.deliver(late)
    assert first.said is None
    pass_on(office)
    assert first.reservation is not None


def test_a_lowered_budget_takes_back_what_is_free() -> None:
    """A worker would go on granting out of a budget that is no more."""
    office, here, there = two(1000)
    running = here.arrive("k1", 100, 100)
    pass_on(office)
    assert here.teller.leases[ORG].nanos > 100
    office.set_budget(("org", "a"), 150)
    here.hear()
    there.hear()
    pass_on(office)
    assert office.leased()[ORG] == 100
    assert here.arrive("k1", 60, 60).reservation is None
    here.settle(running, 90)
    pass_on(office)
    here.write(1)
    pass_on(office)
    assert office.served[1:] != []


def test_a_budget_that_is_new_reserves_what_runs() -> None:
    """What runs already would be paid from what others are granted meanwhile."""
    office = Office(unbounded())
    here, there = office.hire("w0"), office.hire("w1")
    here.arrive("k1", 70, 70)
    office.set_budget(("org", "a"), 100)
    here.hear()
    there.hear()
    pass_on(office)
    assert office.leased()[ORG] == 70
    assert there.arrive("k1", 31, 31).reservation is None
    pass_on(office)
    assert len(there.waiting) == 1


def test_what_is_free_of_a_month_that_is_over_goes_back() -> None:
    """Slices of old months would be held for as long as a process lives."""
    office, here, _ = two(1000)
    running = here.arrive("k1", 10, 10)
    pass_on(office)
    office.month = "2026-02"
    here.arrive("k1", 10, 10)
    pass_on(office)
    assert office.leased()[ORG] == 10
    here.settle(running, 4)
    here.write(1)
    pass_on(office)
    assert office.leased()[ORG] == 0


def test_an_answer_that_grows_asks_the_bank_and_waits_behind_nobody() -> None:
    """It would be cut off while its budget has room, or while those wait who have not begun."""
    office, here, there = two(100)
    there.settle(there.arrive_at_once("k1", 50), 0)
    growing = here.arrive_at_once("k1", 50)
    large = here.arrive("k1", 50, 50)
    here.grow(growing, 50)
    pass_on(office)
    assert growing.reservation is not None
    assert (growing.reservation.nanos, large.reservation) == (100, None)
    here.grow(growing, 1)
    pass_on(office)
    assert growing.growth is None, "told that there is no more"
    assert growing.reservation.nanos == 100


def test_a_batch_gets_what_others_leave_and_holds_up_nobody() -> None:
    """Its lines would never run where slices lie about, or run before people."""
    office, here, there = two(100)
    there.settle(there.arrive_at_once("k1", 60), 0)
    here.arrive("k1", 60, 60, waits=False)
    someone = there.arrive("k1", 60, 60)
    pass_on(office)
    assert someone.reservation is not None
    there.settle(someone, 0)
    pass_on(office)
    again = here.arrive("k1", 60, 60, waits=False)
    pass_on(office)
    again = again if again.reservation else here.arrive("k1", 60, 60, waits=False)
    assert again.reservation is not None


# --- death ---------------------------------------------------------------------------------------------------------


def test_the_slices_of_the_dead_come_back() -> None:
    """Each crash would cost the organisation a part of its budget."""
    office, here, there = two(100)
    here.arrive_at_once("k1", 90)
    office.die("w0")
    request = there.arrive("k1", 90, 90)
    pass_on(office)
    assert request.reservation is None, "nobody has proved it dead"
    office.hire("w0")
    pass_on(office)
    assert request.reservation is not None


def test_a_worker_that_was_closed_is_refused_and_its_events_are_recorded_and_marked() -> None:
    """A machine that comes back would spend what others have been granted, or its work would be lost."""
    office, here, there = two(100)
    requests = [here.arrive_at_once("k1", 40), here.arrive_at_once("k1", 40)]
    office.close(here.worker)
    elsewhere = there.arrive("k1", 90, 90)
    pass_on(office)
    for request in requests:
        here.settle(request, 40)
    here.write(9)
    assert elsewhere.reservation is not None
    assert (office.spent()[ORG], office.flagged[ORG]) == (80, 70)
    assert office.leased()[ORG] == 90
    late = here.arrive("k1", 1, 1)
    pass_on(office)
    assert here.teller.fenced
    assert late.reservation is None
    for call in (
        lambda c: bank.give_back(c, here.worker, {ORG: 1}),
        lambda c: bank.drop(c, here.worker, (ORG,)),
        lambda c: bank.holdings(c, here.worker),
        lambda c: bank.ask(c, here.worker, Ask(1, 1, {ORG: Need(1, 1)}), now=office.now),
    ):
        with pytest.raises(Fenced):
            office.transact(call)


def test_a_successor_fences_off_whoever_sat_there_before() -> None:
    """Two processes would count on one slice."""
    office, here, _ = two(100)
    here.arrive_at_once("k1", 40)
    office.die("w0")
    after = office.hire("w0")
    assert after.worker.epoch == here.worker.epoch + 1
    with pytest.raises(Fenced):
        office.transact(lambda c: bank.holdings(c, here.worker))
    assert not office.transact(lambda c: bank.bury(c, here.worker, now=office.now, why="late"))
    assert office.transact(lambda c: bank.holdings(c, after.worker)) == {}
    assert [row.id for row in office.transact(bank.living)] == ["w0", "w1"]


def test_messages_pass_between_processes() -> None:
    """What cannot be written to a socket and read again would be of no use to several processes."""
    for message in (
        Ask(1, 5, {ORG: Need(7, 9)}, 3),
        GiveBack({ORG: 4}),
        Drop((ORG,)),
        Answer(1, "wait", {ORG: 2}, {ORG: None}),
        Draws(Worker("w0", 1), ((ORG, 3),)),
    ):
        there = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        assert there == message
