"""The bookkeeper: what is spent and reserved of every budget, now. Pure: no clock, no storage, no event loop.

A request takes a reservation before it runs and settles it once. At any instant, for every account,

    spent + reserved ≤ budget

but for what a provider used beyond the limit it was sent, and for budgets that were lowered below what is taken. An
account is one organisation, project or key in one calendar month; a request holds all of its accounts or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

AccountKey = tuple[str, str, str]
"""Scope ("org", "project" or "key"), id, month ("2026-01")."""

Accounts = tuple[AccountKey, ...]
"""Those that pay for one request, the organisation's first."""


@dataclass(slots=True)
class Account:
    """One budget's month. Amounts in nano-dollars."""

    spent: int = 0
    reserved: int = 0


@dataclass(slots=True, eq=False)
class Reservation:
    """A hold of `nanos` on all of its accounts, from `Book.reserve` until `Book.settle`."""

    id: str
    accounts: Accounts
    nanos: int
    settled: bool = False
    drawn: tuple[tuple[AccountKey, int], ...] = ()  # what its settlement takes from leases; see `escrow`


class Verdict(Enum):
    """Why there is no reservation."""

    WAIT = "it would fit if what is reserved came back"
    NEVER = "what is spent already leaves too little"


@dataclass(slots=True, eq=False)
class Waiter:
    """A request in the queue for a reservation; `tell` gets it, or `Verdict.NEVER`, exactly once."""

    id: str
    accounts: Accounts
    least: int
    wanted: int
    tell: Callable[[Reservation | Verdict], None]
    since: int = 0  # microseconds; where several processes share a budget, who has waited longer goes first


@dataclass(slots=True, eq=False)
class Growth:
    """An answer under way that waits for `least` to `wanted` in all; `tell` gets whether it has it, exactly once."""

    reservation: Reservation
    least: int
    wanted: int
    tell: Callable[[bool], None]


