"""Workers in threads of their own, on connections of their own: what transactions do to each other, for real."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, Engine, func, make_url, select

from interlace.ledger import bank
from interlace.ledger.book import Reservation, Verdict, Waiter
from interlace.ledger.database import open_database, sqlite_url
from interlace.ledger.escrow import Answer, Ask, Draws, Effect, GiveBack, Teller
from interlace.ledger.migrations import migrate
from interlace.ledger.schema import balances, leases
from interlace.ledger.writing import EventWriter
from tests.support.offices import OWNED, Office, Request, _event, accounts_of
from tests.support.stores import ledger_url, store_fixture

COST = 10


store = store_fixture()


@pytest.fixture
def engine(store: str, tmp_path: Path) -> Iterator[Engine]:
    """An empty ledger, on each database."""
    made = open_database(make_url(ledger_url(tmp_path) or sqlite_url(tmp_path / "ledger.db")))
    with made.begin() as connection:
        migrate(connection)
    yield made
    made.dispose()


class Racer(threading.Thread):
    """One worker: so many requests, each settled at once, its events committed a few at a time."""

    def __init__(self, office: Office, place: str, requests: int, budget: Callable[[], int | None]) -> None:
        super().__init__(name=place)
        self.office, self.process, self.requests = office, office.hire(place), requests
        self.teller = Teller(lambda key: budget() if key[0] == "org" else None)
        self.writer = EventWriter(office.engine)
        self.chance = random.Random(place)
        self.served: list[tuple[Request, Reservation]] = []
        self.waiting: dict[str, tuple[Waiter, str]] = {}
        self.refused = 0
        self.trouble: BaseException | None = None

    def run(self) -> None:
        """All of its life."""
        try:
            self._live()
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.trouble = error

    def _live(self) -> None:
        for number in range(self.requests):
            key = self.chance.choice(["k1", "k2", "k3"])
            self._arrive(f"{self.name}-{number}", key)
            if self.chance.random() < 0.5:
                self._turn()
        while self.waiting:
            self._turn()
        self._turn()
        self.office.transact(lambda c: bank.bury(c, self.process.worker, now=1, why="done"))
        self.writer.close()

    def _arrive(self, id: str, key: str) -> None:
        accounts = accounts_of(key, "2026-01")
        answer = self.teller.reserve(id, accounts, COST, COST)
        if answer is Verdict.WAIT:
            since = time.time_ns() // 1000
            waiter = Waiter(id, accounts, COST, COST, lambda said: self._told(id, key, said), since)
            self.waiting[id] = waiter, key
            self.teller.wait(waiter)
        else:
            self._told(id, key, answer)

    def _told(self, id: str, key: str, said: Reservation | Verdict) -> None:
        self.waiting.pop(id, None)
        if isinstance(said, Reservation):
            self.served.append((Request(0, key, said.accounts, COST), said))
        else:
            self.refused += 1

    def _turn(self) -> None:
        """Say what is to be said, settle what runs, look around."""
        for effect in self.teller.effects():
            answer = self.office.transact(lambda c, what=effect: self._perform(c, what))
            if answer is not None:
                self.teller.answered(answer)
        called = self.office.transact(lambda c: bank.recalls(c, now=time.time_ns() // 1000))
        self.teller.recalled(called.get(self.process.worker, {}))
        batch = {}
        for request, reservation in self.served:
            if not reservation.settled:
                self.teller.settle(reservation, COST)
                event = msgspec.structs.replace(_event(self.process, request, COST, 0), id=reservation.id)
                batch[event.id] = event, Draws(self.process.worker, reservation.drawn)
        self.writer.write(
            [event for event, _ in batch.values()],
            (),
            {id: draws for id, (_, draws) in batch.items() if draws.nanos},
        )
        self.teller.tick()

    def _perform(self, connection: Connection, what: Effect) -> Answer | None:
        worker, now = self.process.worker, time.time_ns() // 1000
        if isinstance(what, Ask):
            return bank.ask(connection, worker, what, now=now)
        if isinstance(what, GiveBack):
            bank.give_back(connection, worker, what.totals)
        else:
            bank.drop(connection, worker, what.accounts)
        return None


def race(engine: Engine, fits: int, counts: tuple[int, ...]) -> None:
    """Workers with so many requests each, a budget for some of them, and somebody who looks all the time."""
    budgets: dict[tuple[str, str], int | None] = dict.fromkeys(OWNED)
    budgets["org", "a"] = fits * COST
    office = Office(budgets, engine)
    racers = [Racer(office, f"w{number}", count, lambda: fits * COST) for number, count in enumerate(counts)]
    for racer in racers:
        racer.start()
    spent = select(func.coalesce(func.sum(balances.c.spent_nanos), 0)).where(balances.c.scope == "org")
    leased = select(func.coalesce(func.sum(leases.c.nanos), 0)).where(leases.c.scope == "org")
    both = select(spent.scalar_subquery() + leased.scalar_subquery())
    until = time.monotonic() + 180  # a hang; whoever looks all the time slows the racers
    while any(racer.is_alive() for racer in racers):
        with engine.connect().execution_options(reads=True) as connection:
            assert int(connection.scalar(both) or 0) <= fits * COST
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [racer.trouble for racer in racers] == [None] * len(counts)
    assert sum(len(racer.served) for racer in racers) == fits
    assert sum(racer.refused for racer in racers) == sum(counts) - fits
    assert office.spent()["org", "a", "2026-01"] == fits * COST
    assert not any(office.leased().values())


def test_a_race_for_the_last_of_a_budget(engine: Engine) -> None:
    """What one transaction does between two statements of another would serve one too few or too many."""
    race(engine, 7, (6, 7, 7))
