"""The way of one request: authenticate → admit → guard input → route → reserve → engine → guard output → settle.

`Pipeline.answer` is that line, top to bottom. It knows no HTTP and no dialect: it takes a `Call` and yields batches of
neutral events, which the endpoint turns into bytes. Streaming or not, every request of every endpoint comes through
here, and every step cleans up after itself when a later one fails or the caller goes away.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

import msgspec

from interlace.config import RouteSettings
from interlace.deposits import Deposits
from interlace.engines.bursts import bursts_of
from interlace.engines.fields import check_fields
from interlace.engines.types import BATCH_PRIORITY, Delta, EmbedRequest, Engine, GenerateRequest, Started
from interlace.errors import ContentFiltered, EngineFailed, InterlaceError
from interlace.gateway.admission import Admission, Slot
from interlace.gateway.batches import Batches
from interlace.gateway.bounds import bound_of, goes_on_from, priority_of, tokens_of, within_plan
from interlace.gateway.calls import (
    Ask,
    Call,
    Counted,
    Done,
    Happening,
    PartStarted,
    Work,
    inner_input_texts,
    input_texts,
)
from interlace.gateway.meter import Meter
from interlace.gateway.metrics import Metrics
from interlace.gateway.outcomes import outcome_of_answer, outcome_of_error
from interlace.gateway.routes import Routes, check_fits, ready_capabilities
from interlace.gateway.routing import (
    Attempts,
    Doing,
    Kept,
    Remembered,
    Shadows,
    Standing,
    asked_of,
    choose,
    is_the_models_fault,
    key_of,
    models_of,
    seed_of,
)
from interlace.gateway.uploads import names_uploads, with_uploads
from interlace.ledger import RULES, Bound, Caller, Hold, Ledger, Outcome, Price, Share, Used
from interlace.ledger.prices import part_of
from interlace.safety import Guards

_log = logging.getLogger(__name__)

ByRoute = Attempts | Remembered


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The rooms one request passes through."""

    ledger: Ledger
    admission: Admission
    guards: Guards
    routes: Routes
    metrics: Metrics
    shadows: Shadows
    deposits: Deposits
    log_prompts: bool = False

    async def answer(self, call: Call) -> AsyncGenerator[list[Happening], None]:
        """Answer one request. Errors are `InterlaceError`s; closing the generator stops the work and bills what was
        done."""
        caller = self._authenticate(call)
        ask = await call.read()
        async with _Begun(self.ledger, call, caller), self._admitted(call, caller, ask) as slot:
            if names_uploads(ask):
                ask = await with_uploads(ask, caller.project.id, self.deposits)
            ask = await self._guard_input(ask)
            way = await self._route(call, ask, caller)
            await self._judge(call, way.ask, caller)
            async with (
                _Held(self, call, caller, way, slot) as hold,
                self._attempted(call, way, hold) as batches,
            ):
                if call.accepted is not None:
                    await call.accepted(ask)
                async for batch in batches:
                    yield batch
        yield [Done(call.meter.usage())]

    async def count(self, call: Call) -> Counted:
        """How many prompt tokens the request would be billed for. It passes everything that a request passes before its
        engine runs, counts against the rates, and leaves no usage event: nothing was used. Where the text stays here,
        no classifier reads it: that is work which nobody pays for, and no model reads it either."""
        caller = self.ledger.authenticate(call.credential)
        ask = await call.read()
        async with _Begun(self.ledger, call, caller):
            async with self.admission.slot(caller.plan.priority, caller.tenant, ask.model):
                if names_uploads(ask):
                    ask = await with_uploads(ask, caller.project.id, self.deposits)
                ask = await self._guard_input(ask)
                way = await self._route(call, ask, caller)
                if not isinstance(way, Work) or self.routes.kind(way.model) != "local":
                    await self._judge(call, way.ask, caller)
                work = way if isinstance(way, Work) else (await way.first())[0]
                call.tell_unused(work.unused)
                with _Told(self.guards):
                    counts = [await work.engine.tell_count(request) for request in work.ask.generate]
            call.tell_limits(self.ledger.left(caller))
        return Counted(sum(tokens for tokens, _ in counts), estimated=any(estimated for _, estimated in counts))

    # --- authenticate, admit -------------------------------------------------------------------------------------

    def _authenticate(self, call: Call) -> Caller:
        if call.batch is not None:
            return self.ledger.holder(call.batch.key_id)
        return self.ledger.authenticate(call.credential)

    def _admitted(self, call: Call, caller: Caller, ask: Ask) -> AbstractAsyncContextManager[Slot]:
        admission, priority = self.admission, caller.plan.priority
        return admission.place_aside() if call.batch is not None else admission.slot(priority, caller.tenant, ask.model)

    # --- guard input ---------------------------------------------------------------------------------------------

    async def _guard_input(self, ask: Ask) -> Ask:
        """Every text a model would read passes the guards (classifiers are asked by `_judge`, once it is known that
        somebody could answer); the ask as the model may read it. Prompts of token ids are
        guarded as the engine decodes them; embeddings have no such echo, so there token ids are refused while there is
        anything to look for."""
        if ask.embed is not None and ask.embed.ids and self.guards.reads_text:
            raise ContentFiltered(
                "This server's content guard reads text, so token ids cannot be embedded here. Send the text.",
                param=ask.input_param,
            )
        texts, inner = input_texts(ask), inner_input_texts(ask)
        await self.guards.check_input(texts, inner, param=ask.input_param)
        if not self.guards.masks or not self.guards.may_hold_secrets((*texts, *inner)):
            return ask
        if ask.embed is not None:
            (embed,) = await self.guards.clean((ask.embed,), param=ask.input_param)
            return msgspec.structs.replace(ask, embed=embed)
        cleaned = await self.guards.clean(ask.generate, param=ask.input_param)
        unchanged = all(map(operator.is_, cleaned, ask.generate))
        return ask if unchanged else msgspec.structs.replace(ask, generate=cleaned)

    async def _judge(self, call: Call, ask: Ask, caller: Caller) -> None:
        if self.guards.judges:
            priority, texts = priority_of(call, caller), input_texts(ask)
            inner, param = inner_input_texts(ask), ask.input_param
            await self.guards.judge(texts, inner, param=param, tenant=caller.tenant, priority=priority)

    async def _guard_decoded(self, ask: Ask, request: GenerateRequest, started: Started) -> None:
        if request.prompt_ids is None:
            return
        if started.prompt_text is not None:
            text, param, tenant = started.prompt_text, ask.input_param, request.tenant
            await self.guards.check_decoded(text, param=param, tenant=tenant, priority=request.priority)
        elif self.guards.reads_text:
            raise ContentFiltered("The engine did not decode these token ids, so they could not be checked. Send text.")

    # --- route ---------------------------------------------------------------------------------------------------

    async def _route(self, call: Call, ask: Ask, caller: Caller) -> Work | ByRoute:
        """What is to be done: the work of the one model that was named, or attempts by a route, best first, or giving
        an answer again."""
        if (route := self.routes.route(ask.model, caller)) is None:
            work = self._work(ask, ask.model, self.routes.find(ask.model, caller), caller, priority_of(call, caller))
            call.meter.times = self.metrics.times(ask.model)
            call.tell_unused(work.unused)
            return work
        memory, key = self.routes.memories.get(route.name), b""
        if memory is not None:
            key = key_of(route, ask, caller, call.tags)
            if (remembered := self._remembered(call, route, ask, await memory.find(key))) is not None:
                return remembered
        asked = asked_of(ask, caller.plan.name, call.tags, self.ledger.registry.clock.now())
        seed = seed_of(route, ask, caller.key.id, call.conversation)
        choice = choose(route, asked, self.standings(route, ask), seed)

        def served(work: Work, why: str) -> None:
            call.tell_unused(work.unused)
            call.tell_route(work.model, why)

        doing = Doing(
            work=lambda model: self._work(ask, model, self.routes.engines[model], caller, priority_of(call, caller)),
            bound=lambda work: self._bound(call, work, caller),
            streams=self._streams,
            meter=lambda model: Meter(times=self.metrics.times(model)),
            live=self.routes.live.__getitem__,
            kind=self.routes.kind,
            price=self._price_now,
        )
        keep = None if memory is None else functools.partial(memory.keep, key)
        return Attempts(route, ask, choice, doing, call.meter, call.streams(), served, keep)

    def _remembered(self, call: Call, route: RouteSettings, ask: Ask, kept: Kept | None) -> Remembered | None:
        """The answer that was kept, at the price that its model has now; None where there is none, or no price."""
        self.metrics.routes.reused.labels(route.name, "no" if kept is None else "yes").inc()
        if kept is None:
            return None
        price = self._price_now(kept.model)
        if price is None or not price.covers(embedding=ask.embed is not None):
            return None
        call.tell_unused(kept.unused)
        held = part_of(price, route.reuse.percent)
        work = Work(ask, kept.model, (), self.routes.engines[kept.model], held, open_ended=False)
        return Remembered(route, ask, work, price, kept, self.routes.kind(kept.model), call.meter, call.tell_route)

    def _price_now(self, model: str) -> Price | None:
        registry = self.ledger.registry
        return registry.directory.price(model, registry.clock.now(), self.routes.base(model))

    def standings(self, route: RouteSettings, ask: Ask) -> dict[str, Standing]:
        """How every model of a route stands towards a request now."""
        return {model: self._standing(model, ask) for model in dict.fromkeys(models_of(route))}

    def _standing(self, model: str, ask: Ask) -> Standing:
        problem: InterlaceError | None = None
        price: Price | None = None
        try:
            engine = self.routes.engines[model]
            can = ready_capabilities(engine)
            for work in ask.works:
                check_fits(work, can, ask.dimensions)
            for work in ask.generate:
                check_fields(work, engine.fields(), ask.words)
            price = self.ledger.price(model, embedding=ask.embed is not None, base=self.routes.base(model))
        except InterlaceError as error:
            problem = error
        live = self.routes.live[model]
        quick = live.first_tokens.percentile(50)
        return Standing(self.routes.kind(model) == "local", problem, live.breaker.state, price, quick)

    def _work(self, ask: Ask, model: str, engine: Engine, caller: Caller, priority: int) -> Work:
        """The ask as the caller's plan lets it pass, the engine for it, ready and able, and what it costs."""
        price = self.ledger.price(model, embedding=ask.embed is not None, base=self.routes.base(model))
        can = ready_capabilities(engine)
        for work in ask.works:
            check_fits(work, can, ask.dimensions)
        open_ended = can.stoppable and any(work.sampling.max_tokens is None for work in ask.generate)
        planned = [within_plan(work, caller.plan, stoppable=can.stoppable) for work in ask.generate]
        requests = tuple([msgspec.structs.replace(work, tenant=caller.tenant, priority=priority) for work in planned])
        unused = frozenset(ask.unused).union(*(check_fields(work, engine.fields(), ask.words) for work in requests))
        return Work(ask.owned(caller.tenant, priority), model, requests, engine, price, open_ended, unused)

    # --- reserve, and settle -------------------------------------------------------------------------------------

    async def _reserved(self, call: Call, caller: Caller, way: Work | ByRoute, slot: Slot) -> Hold:
        """The most that the request can cost is held. Whoever waits for a budget lends its slot to others."""
        if isinstance(way, Work):
            work, bound = way, await self._bound(call, way, caller)
        else:
            work, bound = await way.first()
            bound = msgspec.structs.replace(bound, batch=call.batch is not None)  # an answer from memory, too
        return await self.ledger.reserve(
            call.id,
            caller,
            work.price,
            bound,
            model=work.model,
            engine=self.routes.kind(work.model),
            endpoint=call.endpoint,
            tags=call.tags,
            route=None if isinstance(way, Work) else way.route.name,
            while_waiting=slot.lent,
        )

    async def _bound(self, call: Call, work: Work, caller: Caller) -> Bound:
        count = self.ledger.needs_count(caller, work.price)
        bound = await bound_of(work.engine, work.requests, work.ask.embed, open_ended=work.open_ended, count=count)
        return bound if call.batch is None else msgspec.structs.replace(bound, batch=True)

    async def _settle(
        self, call: Call, way: Work | ByRoute, hold: Hold, outcome: Outcome, failure: BaseException | None
    ) -> None:
        meter, answering = call.meter, call.meter.answering
        ask, usage, first = way.ask, answering.usage(), answering.first_token_seconds
        used = Used(
            outcome=outcome,
            tokens=tokens_of(usage, embedding=ask.embed is not None),
            latency_us=round(meter.latency_seconds() * 1e6),
            first_token_us=None if first is None else round((first + answering.started - meter.started) * 1e6),
            estimated=usage.estimated,
            disputed=usage.disputed,
            tried=() if isinstance(way, Work) else way.told(),
        )
        meter.outcome = outcome.value
        beside = call.beside if call.batch is None else call.batch.beside
        writes = tuple if beside is None else functools.partial(beside, outcome, failure)
        meter.cost_nanos = await self.ledger.settle(hold, used, writes)
        self.metrics.settled(hold.model if used.told is None else used.told.model, usage, outcome, meter.cost_nanos)
        if isinstance(way, Attempts):
            self._count_attempts(way, used)
        if self.log_prompts:
            texts = {
                "id": call.id,
                "input": self.guards.redacted(input_texts(ask)),
                "output": [answering.said[i] for i in sorted(answering.said)],
            }
            _log.info("prompt", extra={"fields": texts})

    def _count_attempts(self, way: Attempts, used: Used) -> None:
        counters, route = self.metrics.routes, way.route.name
        for one in used.tried:
            counters.attempts.labels(route, one.model, one.end).inc()
        for verdict in way.verdicts:
            counters.judged.labels(route, verdict.replace(" ", "_")).inc()
        if RULES[used.outcome].charged and (saved := way.saved_nanos()):
            counters.saved.labels(route).inc(saved)

    # --- engine and guard output ---------------------------------------------------------------------------------

    def _attempted(
        self, call: Call, way: Work | ByRoute, hold: Hold
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Happening]]]:
        """The answer in batches: of the one model that was named, or of the attempt that serves."""
        if isinstance(way, Work):
            return Batches(self._streams(way, hold.first, call.meter), call.pace)
        if isinstance(way, Attempts):
            self._shadow(way, hold.caller)
        return aclosing(way.run(hold))

    def _shadow(self, way: Attempts, caller: Caller) -> None:
        """Ask the route's shadow too, where this request is one of its part. Nothing of it comes back."""
        if (model := way.choice.shadow) is None:
            return
        if self.guards.reads_text and any(request.prompt_ids is not None for request in way.ask.generate):
            self.metrics.routes.shadows.labels(way.route.name, model, "left_out").inc()
            return  # token ids are guarded as the engine that answers decodes them: nobody would hear this one
        try:
            work = self._work(way.ask, model, self.routes.engines[model], caller, BATCH_PRIORITY)
            self.shadows.begin(way.route.name, work)
        except InterlaceError:
            self.metrics.routes.shadows.labels(way.route.name, model, "failed").inc()

    def _streams(self, work: Work, share: Share, meter: Meter) -> list[AsyncGenerator[list[Happening], None]]:
        if work.ask.embed is not None:
            return [self._embedded(work.engine, work.ask.embed, meter)]
        return [self._generated(work, part, request, share, meter) for part, request in enumerate(work.requests)]

    async def _generated(
        self, work: Work, part: int, request: GenerateRequest, share: Share, meter: Meter
    ) -> AsyncGenerator[list[Happening], None]:
        """One prompt's events, past the output guard; what came together stays together. Work stops when the guard has
        ended the last choice, or when no budget pays for the next token; what nobody pays for is not shown. A provider
        that filters its own answer still says what it took."""
        guard = self.guards.open_output(request.output, before=goes_on_from(request))
        unfinished, shift = set(range(request.n)), part * request.n
        stoppable = work.engine.capabilities().stoppable
        filtered, stopped = False, False

        def passed(delta: Delta) -> list[Delta]:
            shown = guard.feed(delta) if guard else [delta]
            for one in shown:
                if one.finish_reason is not None:
                    unfinished.discard(one.index)
                    meter.filtered |= one.finish_reason == "content_filter" != delta.finish_reason
                if self.log_prompts:
                    meter.said[shift + one.index] = meter.said.get(shift + one.index, "") + one.text
            return [msgspec.structs.replace(one, index=shift + one.index) for one in shown] if shift else shown

        with _Told(self.guards):
            async with aclosing(bursts_of(work.engine, request)) as bursts:
                async for burst in bursts:
                    happened: list[Happening] = []
                    for event in burst:
                        if isinstance(event, Delta):
                            tokens = meter.completion_tokens + event.tokens
                            if (
                                event.tokens
                                and stoppable
                                and not share.cover(tokens)
                                and not await share.cover_later(tokens)
                            ):
                                meter.budget_ended = True
                                break
                            meter.see(part, event)
                            for delta in passed(event):
                                filtered |= delta.finish_reason == "content_filter" != event.finish_reason
                                happened.append(delta)
                            if filtered and not unfinished and stoppable:
                                stopped = True  # what cannot be stopped has been used, and its provider says how much
                                break
                        else:
                            meter.see(part, event)
                            if isinstance(event, Started):
                                await self._guard_decoded(work.ask, request, event)
                                if request.prompt_ids is not None:
                                    guard = self.guards.open_output(request.output, before=event.prompt_text or "")
                                happened.append(PartStarted(part, event, request.prompt))
                    if happened:
                        yield happened
                    if stopped:
                        return
                    if meter.budget_ended:
                        break
        if meter.budget_ended:
            if left := [one for at in sorted(unfinished) for one in passed(Delta(index=at, finish_reason="length"))]:
                yield [*left]
        elif unfinished:
            raise EngineFailed("The engine stopped before the answer was complete. Try again.")

    async def _embedded(
        self, engine: Engine, request: EmbedRequest, meter: Meter
    ) -> AsyncGenerator[list[Happening], None]:
        """An embedding as a stream of one event. There is no text in it that an output guard could read."""
        with _Told(self.guards):
            embeddings = await engine.embed(request)
        meter.see(0, embeddings)
        yield [embeddings]


