"""The way of one request: authenticate → admit → guard input → route → reserve → engine → guard output → settle.

`Pipeline.answer` is that line, top to bottom. It knows no HTTP and no dialect: it takes a `Call` and yields batches of
neutral events, which the endpoint turns into bytes. Streaming or not, every request of every endpoint comes through
here, and every step cleans up after itself when a later one fails or the caller goes away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec

from interlace.engines.fields import check_fields
from interlace.engines.texts import texts_of
from interlace.engines.types import Delta, Embeddings, EmbedRequest, Engine, GenerateRequest, Started, Usage
from interlace.errors import ContentFiltered, EngineFailed, InterlaceError, InvalidRequest, Overloaded
from interlace.gateway.admission import Admission, Slot
from interlace.gateway.batches import Batches
from interlace.gateway.bounds import bound_of, tokens_of, within_plan
from interlace.gateway.meter import Meter
from interlace.gateway.metrics import Metrics
from interlace.gateway.routes import Routes, check_fits, ready_capabilities
from interlace.ledger import Caller, Hold, Ledger, Left, Outcome, Price, Used, Write
from interlace.safety import Guards

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants, in neutral words: one model, and generation of some prompts or one embedding."""

    model: str
    generate: tuple[GenerateRequest, ...] = ()
    embed: EmbedRequest | None = None
    dimensions: int | None = None  # the length of embedding the caller expects
    input_param: str = "messages"  # the wire's word for the input, named in refusals
    words: Mapping[str, str] = field(default_factory=dict)  # the wire's word for each of `engines.fields.NAMES`
    unused: tuple[str, ...] = ()  # fields that nothing here has a use for, whatever the engine


