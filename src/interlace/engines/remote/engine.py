"""`RemoteEngine`: a model on another server that speaks OpenAI's API, as an `Engine` like any other.

It runs in the gateway's process: there is no native code to fence, only a socket. It is ready as soon as it is made,
and stays so: one failed request says nothing about the next caller's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields
from interlace.engines.remote.answer import Answer, ErrorInside
from interlace.engines.remote.counting import likely_prompt_tokens, most_prompt_tokens
from interlace.engines.remote.embeddings import read_embeddings
from interlace.engines.remote.failures import Complaint, decoded, error_of, read_complaint, safe_words
from interlace.engines.remote.openai_fields import fields_of_openai
from interlace.engines.remote.request import EMBEDDINGS, embed_body, generate_body, path_of
from interlace.engines.remote.secret import read_key
from interlace.engines.remote.sse import EventReader
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
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError

if TYPE_CHECKING:  # the HTTP client is loaded by the first engine that starts, not by everybody who imports this room
    from interlace.engines.remote.transport import Provider, Reply

_log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_ANSWER_BYTES = 128 << 20  # of one that comes whole: 2048 embeddings of 3072 numbers, written out
MOST_ERROR_BYTES = 64 << 10
_EVENT_STREAM, _JSON = "text/event-stream", "application/json"


class RemoteEngine:
    """The model `settings.model` at `settings.base_url`.

    Raises `ConfigError` when the variable that `settings.api_key` names is not set in `env`. Answers are streamed from
    the provider whether our caller streams or not, so that one can be stopped at any token.
    """

    def __init__(self, settings: ModelSettings, env: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._key = read_key(settings.api_key, os.environ if env is None else env)
        self._provider: Provider | None = None
        self._closed = False
        self._running = 0
        self._ask_usage = True  # until the provider refuses to be asked

    async def start(self) -> None:
        """Load the HTTP client. Nothing is asked of the provider before a caller asks."""
        self._connected()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream the events of one request; `aclose()` closes the provider's connection at once.

        `Started` comes with the first chunk, so that what a provider refuses late still has a status of its own. Tokens
        of a `Delta` are an estimate, one for a chunk; `Usage` is the provider's own count where it gives one.
        """
        if request.sampling.max_tokens == 0:
            for event in _nothing(request):
                yield event
            return
        answer = Answer(request, likely_prompt_tokens(request))
        clock = _Clock(self._settings)
        reply: Reply | None = None
        self._running += request.n
        try:
            reply = await self._asked(request, clock)
            if reply.content_type == _EVENT_STREAM:
                events = EventReader()
                while not answer.done:
                    data = await self._read(reply, answer, clock)
                    for payload in events.feed(data) if data else events.end():
                        for event in self._taken(answer, payload, request, last=not data):
                            yield event
                    if not data:
                        for event in answer.end(told=False):
                            yield event
            elif reply.content_type == _JSON:
                whole = await clock.bounded(reply.whole(clock.until(answer), MOST_ANSWER_BYTES))
                for event in [*self._taken(answer, whole, request), *answer.end(told=True)]:
                    yield event
            else:
                raise EngineFailed("The server behind this model sent neither events nor JSON. Try again.")
            await reply.finish()
        finally:
            self._running -= request.n
            if reply is not None:
                reply.close()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed all texts of the request, in one call of the provider."""
        clock = _Clock(self._settings, streams=False)
        body = msgspec.json.encode(embed_body(request, self._settings))
        self._running += 1
        try:
            reply = await clock.bounded(self._connected().post(EMBEDDINGS, body, _JSON, clock.until()))
            try:
                if reply.status != 200:
                    raise await self._refusal(reply, "input", clock)
                whole = await clock.bounded(reply.whole(clock.until(), MOST_ANSWER_BYTES))
            finally:
                reply.close()
        finally:
            self._running -= 1
        if isinstance(value := decoded(whole[:MOST_ERROR_BYTES]), dict) and value.get("error"):
            raise self._told(200, read_complaint(value), None, "input")
        inputs = len(request.ids) or len(request.texts)
        return read_embeddings(whole, inputs, self._settings.dimensions, likely_prompt_tokens(request))

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """An upper bound of the prompt's tokens (`counting` says why it is one); exact for token ids. Raises
        `InvalidRequest` for what the provider does not know."""
        if isinstance(request, GenerateRequest):
            generate_body(request, self._settings, ask_usage=False)
        return most_prompt_tokens(request)

    def fields(self) -> Fields:
        """What becomes of each field of a request."""
        return fields_of_openai(extensions=self._settings.extensions)

    def capabilities(self) -> Capabilities:
        """What the settings say: nobody else can be asked."""
        settings = self._settings
        if settings.embeds:
            return Capabilities(embed=True, dimensions=settings.dimensions, context_length=settings.context_length)
        return Capabilities(
            generate=True,
            chat=True,
            tools=True,
            context_length=settings.context_length,
            stoppable=settings.stream,
        )

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

            self._provider = Provider(self._settings, self._key)
        return self._provider

    async def _asked(self, request: GenerateRequest, clock: _Clock) -> Reply:
        """The provider's answer, its status being good. One that refuses `stream_options` is asked without, from then
        on."""
        while True:
            ask_usage = self._ask_usage
            body = msgspec.json.encode(generate_body(request, self._settings, ask_usage=ask_usage))
            accept = _EVENT_STREAM if self._settings.stream else _JSON
            reply = await clock.bounded(self._connected().post(path_of(request), body, accept, clock.until()))
            if reply.status == 200:
                return reply
            error = await self._refusal(reply, _input_param(request), clock)
            if not ask_usage or error.status != 400 or "stream_options" not in f"{error.param} {error.message}":
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
            complaint = read_complaint(decoded(inside.body))
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
        return self._told(reply.status, read_complaint(decoded(body)), reply.retry_after, input_param)

    def _told(self, status: int, complaint: Complaint, retry_after: str | None, input_param: str) -> InterlaceError:
        fields = {"model": self._settings.name, "status": status, **safe_words(complaint)}
        _log.warning("a provider refused or failed a request", extra={"fields": fields})
        return error_of(status, complaint, retry_after, self._hide, input_param)

    def _hide(self, text: str) -> str:
        return text if self._key is None else self._key.hidden_in(text)


class _Clock:
    """When to give up on one request: until its first token, from one to the next, and in all."""

    def __init__(self, settings: ModelSettings, *, streams: bool = True) -> None:
        self._settings = settings
        self._streams = streams and settings.stream
        self._time = asyncio.get_running_loop().time
        self._end = self._time() + settings.total_seconds
        self._soon = self._time() + settings.first_token_seconds
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


def _input_param(request: GenerateRequest) -> str:
    return "prompt" if request.messages is None else "messages"
