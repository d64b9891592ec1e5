"""The attempts at one request by a route: step after step until a model answers, while the caller has seen nothing.

    for each step of the choice
        ask its model; where it is slow to begin, ask the next one too, and let the quicker answer
        where it failed: ask it again after a pause, then go on to the next step
        where it answered, but the route's policy says that this will not do: keep that answer, go on
    give the answer: as it comes, once its first word is there; whole, where the caller does not stream

What each attempt used is measured apart, and each has its own share of the request's hold.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from interlace.config import RouteSettings
from interlace.engines.types import Delta, Embeddings
from interlace.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    Forbidden,
    InsufficientQuota,
    InterlaceError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
)
from interlace.gateway.batches import Batches
from interlace.gateway.bounds import tokens_of
from interlace.gateway.meter import Meter
from interlace.gateway.routing.choice import Choice, Step, nobody
from interlace.gateway.routing.live import Live, is_the_models_fault
from interlace.gateway.routing.open_first import for_judging, judged, without_logprobs
from interlace.gateway.routing.reuse import Kept
from interlace.ledger import Bound, Hold, Price, Share, Tokens, Tried
from interlace.ledger.events import AttemptEnd
from interlace.ledger.prices import charge

if TYPE_CHECKING:
    from interlace.gateway.calls import Ask, Happening, Work

T = TypeVar("T")

HEDGE_KNOWS = 10  # first tokens that a percentile is taken of, at least

_AGAIN = (EngineFailed, EngineUnavailable, Overloaded)
_ELSEWHERE = (*_AGAIN, ContextLengthExceeded, Forbidden, InsufficientQuota, NotFound, PayloadTooLarge)


@dataclass(frozen=True, slots=True)
class Doing:
    """What attempts need of the pipeline: the work of a model, the most it may use, and its streams."""

    work: Callable[[str], Work]
    bound: Callable[[Work], Awaitable[Bound]]
    streams: Callable[[Work, Share, Meter], Sequence[AsyncGenerator[list[Happening], None]]]
    meter: Callable[[str], Meter]
    live: Callable[[str], Live]
    kind: Callable[[str], str]
    price: Callable[[str], Price | None]


@dataclass(slots=True, eq=False)
class Running:
    """One attempt, from its beginning to its end."""

    work: Work
    share: Share
    why: str
    meter: Meter
    live: Live
    batches: Batches[Happening]
    probe: bool
    judged: bool
    end: AttemptEnd | None = None
    error: str = ""
    reached: bool = False  # a provider said no, or it broke
    latency_us: int = 0

    async def head(self) -> list[Happening]:
        """The events up to the first word."""
        events: list[Happening] = []
        async for batch in self.batches:
            events += batch
            if any(isinstance(event, Delta | Embeddings) for event in batch):
                break
        if self.meter.first_token_seconds is not None:
            self.live.first_tokens.add(self.meter.first_token_seconds)
        return events

    async def rest(self) -> list[Happening]:
        """All further events."""
        return [event for batch in [batch async for batch in self.batches] for event in batch]

    async def stop(self, end: AttemptEnd, error: BaseException | str = "") -> None:
        """It is over: its streams are closed, and what it leaves of its share is free."""
        if self.end is not None:
            return
        self.end, self.latency_us = end, round(self.meter.latency_seconds() * 1e6)
        self.error = error if isinstance(error, str) else _code(error)
        if isinstance(error, InterlaceError):
            self.reached = error.upstream or is_the_models_fault(error)
        if end == "failed" and isinstance(error, BaseException) and is_the_models_fault(error):
            self.live.breaker.failed(probe=self.probe)
        elif end in {"served", "rejected"} and not isinstance(error, BaseException):
            self.live.breaker.succeeded()
        elif self.probe:
            self.live.breaker.leave()
        if end == "cancelled" and self.meter.first_token_seconds is None:
            self.live.first_tokens.add(self.meter.latency_seconds())  # it would have taken longer still
        await self.batches.__aexit__(None, None, None)
        self.share.end(self.tokens(), charged=end != "failed")

    def tokens(self) -> Tokens:
        """What it used so far."""
        return tokens_of(self.meter.usage(), embedding=self.work.ask.embed is not None)


@dataclass
class Attempts:
    """One request by a route. `first` before there is a hold, then `run`, once each.

    `streams`: whether the caller reads the answer as it comes. `served` is told work and reason before the first
    event; `keep` gets a whole answer, where answers are remembered.
    """

    route: RouteSettings
    ask: Ask
    choice: Choice
    doing: Doing
    meter: Meter
    streams: bool
    served: Callable[[Work, str], None]
    keep: Callable[[Kept], Awaitable[None]] | None = None
    tried: list[Running] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)  # on answers that were judged
    _steps: deque[Step] = field(default_factory=deque)
    _error: InterlaceError | str | None = None  # why the last step did not do
    _first: tuple[Work, Bound] | None = None
    _kept: tuple[Running, list[Happening]] | None = None  # an answer to fall back on

    def __post_init__(self) -> None:
        self._steps.extend(self.choice.steps)

    async def first(self) -> tuple[Work, Bound]:
        """What is held at first: the work of the first step that can be asked, and the most it may use."""
        while self._steps:
            try:
                work = self._work(self._steps[0])
                self._first = work, await self.doing.bound(work)
                return self._first
            except _ELSEWHERE as error:
                self._error = error
                self._steps.popleft()
        raise self._last_error()

    async def run(self, hold: Hold) -> AsyncGenerator[list[Happening], None]:
        """The answer, of the first model that gives one. Raises what the last one raised."""
        try:
            running, events = await self._answered(hold)
            self.meter.instead = running.meter
            self.served(running.work, running.why)
            whole = list(events) if self.keep else []
            if events:
                yield events
            async for batch in running.batches:
                if self.keep:
                    whole += batch
                yield batch
            await running.stop("served")
            if self.keep and not (running.meter.filtered or running.meter.budget_ended):
                await self.keep(Kept(running.work.model, tuple(whole), running.meter.usage(), running.work.unused))
        except BaseException as error:
            for one in self.tried:
                await one.stop(*_end_of(error))
            raise

    @property
    def reached(self) -> bool:
        """Whether any attempt got as far as a provider that refused it, or as a model that broke or answered."""
        return any(one.reached or one.end in {"rejected", "cancelled"} for one in self.tried)

    def told(self) -> tuple[Tried, ...]:
        """Every attempt, in the order of their beginnings."""
        return tuple(
            Tried(
                model=one.work.model,
                engine=self.doing.kind(one.work.model),
                price=one.work.price,
                why=one.why,
                end=one.end or "cancelled",
                tokens=one.tokens(),
                latency_us=one.latency_us,
                error=one.error,
                estimated=one.meter.usage().estimated,
                disputed=one.meter.usage().disputed,
            )
            for one in self.tried
        )

    def saved_nanos(self) -> int:
        """What the next model would have cost more, where the answer of a judged one was kept."""
        if self.verdicts[-1:] != ["kept"] or not self._steps:
            return 0
        kept = self.tried[-1]
        other = self.doing.price(self._steps[0].model)
        return 0 if other is None else max(0, charge(other, kept.tokens()) - charge(kept.work.price, kept.tokens()))

    # --- one step after the other ------------------------------------------------------------------------------------

    async def _answered(self, hold: Hold) -> tuple[Running, list[Happening]]:
        """Who answers, and what has come of the answer so far."""
        while self._steps:
            step = self._steps.popleft()
            try:
                found = await self._asked(step, hold)
            except InvalidRequest as error:
                if self._kept is None or isinstance(error, ContentFiltered):
                    raise
                found = None  # the answer that is kept is better than an error
            if found is None:
                continue
            running, events = found
            if running.judged and running.work.ask.embed is None:
                fault = await _verdict(self.route, running.work, events)
                self.verdicts.append(fault or "kept")
                events = without_logprobs(running.work, events)
                if fault and self._steps:
                    await running.stop("rejected", fault)
                    self._error, self._kept = fault, (running, events)
                    continue
            return running, events
        if self._kept is None:
            raise self._last_error()
        self._kept[0].end = "served"  # nobody better could answer
        return self._kept

    async def _asked(self, step: Step, hold: Hold) -> tuple[Running, list[Happening]] | None:
        """One step, with its retries; None where the next one must be asked."""
        if await self._broke(step) and self._steps:
            self._steps.append(replace(step, broken=True))
            return None
        for again in range(self.route.retries.times + 1):
            why = f"retry {again}" if again else step.why
            try:
                return await self._once(step, hold, f"{why} after {_shown(self._error)}" if self._error else why)
            except _ELSEWHERE as error:
                pause = None if step.broken else self._pause(error, again)
                if not (isinstance(error, InsufficientQuota) and self._error):
                    self._error = error
            if pause is None:
                return None
            await asyncio.sleep(pause)
        return None

    async def _broke(self, step: Step) -> bool:
        """Whether its model is taken for broken since the choice was made, or somebody else probes it."""
        breaker = self.doing.live(step.model).breaker
        if (state := breaker.state) == "half_open":
            return not await breaker.claim() and not step.broken
        return not step.broken and state in {"open", "probing"}

    def _pause(self, error: InterlaceError, again: int) -> float | None:
        """Seconds to wait before the same model is asked again; None: it is not."""
        retries, told = self.route.retries, error.retry_after_seconds
        if again >= retries.times or not isinstance(error, _AGAIN):
            return None
        if told is not None and told > retries.longest_seconds:
            return None
        jitter = random.random() * min(retries.longest_seconds, retries.first_seconds * 2**again)  # noqa: S311
        return jitter if told is None else told + random.random() * retries.first_seconds  # noqa: S311

    async def _once(self, step: Step, hold: Hold, why: str) -> tuple[Running, list[Happening]]:
        """Ask one model: its events up to the first word, or all of them where nobody sees them before the end."""
        running = await self._start(step, hold, why)
        delay = self._hedge_delay(running)
        if delay is None:
            events = await _read(running, running.head())
        else:
            running, events = await self._raced(running, delay, hold)
        if running.judged or not self.streams:
            events += await _read(running, running.rest())
        return running, events

    async def _start(self, step: Step, hold: Hold, why: str) -> Running:
        """Begin an attempt; raises where the model cannot be asked, or no budget pays for it."""
        live = self.doing.live(step.model)
        probe = live.breaker.enter()  # before anything is waited for, or all who wait would probe
        try:
            work, share = await self._share(step, hold)
        except BaseException:
            if probe:
                live.breaker.leave()
            raise
        meter = self.doing.meter(work.model)
        self.meter.instead = meter
        batches = Batches(self.doing.streams(work, share, meter))
        running = Running(work, share, why, meter, live, batches, probe, step.judged)
        self.tried.append(running)
        await batches.__aenter__()
        return running

    async def _share(self, step: Step, hold: Hold) -> tuple[Work, Share]:
        """The work of a step, and its part of the hold: for the first attempt there are both."""
        first, self._first = self._first, None
        if first is not None and first[0].model == step.model:
            return first[0], hold.first
        if first is not None:
            hold.first.end(Tokens(), charged=False)
        work = self._work(step)
        share = await hold.begin(work.price, await self.doing.bound(work))
        if share is None:
            raise InsufficientQuota("No budget has room for another attempt at this request. Ask for fewer tokens.")
        return work, share

    def _work(self, step: Step) -> Work:
        work = self.doing.work(step.model)
        if step.judged:
            work = for_judging(self.route.open_first, work)
        return work.numbered(len(self.tried))

    # --- hedging -----------------------------------------------------------------------------------------------------

    def _hedge_delay(self, running: Running) -> float | None:
        """How long to wait for the first word before another model is asked too; None: for ever."""
        hedge = self.route.hedge
        if not hedge.percentile or not self._steps or self._steps[0].broken:
            return None
        usual = running.live.first_tokens.percentile(hedge.percentile, HEDGE_KNOWS)
        return hedge.least_seconds if usual is None else max(usual, hedge.least_seconds)

    async def _raced(self, first: Running, delay: float, hold: Hold) -> tuple[Running, list[Happening]]:
        """Whoever says the first word; the other is stopped. Raises only once both have failed."""
        racing = {asyncio.create_task(_read(first, first.head())): first}
        errors: list[InterlaceError] = []
        try:
            done, _ = await asyncio.wait(racing, timeout=delay)
            if not done and (second := await self._second(hold)) is not None:
                racing[asyncio.create_task(_read(second, second.head()))] = second
            while racing:
                done, _ = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in racing if task in done]:
                    running = racing.pop(task)
                    try:
                        return running, task.result()
                    except ContentFiltered:
                        raise
                    except InterlaceError as error:  # whatever one of them refuses, the other may answer
                        errors.append(error)
            raise next((error for error in errors if isinstance(error, _ELSEWHERE)), errors[0])
        finally:
            for task in racing:
                task.cancel()
            await asyncio.gather(*racing, return_exceptions=True)
            for running in racing.values():
                await running.stop("cancelled")
                if running.end == "served":  # a guard has ended it, too: what the caller got is the other's
                    running.end = "cancelled"

    async def _second(self, hold: Hold) -> Running | None:
        """The next step, begun beside the first; None where it cannot be asked now. Where only the budget is too small
        for both at once, it keeps its place."""
        step = self._steps.popleft()
        if await self._broke(step):
            self._steps.append(replace(step, broken=True))
            return None
        try:
            return await self._start(step, hold, "hedge")
        except InsufficientQuota:
            self._steps.appendleft(step)
        except InterlaceError:
            pass
        return None

    def _last_error(self) -> InterlaceError:
        return self._error if isinstance(self._error, InterlaceError) else nobody(self.choice)


async def _verdict(route: RouteSettings, work: Work, events: Sequence[Happening]) -> str:
    """`judged`; beside the event loop where there is a form to look at, which may be much to read."""
    if any(request.output is not None for request in work.requests):
        return await asyncio.to_thread(judged, route.open_first, work, events)
    return judged(route.open_first, work, events)


async def _read(running: Running, events: Awaitable[T]) -> T:
    """Events of an attempt; one that fails is over."""
    try:
        return await events
    except InterlaceError as error:
        await running.stop(*_end_of(error))
        raise


def _end_of(error: BaseException) -> tuple[AttemptEnd, BaseException | str]:
    """How an attempt ends that an error ends: what a guard ended has been used, and so has what a caller left."""
    if isinstance(error, ContentFiltered):
        return "served", error
    if isinstance(error, InterlaceError):
        return "failed", error
    return "cancelled", ""


def _code(error: BaseException) -> str:
    return error.code or type(error).__name__ if isinstance(error, InterlaceError) else type(error).__name__


def _shown(error: InterlaceError | str | None) -> str:
    """Why the one before did not do: a status, or a word."""
    return str(error.status) if isinstance(error, InterlaceError) else str(error)