@dataclass(frozen=True, slots=True)
class BatchLine:
    """What a call that is a line of a batch has instead of a caller who waits: the key in whose name it runs, and
    `beside`, which says what is written together with its usage event, once it is known how the line ended."""

    key_id: str
    beside: Callable[[Outcome, BaseException | None], tuple[Write, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """One arriving request. `read` gives the ask once the caller is known: strangers' bodies are not even read.
    `tell_limits` hears what is left of the caller's rates, and `tell_unused` which fields of the request the engine has
    no use for: both for the answer's headers."""

    id: str
    endpoint: str
    credential: str | None
    read: Callable[[], Awaitable[Ask]]
    client_gone: Callable[[], bool]
    meter: Meter
    tags: tuple[str, ...] = ()
    tell_limits: Callable[[dict[str, Left]], None] = lambda _: None
    tell_unused: Callable[[Iterable[str]], None] = lambda _: None
    batch: BatchLine | None = None  # then it pays the batch price, and runs in idle capacity only


@dataclass(frozen=True, slots=True)
class Work:
    """An ask that is about to run. `open_ended`: nobody said how long the answer may be, and it can be stopped."""

    ask: Ask
    requests: tuple[GenerateRequest, ...]  # of the ask, as plan and tenant have them
    engine: Engine
    price: Price
    open_ended: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """Prompt tokens; `estimated`: about so many, because neither engine nor provider counts them beforehand."""

    tokens: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class PartStarted:
    """The prompt of part number `part` is accepted; `prompt` is its text, as guards let it pass, where it was text."""

    part: int
    started: Started
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The last event, after settlement."""

    usage: Usage


Happening = PartStarted | Delta | Embeddings | Done
"""What comes out. The `index` of a `Delta` counts through all parts: part number times `n`, plus the choice."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The rooms one request passes through."""

    ledger: Ledger
    admission: Admission
    guards: Guards
    routes: Routes
    metrics: Metrics
    log_prompts: bool = False

    async def answer(self, call: Call) -> AsyncGenerator[list[Happening], None]:
        """Answer one request. Errors are `InterlaceError`s; closing the generator stops the work and bills what was
        done."""
        caller = self._authenticate(call)
        ask = await call.read()
        with self._begun(call, caller):
            async with self._admitted(call, caller) as slot:
                ask = await self._guard_input(ask)
                work = self._route(ask, caller, call)
                async with (
                    self._held(call, caller, work, slot) as hold,
                    Batches(self._streams(work, hold, call.meter)) as batches,
                ):
                    async for batch in batches:
                        yield batch
        yield [Done(call.meter.usage())]

    async def count(self, call: Call) -> Counted:
        """How many prompt tokens the request would be billed for. It passes everything that a request passes before its
        engine runs, counts against the rates, and leaves no usage event: nothing was used."""
        caller = self.ledger.authenticate(call.credential)
        ask = await call.read()
        with self._begun(call, caller):
            async with self.admission.slot(caller.plan.priority):
                ask = await self._guard_input(ask)
                work = self._route(ask, caller, call)
                told = [await work.engine.tell_count(request) for request in work.ask.generate]
            call.tell_limits(self.ledger.left(caller))
        return Counted(sum(tokens for tokens, _ in told), any(estimated for _, estimated in told))

    # --- authenticate, admit -------------------------------------------------------------------------------------

    def _authenticate(self, call: Call) -> Caller:
        if call.batch is not None:
            return self.ledger.holder(call.batch.key_id)
        return self.ledger.authenticate(call.credential)

    def _admitted(self, call: Call, caller: Caller) -> AbstractAsyncContextManager[Slot]:
        return self.admission.slot(caller.plan.priority) if call.batch is None else self.admission.place_aside()

    @contextmanager
    def _begun(self, call: Call, caller: Caller) -> Generator[None, None, None]:
        """The request counts against the rates of its key's plan, whatever becomes of it; a refusal says what is left
        of them (an answer does too, once its tokens are counted)."""
        try:
            self.ledger.begin(caller, batch=call.batch is not None)
            try:
                yield
            finally:
                self.ledger.end(caller, batch=call.batch is not None)
        except InterlaceError:
            call.tell_limits(self.ledger.left(caller))
            raise

    # --- guard input ---------------------------------------------------------------------------------------------

    async def _guard_input(self, ask: Ask) -> Ask:
        """Every text a model would read passes the guards; the ask as the model may read it. Prompts of token ids are
        guarded as the engine decodes them; embeddings have no such echo, so there token ids are refused while there is
        anything to look for."""
        if ask.embed is not None and ask.embed.ids and self.guards.reads_text:
            raise ContentFiltered(
                "This server's content guard reads text, so token ids cannot be embedded here. Send the text.",
                param=ask.input_param,
            )
        await self.guards.check_input(input_texts(ask), param=ask.input_param)
        if not self.guards.masks:
            return ask
        if ask.embed is not None:
            (embed,) = await self.guards.clean((ask.embed,), param=ask.input_param)
            return dataclasses.replace(ask, embed=embed)
        return dataclasses.replace(ask, generate=await self.guards.clean(ask.generate, param=ask.input_param))

    async def _guard_decoded(self, ask: Ask, request: GenerateRequest, started: Started) -> None:
        if request.prompt_ids is None:
            return
        if started.prompt_text is not None:
            await self.guards.check_decoded(started.prompt_text, param=ask.input_param)
        elif self.guards.reads_text:
            raise ContentFiltered("The engine did not decode these token ids, so they could not be checked. Send text.")

    # --- route ---------------------------------------------------------------------------------------------------

    def _route(self, ask: Ask, caller: Caller, call: Call) -> Work:
        """The ask as the caller's plan lets it pass, the engine for it, ready and able, and what it costs."""
        engine = self.routes.find(ask.model, caller)
        call.meter.times = self.metrics.times(ask.model)
        price = self.ledger.price(ask.model, embedding=ask.embed is not None)
        can = ready_capabilities(engine)
        for work in ask.generate if ask.embed is None else (ask.embed,):
            check_fits(work, can, ask.dimensions)
        unused = {name for work in ask.generate for name in check_fields(work, engine.fields(), ask.words)}
        call.tell_unused(unused | set(ask.unused))
        open_ended = can.stoppable and any(work.sampling.max_tokens is None for work in ask.generate)
        planned = (within_plan(work, caller.plan, stoppable=can.stoppable) for work in ask.generate)
        requests = tuple(msgspec.structs.replace(work, tenant=caller.tenant) for work in planned)
        return Work(ask, requests, engine, price, open_ended)

    # --- reserve, and settle -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, call: Call, caller: Caller, work: Work, slot: Slot) -> AsyncGenerator[Hold, None]:
        """The most that the request can cost is held while it runs; whatever happens inside ends in exactly one usage
        event, durable before anything else is said. Whoever waits for a budget lends its slot to others."""
        ask, count = work.ask, self.ledger.needs_count(caller, work.price)
        bound = await bound_of(work.engine, work.requests, ask.embed, open_ended=work.open_ended, count=count)
        if call.batch is not None:
            bound = dataclasses.replace(bound, batch=True)
        hold = await self.ledger.reserve(
            call.id,
            caller,
            work.price,
            bound,
            model=ask.model,
            engine=self.routes.kind(ask.model),
            endpoint=call.endpoint,
            tags=call.tags,
            while_waiting=slot.lent,
        )
        outcome, failure = Outcome.FAILED, None
        try:
            call.tell_limits(self.ledger.left(caller))
            yield hold
            outcome = _outcome_of_answer(call.meter)
        except BaseException as error:
            outcome, failure = _outcome_of_error(error, call), error
            raise
        finally:
            await self._settle(call, ask, hold, outcome, failure)

    async def _settle(self, call: Call, ask: Ask, hold: Hold, outcome: Outcome, failure: BaseException | None) -> None:
        usage, meter = call.meter.usage(), call.meter
        first = meter.first_token_seconds
        used = Used(
            outcome=outcome,
            tokens=tokens_of(usage, embedding=ask.embed is not None),
            latency_us=round(meter.latency_seconds() * 1e6),
            first_token_us=None if first is None else round(first * 1e6),
            estimated=usage.estimated,
        )
        meter.outcome = outcome.value
        beside = tuple if call.batch is None else partial(call.batch.beside, outcome, failure)
        meter.cost_nanos = await self.ledger.settle(hold, used, beside)
        self.metrics.settled(ask.model, usage, outcome, meter.cost_nanos)
        if self.log_prompts:
            texts = {
                "id": call.id,
                "input": self.guards.redacted(input_texts(ask)),
                "output": [meter.said[i] for i in sorted(meter.said)],
            }
            _log.info("prompt", extra={"fields": texts})

    # --- engine and guard output ---------------------------------------------------------------------------------

    def _streams(self, work: Work, hold: Hold, meter: Meter) -> list[AsyncGenerator[Happening, None]]:
        if work.ask.embed is not None:
            return [_embedded(work.engine, work.ask.embed, meter)]
        return [self._generated(work, part, request, hold, meter) for part, request in enumerate(work.requests)]

    async def _generated(
        self, work: Work, part: int, request: GenerateRequest, hold: Hold, meter: Meter
    ) -> AsyncGenerator[Happening, None]:
        """One prompt's events, past the output guard. Work stops when the guard has ended the last choice, or when no
        budget pays for the next token; what nobody pays for is not shown."""
        guard = self.guards.open_output(request.output)
        unfinished, shift, filtered = set(range(request.n)), part * request.n, False
        stoppable = work.engine.capabilities().stoppable

        def passed(delta: Delta) -> Iterator[Delta]:
            for shown in guard.feed(delta) if guard else (delta,):
                if shown.finish_reason is not None:
                    unfinished.discard(shown.index)
                    meter.filtered |= shown.finish_reason == "content_filter"
                if self.log_prompts:
                    meter.said[shift + shown.index] = meter.said.get(shift + shown.index, "") + shown.text
                yield msgspec.structs.replace(shown, index=shift + shown.index) if shift else shown

        async with aclosing(work.engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    if event.tokens and stoppable and not hold.cover(meter.completion_tokens + event.tokens):
                        meter.budget_ended = True
                        break
                    meter.see(part, event)
                    for delta in passed(event):
                        filtered |= delta.finish_reason == "content_filter"
                        yield delta
                    if filtered and not unfinished:
                        return
                else:
                    meter.see(part, event)
                    if isinstance(event, Started):
                        await self._guard_decoded(work.ask, request, event)
                        yield PartStarted(part, event, request.prompt)
        if meter.budget_ended:
            for index in sorted(unfinished):
                for delta in passed(Delta(index=index, finish_reason="length")):
                    yield delta
        elif unfinished:
            raise EngineFailed("The engine stopped before the answer was complete. Try again.")


async def _embedded(engine: Engine, request: EmbedRequest, meter: Meter) -> AsyncGenerator[Happening, None]:
    """An embedding as a stream of one event. There is no text in it that an output guard could read."""
    embeddings = await engine.embed(request)
    meter.see(0, embeddings)
    yield embeddings


def _outcome_of_answer(meter: Meter) -> Outcome:
    if meter.filtered:
        return Outcome.FILTERED
    return Outcome.BUDGET_ENDED if meter.budget_ended else Outcome.FINISHED


def _outcome_of_error(error: BaseException, call: Call) -> Outcome:
    if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and call.client_gone()):
        return Outcome.CLIENT_GONE
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
    if isinstance(error, ContentFiltered):
        return Outcome.FILTERED  # token ids that a guard refused once the engine had decoded them
    if call.meter.completion_tokens:
        return Outcome.FAILED  # whatever a provider calls it: once there is work, it is recorded
    if isinstance(error, Overloaded):
        return Outcome.OVERLOADED
    if isinstance(error, InvalidRequest) or (isinstance(error, InterlaceError) and error.status < 500):
        return Outcome.REFUSED
    return Outcome.FAILED


def input_texts(ask: Ask) -> Iterator[str]:
    """Every text of the ask that a model would read, or that shapes what it writes."""
    if ask.embed is not None:
        yield from ask.embed.texts
    for request in ask.generate:
        yield from texts_of(request)
