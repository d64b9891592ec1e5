"""Random histories of the real ledger: its books are right after every step, whatever callers, disk and clock do."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from itertools import count
from math import ceil
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select

from interlace.config import LedgerSettings, Settings
from interlace.errors import InsufficientQuota, LedgerUnavailable, RateLimited
from interlace.ledger import RULES, Bound, Caller, Hold, Outcome, Price, Tokens, Used
from interlace.ledger.audit import Finding, audit, audit_book
from interlace.ledger.book import AccountKey, Accounts
from interlace.ledger.registry import add, alter
from interlace.ledger.schema import api_keys, organisations, prices, projects, usage_events
from tests.support.simulation import Died, Fate, Hands, World, at_once
from tests.support.tenants import Tenant, tenant

EXAMPLES, STEPS = 150, 100
ZONE = "America/New_York"
WAIT_SECONDS = 30.0
RECORDED = [outcome for outcome, each in RULES.items() if each.recorded]
NOT_RECORDED = [Outcome.REFUSED, Outcome.OVERLOADED]

picks = st.integers(0, 10**6)
budgets = st.one_of(st.none(), st.integers(0, 3000))
amounts = st.sampled_from([0, 1, 999_999, 10**6, 1_500_001, 5 * 10**6])  # nano-dollars a million tokens
completions = st.one_of(st.none(), st.integers(0, 300))
fates = st.lists(st.sampled_from([Fate.FAILED, Fate.UNKNOWN, Fate.COMMITTED]), max_size=3)
steps_taken = count()


@dataclass(eq=False)
class Request:
    """What the model knows of one request."""

    id: str
    who: Tenant
    price: Price
    bound: Bound
    least: int
    accounts: Accounts
    task: asyncio.Task[Hold]
    hold: Hold | None = None
    settling: list[asyncio.Task[int]] = field(default_factory=list)


@dataclass(eq=False)
class Settled:
    """What must be in the record of a request, once its settlement returned."""

    cost: int
    outcome: Outcome


def cost_of(price: Price, prompt: int, completion: int) -> int:
    """By fractions: the model must not share the ledger's arithmetic."""
    return ceil(Fraction(prompt * (price.prompt or 0) + completion * (price.completion or 0), 10**6) + price.request)


