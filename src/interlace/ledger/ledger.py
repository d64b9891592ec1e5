"""The ledger of a running gateway: who asks, whether there is room, the hold before a request runs, the charge after.

    caller = authenticate(key)          who
    await begin(caller) … end(caller)   requests per minute, concurrency
    hold = await reserve(…)             tokens per minute and every budget: the most the request can cost
    hold.cover(tokens)                  grows the hold while an open-ended answer comes
    await settle(hold, used)            the exact charge, durable when this returns

All of it runs on the gateway's event loop and none of it waits for the disk but `settle`; where several machines count
limits together, `begin`, `visit` and `reserve` ask for them. Amounts are nano-dollars.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from interlace.config import LedgerSettings
from interlace.errors import (
    Forbidden,
    InsufficientQuota,
    LedgerUnavailable,
    RateLimited,
    TokensLimited,
    Unauthenticated,
)
from interlace.ledger.book import AccountKey, Accounts, Book, Growth, Reservation, Verdict, Waiter
from interlace.ledger.directory import Caller
from interlace.ledger.escrow import Draws, Teller, Worker
from interlace.ledger.events import Attempt, UsageEvent
from interlace.ledger.holds import STEP_TOKENS, Bound, Hold, Share, Tried, Used, amounts, covered_by
from interlace.ledger.limits import Counted, Counting, Exceeded, FarLimiter, Left, Limiter, Limits
from interlace.ledger.outcomes import RULES
from interlace.ledger.prices import Price, charge
from interlace.ledger.registry import Registry
from interlace.ledger.usage import balances_of_month
from interlace.ledger.writing import Write
from interlace.money import MOST_NANOS, show_usd

_Meanwhile = Callable[[], AbstractAsyncContextManager[object]]

GROW_SECONDS = 2.0  # how long an answer that has begun waits for more of a budget, where several processes share it

Operate = Callable[[str, Any], Awaitable[Any]]
"""Carries out an operation by its name, with its input; gives its output, and raises what it raises."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a worker has of what is shared: itself, as the bank knows it, its leases, and the plans' limits: of this
    machine, and where `far` counts them, of all."""

    worker: Worker
    teller: Teller
    taken: Callable[[Accounts], Awaitable[dict[AccountKey, tuple[int, int]]]]  # spent and leased, of each account
    limits: Limiter
    far: FarLimiter | None = None


class Ledger:
    """See the module. `registry` is its office; administrators work there, from other threads."""

    def __init__(self, registry: Registry, shared: Shared | None = None) -> None:
        self.registry = registry
        self.limits: Limiter = shared.limits if shared else Limits()
        self._far = shared.far if shared else None
        self._counting: Counting = self._far or self.limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._durable: dict[str, asyncio.Future[None]] = {}
        self.unwritten: dict[str, UsageEvent] = {}  # counted as spent, and not known to be durable
        self._running = 0  # requests that hold something
        self._months: set[str] = set()
        self.operate: Operate | None = None  # of a worker: the coordinator makes changes
        self.shared = shared  # of a worker: budgets that other processes spend from too
        self.book: Book | Teller = shared.teller if shared else Book(registry.directory.budget)
        registry.store.durable = self._tell_durable
        registry.store.soon = lambda: self._running
        registry.changed = self._budgets_changed

    @property
    def _settings(self) -> LedgerSettings:
        return self.registry.settings.ledger

    @property
    def trouble(self) -> str | None:
        """Why usage cannot be recorded now; None when it can."""
        return self.registry.store.unable

    # --- who -----------------------------------------------------------------------------------------------------

    def authenticate(self, credential: str | None, scope: str = "inference") -> Caller:
        """The caller behind the value of an `Authorization` header; raises `Unauthenticated` or `Forbidden`."""
        scheme, _, key = (credential or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or in an x-api-key header."
            )
        return self._valid(self.registry.directory.caller(self.registry.hasher.digest(key)), scope)

    def holder(self, key_id: str, scope: str = "inference") -> Caller:
        """The caller with that key, for work that was left here in its name; raises as if the key were shown now."""
        key = self.registry.directory.keys.get(key_id)
        return self._valid(None if key is None else self.registry.directory.caller(key.digest), scope)

    def _valid(self, caller: Caller | None, scope: str) -> Caller:
        if caller is None or caller.key.revoked_at is not None:
            raise Unauthenticated("Incorrect API key provided. Ask whoever runs this server for a key.")
        if caller.key.expires_at is not None and caller.key.expires_at <= self.registry.clock.now():
            raise Unauthenticated("This API key has expired. Ask whoever runs this server for a new one.")
        if scope not in caller.key.scopes:
            raise Forbidden(f"This API key does not have the scope `{scope}`, which this needs.")
        return caller

    # --- rates ---------------------------------------------------------------------------------------------------

    async def begin(self, caller: Caller, *, batch: bool = False) -> None:
        """Count a request of the caller that begins; raises `RateLimited`. Whoever begins must `end`.

        A `batch` takes what is idle only: half of every limit is left to others, and it fills no place among the
        requests that run.
        """
        key_id, rates, now = caller.key.id, caller.plan.rates, self.registry.clock.monotonic()
        if self._far is None:
            exceeded = self.limits.begin(key_id, rates, now, idle=batch)
        else:
            exceeded = await self._far.begin(key_id, rates, now, idle=batch)
        if exceeded is not None:
            raise _rate_limited(exceeded)

    async def visit(self, caller: Caller) -> None:
        """Count a request for what lies here already, such as a file: it counts among the plan's requests per minute,
        takes no tokens and fills no place. Raises `RateLimited`."""
        key_id, rates, now = caller.key.id, caller.plan.rates, self.registry.clock.monotonic()
        if self._far is None:
            exceeded = self.limits.visit(key_id, rates, now)
        else:
            exceeded = await self._far.visit(key_id, rates, now)
        if exceeded is not None:
            raise _rate_limited(exceeded)

    def end(self, caller: Caller, *, batch: bool = False) -> None:
        """The request is over."""
        if not batch:
            self._counting.end(caller.key.id)

    def left(self, caller: Caller) -> dict[str, Left]:
        """What is left of the plan's requests and tokens."""
        return self._counting.left(caller.key.id, caller.plan.rates, self.registry.clock.monotonic())

    async def running(self, caller: Caller) -> int:
        """How many requests of the key run now, everywhere; after this, `left` is as of now."""
        running = None if self._far is None else await self._far.look(caller.key.id, self.registry.clock.monotonic())
        return self.limits.running(caller.key.id) if running is None else running

    # --- what it costs -------------------------------------------------------------------------------------------

    def price(self, model: str, *, embedding: bool, base: str = "") -> Price:
        """The price of a model (an adapter of `base`) now; raises `Forbidden`: what has no price is not served."""
        price = self.registry.directory.price(model, self.registry.clock.now(), base)
        if price is None or not price.covers(embedding=embedding):
            kind = "embeddings" if embedding else "prompt and answer"
            raise Forbidden(
                f"The model `{model}` has no price for {kind} yet, so it is not served. Whoever runs this server can "
                f"set one, zero for what is free: interlace prices create {model} --prompt 0 --completion 0",
                param="model",
                code="model_not_priced",
            )
        return price

    def needs_count(self, caller: Caller, price: Price) -> bool:
        """Whether anything depends on how long the prompt is: a limit on tokens, or a budget and a price."""
        if caller.plan.rates.tpm is not None:
            return True
        return not price.free and self.bounded(caller)

    def month(self) -> str:
        """The calendar month now, in the ledger's time zone; the book knows what is spent of it."""
        return self._today()[1][:7]

    async def taken(self, accounts: Accounts) -> dict[AccountKey, tuple[int, int]]:
        """What is spent and what is reserved of each account, by all processes together."""
        if self.shared is not None:
            return await self.shared.taken(accounts)
        there = {account: self.book.accounts.get(account) for account in accounts}
        return {account: (one.spent, one.reserved) if one else (0, 0) for account, one in there.items()}

    def bounded(self, caller: Caller) -> bool:
        """Whether any budget holds for the caller."""
        budget = self.registry.directory.budget
        for account in caller.accounts(""):  # noqa: SIM110 - a generator costs more than what it asks
            if budget(account) is not None:
                return True
        return False

    async def reserve(
        self,
        id: str,
        caller: Caller,
        price: Price,
        bound: Bound,
        *,
        model: str,
        engine: str,
        endpoint: str,
        tags: tuple[str, ...] = (),
        route: str | None = None,
        while_waiting: _Meanwhile = nullcontext,
    ) -> Hold:
        """Hold the most that the request can cost, on all its accounts; waits, in order, where it would fit once
        running requests settle. `while_waiting` is entered meanwhile. A batch's line (`bound.batch`) pays the price for
        batches, and never stands in that queue: nobody waits behind it.

        Raises `TokensLimited`, `InsufficientQuota`, `RateLimited` where it has waited long enough, and
        `LedgerUnavailable` while usage cannot be recorded.
        """
        if self.trouble:
            raise LedgerUnavailable("Usage cannot be recorded now, so nothing is taken on.", retry_after_seconds=5)
        tokens = bound.prompt + (STEP_TOKENS if bound.completion is None else bound.completion)
        counted = await self._count_tokens(caller, tokens, batch=bound.batch)
        try:
            meanwhile, bounded = None if bound.batch else while_waiting, self.bounded(caller)
            least, wanted = amounts(price, bound) if bounded else (0, 0)
            now, day, reservation = await self._reservation(id, caller, price, least, wanted, meanwhile)
        except BaseException:
            self._settle_tokens(caller, counted, tokens, 0)
            raise
        hold = Hold(
            id=id,
            caller=caller,
            model=model,
            engine=engine,
            endpoint=endpoint,
            tags=tags,
            price=price,
            bound=bound,
            day=day,
            started_us=now,
            counted=counted,
            counted_tokens=tokens,
            reservation=reservation,
            book=self.book,
            grow_later=self._grow_later if self.shared else None,
            count_more=self._counter(caller) if bound.completion is None else None,
            counted_completion=STEP_TOKENS,
            bounded=bounded,
            route=route,
            taken=reservation.nanos,
        )
        covered = covered_by(price, bound, reservation.nanos, bounded=bounded)
        hold.first = Share(hold, price, bound, reservation.nanos, covered)
        self._running += 1
        return hold

    async def settle(self, hold: Hold, used: Used, beside: Callable[[], tuple[Write, ...]] = tuple) -> int:
        """Turn the hold into the exact charge, once; a second time changes nothing. Returns the charge, and only once
        its usage event is durable, whether or not its caller is still there. What `beside` gives is written in the
        event's own transaction; it is asked only where there is an event."""
        if hold.settled:
            return 0
        hold.settled = True
        self._running -= 1
        event = self._event(hold, used)
        if not RULES[used.outcome].recorded:
            return 0
        self._loop = asyncio.get_running_loop()
        durable = self._durable[hold.id] = self._loop.create_future()
        self.unwritten[hold.id] = event
        draws = Draws(self.shared.worker, hold.reservation.drawn) if self.shared else None
        self.registry.store.record(event, beside(), draws)
        await durable  # whoever waits may be cancelled: the event is on its way all the same
        return event.cost_nanos

    # --- inside --------------------------------------------------------------------------------------------------

    def _event(self, hold: Hold, used: Used) -> UsageEvent:
        """Settle the counters in memory and say what is to be written. A provider may claim any number of tokens: the
        charge for them is held to the largest amount that is written anywhere."""
        tokens, charged = used.tokens, RULES[used.outcome].charged
        estimated, disputed = used.estimated, used.disputed
        model, engine, price = hold.model, hold.engine, hold.price
        attempts = tuple(_attempt(one, charged=charged, batch=hold.batch) for one in used.tried)
        if (told := used.told) is not None:
            cost = min(sum(attempt.cost_nanos for attempt in attempts), MOST_NANOS)
            model, engine, price, tokens = told.model, told.engine, told.price, told.tokens
            estimated, disputed = told.estimated, told.disputed
        else:
            cost = min(charge(price, tokens, batch=hold.batch), MOST_NANOS) if charged else 0
        overrun = self.book.settle(hold.reservation, cost)
        counts = [one.tokens for one in attempts] or [tokens]  # every attempt's: those of a slower one were used, too
        taken = sum(one.prompt + one.completion + one.embedding for one in counts)
        self._settle_tokens(hold.caller, hold.counted, hold.counted_tokens, taken)
        return UsageEvent(
            id=hold.id,
            org_id=hold.caller.organisation.id,
            project_id=hold.caller.project.id,
            key_id=hold.caller.key.id,
            model=model,
            engine=engine,
            endpoint=hold.endpoint,
            outcome=used.outcome,
            price_id=price.id,
            tokens=tokens,
            cost_nanos=cost,
            day=hold.day,
            started_us=hold.started_us,
            latency_us=used.latency_us,
            first_token_us=used.first_token_us,
            tags=hold.tags,
            estimated=estimated,
            disputed=disputed,
            overrun_nanos=overrun if hold.bounded else 0,
            route=hold.route,
            attempts=attempts,
            attempt_us=tuple(one.latency_us for one in used.tried) or None,
            batch=hold.batch,
        )

    async def _count_tokens(self, caller: Caller, tokens: int, *, batch: bool) -> Counted:
        key_id, rates, now = caller.key.id, caller.plan.rates, self.registry.clock.monotonic()
        if self._far is None:
            counted = self.limits.take_tokens(key_id, rates, tokens, now, idle=batch)
        else:
            counted = await self._far.take_tokens(key_id, rates, tokens, now, idle=batch)
        if isinstance(counted, Exceeded):
            raise _rate_limited(counted)
        return counted

    def _counter(self, caller: Caller) -> Callable[[int], Counted] | None:
        """Counts what a running answer takes beyond what was counted; None where the plan does not ask."""
        if caller.plan.rates.tpm is None:
            return None
        limits, key_id, clock = self._counting, caller.key.id, self.registry.clock
        return lambda more: limits.more_tokens(key_id, more, clock.monotonic())

    def _settle_tokens(self, caller: Caller, counted: Counted, tokens: int, used: int) -> None:
        self._counting.settle_tokens(caller.key.id, counted, tokens, used, self.registry.clock.monotonic())

    async def _reservation(
        self, id: str, caller: Caller, price: Price, least: int, wanted: int, while_waiting: _Meanwhile | None
    ) -> tuple[int, str, Reservation]:
        """Moment and day of admission, and the reservation; over the end of a month, of the new month's budgets.
        `while_waiting` None: it is a batch's, which does not wait."""
        while True:
            now, day = self._today()
            accounts = caller.accounts(day[:7])
            if not price.free and self.book.account(accounts[0]).spent >= MOST_NANOS:
                raise InsufficientQuota(_FULL)
            answer = self.book.reserve(id, accounts, least, wanted)
            if answer is Verdict.WAIT:
                if while_waiting is None:
                    if self.shared:
                        self.shared.teller.wish(accounts, least, wanted)
                    raise RateLimited(_RESERVED, code="budget_reserved", retry_after_seconds=1)
                waiter = Waiter(id, accounts, least, wanted, tell=_untold, since=now)
                answer = await self._wait(waiter, while_waiting)
            if isinstance(answer, Reservation):
                if not self._still_holds(caller):
                    self.book.settle(answer, 0)
                    raise Unauthenticated("This API key was revoked or replaced while its request waited.")
                return now, day, answer
            if self._today()[1][:7] == day[:7]:
                raise self._no_budget(caller, day[:7], least)

    def _still_holds(self, caller: Caller) -> bool:
        """Whether the key that was shown opens anything still: its request may have waited long for its turn."""
        key = self.registry.directory.keys[caller.key.id]
        return key.revoked_at is None and key.digest == caller.key.digest

    async def _wait(self, waiter: Waiter, while_waiting: _Meanwhile) -> Reservation | Verdict:
        """Stand in the queue; whatever happens, what was given and is not used goes back."""
        if self.book.waiting >= self._settings.waiting:
            raise RateLimited(_RESERVED, code="budget_reserved", retry_after_seconds=1)
        self._loop = asyncio.get_running_loop()  # for whoever changes a budget meanwhile
        told: asyncio.Future[Reservation | Verdict] = self._loop.create_future()
        waiter.tell = told.set_result
        self.book.wait(waiter)
        taken = False
        try:
            async with while_waiting():
                await asyncio.wait((told,), timeout=self._settings.wait_seconds)
                if not told.done():  # told at once: it need not wait for its slot again to be refused
                    raise RateLimited(_RESERVED, code="budget_reserved", retry_after_seconds=1)
            taken = True
            return told.result()
        finally:
            if not told.done():
                self.book.leave(waiter)
            elif not taken and isinstance(answer := told.result(), Reservation):
                self.book.settle(answer, 0)

    def _no_budget(self, caller: Caller, month: str, least: int) -> InsufficientQuota:
        names = {"org": "organisation", "project": "project", "key": "API key"}
        for account in caller.accounts(month):
            budget = self.registry.directory.budget(account)
            spent = self._spent(account)
            if budget is not None and spent + least > budget:
                return InsufficientQuota(
                    f"You exceeded the budget of your {names[account[0]]} for {month}: {show_usd(spent)} of "
                    f"{show_usd(budget)} dollars are spent, and this request may cost {show_usd(least)}. Ask for fewer "
                    "tokens, or ask whoever runs this server for a larger budget."
                )
        return InsufficientQuota("A budget has no room for this request. Ask for fewer tokens.")

    def _spent(self, account: AccountKey) -> int:
        """What is spent of an account, as far as it is known here: all of it, as the bank last said, or our part."""
        budget = self.registry.directory.budget(account)
        if self.shared and budget is not None and (hope := self.shared.teller.hope(account)) is not None:
            return budget - hope
        return self.book.account(account).spent

    async def _grow_later(self, reservation: Reservation, least: int, wanted: int) -> bool:
        """Ask the bank for more of a budget, for an answer that has begun: it does not wait for long."""
        assert self.shared is not None
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        growth = Growth(reservation, least, wanted, told.set_result)
        self.shared.teller.wait_to_grow(growth)
        try:
            await asyncio.wait((told,), timeout=GROW_SECONDS)
        finally:
            if not told.done():
                self.shared.teller.leave_growing(growth)
        return told.done() and told.result()

    def _today(self) -> tuple[int, str]:
        """The moment and its day, the balances of its month loaded."""
        now = self.registry.clock.now()
        day = self.registry.calendar.day(now)
        if self.shared is None and day[:7] not in self._months:
            for account, nanos in self.registry.store.read(lambda c: balances_of_month(c, day[:7])).items():
                self.book.account(account).spent += nanos
            self._months.add(day[:7])
        return now, day

    # --- told from other threads -----------------------------------------------------------------------------------

    def _tell_durable(self, events: Sequence[UsageEvent]) -> None:
        """On the writing thread: one call to the loop for all that a commit made last."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits; the thread has more to write
                self._loop.call_soon_threadsafe(self.made_durable, [event.id for event in events])

    def made_durable(self, ids: Sequence[str]) -> None:
        """Usage events of these ids are committed: on the event loop."""
        for id in ids:
            self.unwritten.pop(id, None)
            future = self._durable.pop(id, None)
            if future is not None and not future.done():
                future.set_result(None)

    def _budgets_changed(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.book.budgets_changed)


_FULL = (
    "Your organisation has spent a billion dollars this month, which is the most that is counted. If that cannot be, a "
    "provider claims more tokens than there are: ask whoever runs this server to look at what usage says."
)
_RESERVED = (
    "This request would fit its budgets, but requests that are running hold what is left of them, and it has waited "
    "long enough. Try again soon."
)


def _attempt(one: Tried, *, charged: bool, batch: bool) -> Attempt:
    """An attempt with its charge, rounded once, upwards: by itself, as its provider bills it."""
    paid = charged and one.end != "failed"
    return Attempt(
        model=one.model,
        engine=one.engine,
        why=one.why,
        end=one.end,
        price_id=one.price.id,
        tokens=one.tokens,
        cost_nanos=min(charge(one.price, one.tokens, batch=batch, percent=one.percent), MOST_NANOS) if paid else 0,
        error=one.error,
        estimated=one.estimated,
        disputed=one.disputed,
        percent=one.percent,
    )


def _untold(_: Reservation | Verdict) -> None:
    raise AssertionError("nobody waits here yet")


def _rate_limited(exceeded: Exceeded) -> RateLimited:
    kind = TokensLimited if exceeded.what.startswith("tokens") else RateLimited
    text = f"Rate limit reached on {exceeded.what}: limit {exceeded.most}, used {exceeded.used}, "
    if exceeded.hopeless:
        return kind(f"{text}requested {exceeded.wanted}, which is more than the limit itself. Ask for fewer tokens.")
    wait = exceeded.retry_after_seconds
    return kind(f"{text}requested {exceeded.wanted}. Try again in {wait:.0f} s.", retry_after_seconds=wait)