class _Begun:
    """The request counts against the rates of its key's plan, whatever becomes of it; a refusal says what is left of
    them (an answer does too, once its tokens are counted)."""

    __slots__ = ("_call", "_caller", "_ledger")

    def __init__(self, ledger: Ledger, call: Call, caller: Caller) -> None:
        self._ledger, self._call, self._caller = ledger, call, caller

    async def __aenter__(self) -> None:
        try:
            await self._ledger.begin(self._caller, batch=self._call.batch is not None)
        except InterlaceError:
            self._call.tell_limits(self._ledger.left(self._caller))
            raise

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._ledger.end(self._caller, batch=self._call.batch is not None)
        if isinstance(error, InterlaceError):
            self._call.tell_limits(self._ledger.left(self._caller))


class _Held:
    """The most that the request can cost is held while it runs; whatever happens inside ends in exactly one usage
    event, durable before anything else is said."""

    __slots__ = ("_call", "_caller", "_hold", "_pipeline", "_slot", "_way")

    def __init__(self, pipeline: Pipeline, call: Call, caller: Caller, way: Work | ByRoute, slot: Slot) -> None:
        self._pipeline, self._call, self._caller, self._way, self._slot = pipeline, call, caller, way, slot

    async def __aenter__(self) -> Hold:
        pipeline, call = self._pipeline, self._call
        self._hold = await pipeline._reserved(call, self._caller, self._way, self._slot)
        call.tell_limits(pipeline.ledger.left(self._caller))
        return self._hold

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        call, way = self._call, self._way
        outcome = outcome_of_answer(call.meter.answering) if error is None else outcome_of_error(error, call, way)
        if error is not None and isinstance(way, Work) and is_the_models_fault(error):
            self._pipeline.routes.live[way.model].breaker.failed()  # routes to it should know
        await self._pipeline._settle(call, way, self._hold, outcome, error)
        self._hold.part()


class _Told:
    """An error of an engine may quote what its provider said: it passes the guards before anybody reads it."""

    __slots__ = ("_guards",)

    def __init__(self, guards: Guards) -> None:
        self._guards = guards

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, InterlaceError) and (told := self._guards.told(error)) is not error:
            raise told from None
