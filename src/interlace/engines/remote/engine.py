"""`RemoteEngine`: a model on another server, as an `Engine` like any other; its `Wire` knows what the server speaks.

It runs in the gateway's process: there is no native code to fence, only a socket. It is ready as soon as it is made,
and stays so: one failed request says nothing about the next caller's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields
from interlace.engines.remote.counting import likely_prompt_tokens, most_prompt_tokens
from interlace.engines.remote.failures import Complaint, decoded, error_of, safe_words
from interlace.engines.remote.providers import wire_of
from interlace.engines.remote.wire import Answer, ErrorInside, Fetched, Outgoing
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    Event,
    GenerateRequest,
    Health,
    Started,
    Usage,
)
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError, InvalidRequest

if TYPE_CHECKING:  # the HTTP client is loaded by the first engine that starts, not by everybody who imports this room
    from interlace.engines.remote.transport import Provider, Reply

_log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_ANSWER_BYTES = 128 << 20  # of one that comes whole: 2048 embeddings of 3072 numbers, written out
MOST_ERROR_BYTES = 64 << 10
FETCH_SECONDS = 30.0  # of a small request beside the question, such as one for a token


class RemoteEngine:
    """The model `settings.model` of the provider `settings.engine`.

    Raises `ConfigError` when a key that the settings name is not set in `env`. It has no adapters.
    Answers are streamed from the provider whether our caller streams or not, so that one can be stopped at any token.
    """

    def __init__(self, settings: ModelSettings, env: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._wire = wire_of(settings, os.environ if env is None else env, self._fetch)
        self._provider: Provider | None = None
        self._closed = False
        self._running = 0
        self._ask_usage = True  # until the provider refuses to be asked
        self._capabilities = _capabilities_of(settings)

    async def start(self) -> None:
        """Load the HTTP client. Nothing is asked of the provider before a caller asks."""
        self._connected()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream the events of one request; `aclose()` closes the provider's connection at once.

        `Started` comes with the first chunk, so that what a provider refuses late still has a status of its own. Tokens
        of a `Delta` are an estimate, one for a chunk; `Usage` is the provider's own count where it gives one.
        """
        async with aclosing(self.bursts(request)) as bursts:
            async for burst in bursts:
                for event in burst:
                    yield event

    async def bursts(self, request: GenerateRequest) -> AsyncGenerator[list[Event], None]:
        """The same events, in lists of what came together."""
        if request.adapter:  # never what the base alone would say
            raise InvalidRequest("A model on another server has no adapters here.", param="model")
        if request.sampling.max_tokens == 0:
            yield _nothing(request)
            return
        answer = self._wire.answer(request, likely_prompt_tokens(request))
        clock = _Clock(self._settings)
        reply: Reply | None = None
        self._running += request.n
        try:
            reply = await self._asked(request, clock)
            frames = self._wire.frames(reply.content_type)
            if frames is None:
                whole = await clock.bounded(reply.whole(clock.until(answer), MOST_ANSWER_BYTES))
                events = self._taken(answer, whole, request)
                try:
                    events += answer.end(told=True)
                except InterlaceError:
                    yield events
                    raise
                yield _joined(events)
            while frames is not None and not answer.done:
                data = await self._read(reply, answer, clock)
                payloads, events = frames.feed(data) if data else frames.end(), []
                try:
                    for payload in payloads:
                        events += self._taken(answer, payload, request, last=not data)
                    if not data:
                        events += answer.end(told=False)
                except InterlaceError:
                    if events:
                        yield events  # what was said before it went wrong
                    raise
                if events:
                    yield events
            await reply.finish()
        finally:
            self._running -= request.n
            if reply is not None:
                reply.close()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed all texts of the request, in one call of the provider."""
        clock = _Clock(self._settings, streams=False)
        whole = await self._whole(await self._wire.embed(request), clock, "input")
        try:
            return self._wire.embeddings(request, whole, likely_prompt_tokens(request))
        except ErrorInside as inside:
            complaint = self._wire.complaint(decoded(inside.body), {})
        raise self._told(200, complaint, None, "input")

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """An upper bound of the prompt's tokens (`counting` says why it is one); exact for token ids. Raises
        `InvalidRequest` for what the provider does not know."""
        if isinstance(request, GenerateRequest):
            self._wire.check(request)
        return most_prompt_tokens(request)

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """The prompt's tokens as the provider's own counter tells them, and False; where it has none, about how many
        there are, and True."""
        outgoing = await self._wire.count(request)
        if outgoing is None:
            return likely_prompt_tokens(request), True
        whole = await self._whole(outgoing, _Clock(self._settings, streams=False), _input_param(request))
        return self._wire.read_count(whole), False

    def fields(self) -> Fields:
        """What becomes of each field of a request."""
        return self._wire.fields

    def capabilities(self) -> Capabilities:
        """What the settings say: nobody else can be asked."""
        return self._capabilities

    def health(self) -> Health:
        """Ready until it is closed, with the number of choices being answered."""
        return Health("closed" if self._closed else "ready", running=self._running)

    async def close(self) -> None:
        """Close every connection, and so end every answer; safe to call twice."""
        self._closed = True
        provider, self._provider = self._provider, None
        if provider is not None:
            await provider.close()

    # --- asking --------------------------------------------------------------------------------------------------

    def _connected(self) -> Provider:
        if self._closed:
            raise EngineUnavailable(f"Model {self._settings.name} is closed.")
        if self._provider is None:
            from interlace.engines.remote.transport import Provider

            self._provider = Provider(self._settings)
        return self._provider

    async def _fetch(self, outgoing: Outgoing) -> Fetched:
        """A small request of the wire's own."""
        provider, until = self._connected(), asyncio.get_running_loop().time() + FETCH_SECONDS
        try:
            reply = await provider.send(outgoing, until)
            try:
                return Fetched(reply.status, await reply.whole(until, MOST_ERROR_BYTES), reply.headers)
            finally:
                reply.close()
        except TimeoutError:
            pass
        raise EngineUnavailable("The server that vouches for this gateway does not answer.", retry_after_seconds=5)

    async def _whole(self, outgoing: Outgoing, clock: _Clock, input_param: str) -> bytes:
        """The body of an answer that comes whole, its status being good."""
        self._running += 1
        try:
            reply = await clock.bounded(self._connected().send(outgoing, clock.until()))
            try:
                if reply.status != 200:
                    raise await self._refusal(reply, input_param, clock)
                return await clock.bounded(reply.whole(clock.until(), MOST_ANSWER_BYTES))
            finally:
                reply.close()
        finally:
            self._running -= 1

    async def _asked(self, request: GenerateRequest, clock: _Clock) -> Reply:
        """The provider's answer, its status being good. One that refuses `stream_options` is asked without, from then
        on."""
        while True:
            ask_usage = self._ask_usage
            outgoing = await self._wire.generate(request, ask_usage=ask_usage)
            reply = await clock.bounded(self._connected().send(outgoing, clock.until()))
            if reply.status == 200:
                return reply
            error = await self._refusal(reply, _input_param(request), clock)
            if (
                not ask_usage
                or error.status not in (400, 422)
                or "stream_options" not in f"{error.param} {error.message}"
            ):
                raise error
            self._ask_usage = False

    async def _read(self, reply: Reply, answer: Answer, clock: _Clock) -> bytes:
        """The next bytes; none at the end. An answer of which only the usage is missing does not fail any more."""
        try:
            return await clock.bounded(reply.read(clock.until(answer)))
        except InterlaceError:
            if answer.complete:
                return b""
            raise

    def _taken(self, answer: Answer, payload: bytes, request: GenerateRequest, *, last: bool = False) -> list[Event]:
        """The events of one chunk; `last`: it may have been cut off."""
        try:
            return answer.take(payload)
        except ErrorInside as inside:
            complaint = self._wire.complaint(decoded(inside.body), {})
        except EngineFailed:
            if last and answer.complete:
                return []
            raise
        raise self._told(200, complaint, None, _input_param(request))

    async def _refusal(self, reply: Reply, input_param: str, clock: _Clock) -> InterlaceError:
        """Our error for an answer whose status is not 200."""
        body = b""
        try:
            if 400 <= reply.status < 600:
                body = await clock.bounded(reply.whole(clock.until(), MOST_ERROR_BYTES))
        except InterlaceError:
            pass  # the status alone says enough
        finally:
            reply.close()
        complaint = self._wire.complaint(decoded(body), reply.headers)
        return self._told(reply.status, complaint, reply.headers.get("retry-after"), input_param)

    def _told(self, status: int, complaint: Complaint, retry_after: str | None, input_param: str) -> InterlaceError:
        fields = {"model": self._settings.name, "status": status, **safe_words(complaint)}
        _log.warning("a provider refused or failed a request", extra={"fields": fields})
        return error_of(status, complaint, retry_after, self._wire.hide, input_param)


