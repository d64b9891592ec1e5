"""Workers that share budgets, and their bank, with time, the network, death and the operator in a test's hands.

The bank is the real one, on a real database; each worker is a real `Teller` with what a process would have around it:
requests that run and wait, usage events not written yet, and messages under way, which come when the test says so: in
any order, twice, or never.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update

from interlace.ledger import Outcome, Tokens, UsageEvent, bank
from interlace.ledger.book import AccountKey, Accounts, Growth, Reservation, Verdict, Waiter
from interlace.ledger.database import open_database, sqlite_url
from interlace.ledger.escrow import Answer, Ask, Draws, Drop, Effect, Fenced, GiveBack, Teller, Totals, Worker
from interlace.ledger.migrations import migrate
from interlace.ledger.schema import api_keys, balances, event_tags, leases, organisations, projects, usage_events
from interlace.ledger.schema import workers as workers_table
from interlace.ledger.writing import EventWriter

# key → its project and organisation
OWNERS = {"k1": ("p1", "a"), "k2": ("p1", "a"), "k3": ("p2", "a"), "k4": ("p3", "b")}
OWNED = sorted({("org", org) for _, org in OWNERS.values()} | {("project", p) for p, _ in OWNERS.values()}) + [
    ("key", key) for key in OWNERS
]
MONTHS = ("2026-01", "2026-02")
TABLES = {"org": organisations, "project": projects, "key": api_keys}


def accounts_of(key: str, month: str) -> Accounts:
    """Those that pay for a key's request."""
    project, org = OWNERS[key]
    return ("org", org, month), ("project", project, month), ("key", key, month)


@dataclass(eq=False)
class Request:
    """One request, as it stands."""

    number: int
    key: str
    accounts: Accounts
    least: int
    waiter: Waiter | None = None
    said: Verdict | None = None
    reservation: Reservation | None = None
    growth: Growth | None = None


@dataclass(eq=False)
class Message:
    """Between a worker and the bank; of a connection that was cut, requests may still arrive and answers do not."""

    process: Process
    line: int
    what: Effect | Answer | Totals | tuple[str, Totals]


