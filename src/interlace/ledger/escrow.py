"""A budget shared by several processes: each holds leases on slices of it, and reserves inside them in memory.

The escrow method (O'Neil 1986). A *worker* is a process that serves requests; the *bank* is the database. For each
account the bank grants, the worker draws (what its settlements cost), and gives back:

    lease = granted - given back - drawn          in the worker, at once
          ≤ `leases.nanos` in the bank            a draw gets there with the usage event that it pays for
    reserved ≤ lease                              by the `Book`, whose budget is the lease

The `Teller` decides when to ask and what to give back. It has no clock, no storage and no event loop: what it wants
done are values, taken by `effects()`. All amounts that it tells the bank are totals since the worker began, and so
are the bank's: a message that is lost, late, or comes twice changes nothing that the next one does not mend.

Nobody is refused on the teller's word. Only the bank knows what all have spent, and until it says that even that is
too much (`Answer.hope`), a request that does not fit waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from interlace.ledger.book import Account, AccountKey, Accounts, Book, Growth, Reservation, Verdict, Waiter

FIRST_PACE, FASTEST_PACE = 8, 512  # how many requests a slice is for, at first and at most: it doubles with each
LAST = 2**62  # the place in the queue of those whom nobody waits behind

Totals = dict[AccountKey, int]
Said = Literal["granted", "wait", "never"]


class Worker(msgspec.Struct, frozen=True):
    """A process at the bank. A later one in the same place has a higher epoch, and fences this one off."""

    id: str
    epoch: int


class Draws(msgspec.Struct, frozen=True):
    """What one usage event takes from a worker's leases, in the transaction that writes the event."""

    worker: Worker
    nanos: tuple[tuple[AccountKey, int], ...]


class Need(NamedTuple):
    """Of one account: the total to be granted, without which its request cannot go on, and the total that is liked."""

    least: int
    wanted: int


class Ask(msgspec.Struct, frozen=True):
    """Grant all of `needs` at least their least, or nothing. `least`: what the request holds of each of its accounts.

    `since` is when it began to wait, in microseconds: who is short of an account keeps its place there, and others are
    to give back. None: nobody waits, it is asked ahead.
    """

    number: int
    least: int
    needs: dict[AccountKey, Need]
    since: int | None = None


class GiveBack(msgspec.Struct, frozen=True):
    """The totals that are given back of these accounts."""

    totals: Totals


class Drop(msgspec.Struct, frozen=True):
    """Nobody waits for these any more."""

    accounts: Accounts


Effect = Ask | GiveBack | Drop


class Answer(msgspec.Struct, frozen=True):
    """To an `Ask`. "granted"; "wait": leases are out that may come back; "never": what is spent leaves too little.

    `granted` are the worker's totals now, also where an earlier answer was lost. `hope` is what a single request could
    have at best of each account: its budget without what is spent. None: it has no budget.
    """

    number: int
    verdict: Said
    granted: Totals
    hope: dict[AccountKey, int | None]


class Fenced(Exception):
    """The worker was closed: it may be refused everything but to record what it has done."""


@dataclass(slots=True)
class Lease:
    """One account's slice, in nano-dollars since the worker began."""

    granted: int = 0
    returned: int = 0
    acknowledged: int = 0  # of what was returned
    drawn: int = 0
    low: int = 0  # with less than this free, more is asked for ahead
    pace: int = FIRST_PACE
    budget: int | None = None  # of the account, when last looked at

    @property
    def nanos(self) -> int:
        """What is here."""
        return self.granted - self.returned - self.drawn


class _Demand(NamedTuple):
    """Somebody who waits at the head of those who want the same."""

    accounts: Accounts
    least: int  # in all
    more: int  # beyond what it holds
    wanted: int
    since: int
    lacking: frozenset[AccountKey]


