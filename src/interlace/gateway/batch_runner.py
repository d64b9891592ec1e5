"""Runs batches: each line goes through the pipeline like any request, at the batch price, while there is room.

One task a batch: check → run lines → write the output files. A line runs beside the slots of callers who wait, and only
while most of those are free, so that no caller waits for a batch. What is told to come back (rates, budgets, a model
that loads) waits and tries again until the window is over. The result of a line is committed together with its usage
event; a restart goes on with the lines that have none.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from interlace.config import LimitSettings, Settings
from interlace.deposits import Batch, Deposits, Line, Problem, Wanted, request_id
from interlace.errors import (
    InterlaceError,
    LedgerUnavailable,
    Unauthenticated,
)
from interlace.gateway.batch_attempt import BUG, Attempt, comes_back
from interlace.gateway.batch_turns import Turns
from interlace.gateway.calls import Ask, BatchLine, Call, Done
from interlace.gateway.metrics import NO_MODEL
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.wire import read_beside

T = TypeVar("T")

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # how often somebody looks for room that no line's end told of
TIDY_SECONDS = 600.0
DISK_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
MOST_FAILURES = 3  # of the engine or of this server, under one line
MOST_ATTEMPTS = 200  # at one line, that left a usage event

_EXPIRED = Problem("batch_expired", "This request could not be executed before the completion window expired.")
_CANCELLED = Problem("batch_cancelled", "This request was not executed because the batch was cancelled.")
_LOST = Problem("server_error", "The answer to this request could not be recorded.")


class Serving(Protocol):
    """What a gateway serves by: settings, and the pipeline made of them."""

    @property
    def settings(self) -> Settings:
        """All of them."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """For every request."""
        ...


@dataclass(frozen=True)
class Fixed:
    """What never changes."""

    settings: Settings
    pipeline: Pipeline

    def held(self) -> AbstractContextManager[Serving]:
        """Itself."""
        return nullcontext(self)


@dataclass(frozen=True, slots=True)
class _End:
    """How a batch ends: its last status, what is said of lines without a result, and of the batch."""

    status: str
    rest: Problem
    problems: tuple[Problem, ...] = ()


@dataclass
class _Work:
    """A batch under way. `gone`: it was erased. `refused`: its key opens nothing any more."""

    batch: Batch
    status: str
    attempts: dict[int, int] = field(default_factory=dict)  # at each line, that left a usage event
    gone: bool = False
    refused: InterlaceError | None = None
    refusals: int = 0  # in a row
    not_before: float = 0.0  # seconds of the loop's clock
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    queued: set[asyncio.Task[None]] = field(default_factory=set)  # those that wait for a place
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def stir(self, _: object = None) -> None:
        """Whoever waits for something to happen looks again."""
        self._stirred.set()
        self._stirred.clear()

    async def stirred(self, seconds: float) -> None:
        """Until something has happened, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        except TimeoutError:
            pass

    def pause(self, error: InterlaceError) -> None:
        """Nothing of it is tried until it may have got better: longer each time, and not all at the same time. Lines
        that were refused together are one time."""
        loop = asyncio.get_running_loop()
        doubled = 0.0
        if loop.time() >= self.not_before:
            doubled = min(FIRST_PAUSE_SECONDS * 2**self.refusals, LONGEST_PAUSE_SECONDS)
            self.refusals = min(self.refusals + 1, 16)
        wait = max(error.retry_after_seconds or 0, doubled * random.uniform(0.5, 1))  # noqa: S311 - no secret
        self.not_before = max(self.not_before, loop.time() + wait)