@dataclass(eq=False)
class Process:
    """One process that serves requests."""

    office: Office
    worker: Worker
    teller: Teller
    budgets: dict[tuple[str, str], int | None]  # as it last heard of them
    possible: dict[tuple[str, str], set[int | None]]  # what each has been since
    skew: int = 0
    line: int = 0
    cut: bool = False
    closed: bool = False  # at the bank, whether it knows or not
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    unwritten: list[tuple[UsageEvent, Draws]] = field(default_factory=list)

    @property
    def now(self) -> int:
        """Its clock."""
        return self.office.now + self.skew

    # --- requests ------------------------------------------------------------------------------------------------

    def arrive(self, key: str, least: int, wanted: int, *, waits: bool = True) -> Request:
        """A request comes; it runs, waits, or is refused."""
        accounts = accounts_of(key, self.office.month)
        request = Request(next(self.office.numbers), key, accounts, least)
        answer = self.teller.reserve(f"r{request.number}", accounts, least, wanted)
        if answer is Verdict.WAIT and not waits:
            self.teller.wish(accounts, least, wanted)
            request.said = answer
        elif answer is Verdict.WAIT:
            request.waiter = Waiter(
                f"r{request.number}", accounts, least, wanted, lambda said: self._told(request, said), self.now
            )
            self.waiting.append(request)
            self.teller.wait(request.waiter)
        else:
            self._told(request, answer)
        self.send()
        return request

    def arrive_at_once(self, key: str, nanos: int) -> Request:
        """A request comes whose slice the bank gives at once, and no more than that."""
        for account in accounts_of(key, self.office.month):
            if self.budgets[account[:2]] is not None:
                lease = self.teller._lease(account)
                lease.pace = 0
        request = self.arrive(key, nanos, nanos)
        mine = [message for message in self.office.net if message.process is self and request.reservation is None]
        for message in mine:
            self.office.net.remove(message)
            self.office.deliver(message)
            self.office.deliver(self.office.net.pop())
        assert request.reservation is not None
        return request

    def _told(self, request: Request, said: Reservation | Verdict) -> None:
        assert request.reservation is None
        assert request.said is None, "told twice"
        if request in self.waiting:
            self.waiting.remove(request)
        if isinstance(said, Reservation):
            request.reservation = said
            self.running.append(request)
            self.office.served.append(request)
        else:
            assert said is Verdict.NEVER
            request.said = said
            self.office.refused.append(request)
            self.office.check_refusal(self, request)

    def leave(self, request: Request) -> None:
        """Its caller hangs up while it waits."""
        self.waiting.remove(request)
        assert request.waiter is not None
        self.teller.leave(request.waiter)
        self.send()

    def grow(self, request: Request, more: int) -> None:
        """An answer goes on; where it cannot, it waits for the bank."""
        reservation = request.reservation
        assert reservation is not None
        least = reservation.nanos + more
        if request.growth is None and not self.teller.grow(reservation, least, least):

            def told(_: bool) -> None:
                request.growth = None

            request.growth = Growth(reservation, least, least, told)
            self.teller.wait_to_grow(request.growth)
        self.send()

    def settle(self, request: Request, cost: int) -> None:
        """An answer ends, and its event is to be written."""
        self.running.remove(request)
        assert request.reservation is not None
        if request.growth is not None:
            self.teller.leave_growing(request.growth)
            request.growth = None
        overrun = self.teller.settle(request.reservation, cost)
        bounded = any(self.budgets[key[:2]] is not None for key in request.accounts)
        event = _event(self, request, cost, overrun if bounded else 0)
        self.unwritten.append((event, Draws(self.worker, request.reservation.drawn)))
        self.send()

    # --- the bank ------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """What the teller wants is under way."""
        self.office.net += [Message(self, self.line, effect) for effect in self.teller.effects()]

    def write(self, most: int) -> None:
        """Some of its events are committed."""
        batch, self.unwritten = self.unwritten[:most], self.unwritten[most:]
        self.office.commit(batch)

    def demands(self) -> list[Any]:
        """Of those who wait and stand behind nobody, or not for the same."""
        organisations = {("org", "a", month) for month in MONTHS} | {("org", "b", month) for month in MONTHS}
        return [demand for org in sorted(organisations) for demand in self.teller._demands(org)]

    def unknown(self) -> list[tuple[UsageEvent, Draws]]:
        """Those that are not: a commit may have taken place without its knowledge."""
        return [one for one in self.unwritten if one[0].id not in self.office.written]

    def tick(self) -> None:
        """A moment later."""
        self.teller.tick()
        self.send()

    def reconnect(self) -> None:
        """A new connection; what was under way on the old one may still arrive."""
        self.line += 1
        self.cut = False
        try:
            found = self.office.transact(lambda c: bank.holdings(c, self.worker))
        except Fenced:
            self.teller.fence()
        else:
            self.teller.reconnected(found)
        self.send()

    def hear(self) -> None:
        """It learns what budgets are now."""
        self.budgets = dict(self.office.budgets)
        self.possible = {key: {budget} for key, budget in self.budgets.items()}
        self.teller.budgets_changed()
        self.send()


