"""Budgets that several processes share are exact, whatever happens to processes, messages, clocks and budgets."""

from __future__ import annotations

import random

import pytest

from tests.support.offices import OWNED, Office


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
