"""Random histories of workers, their bank and what is between them: the invariants hold after every step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
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

from tests.support.offices import MONTHS, OWNED, Office, Process, Request

EXAMPLES, STEPS = 60, 60

picks = st.integers(0, 10**6)
tight = st.sampled_from([0, 5, 40, 60, 100, 150, 250])
overruns = st.sampled_from([0] * 9 + [30])
fates = st.sampled_from(["late", "late", "twice", "lost", "unanswered"])
moments = st.sampled_from([0, 0, 1, 1, 2, 3])
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
            min_size=2,
            max_size=10,
        ),
        key=st.sampled_from(["k1", "k1", "k1", "k2", "k3", "k4"]),
        then=moments,
    )
    def arrive(self, key: str, asked: list[tuple[int, int, int, str]], then: int) -> None:
        """Requests come; some are a batch's, which do not wait."""
        for worker, least, more, kind in asked:
            self._process(worker).arrive(key, least, least + more, waits=kind == "w")
        self._pass(then)

    @precondition(lambda self: self._requests(lambda process: process.running))
    @rule(
        pick=picks,
        ends=st.lists(st.tuples(st.sampled_from([0, 10, 50, 100]), overruns), min_size=1, max_size=6),
        then=moments,
    )
    def settle(self, pick: int, ends: list[tuple[int, int]], then: int) -> None:
        """Answers end, and cost their hold or less; seldom, a provider uses more than it was allowed."""
        for share, overrun in ends:
            if running := self._requests(lambda process: process.running):
                process, request = running[pick % len(running)]
                assert request.reservation is not None
                process.settle(request, request.reservation.nanos * share // 100 + overrun)
        self._pass(then)

    @precondition(lambda self: self._requests(lambda process: process.running + process.waiting))
    @rule(pick=picks, more=st.sampled_from([1, 5, 20]))
    def go_on(self, pick: int, more: int) -> None:
        """An answer goes on, or a caller hangs up while it waits."""
        there = self._requests(lambda process: process.running + process.waiting)
        process, request = there[pick % len(there)]
        if request in process.running:
            process.grow(request, more)
        else:
            process.leave(request)

    # --- the network ---------------------------------------------------------------------------------------------

    @rule(moments=st.integers(1, 4))
    def time_passes(self, moments: int) -> None:
        """All messages arrive, in the order in which they went, and everybody does what it does now and then."""
        self._pass(moments)

    def _pass(self, moments: int) -> None:
        for _ in range(moments):
            for process in self.office.processes.values():
                process.write(3)
                process.tick()
            self.office.look_for_recalls()
            self.office.now += 50_000
            for _ in range(2 * len(self.office.net)):
                if self.office.net:
                    self.office.deliver(self.office.net.pop(0))

    @precondition(lambda self: self.office.net)
    @rule(suffering=st.lists(st.tuples(fates, picks), max_size=6))
    def messages_suffer(self, suffering: list[tuple[str, int]]) -> None:
        """They arrive in any order, twice, or never; or the bank's process dies before it answers, and what it has
        committed stays. Whoever misses something finds its connection cut."""
        for fate, pick in suffering:
            if not self.office.net:
                return
            message = self.office.net[pick % len(self.office.net)]
            if fate != "twice":
                self.office.net.remove(message)
            if fate == "lost":
                message.process.cut = True
            else:
                self.office.deliver(message, answer=fate != "unanswered")

    @precondition(lambda self: any(process.cut for process in self.office.processes.values()))
    @rule()
    def reconnect(self) -> None:
        """Of the old connection, requests may still arrive, and answers do not."""
        process = next(process for process in self.office.processes.values() if process.cut)
        self.office.net = [
            message
            for message in self.office.net
            if message.process is not process or type(message.what).__name__ in {"Ask", "GiveBack", "Drop"}
        ]
        process.reconnect()

    @precondition(lambda self: self.office.processes)
    @rule(pick=picks, most=st.integers(1, 4), what=st.sampled_from(["tick", "recall", "write", "unknown"]))
    def one_thing_happens(self, pick: int, most: int, what: str) -> None:
        """To one worker, while others lag behind; events may be committed without its knowledge."""
        process = self._process(pick)
        if what == "tick":
            process.tick()
        elif what == "recall":
            self.office.look_for_recalls()
        elif what == "write":
            process.write(most)
        else:
            self.office.commit(process.unwritten[:most])

    # --- life and death ------------------------------------------------------------------------------------------

    @rule(pick=picks, what=st.sampled_from(["kill", "kill", "bury", "bury", "close", "write"]), sent=st.integers(0, 3))
    def death(self, pick: int, what: str, sent: int) -> None:
        """kill -9, and what was in memory is gone; the lock of a dead one is found free; an operator closes one that
        lives, and does not know it; what the dead had sent on is committed, whether they are buried by now or not."""
        office = self.office
        if what == "kill" and office.processes:
            office.die(self._process(pick).worker.id, sent=sent)
        elif what == "bury" and office.dead:
            office.close(office.dead[pick % len(office.dead)])
        elif what == "close" and office.processes:
            office.close(self._process(pick).worker)
        elif what == "write":
            batch, office.late = office.late[:sent], office.late[sent:]
            office.commit(batch)

    @precondition(lambda self: len(self.office.processes) < 3)
    @rule(then=moments)
    def hire(self, then: int) -> None:
        """A process begins where none is, or none is any more."""
        self.office.hire(next(place for place in ("w0", "w1", "w2") if place not in self.office.processes))
        self._pass(then)

    # --- budgets and time ----------------------------------------------------------------------------------------

    @rule(
        of=st.sampled_from(OWNED),
        budget=st.one_of(tight, st.sampled_from([10_000, None])),
        hear=st.integers(0, 3),
    )
    def set_budget(self, of: tuple[str, str], budget: int | None, hear: int) -> None:
        """A budget is raised, lowered, added or taken away, in the database; so many hear of it at once."""
        self.office.set_budget(of, budget)
        for process in list(self.office.processes.values())[:hear]:
            process.hear()

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


def machine(examples: int) -> int:
    """Run so many histories; returns how many steps they had."""
    before = next(steps_taken)
    run_state_machine_as_test(
        EscrowMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    return next(steps_taken) - before


def test_any_history_keeps_budgets_exact() -> None:
    """A budget exceeded, a slice that nobody holds and nobody gets, a caller refused or kept waiting for nothing: each
    would be an assertion of the machine."""
    assert machine(EXAMPLES) >= 1_000


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_many_histories_keep_budgets_exact() -> None:
    """What a few histories do not meet."""
    assert machine(10 * EXAMPLES) >= 10_000