class Office:
    """The bank, its workers, and what is under way between them."""

    def __init__(self, budgets: dict[tuple[str, str], int | None], engine: Engine | None = None) -> None:
        self.engine = engine or _memory()
        self.numbers = count()
        self.now = 1_000_000_000
        self.month = "2026-01"
        self.net: list[Message] = []
        self.served: list[Request] = []
        self.refused: list[Request] = []
        self.late: list[tuple[UsageEvent, Draws]] = []  # of the dead, under way to whoever writes for them
        self.dead: list[Worker] = []
        self.processes: dict[str, Process] = {}
        self.written: set[str] = set()
        self.flagged: Counter[AccountKey] = Counter()
        self.loose: set[tuple[str, str]] = {key for key, budget in budgets.items() if budget is None}
        self.excused: dict[AccountKey, int] = {}
        self.budgets: dict[tuple[str, str], int | None] = dict(budgets)
        self.transact(lambda c: _clear(c, budgets))
        self.writer = EventWriter(engine) if engine else _memory_writer()

    def transact(self, work: Callable[[Connection], Any]) -> Any:
        """One transaction of the bank's."""
        with self.engine.begin() as connection:
            return work(connection)

    def hire(self, place: str) -> Process:
        """A process begins in a place whose lock is free."""
        worker = self.transact(lambda c: bank.enrol(c, place, machine="m", boot="b", pid=1, now=self.now))
        self.dead = [dead for dead in self.dead if dead.id != place]
        process = Process(self, worker, Teller(lambda key: process.budgets[key[:2]]), dict(self.budgets), {})
        process.possible = {key: {budget} for key, budget in self.budgets.items()}
        self.processes[place] = process
        return process

    def die(self, place: str, *, sent: int = 0) -> None:
        """A process is gone with all it knew, but for the events that it had sent on to be written."""
        process = self.processes.pop(place)
        self.late += process.unwritten[:sent]
        self.dead.append(process.worker)
        self.net = [
            message for message in self.net if message.process is not process or isinstance(message.what, Effect)
        ]

    def close(self, worker: Worker) -> None:
        """By command, or since it is dead."""
        self.transact(lambda c: bank.bury(c, worker, now=self.now, why="test"))
        self.dead = [dead for dead in self.dead if dead != worker]
        process = self.processes.get(worker.id)
        if process is not None and process.worker == worker:
            process.closed = True

    def set_budget(self, of: tuple[str, str], budget: int | None) -> None:
        """In the database; each process hears of it some time later."""
        before = {key: nanos for key, nanos in self.taken().items() if key[:2] == of}
        table = TABLES[of[0]]
        self.transact(lambda c: c.execute(update(table).where(table.c.id == of[1]).values(budget_nanos=budget)))
        self.budgets[of] = budget
        for process in self.processes.values():
            process.possible[of].add(budget)
        if budget is None:
            self.loose.add(of)
        else:
            for key, nanos in before.items():
                if nanos > budget:
                    self.excused[key] = max(self.excused.get(key, 0), nanos)

    # --- messages ------------------------------------------------------------------------------------------------

    def deliver(self, message: Message, *, answer: bool = True) -> None:
        """A message arrives. Without an answer, the bank's process dies between the commit and the answer."""
        process, what = message.process, message.what
        if isinstance(what, Answer):
            process.teller.answered(what)
        elif isinstance(what, tuple):
            process.teller.recalled(what[1])
        elif isinstance(what, dict):
            process.teller.acknowledged(what)
        else:
            try:
                said = self.transact(lambda c: _perform(c, process, what))
            except Fenced:
                if message.line == process.line:
                    process.teller.fence()
            else:
                if process is not self.processes.get(process.worker.id):
                    return  # it is dead
                if answer and said is not None:
                    self.net.append(Message(process, message.line, said))
                elif not answer:
                    process.cut = True
        process.send()

    def look_for_recalls(self) -> None:
        """The bank says who is to give back what; each is told, also where that is nothing."""
        found = self.transact(lambda c: bank.recalls(c, now=self.now))
        for process in self.processes.values():
            self.net.append(Message(process, process.line, ("recall", found.get(process.worker, {}))))

    def commit(self, batch: Sequence[tuple[UsageEvent, Draws]]) -> None:
        """Write events; those that are there already change nothing."""
        ids = [event.id for event, _ in batch]
        there = self.transact(lambda c: set(c.scalars(select(usage_events.c.id).where(usage_events.c.id.in_(ids)))))
        new = [(event, draws) for event, draws in batch if event.id not in there]
        self.writer.write([event for event, _ in new], (), {event.id: draws for event, draws in new if draws.nanos})
        flags = select(usage_events.c.id, usage_events.c.overrun_nanos)
        over = dict(self.transact(lambda c: c.execute(flags.where(usage_events.c.id.in_(ids))).all()))
        self.written.update(ids)
        for event, _ in new:
            for key in _payers(event):
                self.flagged[key] += over[event.id]

    def settle_down(self) -> None:
        """Everything arrives, the dead are buried, everybody hears of everything: until nothing moves any more."""
        for worker in list(self.dead):
            self.close(worker)
        self.commit(self.late)
        self.late = []
        for process in self.processes.values():
            process.skew = 0
            if process.cut:
                process.reconnect()
            if process.budgets != self.budgets:
                process.hear()
        for quiet in range(200):
            before = len(self.served), len(self.refused), self.leased()
            for process in self.processes.values():
                process.write(1000)
            self.look_for_recalls()
            self._deliver_all()
            for process in self.processes.values():
                process.tick()
            self._deliver_all()
            self.now += 50_000
            if quiet > 3 and before == (len(self.served), len(self.refused), self.leased()) == self._last:
                return
            self._last = before
        raise AssertionError("it goes on for ever")

    _last: Any = None

    def _deliver_all(self) -> None:
        for _ in range(10_000):
            if not self.net:
                return
            self.deliver(self.net.pop(0))
        raise AssertionError("messages without end")

    # --- what is true --------------------------------------------------------------------------------------------

    def spent(self) -> Counter[AccountKey]:
        """In the bank."""
        rows = self.transact(lambda c: c.execute(select(balances)).all())
        return Counter({(row.scope, row.scope_id, row.month): row.spent_nanos for row in rows})

    def leased(self, worker: Worker | None = None) -> Counter[AccountKey]:
        """In the bank, to all or to one."""
        sums: Counter[AccountKey] = Counter()
        for row in self.transact(lambda c: c.execute(select(leases)).all()):
            assert row.nanos >= 0, "a lease below nothing"
            if worker in {None, Worker(row.worker_id, row.epoch)}:
                sums[row.scope, row.scope_id, row.month] += row.nanos
        return sums

    def taken(self) -> Counter[AccountKey]:
        """Spent and leased, without what is marked as overrun."""
        taken = self.spent() + self.leased()
        taken.subtract(self.flagged)
        return taken

    def held(self) -> Counter[AccountKey]:
        """Spent, on its way to be spent, and reserved, by everybody who may."""
        held = self.spent()
        held.subtract(self.flagged)
        for process in self.processes.values():
            if not process.closed:
                held += process_holds(process)
        return held

    def check(self) -> None:
        """The invariants."""
        taken = self.taken()
        for key, nanos in taken.items():
            self._within(key, nanos)
        for key, nanos in self.held().items():
            assert key[:2] in self.loose or nanos <= max(self.budgets[key[:2]] or 0, taken[key]), (key, nanos)
        for process in self.processes.values():
            if not process.closed:
                self._check_process(process)

    def _within(self, key: AccountKey, nanos: int) -> None:
        budget = self.budgets[key[:2]]
        if key[:2] in self.loose or budget is None:
            return
        if nanos <= budget:
            self.excused.pop(key, None)
            return
        assert nanos <= self.excused.get(key, budget), f"{key}: {nanos} of {budget} are taken"
        self.excused[key] = nanos

    def _check_process(self, process: Process) -> None:
        durable = self.leased(process.worker)
        holds = process_holds(process)
        drawn: Counter[AccountKey] = Counter()
        for _, draws in process.unknown():
            drawn.update(dict(draws.nanos))
        for key, lease in process.teller.leases.items():
            assert lease.nanos >= 0, "drawn or given back what is not there"
            assert drawn[key] + lease.nanos <= durable[key], f"{key}: {process.worker.id} counts on what it has not"
        for key, nanos in holds.items():
            assert key[:2] in self.loose or nanos <= durable[key], f"{key}: {process.worker.id} holds what it has not"

    def check_refusal(self, process: Process, request: Request) -> None:
        """What is refused does not fit into what is not spent, of budgets as they have been since it heard of them."""
        spent = self.spent()
        assert any(
            budget is not None and spent[key] + request.least > budget
            for key in request.accounts
            for budget in process.possible[key[:2]]
        ), "refused what its budgets have room for"

    def check_nobody_waits_for_nothing(self) -> None:
        """When everything has settled down: whoever is first in line for an organisation's accounts does not fit, and
        it would, if what is reserved came back."""
        held, spent = self.held(), self.spent()
        first: dict[AccountKey, tuple[tuple[int, str], Any]] = {}
        for process in self.processes.values():
            for demand in process.demands():
                for key in demand.accounts:
                    budget = self.budgets[key[:2]]
                    assert budget is None or spent[key] + demand.least <= budget, "it will never fit, and is not told"
                turn, org = (demand.since, process.worker.id), demand.accounts[0]
                if org not in first or turn < first[org][0]:
                    first[org] = turn, demand
        for process in self.processes.values():
            assert all(request.accounts[0] in first for request in process.waiting), "nobody knows that it waits"
        for process in self.processes.values():
            durable = self.leased(process.worker)
            for key, lease in process.teller.leases.items():
                assert lease.nanos == durable[key], (
                    f"{key}: the bank keeps for {process.worker.id} what it knows not of"
                )
        for _, demand in first.values():
            assert any(
                (budget := self.budgets[key[:2]]) is not None and held[key] + self.flagged[key] + demand.more > budget
                for key in demand.accounts
            ), "waits, and would fit"