@dataclass
class BatchRunner:
    """All batches of a gateway. `keep` works until cancelled; `stop` begins no more lines. A line lives under the load
    of the configuration that is current when it begins."""

    deposits: Deposits
    held: Callable[[], AbstractContextManager[Serving]]  # what is served by now, kept open meanwhile
    stopping: bool = False
    tidies: bool = True  # what a crash left, at the beginning; else somebody else has
    told: Callable[[], None] = lambda: None  # hears of changes too: another process may run batches
    _running: int = 0  # lines
    _works: dict[str, _Work] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._turns = Turns(self._hand_out, self._leave)

    @property
    def limits(self) -> LimitSettings:
        """Those that hold now."""
        with self.held() as now:
            return now.settings.limits

    def changed(self) -> None:
        """A batch was made, or is to stop."""
        self.stir()
        self.told()

    def stir(self) -> None:
        """Look at all batches again."""
        self._changed.set()

    async def keep(self) -> None:
        """Work on every batch that is not over, and delete files whose time is; until cancelled."""
        loop = asyncio.get_running_loop()

        def erased(_: str) -> None:
            loop.call_soon_threadsafe(self.changed)

        self.deposits.registry.also_erase.append(erased)
        if self.tidies:
            await self._patiently(self.deposits.tidy)
        looking = asyncio.create_task(self._look())
        try:
            while True:
                self._changed.clear()
                await self._look_at_all()
                await self._patiently(self.deposits.expire)
                try:
                    async with asyncio.timeout(TIDY_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [looking, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.deposits.registry.also_erase.remove(erased)

    async def stop(self, seconds: float) -> None:
        """Begin no more lines, and wait so long for those that run."""
        self.stopping = True
        self._stir()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)

    async def _look_at_all(self) -> None:
        there = {batch.id: batch for batch in await self._patiently(self.deposits.batches.open)}
        for id, work in self._works.items():
            work.gone = id not in there
            work.status = work.status if work.gone else there[id].status
        for id, batch in there.items():
            if id not in self._tasks and not self.stopping:
                self._works[id] = _Work(batch, batch.status)
                self._tasks[id] = asyncio.create_task(self._work(self._works[id]))
        self._stir()

    def _stir(self) -> None:
        for work in self._works.values():
            work.stir()

    async def _patiently(self, work: Callable[[], T]) -> T:
        """Do what waits for the disk in a thread, again and again while the ledger has trouble."""
        while True:
            try:
                return await asyncio.to_thread(work)
            except LedgerUnavailable as error:
                _log.warning("batches wait for the ledger: %s", error.message)
                await asyncio.sleep(error.retry_after_seconds or 1)
            except OSError as error:  # a full disk, where output files are to be written
                _log.warning("batches wait for the disk", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(DISK_SECONDS)

    # --- one batch -----------------------------------------------------------------------------------------------

    async def _work(self, work: _Work) -> None:
        try:
            await self._run(work)
        except Exception:  # noqa: BLE001 - logged; other batches go on
            _log.exception("a batch met a bug of ours", extra={"fields": {"batch": work.batch.id}})
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)  # and then it is taken up again
        finally:
            self._works.pop(work.batch.id, None)
            self._tasks.pop(work.batch.id, None)
            self._changed.set()

    async def _run(self, work: _Work) -> None:
        """From where it is to its end, or until the gateway stops or the batch is erased."""
        batch, batches = work.batch, self.deposits.batches
        if work.status == "validating" or batch.model is None:
            wanted = await self._checked(batch)
            if wanted.problems:
                return await self._patiently(lambda: batches.refuse(batch, wanted.problems))
            await self._patiently(lambda: batches.begin(batch, wanted))
            batch = work.batch = replace(batch, model=wanted.model)
        end = _End("completed", _LOST)
        if batch.status != "finalizing":
            work.attempts = await self._patiently(lambda: batches.attempts(batch))
            await self._run_lines(work)
            if work.gone:  # and with it what was answered meanwhile
                return await self._patiently(batches.forget_results)
            if self.stopping and self._end(work) is None:
                return None
            end = self._end(work) or end
        await self._patiently(lambda: batches.finish(batch, end.status, end.rest, end.problems))
        _log.info("a batch is over", extra={"fields": {"batch": batch.id, "status": end.status}})
        return None

    async def _checked(self, batch: Batch) -> Wanted:
        try:
            return await asyncio.to_thread(self.deposits.batches.check, batch, self.limits.body_bytes)
        except OSError as error:
            _log.error(
                "the input of a batch cannot be read", extra={"fields": {"batch": batch.id, "error": str(error)}}
            )
            return Wanted(0, None, (Problem("file_not_readable", "The input file cannot be read."),))

    async def _run_lines(self, work: _Work) -> None:
        """Run every line that has no result yet, as far as it goes."""
        batch, batches = work.batch, self.deposits.batches
        done = await self._patiently(lambda: batches.done(batch))
        lines = (line for line in batches.lines(batch) if line.number not in done)
        try:
            while self._goes_on(work) and (line := await asyncio.to_thread(next, lines, None)) is not None:
                task = asyncio.create_task(self._line(work, line))
                work.tasks.add(task)
                task.add_done_callback(work.tasks.discard)
                task.add_done_callback(work.stir)
                while len(work.tasks) >= max(1, self.limits.batch_lines) and self._goes_on(work):
                    await work.stirred(1)
            while work.tasks:
                if not self._goes_on(work):
                    for task in work.queued:
                        task.cancel()
                end = self._end(work)
                if end is not None and end.status == "expired":
                    break
                await work.stirred(1)
        finally:
            tasks = list(work.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _goes_on(self, work: _Work) -> bool:
        return not (self.stopping or work.gone or self._end(work))

    def _end(self, work: _Work) -> _End | None:
        """How it ends, if nothing more of it is to begin."""
        if work.refused is not None:
            why = Problem(work.refused.code or "invalid_api_key", work.refused.message)
            return _End("failed", why, (why,))
        if work.status == "cancelling":
            return _End("cancelled", _CANCELLED)
        if self.deposits.registry.clock.now() >= work.batch.expires_at:
            return _End("expired", _EXPIRED)
        return None

    # --- one line ------------------------------------------------------------------------------------------------

    async def _line(self, work: _Work, line: Line) -> None:
        """Try a line until it has a result, or the batch does not go on."""
        failures = 0
        while self._goes_on(work):
            if not await self._placed(work):
                continue
            try:
                attempt = self._next_attempt(work, line, failures)
                error = await self._ask(attempt)
            finally:
                self._leave()
            self._tell(attempt, error)
            if attempt.written:
                work.refusals = 0
                return
            if attempt.recorded:
                work.attempts[line.number] = work.attempts.get(line.number, 0) + 1
            if isinstance(error, Unauthenticated):
                work.refused = error
            elif (result := attempt.result(error)) is not None:
                await self._patiently(lambda result=result: self.deposits.batches.put(result))  # type: ignore[misc]
                return
            elif error is not None:
                failures += not comes_back(error)
                work.pause(error)

    def _next_attempt(self, work: _Work, line: Line, failures: int) -> Attempt:
        before = work.attempts.get(line.number, 0)
        last = failures + 1 >= MOST_FAILURES or before + 1 >= MOST_ATTEMPTS
        return Attempt(self.deposits, work.batch, line, request_id(work.batch, line.number, before), last)

    async def _ask(self, attempt: Attempt) -> InterlaceError | None:
        """Run one request through the pipeline; what went wrong, if anything did."""
        endpoint = attempt.endpoint

        async def read() -> Ask:
            parse = partial(endpoint.parse, attempt.line.body, attempt.id, self.limits.sequences)
            ask, attempt.rendering = await read_beside(attempt.line.body, parse)
            return ask

        async def accepted(ask: Ask) -> None:
            endpoint.accept(attempt.rendering, ask)

        call = Call(
            id=attempt.id,
            endpoint=endpoint.name,
            credential=None,
            read=read,
            client_gone=lambda: False,
            meter=attempt.meter,
            tags=(attempt.batch.id,),
            streams=lambda: False,
            accepted=accepted,
            batch=BatchLine(attempt.batch.key_id, attempt.beside),
        )
        try:
            with self.held() as now:
                await _answered(now.pipeline, call, attempt)
            return None
        except InterlaceError as error:
            return error
        except Exception:  # noqa: BLE001 - logged, and told as a 500
            _log.exception("a line of a batch met a bug of ours", extra={"fields": {"id": attempt.id}})
            return InterlaceError(BUG)

    def _tell(self, attempt: Attempt, error: InterlaceError | None) -> None:
        """Count it, and write one line, as for any request."""
        endpoint, model, meter = attempt.endpoint, attempt.batch.model or NO_MODEL, attempt.meter
        with self.held() as now:
            metrics, routes, guards = now.pipeline.metrics, now.pipeline.routes, now.pipeline.guards
        status = 200 if error is None else endpoint.style.status(error)
        served = routes.label(model, status) or NO_MODEL
        metrics.requests.labels(endpoint.name, served, str(status)).inc()
        reason = "" if error is None else type(error).default_code or "server_error"
        if reason:
            metrics.refusals.labels(reason).inc()
        usage = meter.usage()
        fields = {
            "id": attempt.id,
            "batch": attempt.batch.id,
            "status": status,
            "model": guards.loggable(model[:200]) if served == NO_MODEL else model,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_nanos": meter.cost_nanos,
            "latency_seconds": round(meter.latency_seconds(), 4),
            "outcome": reason or meter.outcome or "ok",
        }
        _log.info("a line of a batch", extra={"fields": fields})

    # --- room ----------------------------------------------------------------------------------------------------

    async def _placed(self, work: _Work) -> bool:
        """Wait for a place for a line, while the batch has no pause; False: none yet, look whether it goes on."""
        now = asyncio.get_running_loop().time
        if (pause := work.not_before - now()) > 0:
            await work.stirred(pause)
            return False
        task = asyncio.current_task()
        assert task is not None
        work.queued.add(task)
        try:
            await self._turns.wait(work.batch.project_id)
        finally:
            work.queued.discard(task)
        if self._goes_on(work) and work.not_before <= now():
            return True
        self._leave()
        return False

    def _leave(self) -> None:
        """A place is free again."""
        self._running -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give the places there are."""
        with self.held() as now:
            limits, admission = now.settings.limits, now.pipeline.admission
            while self._running < limits.batch_lines and admission.idle and self._turns.give():
                self._running += 1

    async def _look(self) -> None:
        """Callers' requests that end make room, too, and tell nobody."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._hand_out()


async def _answered(pipeline: Pipeline, call: Call, attempt: Attempt) -> None:
    async with aclosing(pipeline.answer(call)) as happenings:
        async for happened in happenings:
            if not isinstance(happened[0], Done):
                assert attempt.rendering is not None
                attempt.rendering.take(happened)
