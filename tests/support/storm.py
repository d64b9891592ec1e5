"""Callers in a storm: a few tens at once on tenants with budgets and limits, and what must hold all along and after it.

    steady   ask again and again; their plan lets fewer run at once than there are
    tight    the same, on a budget for exactly `TIGHT` answers, which they spend to the end
    hasty    two, whose plan lets `RATE` requests through in any minute
    strange  what the fault adds: callers that behave oddly, or models whose provider does; they share the budget of
             the steady ones

Prompts are free, so that what is reserved for a request of a known length is what it costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from tests.support.billing import ANSWER_NANOS, Asked, Books, priced
from tests.support.installation import Installation
from tests.support.provider import Provider
from tests.support.served import PATIENCE_SECONDS, until
from tests.support.tenants import Tenant

STEADY, TIGHT_CALLERS, HASTY = 16, 8, 2
AT_ONCE = 12  # requests of the steady callers that may run
TIGHT, RATE = 61, 10
IDLE_TIMES = 8  # each time another worker may tell of itself
WORDS, TIGHT_WORDS = 9, 40  # of an answer, five milliseconds each
WIDE = 200_000  # tokens that the budget of the steady callers pays for
COARSE = 1000  # how much dearer the model is by which the rest of a budget is spent

STEADY_MODEL, TIGHT_MODEL, HASTY_MODEL = "steady", "tight", "hasty"
SCRIPTS = {
    STEADY_MODEL: f"slow:{WORDS}",
    TIGHT_MODEL: f"slow:{TIGHT_WORDS}",
    HASTY_MODEL: "instant:1",
    "long": "slow:60",
    "wordy": "instant:2000",
    "fine": "instant:1000",
    "coarse": "instant:1001",
}
PRICES = [priced(name, prompt=0) for name in SCRIPTS if name != "coarse"]
PRICES.append(priced("coarse", prompt=0, completion=COARSE * ANSWER_NANOS))

TIGHT_COST = TIGHT_WORDS * ANSWER_NANOS
STEADY_TENANT: dict[str, Any] = {"org_budget": WIDE * ANSWER_NANOS, "concurrency": AT_ONCE}
TIGHT_TENANT: dict[str, Any] = {"org_budget": TIGHT * TIGHT_COST, "project_budget": TIGHT * TIGHT_COST}
HASTY_TENANT: dict[str, Any] = {"rpm": RATE}


@dataclass
class Try(Asked):
    """One request, and how it went beside what was answered."""

    began: float = 0.0  # monotonic seconds
    cut: bool = False  # the connection ended before the answer did

    async def go(self, client: httpx.AsyncClient) -> Try:
        """Send it; a connection that ends is no error here."""
        self.began = time.monotonic()
        try:
            await self.run(client)
        except httpx.TransportError:
            self.cut = True
        return self


@dataclass(frozen=True)
class Payers:
    """The tenants of one storm. `strange` has the organisation of `steady`, and no limit of its own."""

    steady: Tenant
    strange: Tenant
    tight: Tenant
    hasty: Tenant

    @property
    def all(self) -> tuple[Tenant, ...]:
        """Each of them."""
        return self.steady, self.strange, self.tight, self.hasty


@dataclass
class Storm:
    """Callers of one installation while something happens to it."""

    there: Installation
    provider: Provider
    books: Books
    payers: Payers
    stream: bool
    client: httpx.AsyncClient
    tries: list[Try] = field(default_factory=list)
    calm: bool = True  # nobody asks again
    _callers: list[asyncio.Task[None]] = field(default_factory=list)

    def made(self, model: str, who: Tenant, **body: Any) -> Try:
        """A request that is on the list."""
        one = Try({"model": model, "stream": self.stream, **body}, who)
        self.tries.append(one)
        return one

    def of(self, who: Tenant) -> list[Try]:
        """What one tenant asked."""
        return [one for one in self.tries if one.who is who]

    def begin(self, *, all: bool = True) -> None:
        """Ask until it is calm; but for `all`, without the tight ones, who can do so once."""
        self.calm = False
        asking = [self._on_and_on(STEADY_MODEL, self.payers.steady, WORDS) for _ in range(STEADY)]
        asking += [self._on_and_on(HASTY_MODEL, self.payers.hasty, 1, pause=0.2) for _ in range(HASTY)]
        if all:
            asking += [self._on_and_on(TIGHT_MODEL, self.payers.tight, TIGHT_WORDS) for _ in range(TIGHT_CALLERS)]
        self._callers = [asyncio.create_task(each) for each in (*asking, self._watch_standing())]

    async def end(self) -> None:
        """Let everybody finish what they have begun."""
        self.calm = True
        callers, self._callers = self._callers, []
        await asyncio.gather(*callers)

    async def _on_and_on(self, model: str, who: Tenant, words: int, pause: float = 0.0) -> None:
        while not self.calm:
            one = await self.made(model, who, max_tokens=words).go(self.client)
            if one.refusal == (429, "insufficient_quota"):
                return
            await asyncio.sleep(pause if one.whole else max(pause, 0.05))

    def whole_since(self, moment: float) -> int:
        """Steady callers' answers that were asked for since, and are whole."""
        return sum(one.whole and one.began >= moment for one in self.of(self.payers.steady))

    async def spend_the_rest(self) -> None:
        """Every budget can be had to its last nano-dollar, and no further: nothing is held by what is over."""
        payer = self.payers.strange
        left = WIDE - self.books.spent(payer, "org") // ANSWER_NANOS
        for model, tokens in (("coarse", left // COARSE), ("fine", left % COARSE)):
            if tokens > 0:
                one = await self.made(model, payer, max_tokens=tokens).go(self.client)
                assert one.whole, f"{tokens} of {left} tokens of budget cannot be had: {one.answer}"
        await asyncio.gather(*(self._until_refused() for _ in range(TIGHT_CALLERS)))
        for who, model in ((payer, "fine"), (self.payers.tight, TIGHT_MODEL)):
            one = await self.made(model, who, max_tokens=1).go(self.client)
            left = [row for row in self.books.rows(SAMPLE) if row["scope_id"] == who.organisation.id]
            ends = [each.refusal for each in self.of(who)[-12:]]
            assert one.refusal == (429, "insufficient_quota"), (left, ends)

    async def _until_refused(self) -> None:
        while True:
            one = await self.made(TIGHT_MODEL, self.payers.tight, max_tokens=TIGHT_WORDS).go(self.client)
            if one.refusal == (429, "budget_reserved"):  # others hold the rest just now: it says to try again soon
                await asyncio.sleep(0.2)
            elif not one.whole:
                assert one.refusal == (429, "insufficient_quota"), one.answer
                return

    async def _watch_standing(self) -> None:
        """What the server itself says of a budget, over and over: what one process holds is in its memory only."""
        while not self.calm:
            for who in (self.payers.steady, self.payers.tight):
                with contextlib.suppress(httpx.TransportError, psycopg.Error):
                    answer = await self.client.get("/v1/usage", headers=who.headers)
                    if answer.status_code == httpx.codes.OK:
                        for one in answer.json()["standing"]["budgets"]:
                            taken = one["spent_nanos"] + one["reserved_nanos"]
                            assert taken <= one["budget_nanos"] + _overrun(self.books, who), one
            await asyncio.sleep(0.1)


# --- what must hold all along ------------------------------------------------------------------------------------

SAMPLE = """
SELECT 'spent' AS kind, scope, scope_id, month, spent_nanos AS n FROM balances
UNION ALL SELECT 'held', scope, scope_id, month, nanos FROM leases
UNION ALL SELECT 'over', 'org', org_id, substr(day, 1, 7), overrun_nanos FROM usage_events WHERE overrun_nanos > 0
UNION ALL SELECT 'over', 'project', project_id, substr(day, 1, 7), overrun_nanos FROM usage_events
    WHERE overrun_nanos > 0
UNION ALL SELECT 'budget', 'org', id, '', budget_nanos FROM organisations WHERE budget_nanos IS NOT NULL
UNION ALL SELECT 'budget', 'project', id, '', budget_nanos FROM projects WHERE budget_nanos IS NOT NULL
"""  # one statement, so one moment


@dataclass
class Sampler:
    """Reads the database beside the server: spent + held ≤ budget, but for what is flagged as a provider's overrun."""

    books: Books
    samples: int = 0
    found: list[str] = field(default_factory=list)
    stopping: bool = False

    def look(self) -> None:
        """Once."""
        try:
            rows = self.books.rows(SAMPLE)
        except (psycopg.Error, sqlite3.OperationalError):
            return  # it is broken just now, as it is meant to be
        taken: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        budgets = {}
        for row in rows:
            if row["kind"] == "budget":
                budgets[row["scope"], row["scope_id"]] = row["n"]
            else:
                taken[row["scope"], row["scope_id"], row["month"]][row["kind"]] += row["n"]
        for (scope, id, month), sums in taken.items():
            budget = budgets.get((scope, id))
            if budget is not None and sums["spent"] - sums["over"] + sums["held"] > budget:
                self.found.append(f"{scope} {id} in {month}: {dict(sums)} of {budget}")
        self.samples += 1

    def keep(self) -> None:
        """Again and again, on a thread of its own."""
        while not self.stopping:
            self.look()
            time.sleep(0.03)


@contextmanager
def sampled(books: Books) -> Iterator[Sampler]:
    """What is found wrong meanwhile fails at the end."""
    sampler = Sampler(books)
    thread = threading.Thread(target=sampler.keep, daemon=True)
    thread.start()
    try:
        yield sampler
    finally:
        sampler.stopping = True
        thread.join()
    assert not sampler.found, sampler.found[:5]
    assert sampler.samples > 0


def _overrun(books: Books, who: Tenant) -> int:
    query = "SELECT coalesce(sum(overrun_nanos), 0) AS n FROM usage_events WHERE org_id = ?"
    return int(books.rows(query, who.organisation.id)[0]["n"])


@asynccontextmanager
async def storm_of(
    there: Installation, provider: Provider, books: Books, payers: Payers, *, stream: bool
) -> AsyncGenerator[Storm]:
    """Callers that can begin; calm at the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=there.url, limits=limits, timeout=PATIENCE_SECONDS, trust_env=False
    ) as client:
        storm = Storm(there, provider, books, payers, stream, client)
        with sampled(books):
            try:
                yield storm
            finally:
                await storm.end()


# --- what must hold after it -------------------------------------------------------------------------------------

Excused = Callable[[Try, dict[str, Any]], bool]


def check_bills(storm: Storm, excused: Excused = lambda _tried, _event: False) -> None:
    """Each whole answer is billed once, as its caller was told; no other costs anything but what its caller was sent
    and did not wait for; and nothing is billed that nobody asked. `excused`: what a fault is allowed beyond that."""
    found = storm.books.by_tag()
    payers = {who.key.id for who in storm.payers.all}
    theirs = [event for event in storm.books.events() if event["key_id"] in payers]
    assert {event["id"] for event in theirs} == {
        event["id"] for one in storm.tries for event in found.get(one.tag, [])
    }, "something is billed that nobody asked"
    for one in storm.tries:
        events = found.get(one.tag, [])
        assert len(events) <= 1, f"billed twice: {events}"
        if one.whole:
            assert events, f"free: {one}"
            assert (events[0]["id"], events[0]["outcome"]) == (one.id, "finished"), events
            assert events[0]["completion_tokens"] == one.usage[1]
        for event in events:
            if not excused(one, event):
                said = storm.provider.said[one.tag]
                assert event["cost_nanos"] == 0 or event["completion_tokens"] <= said, (one, event)
                assert event["overrun_nanos"] == 0, event


def check_limits(storm: Storm, *, shared: int = 1, forgotten: int = 0) -> None:
    """No more ran at once, and no more began in a minute, than the plans say; `shared`: processes that count each for
    itself; `forgotten`: how often one that counted has begun anew."""
    assert storm.provider.most_of[SCRIPTS[STEADY_MODEL]] <= AT_ONCE * shared
    begun = sorted(one.began for one in storm.of(storm.payers.hasty) if storm.provider.said[one.tag])
    most = max((sum(start <= moment < start + 59 for moment in begun) for start in begun), default=0)
    assert most <= RATE * (shared + forgotten), f"{most} requests in a minute"


async def settled(there: Installation, processes: int) -> None:
    """Nothing runs or waits any more."""
    await until(there.ready)
    for _ in range(1 if processes == 1 else IDLE_TIMES):
        await until(lambda: _idle(there.served.get("/metrics").text))


_BUSY = re.compile(
    r"^interlace_(requests_running|requests_queued|engine_running|engine_waiting)\b[^\n]* (?!0\.0$)", re.MULTILINE
)


def _idle(metrics: str) -> bool:
    return _BUSY.search(metrics) is None
