"""The way of one request: authenticate → admit → guard input → route → engine → guard output → settle → respond.

`Pipeline.answer` is that line, top to bottom. It knows no HTTP and no dialect: it takes a `Call` and yields batches of
neutral events, which the endpoint turns into bytes. Streaming or not, every request of every endpoint comes through
here, and every step cleans up after itself when a later one fails or the caller goes away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import msgspec

from interlace.engines.types import Delta, Embeddings, EmbedRequest, Engine, GenerateRequest, Started, Usage
from interlace.errors import ContentFiltered, EngineFailed, InterlaceError, InvalidRequest, Overloaded
from interlace.gateway.admission import Admission
from interlace.gateway.batches import Batches
from interlace.gateway.keys import Caller, Keys
from interlace.gateway.meter import Meter
from interlace.gateway.metrics import Metrics
from interlace.gateway.routes import Routes, check_fits, ready_capabilities
from interlace.ledger import Outcome, UsageEvent, UsageSink
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


@dataclass(frozen=True, slots=True)
class Call:
    """One arriving request. `read` gives the ask once the caller is known: strangers' bodies are not even read."""

    id: str
    endpoint: str
    credential: str | None
    read: Callable[[], Awaitable[Ask]]
    client_gone: Callable[[], bool]
    meter: Meter


@dataclass(frozen=True, slots=True)
class PartStarted:
    """The prompt of part number `part` is accepted."""

    part: int
    started: Started


@dataclass(frozen=True, slots=True)
class Done:
    """The last event, after settlement."""

    usage: Usage