def process_holds(process: Process) -> Counter[AccountKey]:
    """What it has reserved, and what its events that are not written will draw."""
    holds: Counter[AccountKey] = Counter()
    for request in process.running:
        assert request.reservation is not None
        for key in request.accounts:
            holds[key] += request.reservation.nanos
    for event, _ in process.unknown():
        for key in _payers(event):
            holds[key] += event.cost_nanos - event.overrun_nanos
    return holds


def _perform(connection: Connection, process: Process, what: Effect) -> Answer | Totals | None:
    if isinstance(what, Ask):
        return bank.ask(connection, process.worker, what, now=process.now)
    if isinstance(what, GiveBack):
        bank.give_back(connection, process.worker, what.totals)
        return what.totals
    assert isinstance(what, Drop)
    bank.drop(connection, process.worker, what.accounts)
    return None


def _event(process: Process, request: Request, cost: int, overrun: int) -> UsageEvent:
    (_, org, month), (_, project, _), (_, key, _) = request.accounts
    return UsageEvent(
        id=f"r{request.number}",
        org_id=org,
        project_id=project,
        key_id=key,
        model="m",
        engine="local",
        endpoint="chat",
        outcome=Outcome.FINISHED,
        price_id=1,
        tokens=Tokens(prompt=1),
        cost_nanos=cost,
        day=f"{month}-01",
        started_us=process.office.now,
        latency_us=1,
        overrun_nanos=overrun,
    )