def _capabilities_of(settings: ModelSettings) -> Capabilities:
    if settings.embeds:
        return Capabilities(embed=True, dimensions=settings.dimensions, context_length=settings.context_length)
    return Capabilities(
        generate=True, chat=True, tools=True, context_length=settings.context_length, stoppable=settings.stream
    )


class _Clock:
    """When to give up on one request: until its first token, from one to the next, and in all."""

    def __init__(self, settings: ModelSettings, *, streams: bool = True) -> None:
        self._settings = settings
        self._streams = streams and settings.stream
        self._time = asyncio.get_running_loop().time
        now = self._time()
        self._end, self._soon = now + settings.total_seconds, now + settings.first_token_seconds
        self._progress = 0

    def until(self, answer: Answer | None = None) -> float:
        """The time of the loop's clock at which to give up, given how far the answer is."""
        if not self._streams:
            return self._end
        if answer is not None and answer.progress != self._progress:
            self._progress = answer.progress
            self._soon = self._time() + self._settings.between_tokens_seconds
        return min(self._end, self._soon)

    async def bounded(self, waiting: Awaitable[T]) -> T:
        """What is awaited, a time-out being an `EngineFailed` that says which."""
        try:
            return await waiting
        except TimeoutError:
            pass
        settings = self._settings
        if self._time() >= self._end:
            what = f"did not finish its answer within {settings.total_seconds:g} seconds"
        elif self._progress:
            what = f"said nothing for {settings.between_tokens_seconds:g} seconds"
        else:
            what = f"did not begin to answer within {settings.first_token_seconds:g} seconds"
        raise EngineFailed(f"The server behind this model {what}. Try again.")


def _nothing(request: GenerateRequest) -> list[Event]:
    """The answer to a request for no tokens, which only shows the prompt again: nobody needs to be asked for it."""
    finished = [Delta(index=i, finish_reason="length") for i in range(request.n)]
    return [Started(0), *finished, Usage(0, 0)]


def _joined(events: list[Event]) -> list[Event]:
    """The events of a whole answer, the end of each choice in the delta with its words: half as much to look at."""
    joined: list[Event] = []
    last: dict[int, int] = {}  # choice → where its last delta stands
    for event in events:
        if isinstance(event, Delta):
            at = last.get(event.index)
            if at is not None and event == Delta(event.index, finish_reason=event.finish_reason, stop=event.stop):
                before = joined[at]
                assert isinstance(before, Delta)
                joined[at] = msgspec.structs.replace(before, finish_reason=event.finish_reason, stop=event.stop)
                continue
            last[event.index] = len(joined)
        joined.append(event)
    return joined


def _input_param(request: GenerateRequest) -> str:
    return "prompt" if request.messages is None else "messages"