Happening = PartStarted | Delta | Embeddings | Done
"""What comes out. The `index` of a `Delta` counts through all parts: part number times `n`, plus the choice."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The rooms one request passes through."""

    keys: Keys
    admission: Admission
    guards: Guards
    routes: Routes
    sink: UsageSink
    metrics: Metrics
    log_prompts: bool = False

    async def answer(self, call: Call) -> AsyncGenerator[list[Happening], None]:
        """Answer one request. Errors are `InterlaceError`s; closing the generator stops the work and bills what was
        done."""
        caller = self.keys.authenticate(call.credential)
        ask = await call.read()
        async with self.admission.slot(), self._settled(call, caller, ask):
            await self._guard_input(ask)
            engine = self._route(ask, call.meter)
            async with Batches(self._streams(ask, engine, caller, call.meter)) as batches:
                async for batch in batches:
                    yield batch
        yield [Done(call.meter.usage())]

    # --- guard input ---------------------------------------------------------------------------------------------

    async def _guard_input(self, ask: Ask) -> None:
        """Every text a model would read passes the guards. Prompts of token ids are guarded as the engine decodes
        them; embeddings have no such echo, so there token ids are refused while there is a pattern to look for."""
        if ask.embed is not None and ask.embed.ids and self.guards.reads_text:
            raise ContentFiltered(
                "This server's content guard reads text, so token ids cannot be embedded here. Send the text.",
                param=ask.input_param,
            )
        await self.guards.check_input(input_texts(ask), param=ask.input_param)

    async def _guard_decoded(self, ask: Ask, request: GenerateRequest, started: Started) -> None:
        if request.prompt_ids is None:
            return
        if started.prompt_text is not None:
            await self.guards.check_input([started.prompt_text], param=ask.input_param)
        elif self.guards.reads_text:
            raise ContentFiltered("The engine did not decode these token ids, so they could not be checked. Send text.")

    # --- route ---------------------------------------------------------------------------------------------------

    def _route(self, ask: Ask, meter: Meter) -> Engine:
        """The engine for this ask, ready and able."""
        engine = self.routes.find(ask.model)
        meter.times = self.metrics.times(ask.model)
        can = ready_capabilities(engine)
        for work in ask.generate if ask.embed is None else (ask.embed,):
            check_fits(work, can, ask.dimensions)
        return engine

    # --- engine and guard output ---------------------------------------------------------------------------------

    def _streams(self, ask: Ask, engine: Engine, caller: Caller, meter: Meter) -> list[AsyncGenerator[Happening, None]]:
        if ask.embed is not None:
            return [_embedded(engine, ask.embed, meter)]
        return [
            self._generated(ask, part, engine, msgspec.structs.replace(request, tenant=caller.tenant), meter)
            for part, request in enumerate(ask.generate)
        ]

    async def _generated(
        self, ask: Ask, part: int, engine: Engine, request: GenerateRequest, meter: Meter
    ) -> AsyncGenerator[Happening, None]:
        """One prompt's events, past the output guard. When the guard has ended the last choice, work stops."""
        guard = self.guards.open_output()
        unfinished, shift, filtered = request.n, part * request.n, False
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                meter.see(part, event)
                if isinstance(event, Started):
                    await self._guard_decoded(ask, request, event)
                    yield PartStarted(part, event)
                elif isinstance(event, Delta):
                    for delta in guard.feed(event) if guard else (event,):
                        if delta.finish_reason is not None:
                            unfinished -= 1
                            filtered |= delta.finish_reason == "content_filter"
                        if self.log_prompts:
                            meter.said[shift + delta.index] = meter.said.get(shift + delta.index, "") + delta.text
                        yield msgspec.structs.replace(delta, index=shift + delta.index) if shift else delta
                    meter.filtered |= filtered
                    if filtered and not unfinished:
                        return
        if unfinished:
            raise EngineFailed("The engine stopped before the answer was complete. Try again.")

    # --- settle --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _settled(self, call: Call, caller: Caller, ask: Ask) -> AsyncGenerator[None, None]:
        """Whatever happens inside ends in exactly one usage event, recorded before anything else is said."""
        outcome = Outcome.FAILED
        try:
            yield
            outcome = Outcome.FILTERED if call.meter.filtered else Outcome.FINISHED
        except BaseException as error:
            outcome = _outcome_of(error, call)
            raise
        finally:
            await self._settle(call, caller, ask, outcome)

    async def _settle(self, call: Call, caller: Caller, ask: Ask, outcome: Outcome) -> None:
        usage, meter = call.meter.usage(), call.meter
        model = ask.model if ask.model in self.routes.engines else ""
        event = UsageEvent(
            id=call.id,
            key_id=caller.key_id,
            endpoint=call.endpoint,
            model=model,
            outcome=outcome,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            started_at=meter.started_at,
            latency_seconds=meter.latency_seconds(),
            first_token_seconds=meter.first_token_seconds,
        )
        await self.sink.record(event)
        if model:
            self.metrics.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            self.metrics.tokens.labels(model, "cached").inc(usage.cached_tokens)
            self.metrics.tokens.labels(model, "completion").inc(usage.completion_tokens)
        if outcome is Outcome.FILTERED:
            self.metrics.refusals.labels("content_filter_output").inc()
        if self.log_prompts:
            texts = {
                "id": call.id,
                "input": list(input_texts(ask)),
                "output": [meter.said[i] for i in sorted(meter.said)],
            }
            _log.info("prompt", extra={"fields": texts})


async def _embedded(engine: Engine, request: EmbedRequest, meter: Meter) -> AsyncGenerator[Happening, None]:
    """An embedding as a stream of one event. There is no text in it that an output guard could read."""
    embeddings = await engine.embed(request)
    meter.see(0, embeddings)
    yield embeddings


def _outcome_of(error: BaseException, call: Call) -> Outcome:
    if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and call.client_gone()):
        return Outcome.CLIENT_GONE
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
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
        if request.prompt is not None:
            yield request.prompt
        for message in request.messages or ():
            yield message.content
            yield message.name or ""
            for call in message.tool_calls:
                yield call.name
                yield call.arguments
        for tool in request.tools:
            yield f"{tool.name}: {tool.description}"
            yield msgspec.json.encode(tool.parameters).decode()
        if request.output is not None:
            yield request.output.rule
            yield request.output.description