class Book:
    """Accounts, and for each organisation the queue of those who wait: different organisations share no account.

    `budget` gives the budget of an account now (None: unbounded); it may change at any time, and then
    `budgets_changed` wants to know. `spent` is what the store says at the start, when nothing is reserved.

    `hope` gives the most that a single reservation could ever have (None: any amount); it is what the budget leaves,
    but where the book has only a slice of a budget, which may grow.
    """

    def __init__(
        self,
        budget: Callable[[AccountKey], int | None],
        spent: Mapping[AccountKey, int] | None = None,
        hope: Callable[[AccountKey], int | None] | None = None,
    ) -> None:
        self._budget = budget
        self._hope = hope or self._unspent
        self.accounts: dict[AccountKey, Account] = {key: Account(nanos) for key, nanos in (spent or {}).items()}
        self._queues: dict[AccountKey, deque[Waiter]] = {}
        self._growing: dict[AccountKey, list[Growth]] = {}

    def account(self, key: AccountKey) -> Account:
        """The account, empty while nothing has happened on it."""
        found = self.accounts.get(key)
        if found is None:
            found = self.accounts[key] = Account()
        return found

    def room(self, accounts: Accounts) -> int | None:
        """Nano-dollars that could be reserved now; None: any amount. Negative where a budget is exceeded."""
        room: int | None = None
        for key in accounts:
            budget = self._budget(key)
            if budget is None:
                continue
            account = self.accounts.get(key) or self.account(key)
            left = budget - account.spent - account.reserved
            if room is None or left < room:
                room = left
        return room

    # --- reserve -------------------------------------------------------------------------------------------------

    def reserve(self, id: str, accounts: Accounts, least: int, wanted: int) -> Reservation | Verdict:
        """Hold between `least` and `wanted` nano-dollars, as much as there is; never overtakes those who wait for it.

        What costs nothing needs no budget, not even one that has room.
        """
        if wanted == 0:
            self._hold(accounts, 0)
            return Reservation(id, accounts, 0)
        if self._queues or self._growing:
            queue = self._queues.get(accounts[0], ())
            if not (self._short_of(queue) | self._short_to_grow(accounts[0])).isdisjoint(accounts):
                return self._verdict(accounts, least)
        return self._take(id, accounts, least, wanted)

    def wait(self, waiter: Waiter) -> None:
        """Join the queue, after `reserve` said `WAIT`."""
        self._queues.setdefault(waiter.accounts[0], deque()).append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave the queue unserved: the caller has gone, or has waited long enough."""
        queue = self._queues.get(waiter.accounts[0])
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self._serve(waiter.accounts[0])  # whoever stood behind may fit

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    # --- grow and settle -----------------------------------------------------------------------------------------

    def grow(self, reservation: Reservation, least: int, wanted: int) -> bool:
        """Raise the hold to between `least` and `wanted` in all, as much as there is; False: there is no more.

        Goes before those who wait: an answer under way never does.
        """
        assert not reservation.settled
        room = self.room(reservation.accounts)
        most = wanted if room is None else min(wanted, reservation.nanos + max(0, room))
        if most < least:
            return False
        if most > reservation.nanos:
            self._hold(reservation.accounts, most - reservation.nanos)
            reservation.nanos = most
        return True

    def wait_to_grow(self, growth: Growth) -> None:
        """Be told when `grow` would succeed: before anybody in the queue, whom nobody who grows waits for."""
        self._growing.setdefault(growth.reservation.accounts[0], []).append(growth)

    def leave_growing(self, growth: Growth) -> None:
        """Wait no longer; whoever stood behind may fit."""
        organisation = growth.reservation.accounts[0]
        growing = self._growing.get(organisation, [])
        if growth in growing:
            growing.remove(growth)
            if not growing:
                del self._growing[organisation]
            self._serve(organisation)

    def settle(self, reservation: Reservation, nanos: int) -> int:
        """Turn the hold into `nanos` spent; a second time changes nothing. Returns how much lay beyond the hold."""
        if reservation.settled:
            return 0
        assert nanos >= 0
        reservation.settled = True
        for key in reservation.accounts:
            account = self.accounts[key]
            account.reserved -= reservation.nanos
            account.spent += nanos
            assert account.reserved >= 0, "more came back than was held"
        if self._queues or self._growing:
            self._serve(reservation.accounts[0])
        return max(0, nanos - reservation.nanos)

    def budgets_changed(self) -> None:
        """Look at everybody who waits again: there may be more room now, or less."""
        for organisation in {**self._growing, **self._queues}:
            self._serve(organisation)

    # --- inside --------------------------------------------------------------------------------------------------

    def _take(self, id: str, accounts: Accounts, least: int, wanted: int) -> Reservation | Verdict:
        assert 0 <= least <= wanted
        room = self.room(accounts)
        if room is not None and least > room:
            return self._verdict(accounts, least)
        nanos = wanted if room is None else min(wanted, room)
        self._hold(accounts, nanos)
        return Reservation(id, accounts, nanos)

    def _verdict(self, accounts: Accounts, least: int) -> Verdict:
        return Verdict.NEVER if self._hopeless(accounts, least) else Verdict.WAIT

    def _hopeless(self, accounts: Accounts, least: int) -> bool:
        return any((hope := self._hope(key)) is not None and least > hope for key in accounts)

    def _unspent(self, key: AccountKey) -> int | None:
        budget = self._budget(key)
        return None if budget is None else budget - self.account(key).spent

    def _hold(self, accounts: Accounts, nanos: int) -> None:
        for key in accounts:
            account = self.accounts.get(key) or self.account(key)
            account.reserved += nanos

    def _left(self, key: AccountKey) -> int | None:
        budget = self._budget(key)
        if budget is None:
            return None
        account = self.account(key)
        return budget - account.spent - account.reserved

    def _short_of(self, waiters: Iterable[Waiter]) -> set[AccountKey]:
        """The accounts that those who wait are waiting for."""
        return {
            key
            for waiter in waiters
            for key in waiter.accounts
            if (left := self._left(key)) is not None and left < waiter.least
        }

    def _short_to_grow(self, organisation: AccountKey) -> set[AccountKey]:
        """The accounts that answers under way are waiting for."""
        return {
            key
            for growth in self._growing.get(organisation, ())
            for key in growth.reservation.accounts
            if (left := self._left(key)) is not None and left < growth.least - growth.reservation.nanos
        }

    def _serve_growing(self, organisation: AccountKey) -> None:
        growing = self._growing.pop(organisation, None)
        if growing is None:
            return
        stay: list[Growth] = []
        served: list[tuple[Growth, bool]] = []
        for growth in growing:
            if growth.reservation.settled or self._hopeless(growth.reservation.accounts, growth.least):
                served.append((growth, False))
            elif self.grow(growth.reservation, growth.least, growth.wanted):
                served.append((growth, True))
            else:
                stay.append(growth)
        if stay:
            self._growing[organisation] = stay
        for growth, grown in served:
            growth.tell(grown)

    def _serve(self, organisation: AccountKey) -> None:
        """Give to those of one queue, in order, what fits. Nobody overtakes one who waits for the same account."""
        self._serve_growing(organisation)
        queue = self._queues.pop(organisation, None)
        if queue is None:
            return
        short = self._short_to_grow(organisation)
        stay: deque[Waiter] = deque()
        served: list[tuple[Waiter, Reservation | Verdict]] = []
        for waiter in queue:
            if short.isdisjoint(waiter.accounts):
                answer = self._take(waiter.id, waiter.accounts, waiter.least, waiter.wanted)
            else:
                answer = self._verdict(waiter.accounts, waiter.least)
            if answer is Verdict.WAIT:
                stay.append(waiter)
                short |= self._short_of((waiter,))
            else:
                served.append((waiter, answer))
        if stay:
            self._queues[organisation] = stay
        for waiter, answer in served:
            waiter.tell(answer)
