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
from typing import Protocol, TypeVar

from interlace.config import LimitSettings, Settings
from interlace.deposits import Batch, Deposits, Line, Problem, Result, Wanted, output_row, request_id
from interlace.errors import (
    EngineUnavailable,
    InsufficientQuota,
    InterlaceError,
    LedgerUnavailable,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from interlace.gateway.batch_endpoints import ENDPOINTS, LineEndpoint
from interlace.gateway.calls import Ask, BatchLine, Call, Done
from interlace.gateway.meter import Meter
from interlace.gateway.metrics import NO_MODEL
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.rendering import Rendering
from interlace.ledger import Outcome, Write

T = TypeVar("T")

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # how often a line looks for room that no other line's end told it of
TIDY_SECONDS = 600.0
DISK_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
MOST_FAILURES = 3  # of the engine or of this server, under one line
MOST_ATTEMPTS = 200  # at one line, that left a usage event

_COME_BACK = (RateLimited, Overloaded, InsufficientQuota, EngineUnavailable, LedgerUnavailable)
_EXPIRED = Problem("batch_expired", "This request could not be executed before the completion window expired.")
_CANCELLED = Problem("batch_cancelled", "This request was not executed because the batch was cancelled.")
_LOST = Problem("server_error", "The answer to this request could not be recorded.")
_BUG = "The server had an error while processing your request."


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

    def pause(self, error: InterlaceError) -> None:
        """Nothing of it is tried until it may have got better: longer each time, and not all at the same time."""
        loop = asyncio.get_running_loop()
        doubled = min(FIRST_PAUSE_SECONDS * 2**self.refusals, LONGEST_PAUSE_SECONDS)
        self.refusals = min(self.refusals + 1, 16)
        wait = max(error.retry_after_seconds or 0, doubled * random.uniform(0.5, 1))  # noqa: S311 - no secret
        self.not_before = max(self.not_before, loop.time() + wait)


@dataclass
class _Attempt:
    """One request for a line. `recorded`: it left a usage event. `written`: the line's result lies beside it."""

    deposits: Deposits
    batch: Batch
    line: Line
    id: str
    last: bool  # a failure of ours is the line's result, too
    meter: Meter = field(default_factory=Meter)
    rendering: Rendering | None = None
    recorded: bool = False
    written: bool = False

    def beside(self, outcome: Outcome, error: BaseException | None) -> tuple[Write, ...]:
        """What is written with the usage event; must not fail, for then nobody would be billed."""
        self.recorded = True
        result = self.result(error)
        self.written = result is not None
        if result is None:
            return ()
        if error is not None:
            return result.writes()
        if result.failed:
            _log.error("an answer could not be rendered", extra={"fields": {"id": self.id, "outcome": outcome.value}})
            return result.writes()
        return (*result.writes(), *self.endpoint.keep(self.rendering, self.batch, self.deposits))

    @property
    def endpoint(self) -> LineEndpoint:
        """What it asks."""
        return ENDPOINTS[self.batch.endpoint]

    def result(self, error: BaseException | None) -> Result | None:
        """What the line gets, where this was its last attempt."""
        if error is None:
            try:
                return self._good()
            except Exception:  # noqa: BLE001 - it was answered and will be billed; the caller is told what is true
                return self._bad(InterlaceError(_BUG))
        if isinstance(error, InterlaceError) and (self.last or _is_final(error)):
            return self._bad(error)
        return None

    def _good(self) -> Result:
        usage = self.meter.usage()
        assert self.rendering is not None
        row = output_row(self.id, self.line.custom_id, 200, self.rendering.whole(Done(usage)))
        return Result(
            self.batch.id,
            self.line.number,
            row,
            failed=False,
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            completion=usage.completion_tokens,
            reasoning=usage.reasoning_tokens,
        )

    def _bad(self, error: InterlaceError) -> Result:
        style = self.endpoint.style
        body = style.body(error, f"req_{self.id}".encode())
        row = output_row(self.id, self.line.custom_id, style.status(error), body)
        return Result(self.batch.id, self.line.number, row, failed=True)


def _comes_back(error: InterlaceError) -> bool:
    """Whether it may get better by itself; not where a line asks for more than its plan ever allows."""
    hopeless = isinstance(error, RateLimited) and error.retry_after_seconds is None
    return isinstance(error, _COME_BACK) and not hopeless


def _is_final(error: InterlaceError) -> bool:
    """Whether another attempt would end the same way."""
    return not _comes_back(error) and error.status < 500 and not isinstance(error, Unauthenticated)


@dataclass
class BatchRunner:
    """All batches of a gateway. `keep` works until cancelled; `stop` begins no more lines. A line lives under the load
    of the configuration that is current when it begins."""

    deposits: Deposits
    held: Callable[[], AbstractContextManager[Serving]]  # what is served by now, kept open meanwhile
    stopping: bool = False
    _running: int = 0  # lines
    _works: dict[str, _Work] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def limits(self) -> LimitSettings:
        """Those that hold now."""
        with self.held() as now:
            return now.settings.limits

    def changed(self) -> None:
        """A batch was made, or is to stop."""
        self._changed.set()

    async def keep(self) -> None:
        """Work on every batch that is not over, and delete files whose time is; until cancelled."""
        loop = asyncio.get_running_loop()

        def erased(_: str) -> None:
            loop.call_soon_threadsafe(self.changed)

        self.deposits.registry.also_erase.append(erased)
        await self._patiently(self.deposits.tidy)
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
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def stop(self, seconds: float) -> None:
        """Begin no more lines, and wait so long for those that run."""
        self.stopping = True
        self._tell_freed()
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
        self._tell_freed()

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
                while len(work.tasks) >= max(1, self.limits.batch_lines) and self._goes_on(work):
                    await self._look()
            while work.tasks:
                end = self._end(work)
                if end is not None and end.status == "expired":
                    break
                await asyncio.wait(list(work.tasks), timeout=1)
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
            if not self._room(work):
                await self._look()
                continue
            attempt = self._next_attempt(work, line, failures)
            error = await self._ask(attempt)
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
                failures += not _comes_back(error)
                work.pause(error)

    def _next_attempt(self, work: _Work, line: Line, failures: int) -> _Attempt:
        before = work.attempts.get(line.number, 0)
        last = failures + 1 >= MOST_FAILURES or before + 1 >= MOST_ATTEMPTS
        return _Attempt(self.deposits, work.batch, line, request_id(work.batch, line.number, before), last)

    async def _ask(self, attempt: _Attempt) -> InterlaceError | None:
        """Run one request through the pipeline; what went wrong, if anything did."""
        endpoint = attempt.endpoint

        async def read() -> Ask:
            ask, attempt.rendering = endpoint.parse(attempt.line.body, attempt.id, self.limits.sequences)
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
        self._running += 1
        try:
            with self.held() as now:
                await _answered(now.pipeline, call, attempt)
            return None
        except InterlaceError as error:
            return error
        except Exception:  # noqa: BLE001 - logged, and told as a 500
            _log.exception("a line of a batch met a bug of ours", extra={"fields": {"id": attempt.id}})
            return InterlaceError(_BUG)
        finally:
            self._running -= 1
            self._tell_freed()

    def _tell(self, attempt: _Attempt, error: InterlaceError | None) -> None:
        """Count it, and write one line, as for any request."""
        endpoint, model, meter = attempt.endpoint, attempt.batch.model or NO_MODEL, attempt.meter
        with self.held() as now:
            metrics, routes, guards = now.pipeline.metrics, now.pipeline.routes, now.pipeline.guards
        served = model if model in routes.engines or model in routes.routes else NO_MODEL
        status = 200 if error is None else endpoint.style.status(error)
        metrics.requests.labels(endpoint.name, served, str(status)).inc()
        reason = "" if error is None else type(error).default_code or "server_error"
        if reason:
            metrics.refusals.labels(reason).inc()
        usage = meter.usage()
        fields = {
            "id": attempt.id,
            "batch": attempt.batch.id,
            "status": status,
            "model": model if served == model else guards.loggable(model[:200]),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_nanos": meter.cost_nanos,
            "latency_seconds": round(meter.latency_seconds(), 4),
            "outcome": reason or meter.outcome or "ok",
        }
        _log.info("a line of a batch", extra={"fields": fields})

    # --- room ----------------------------------------------------------------------------------------------------

    def _room(self, work: _Work) -> bool:
        """Whether a line may begin now."""
        rested = asyncio.get_running_loop().time() >= work.not_before
        with self.held() as now:
            room = self._running < now.settings.limits.batch_lines and now.pipeline.admission.idle
        return rested and room

    async def _look(self) -> None:
        """Until a line ends, or a moment has passed."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._freed.wait()
        except TimeoutError:
            pass

    def _tell_freed(self) -> None:
        """Everybody who waits looks again."""
        self._freed.set()
        self._freed.clear()


async def _answered(pipeline: Pipeline, call: Call, attempt: _Attempt) -> None:
    async with aclosing(pipeline.answer(call)) as happenings:
        async for happened in happenings:
            if not isinstance(happened[0], Done):
                assert attempt.rendering is not None
                attempt.rendering.take(happened)
