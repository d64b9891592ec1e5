"""Random histories of workers, their bank and what is between them: the invariants hold after every step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

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

from tests.support.offices import MONTHS, OWNED, Message, Office, Process, Request

EXAMPLES, STEPS = 150, 80

picks = st.integers(0, 10**6)
tight = st.sampled_from([0, 5, 40, 60, 100, 150, 250])
overruns = st.sampled_from([0] * 9 + [30])
steps_taken = count()


class EscrowMachine(RuleBasedStateMachine):
    """Three places for workers, and an operator."""

    @initialize(
        budgets=st.dictionaries(st.sampled_from(OWNED), tight, min_size=1, max_size=3),
        rest=st.sampled_from([None, 400, 10_000]),
    )
    def begin(self, budgets: dict[tuple[str, str], int], rest: int | None) -> None:
        """Two workers, and room for a third; a few budgets are tight."""
        self.office = Office({of: budgets.get(of, rest) for of in OWNED})
        for place in ("w0", "w1"):
            self.office.hire(place)

    def _process(self, pick: int) -> Process:
        return list(self.office.processes.values())[pick % len(self.office.processes)]

    def _requests(self, of: Callable[[Process], list[Request]]) -> list[tuple[Process, Request]]:
        return [(process, request) for process in self.office.processes.values() for request in of(process)]

    # --- requests ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.office.processes)
    @rule(
        asked=st.lists(
            st.tuples(
                picks, st.sampled_from([1, 3, 10, 10, 40]), st.sampled_from([0, 0, 7]), st.sampled_from("wwwwwwwwb")
            ),
            min_size=1,
            max_size=8,
        ),
        key=st.sampled_from(["k1", "k1", "k1", "k2", "k3", "k4"]),
    )
    def arrive(self, key: str, asked: list[tuple[int, int, int, str]]) -> None:
        """Requests come; some are a batch's, which do not wait."""
        for worker, least, more, kind in asked:
            self._process(worker).arrive(key, least, least + more, waits=kind == "w")

    @precondition(lambda self: self._requests(lambda process: process.running))
    @rule(
        pick=picks,
        ends=st.lists(st.tuples(st.sampled_from([0, 10, 50, 100]), st.sampled_from([0] * 9 + [30])), max_size=4),
    )
    def settle(self, pick: int, ends: list[tuple[int, int]]) -> None:
        """Answers end, and cost their hold or less; seldom, a provider uses more than it was allowed."""
        for share, overrun in ends:
            if running := self._requests(lambda process: process.running):
                process, request = running[pick % len(running)]
                assert request.reservation is not None
                process.settle(request, request.reservation.nanos * share // 100 + overrun)

    @precondition(lambda self: self._requests(lambda process: process.running))
    @rule(pick=picks, more=st.sampled_from([1, 5, 20]))
    def grow(self, pick: int, more: int) -> None:
        """An answer goes on."""
        running = self._requests(lambda process: process.running)
        process, request = running[pick % len(running)]
        process.grow(request, more)

    @precondition(lambda self: self._requests(lambda process: process.waiting))
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        """A caller hangs up while it waits."""
        waiting = self._requests(lambda process: process.waiting)
        process, request = waiting[pick % len(waiting)]
        process.leave(request)

    # --- the network ---------------------------------------------------------------------------------------------

    def _take(self, pick: int) -> Message:
        return self.office.net.pop(pick % len(self.office.net))

    @precondition(lambda self: self.office.net)
    @rule(pickings=st.lists(picks, min_size=1, max_size=6))
    def messages_arrive(self, pickings: list[int]) -> None:
        """In any order."""
        for pick in pickings:
            if self.office.net:
                self.office.deliver(self._take(pick))

    @rule(writes=st.booleans(), recalls=st.booleans())
    def a_moment_passes(self, writes: bool, recalls: bool) -> None:
        """All messages arrive, in the order in which they went, and everybody does what it does now and then."""
        for process in self.office.processes.values():
            if writes:
                process.write(3)
            process.tick()
        if recalls:
            self.office.look_for_recalls()
        self.office.now += 50_000
        for _ in range(2 * len(self.office.net)):
            if self.office.net:
                self.office.deliver(self.office.net.pop(0))

    @precondition(lambda self: self.office.net)
    @rule(pick=picks)
    def a_message_arrives_twice(self, pick: int) -> None:
        """Once now, once later."""
        self.office.deliver(self.office.net[pick % len(self.office.net)])

    @precondition(lambda self: self.office.net)
    @rule(pick=picks)
    def a_message_is_lost(self, pick: int) -> None:
        """The worker finds its connection cut later."""
        self._take(pick).process.cut = True

    @precondition(lambda self: self.office.net)
    @rule(pick=picks)
    def the_bank_dies_before_it_answers(self, pick: int) -> None:
        """What it committed stays, and its client does not know."""
        self.office.deliver(self._take(pick), answer=False)

    @precondition(lambda self: any(process.cut for process in self.office.processes.values()))
    @rule(pick=picks)
    def reconnect(self, pick: int) -> None:
        """Of the old connection, requests may still arrive, and answers do not."""
        cut = [process for process in self.office.processes.values() if process.cut]
        process = cut[pick % len(cut)]
        self.office.net = [
            message
            for message in self.office.net
            if message.process is not process or type(message.what).__name__ in {"Ask", "GiveBack", "Drop"}
        ]
        process.reconnect()

    @precondition(lambda self: self.office.processes)
    @rule(pick=picks)
    def tick(self, pick: int) -> None:
        """A worker asks again for what was not there."""
        self._process(pick).tick()

    @rule()
    def look_for_recalls(self) -> None:
        """The bank looks for who is short of what others have."""
        self.office.look_for_recalls()

    # --- the disk ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._unwritten())
    @rule(pick=picks, most=st.integers(1, 4), unknown=st.booleans())
    def write(self, pick: int, most: int, unknown: bool) -> None:
        """Events are committed, or committed without anybody knowing, and tried again later."""
        process = [p for p in self.office.processes.values() if p.unwritten][pick % self._unwritten()]
        if unknown:
            self.office.commit(process.unwritten[:most])
        else:
            process.write(most)

    def _unwritten(self) -> int:
        return sum(bool(process.unwritten) for process in self.office.processes.values())

    @precondition(lambda self: self.office.late)
    @rule(most=st.integers(1, 4))
    def write_late(self, most: int) -> None:
        """What the dead had sent on is committed, whether they are buried by now or not."""
        batch, self.office.late = self.office.late[:most], self.office.late[most:]
        self.office.commit(batch)

    # --- life and death ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.office.processes)
    @rule(pick=picks, sent=st.integers(0, 3))
    def die(self, pick: int, sent: int) -> None:
        """kill -9: what it had in memory is gone."""
        self.office.die(self._process(pick).worker.id, sent=sent)

    @precondition(lambda self: len(self.office.processes) < 3)
    @rule()
    def hire(self) -> None:
        """A process begins where none is, or none is any more."""
        free = [place for place in ("w0", "w1", "w2") if place not in self.office.processes]
        self.office.hire(free[0])

    @precondition(lambda self: self.office.dead)
    @rule(pick=picks)
    def bury(self, pick: int) -> None:
        """The lock of a dead one is found free."""
        self.office.close(self.office.dead[pick % len(self.office.dead)])

    @precondition(lambda self: self.office.processes)
    @rule(pick=picks)
    def close_one_that_lives(self, pick: int) -> None:
        """An operator closes a worker that nobody reaches; it goes on, until it hears of that."""
        self.office.close(self._process(pick).worker)

    # --- budgets and time ----------------------------------------------------------------------------------------

    @rule(of=st.sampled_from(OWNED), budget=st.one_of(tight, st.sampled_from([10_000, None])))
    def set_budget(self, of: tuple[str, str], budget: int | None) -> None:
        """A budget is raised, lowered, added or taken away, in the database."""
        self.office.set_budget(of, budget)

    @precondition(
        lambda self: any(process.budgets != self.office.budgets for process in self.office.processes.values())
    )
    @rule()
    def hear_of_budgets(self) -> None:
        """A worker learns of it."""
        next(process for process in self.office.processes.values() if process.budgets != self.office.budgets).hear()

    @precondition(lambda self: self.office.processes)
    @rule(pick=picks, change=st.sampled_from(["month", 10**6, 6 * 10**6, -(10**7), 10**12]))
    def time_is_strange(self, pick: int, change: str | int) -> None:
        """Clocks pass the end of a month, or are set back over it; time passes; machines disagree about it."""
        if isinstance(change, str):
            self.office.month = next(month for month in MONTHS if month != self.office.month)
        elif change in {10**6, 6 * 10**6}:
            self.office.now += change
        else:
            process = self._process(pick)
            process.skew = 0 if process.skew else change

    # --- what holds ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_held_twice(self) -> None:
        """Spent and leased stay within each budget, and each worker within its leases."""
        if hasattr(self, "office"):
            next(steps_taken)
            self.office.check()

    def teardown(self) -> None:
        """In the end nobody waits for nothing, everybody is told, and nothing is left behind."""
        if not hasattr(self, "office"):
            return
        office = self.office
        for process in [process for process in office.processes.values() if process.closed]:
            office.die(process.worker.id, sent=10**6)
        if not office.processes:
            office.hire("w0")
        office.settle_down()
        office.check()
        office.check_nobody_waits_for_nothing()
        for _ in range(1000):
            running = self._requests(lambda process: process.running)
            if not running:
                break
            for process, request in running:
                assert request.reservation is not None
                process.settle(request, request.reservation.nanos)
            office.settle_down()
            office.check()
        assert self._requests(lambda process: process.waiting) == []
        for place in list(office.processes):
            office.close(office.processes[place].worker)
        assert not any(office.leased().values())


def test_any_history_keeps_budgets_exact() -> None:
    """A budget exceeded, a slice that nobody holds and nobody gets, a caller refused or kept waiting for nothing: each
    would be an assertion of the machine."""
    before = next(steps_taken)
    config: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    run_state_machine_as_test(
        EscrowMachine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, **config)
    )
    assert next(steps_taken) - before >= 5_000