class LedgerMachine(RuleBasedStateMachine):
    """The real `Ledger`, `Book` and `Store`, beside a model that is kept in dictionaries."""

    # --- the beginning -------------------------------------------------------------------------------------------

    @initialize(
        orgs=st.tuples(budgets, budgets),
        keys=st.lists(st.tuples(budgets, budgets, budgets), min_size=4, max_size=4),
        first_price=st.tuples(amounts, amounts),
        start=st.sampled_from(["2026-01-31T23:59:50", "2026-02-28T12:00:00", "2026-03-08T01:59:59"]),
    )
    def begin(self, orgs: Any, keys: Any, first_price: tuple[int, int], start: str) -> None:
        """Four keys: three of one organisation, two of them of one project, and a stranger."""
        moment = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(ZONE))
        self.numbers = count()
        self.age = 0  # steps of this process
        self.deaths = 0
        self.waiting: list[Request] = []  # in the order of their arrival
        self.running: list[Request] = []
        ledger = LedgerSettings(time_zone=ZONE, wait_seconds=WAIT_SECONDS, waiting=6)
        self.world = World(Settings(ledger=ledger), Hands(round(moment.timestamp()) * 10**6))
        plans = ({}, {"tpm": 120, "concurrency": 3}, {}, {})
        self.keys = [
            tenant(self.world.registry, project_budget=project, key_budget=key, budget_nanos=plan, **more)
            for (project, key, plan), more in zip(keys, plans, strict=True)
        ]
        self._move(api_keys, self.keys[1].key.id, project_id=self.keys[0].project.id)
        for id in (self.keys[0].project.id, self.keys[1].project.id, self.keys[2].project.id):
            self._move(projects, id, org_id=self.keys[0].organisation.id, name=id)
        for who, budget in zip((self.keys[0], self.keys[3]), orgs, strict=True):
            self._move(organisations, who.organisation.id, budget_nanos=budget)
        self.ending: list[Request] = []  # whose settlement is under way
        self.settled: dict[str, Settled] = {}  # that the book counts and that are to be recorded
        self.durable: dict[str, Settled] = {}  # whose settlement returned
        self.spent: Counter[AccountKey] = Counter()
        self.excused: dict[AccountKey, int] = {}  # beyond its budget: an overrun, or a budget that was lowered
        self._set_price(*first_price, 0, since=0)

    def _move(self, table: Any, id: str, **values: Any) -> None:
        self.world.registry.change(lambda connection: [alter(connection, table, id, **values)])

    def _set_price(self, prompt: int, completion: int, request: int, since: int | None = None) -> None:
        now = self.world.hands.now()
        values = {
            "model": "m",
            "since": now if since is None else since,
            "prompt": prompt,
            "completion": completion,
            "request": request,
        }
        values |= {"batch_percent": 100, "source": "db", "recorded_at": now}
        self.world.registry.change(lambda connection: [add(connection, prices, **values)])

    # --- callers -------------------------------------------------------------------------------------------------

    @rule(asked=st.lists(st.tuples(picks, st.integers(0, 40), completions), min_size=1, max_size=4))
    def arrive(self, asked: list[tuple[int, int, int | None]]) -> None:
        """Requests come: each runs, waits, or is refused for a reason that holds."""
        for pick, prompt, completion in asked:
            self._arrive(self.keys[pick % len(self.keys)], Bound(prompt, completion))

    def _arrive(self, who: Tenant, bound: Bound) -> None:
        ledger = self.world.ledger
        caller = self._caller(who)
        price = ledger.price("m", embedding=False)
        try:
            at_once(ledger.begin(caller))
        except RateLimited:
            assert caller.plan.rates.concurrency is not None
            assert self._alive(who) >= caller.plan.rates.concurrency
            return
        id = f"r{next(self.numbers)}"
        task = self.world.loop.create_task(
            ledger.reserve(id, caller, price, bound, model="m", engine="local", endpoint="chat", tags=("t",))
        )
        month = self.world.registry.calendar.day(self.world.hands.now())[:7]
        least = 0
        if any(self._budget(key) is not None for key in caller.accounts(month)):
            least = cost_of(price, bound.prompt, 1 if bound.completion is None else bound.completion)
        request = Request(id, who, price, bound, least, caller.accounts(month), task)
        self.waiting.append(request)
        self._turn()

    def _check_refusal(self, request: Request, trouble: str | None) -> None:
        error = request.task.exception()
        if isinstance(error, LedgerUnavailable):
            assert trouble
        elif isinstance(error, InsufficientQuota):
            month = self.world.registry.calendar.day(self.world.hands.now())[:7]
            spent = {key: self.spent[*key[:2], month] for key in request.accounts}
            assert any(
                (budget := self._budget(key)) is not None and nanos + request.least > budget
                for key, nanos in spent.items()
            ), "refused what its budgets have room for"
        else:
            assert isinstance(error, RateLimited), error

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        """A caller hangs up while it waits."""
        self.waiting[pick % len(self.waiting)].task.cancel()
        self._turn()

    @precondition(lambda self: self.running)
    @rule(pick=picks, more=st.integers(1, 400))
    def grow(self, pick: int, more: int) -> None:
        """An answer goes on. What is covered costs no more than is held, and is never granted beyond the budgets."""
        hold = self.running[pick % len(self.running)].hold
        assert hold is not None
        if hold.bound.completion is None and hold.covered is not None:
            wanted = max(0, hold.covered) + more
            if hold.cover(wanted):
                assert hold.covered is None or hold.covered >= wanted
                assert cost_of(hold.price, hold.bound.prompt, wanted) <= hold.reservation.nanos
            else:
                assert cost_of(hold.price, hold.bound.prompt, wanted) > hold.reservation.nanos

    @precondition(lambda self: self.running)
    @rule(
        pick=picks,
        outcome=st.sampled_from([*RECORDED, *NOT_RECORDED]),
        share=st.integers(0, 100),
        overrun=st.sampled_from([0, 0, 0, 0, 50]),
        twice=st.booleans(),
        leaver=st.sampled_from([None, 0, 1]),
        after=st.sampled_from([0, 1, 1, 2]),
    )
    def settle(
        self, pick: int, outcome: Outcome, share: int, overrun: int, twice: bool, leaver: int | None, after: int
    ) -> None:
        """An answer ends, or is told to end twice; somebody who waits may go in that very moment."""
        request = self.running.pop(pick % len(self.running))
        hold = request.hold
        assert hold is not None
        covered = 500 if hold.covered is None else max(0, hold.covered)
        prompt = request.bound.prompt * share // 100
        completion = covered * share // 100 + overrun
        used = Used(outcome, Tokens(prompt=prompt, completion=completion), latency_us=1)
        cost = cost_of(request.price, prompt, completion) if RULES[outcome].charged else 0
        beyond = max(0, cost - hold.reservation.nanos)
        if hold.reservation.nanos and not overrun:
            assert beyond == 0, "what was covered costs more than was held"
        for key in request.accounts:
            self.spent[key] += cost
        if beyond:
            self._excuse({key: self._taken(key) - hold.reservation.nanos for key in request.accounts})
        if RULES[outcome].recorded:
            self.settled[request.id] = Settled(cost, outcome)
        ledger, loop = self.world.ledger, self.world.loop
        request.settling = [loop.create_task(ledger.settle(hold, used)) for _ in range(1 + twice)]
        ledger.end(hold.caller)
        for _ in range(after):
            loop.once()
        if leaver is not None and self.waiting:
            self.waiting[leaver % len(self.waiting)].task.cancel()
        self._turn()
        self.ending.append(request)

    @precondition(lambda self: self.ending)
    @rule(pick=picks)
    def hang_up_at_the_end(self, pick: int) -> None:
        """A caller goes while its event is being written: it is written all the same."""
        for task in self.ending[pick % len(self.ending)].settling:
            task.cancel()
        self._turn()

    # --- administrators ------------------------------------------------------------------------------------------

    @rule(pick=picks, scope=st.sampled_from(["org", "project", "key"]), budget=budgets)
    def set_budget(self, pick: int, scope: str, budget: int | None) -> None:
        """A budget is raised, lowered or taken away; whoever waits is looked at again."""
        who = self.keys[pick % len(self.keys)]
        caller = self._caller(who)
        table, id = {
            "org": (organisations, caller.organisation.id),
            "project": (projects, caller.project.id),
            "key": (api_keys, caller.key.id),
        }[scope]
        accounts = {*self.spent, *self.world.ledger.book.accounts}
        before = {key: self._taken(key) for key in accounts if key[:2] == (scope, id)}
        self._move(table, id, budget_nanos=budget)
        self._excuse(before)
        self._turn()

    def _excuse(self, taken: Mapping[AccountKey, int]) -> None:
        for key, nanos in taken.items():
            budget = self._budget(key)
            if budget is not None and nanos > budget:
                self.excused[key] = max(self.excused.get(key, 0), nanos)

    @rule(prompt=amounts, completion=amounts, request=st.sampled_from([0, 0, 7]))
    def change_the_price(self, prompt: int, completion: int, request: int) -> None:
        """From now on: what runs keeps the price it began with."""
        self._set_price(prompt, completion, request)

    # --- time ----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 15.0, 31.0, 61.0, 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        """Whoever has waited long enough is told so."""
        self.world.hands.advance(seconds)
        self._turn()

    @rule(seconds=st.sampled_from([-86_400 * 35, -3600, -1, 1, 3600, 86_400 * 35]))
    def the_clock_is_set(self, seconds: int) -> None:
        """Forwards or back, over the end of a month too; nothing else moves."""
        self.world.hands.micros += seconds * 10**6
        self._turn()

    # --- the disk, and death -------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.store.queued)
    @rule(most=st.integers(1, 8), fates=fates)
    def write(self, most: int, fates: list[Fate]) -> None:
        """A transaction is committed, at once or after failures, also one that only seemed to fail."""
        self.world.store.pump(most, *fates, Fate.COMMITTED)
        assert self.world.ledger.trouble is None or self.world.store.queued
        self._turn()

    @precondition(lambda self: self.world.store.queued)
    @rule(fates=st.lists(st.sampled_from([Fate.FAILED, Fate.UNKNOWN]), min_size=1, max_size=2))
    def the_disk_is_full(self, fates: list[Fate]) -> None:
        """Commits fail until further notice: nothing new is taken on, nothing is lost."""
        self.world.store.pump(8, *fates)
        assert bool(self.world.ledger.trouble) == self.world.store.stuck
        self._turn()

    @precondition(lambda self: self.age >= 5)
    @rule(fate=st.sampled_from([None, Fate.CUT_OFF, Fate.CUT_OFF_LATE]))
    def die(self, fate: Fate | None) -> None:
        """The process is killed, in a commit or between; the next one opens what is there."""
        if fate is not None:
            try:
                self.world.store.pump(8, fate)
            except Died:
                pass
        self.world.die()
        self.age = 0
        self.waiting, self.running = [], []
        self.ending.clear()
        there = self._recorded()
        for id, settled in self.durable.items():
            assert there.get(id) == (settled.cost, settled.outcome.value), "durable, and gone"
        for id, (cost, outcome) in there.items():
            assert (cost, outcome) == (self.settled[id].cost, self.settled[id].outcome.value)
        self.settled = {id: self.settled[id] for id in there}
        self.durable = dict(self.settled)
        self._recount()
        self.excused = {}
        self._excuse(self.spent)
        self.deaths += 1
        self._audit(audit if self.deaths % 4 == 0 else audit_book)

    def _recorded(self) -> dict[str, tuple[int, str]]:
        query = select(usage_events.c.id, usage_events.c.cost_nanos, usage_events.c.outcome)
        return {id: (cost, outcome) for id, cost, outcome in self.world.store.read(lambda c: c.execute(query).all())}

    def _recount(self) -> None:
        """What is spent, by the events that are there."""
        columns = (usage_events.c[name] for name in ("org_id", "project_id", "key_id", "day", "cost_nanos"))
        self.spent = Counter()
        for org, project, key, day, cost in self.world.store.read(lambda c: c.execute(select(*columns)).all()):
            for account in (("org", org), ("project", project), ("key", key)):
                self.spent[(*account, day[:7])] += cost

    # --- what holds after every step -----------------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        """Nothing is spent but what was settled, nothing is reserved but by what runs, and never beyond a budget."""
        next(steps_taken)
        held: Counter[AccountKey] = Counter()
        for request in self.running:
            assert request.hold is not None
            for key in request.accounts:
                held[key] += request.hold.reservation.nanos
        for key, account in self.world.ledger.book.accounts.items():
            assert account.spent == self.spent[key], key
            assert account.reserved == held[key], key
            self._within(key)
        assert {key for key, nanos in held.items() if nanos} <= set(self.world.ledger.book.accounts)
        for who in self.keys:
            assert self.world.ledger.limits.use(who.key.id).running == self._alive(who)

    def _within(self, key: AccountKey) -> None:
        budget, taken = self._budget(key), self._taken(key)
        if budget is None or taken <= budget:
            self.excused.pop(key, None)
            return
        assert taken <= self.excused.get(key, budget), f"{key}: {taken} of {budget} are taken"
        self.excused[key] = taken  # and never more again

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """In each organisation's queue, in order: one who waits does not fit, or stands behind one who waits for the
        same account; and what can never fit is told so."""
        assert self.world.ledger.book.waiting == len(self.waiting)
        short: defaultdict[str, set[AccountKey]] = defaultdict(set)
        for request in self.waiting:
            lacking = {key for key in request.accounts if self._left(key) < request.least}
            blocked = short[request.accounts[0][1]]
            assert lacking or not blocked.isdisjoint(request.accounts), "waits, and would fit"
            for key in request.accounts:
                assert (budget := self._budget(key)) is None or self.spent[key] + request.least <= budget
            blocked |= lacking

    @invariant()
    def the_record_agrees(self) -> None:
        """Every few steps the running book is compared with what is recorded and queued; the auditor looks at the whole
        record after some deaths, and at the end."""
        self.age += 1
        if self.age % 8 == 0:
            self._audit(audit_book)

    def _audit(self, *auditors: Callable[..., Iterable[Finding]]) -> None:
        ledger, store = self.world.ledger, self.world.store

        def look(connection: Connection) -> list[Finding]:
            found = list(audit(connection, ZONE)) if audit in auditors else []
            return found + list(audit_book(connection, ledger.book.accounts, ledger.unwritten.values()))

        assert [str(finding) for finding in store.read(look) if finding.severity == "wrong"] == []

    def teardown(self) -> None:
        """In the end everything settles, is written, and adds up."""
        if not hasattr(self, "world"):
            return
        try:
            for request in list(self.waiting):
                request.task.cancel()
            self._turn()
            self.world.store.pump(10**6)
            self._turn()
            assert self.world.ledger.unwritten == {}
            assert self.world.ledger.trouble is None
            assert set(self._recorded()) == set(self.settled)
            self._audit(audit)
        finally:
            self.world.end()

    # --- inside --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Let everything that can happen happen, and take note of it."""
        trouble = self.world.ledger.trouble
        self.world.loop.turn()
        served = []
        for request in list(self.waiting):
            if not request.task.done():
                continue
            self.waiting.remove(request)
            if request.task.cancelled() or request.task.exception() is not None:
                self.world.ledger.end(self._caller(request.who))
                if not request.task.cancelled():
                    self._check_refusal(request, trouble)
            else:
                request.hold = request.task.result()
                month = request.hold.day[:7]
                request.accounts = tuple((scope, id, month) for scope, id, _ in request.accounts)
                self.running.append(request)
                served.append(request)
        self._check_order(served)
        for request in list(self.ending):
            if all(task.done() for task in request.settling):
                self.ending.remove(request)
                self._check_settlement(request)

    def _check_order(self, served: Iterable[Request]) -> None:
        for request in served:
            ahead = [r for r in self.waiting if r.accounts == request.accounts and int(r.id[1:]) < int(request.id[1:])]
            assert not ahead or not request.least, "overtaken by another request of the same key"

    def _check_settlement(self, request: Request) -> None:
        first, *more = request.settling
        if not first.cancelled():
            settled = self.settled.get(request.id)
            assert first.result() == (settled.cost if settled else 0)
            if settled:
                self.durable[request.id] = settled
                assert request.id in self._recorded(), "said to be durable, and is not"
        assert all(task.cancelled() or task.result() == 0 for task in more), "settled twice"

    def _alive(self, who: Tenant) -> int:
        return sum(request.who is who for request in [*self.waiting, *self.running])

    def _caller(self, who: Tenant) -> Caller:
        caller = self.world.registry.directory.caller(who.key.digest)
        assert caller is not None
        return caller

    def _budget(self, key: AccountKey) -> int | None:
        return self.world.registry.directory.budget(key)

    def _taken(self, key: AccountKey) -> int:
        """Spent, by the model, and reserved."""
        account = self.world.ledger.book.accounts.get(key)
        return self.spent[key] + (0 if account is None else account.reserved)

    def _left(self, key: AccountKey) -> float:
        budget = self._budget(key)
        return float("inf") if budget is None else budget - self._taken(key)


def test_any_history_leaves_the_books_right() -> None:
    """Overspending, money held by nobody, a caller stuck or overtaken, an event lost or billed twice: each would be an
    assertion of the machine."""
    before = next(steps_taken)
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert next(steps_taken) - before >= 10_000