class Teller:
    """A worker's `Book` and its leases. `budget` gives the whole budget of an account as far as this process knows;
    None: unbounded, and needs no lease. `due` is told when there are effects to be taken."""

    def __init__(self, budget: Callable[[AccountKey], int | None], due: Callable[[], None] = lambda: None) -> None:
        self._budget = budget
        self._due = due
        self.book = Book(self._allotment, hope=self.hope)
        self.leases: dict[AccountKey, Lease] = {}
        self.fenced = False
        self._hopes: dict[AccountKey, int] = {}
        self._recalled: dict[AccountKey, int] = {}
        self._asked: dict[int, Ask] = {}
        self._parked: set[AccountKey] = set()  # not asked for again before the next `tick`
        self._queued: set[AccountKey] = set()  # at the bank somebody waits for these in our name
        self._number = 0
        self._heard_from = 0  # the first ask that saw the budgets as they are
        self._month = ""
        self._effects: list[Effect] = []

    def effects(self) -> list[Effect]:
        """What is to be done now, in this order; each is given out once."""
        effects, self._effects = self._effects, []
        return effects

    # --- as a book -----------------------------------------------------------------------------------------------

    @property
    def accounts(self) -> dict[AccountKey, Account]:
        """What this worker has spent and reserved."""
        return self.book.accounts

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.book.waiting

    def account(self, key: AccountKey) -> Account:
        """What this worker has spent and reserved of one account."""
        return self.book.account(key)

    def hope(self, key: AccountKey) -> int | None:
        """The most that a request could have of an account at best, as the bank last said; None: not known."""
        return self._hopes.get(key)

    def reserve(self, id: str, accounts: Accounts, least: int, wanted: int) -> Reservation | Verdict:
        """As `Book.reserve`. Whoever is told `WAIT` calls `wait`, or, when it will not, `wish`."""
        if accounts[0][2] != self._month:
            self._turn_to(accounts[0][2])
        answer = self.book.reserve(id, accounts, least, wanted)
        if isinstance(answer, Reservation) and wanted:
            self._look_ahead(accounts, wanted)
        return answer

    def wait(self, waiter: Waiter) -> None:
        """As `Book.wait`."""
        self.book.wait(waiter)
        self._review(waiter.accounts[0])

    def leave(self, waiter: Waiter) -> None:
        """As `Book.leave`; `tick` tells the bank, where need be."""
        self.book.leave(waiter)
        self._review(waiter.accounts[0])

    def wish(self, accounts: Accounts, least: int, wanted: int) -> None:
        """Ask for what a request will want that does not stand in the queue, and tries again by itself."""
        organisation = accounts[0]
        if not any(self._demands(organisation)):
            lacking = frozenset(key for key in accounts if self._bounded(key) and self._free(key) < least)
            if lacking:
                self._ask(_Demand(accounts, least, least, wanted, LAST, lacking), {})

    def grow(self, reservation: Reservation, least: int, wanted: int) -> bool:
        """As `Book.grow`. False says that it is not here: `wait_to_grow` asks the bank."""
        if not self.book.grow(reservation, least, wanted):
            return False
        self._look_ahead(reservation.accounts, wanted)
        return True

    def wait_to_grow(self, growth: Growth) -> None:
        """As `Book.wait_to_grow`. It is told False only where the bank says so; the caller need not wait for long, as
        nobody gives back for it what is reserved."""
        self.book.wait_to_grow(growth)
        self._review(growth.reservation.accounts[0])

    def leave_growing(self, growth: Growth) -> None:
        """As `Book.leave_growing`."""
        self.book.leave_growing(growth)
        self._review(growth.reservation.accounts[0])

    def settle(self, reservation: Reservation, nanos: int) -> int:
        """As `Book.settle`. `reservation.drawn` says what its event is to take from the leases; what a provider used
        beyond the hold is taken from none, since what is left there is others' hold."""
        if reservation.settled:
            return 0
        covered = min(nanos, reservation.nanos)
        drawn = []
        for key in reservation.accounts:
            lease = self.leases.get(key)
            if lease is not None and (taken := min(covered, lease.nanos)):
                lease.drawn += taken
                drawn.append((key, taken))
        reservation.drawn = tuple(drawn)
        if self._recalled or reservation.accounts[0][2] != self._month:
            self._hand_on(reservation)
        return self.book.settle(reservation, nanos)

    def budgets_changed(self) -> None:
        """Look at everybody who waits again. What is free of a budget that was lowered or removed goes back, and what
        runs on one that was not there before gets its lease, as far as the bank has it."""
        self._heard_from = self._number + 1
        self._hopes.clear()
        self._parked.clear()
        for key, lease in self.leases.items():
            budget = self._budget(key)
            if lease.budget is not None and (budget is None or budget < lease.budget):
                self._return(key, self._free(key))
                lease.low, lease.pace = 0, 1
            lease.budget = budget
        for key, account in self.book.accounts.items():
            more = account.reserved - self._nanos(key)
            if more > 0 and self._bounded(key):
                lease = self._lease(key)
                self._send_ask(0, {key: Need(lease.granted + more, lease.granted + more)}, None)
        self.book.budgets_changed()
        self._review_all()

    # --- from the bank -------------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        """An answer came: late, twice, or to an ask that was given up, it still says what was granted."""
        ask = self._asked.pop(answer.number, None)
        self._learn(answer.granted)
        if ask is not None:
            if answer.number >= self._heard_from:
                for key, hope in answer.hope.items():
                    self._hopes.pop(key, None)
                    if hope is not None:
                        self._hopes[key] = hope
            if answer.verdict == "wait":
                self._parked.update(ask.needs)
                if ask.since is not None and ask.since != LAST:
                    self._queued.update(ask.needs)
            elif answer.verdict == "granted":
                self._queued.difference_update(ask.needs)
        self.book.budgets_changed()
        for key in answer.granted:  # called back before it was here: nobody calls twice
            self._give(key, self._free(key))
        self._review_all()

    def acknowledged(self, totals: Totals) -> None:
        """The bank has these back."""
        for key, total in totals.items():
            lease = self._lease(key)
            lease.acknowledged = max(lease.acknowledged, total)

    def recalled(self, wanted: Mapping[AccountKey, int]) -> None:
        """What requests lack that have waited longer elsewhere, all of it: what is free goes back now, and what comes
        free later goes there before anybody here gets it."""
        self._recalled = {key: nanos for key, nanos in wanted.items() if nanos > 0}
        for key in list(self._recalled):
            lease = self._lease(key)
            lease.low, lease.pace = 0, 1
            self._give(key, self._free(key))

    def reconnected(self, holdings: Totals) -> None:
        """A new connection to the bank, which says what it has granted in all (`bank.holdings`). To be made whenever a
        message or its answer may be lost: what was asked before will have no answer, and may have been granted; what
        was given back may not have got there."""
        self._asked.clear()
        self._parked.clear()
        self._learn(holdings)
        unsure = {key: lease.returned for key, lease in self.leases.items() if lease.returned > lease.acknowledged}
        if unsure:
            self._send(GiveBack(unsure))
        self.book.budgets_changed()
        self._review_all()

    def tick(self) -> None:
        """Some time has passed (a few hundredths of a second): ask again for what was not there."""
        if not self._parked and not self._queued:
            return
        self._parked.clear()
        wanted = self._review_all()
        if gone := self._queued - wanted:
            self._queued -= gone
            self._send(Drop(tuple(sorted(gone))))

    def fence(self) -> None:
        """The bank has closed this worker: it takes nothing on any more, and settles what runs."""
        self.fenced = True

    # --- when to ask ---------------------------------------------------------------------------------------------

    def _look_ahead(self, accounts: Accounts, wanted: int) -> None:
        """Ask before it is too late, so that requests seldom wait for the bank."""
        needs = {}
        for key in accounts:
            lease = self.leases.get(key)
            if lease is not None and lease.low and self._free(key) < lease.low and not self._in_flight((key,)):
                needs[key] = Need(lease.granted, lease.granted + lease.pace * wanted)
        if needs and not self.fenced:
            self._send_ask(0, needs, None)

    def _review_all(self) -> set[AccountKey]:
        """Ask for whoever waits; returns all accounts that somebody waits for."""
        wanted: set[AccountKey] = set()
        for organisation in {**self.book._growing, **self.book._queues}:
            wanted |= self._review(organisation)
        return wanted

    def _review(self, organisation: AccountKey) -> set[AccountKey]:
        wanted: set[AccountKey] = set()
        queue = self.book._queues.get(organisation, ())
        sums: dict[AccountKey, int] | None = None
        for demand in self._demands(organisation):
            wanted.update(demand.accounts)
            if self.fenced or self._in_flight(demand.lacking) or not self._parked.isdisjoint(demand.lacking):
                continue
            if sums is None:
                sums = {}
                for waiter in queue:
                    for key in waiter.accounts:
                        sums[key] = sums.get(key, 0) + waiter.wanted
            self._ask(demand, sums)
        return wanted

    def _demands(self, organisation: AccountKey) -> Iterator[_Demand]:
        """Those who lack something, and stand behind nobody who lacks the same."""
        short: set[AccountKey] = set()
        for accounts, least, more, wanted, since in self._in_line(organisation):
            lacking = frozenset(key for key in accounts if self._bounded(key) and self._free(key) < more)
            if lacking and short.isdisjoint(accounts):
                yield _Demand(accounts, least, more, wanted, since, lacking)
            short |= lacking

    def _in_line(self, organisation: AccountKey) -> Iterator[tuple[Accounts, int, int, int, int]]:
        for growth in self.book._growing.get(organisation, ()):
            held = growth.reservation.nanos
            yield growth.reservation.accounts, growth.least, growth.least - held, growth.wanted - held, 0
        for waiter in self.book._queues.get(organisation, ()):
            yield waiter.accounts, waiter.least, waiter.least, waiter.wanted, waiter.since

    def _ask(self, demand: _Demand, sums: Mapping[AccountKey, int]) -> None:
        needs = {}
        for key in demand.accounts:
            if self._bounded(key):
                lease, free = self._lease(key), self._free(key)
                lack = max(0, demand.more - free)
                ahead = max(sums.get(key, 0) - free, lease.pace * demand.wanted)
                needs[key] = Need(lease.granted + lack, lease.granted + max(lack, ahead))
        self._send_ask(demand.least, needs, demand.since)

    def _send_ask(self, least: int, needs: dict[AccountKey, Need], since: int | None) -> None:
        self._number += 1
        ask = Ask(self._number, least, needs, since)
        self._asked[ask.number] = ask
        self._send(ask)

    def _in_flight(self, keys: Iterable[AccountKey]) -> bool:
        return any(key in ask.needs for ask in self._asked.values() for key in keys)

    # --- what goes back ------------------------------------------------------------------------------------------

    def _hand_on(self, reservation: Reservation) -> None:
        """What a reservation leaves goes to those who have waited longer elsewhere before it goes to anybody here; of
        a month that is over, all of it goes back."""
        for key in reservation.accounts:
            free = self._nanos(key) - (self.book.account(key).reserved - reservation.nanos)
            if key[2] != self._month:
                self._return(key, free)
            else:
                self._give(key, free)

    def _give(self, key: AccountKey, free: int) -> None:
        nanos = min(free, self._recalled.get(key, 0))
        if nanos > 0:
            self._recalled[key] -= nanos
            self._return(key, nanos)

    def _turn_to(self, month: str) -> None:
        self._month = month
        for key in self.leases:
            if key[2] != month:
                self._return(key, self._free(key))

    def _return(self, key: AccountKey, nanos: int) -> None:
        if nanos > 0:
            lease = self.leases[key]
            lease.returned += nanos
            self._send(GiveBack({key: lease.returned}))

    # --- small things --------------------------------------------------------------------------------------------

    def _learn(self, granted: Totals) -> None:
        for key, total in granted.items():
            lease = self._lease(key)
            more = total - lease.granted
            if more > 0:
                lease.granted = total
                lease.pace = min(2 * lease.pace, FASTEST_PACE)
                lease.low = 0 if self._recalled.get(key) else more // 2
            else:
                lease.low = 0  # there was no more: it is asked for when somebody needs it

    def _allotment(self, key: AccountKey) -> int | None:
        """What the book takes for the account's budget."""
        if self._budget(key) is None:
            return None
        account = self.book.account(key)
        return account.spent + (account.reserved if self.fenced else self._nanos(key))

    def _bounded(self, key: AccountKey) -> bool:
        return self._budget(key) is not None

    def _nanos(self, key: AccountKey) -> int:
        lease = self.leases.get(key)
        return 0 if lease is None else lease.nanos

    def _free(self, key: AccountKey) -> int:
        """What is here and not reserved; negative where what runs began when there was no budget."""
        return self._nanos(key) - self.book.account(key).reserved

    def _lease(self, key: AccountKey) -> Lease:
        lease = self.leases.get(key)
        if lease is None:
            lease = self.leases[key] = Lease(budget=self._budget(key))
        return lease

    def _send(self, effect: Effect) -> None:
        last = self._effects[-1] if self._effects else None
        if isinstance(effect, GiveBack) and isinstance(last, GiveBack):
            self._effects[-1] = GiveBack({**last.totals, **effect.totals})
        else:
            self._effects.append(effect)
        self._due()