def _payers(event: UsageEvent) -> Accounts:
    return accounts_of(event.key_id, event.month)


def _clear(connection: Connection, budgets: dict[tuple[str, str], int | None]) -> None:
    for table in (leases, workers_table, event_tags, usage_events, balances, api_keys, projects, organisations):
        connection.execute(delete(table))
    for org in sorted({org for _, org in OWNERS.values()}):
        connection.execute(
            insert(organisations).values(id=org, name=org, budget_nanos=budgets["org", org], created_at=0)
        )
    for project, org in sorted(set(OWNERS.values())):
        values = {"id": project, "org_id": org, "name": project, "budget_nanos": budgets["project", project]}
        connection.execute(insert(projects).values(**values, created_at=0))
    for key, (project, _) in OWNERS.items():
        values = {"id": key, "project_id": project, "name": key, "digest": key.encode(), "hint": "", "scopes": "[]"}
        connection.execute(insert(api_keys).values(**values, budget_nanos=budgets["key", key], created_at=0))


@cache
def _memory_writer() -> EventWriter:
    """One for all offices: it keeps a connection, which would come back whenever an office is collected as garbage."""
    return EventWriter(_memory())


@cache
def _memory() -> Engine:
    """A database in memory, for all offices, one after the other. It is a file where there is a disk in memory: one of
    SQLite's own would be gone with its connection, which the pool may make anew."""
    disk = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="interlace-offices-", dir=disk if os.access(disk, os.W_OK) else None)
    engine = open_database(sqlite_url(Path(folder.name) / "ledger.db"))
    atexit.register(folder.cleanup)
    with engine.begin() as connection:
        migrate(connection)
    return engine
