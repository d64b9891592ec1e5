"""An engine that says what it is told: a real `Engine`, in process, with delays, failures and cancellation.

It is no mock of a gateway part: it keeps the contract of `engines/types.py` (its order of events, `n`, `stop`,
`max_tokens`, logprobs, `echo`, tool calls, output rules), only its words come from a script instead of weights.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from interlace.engines.fields import Fields
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    Event,
    FinishReason,
    GenerateRequest,
    Health,
    Started,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from interlace.errors import ContextLengthExceeded, EngineFailed, EngineUnavailable, InterlaceError

VOCABULARY = 1000
CONTEXT = 4096
DIMENSIONS = 4
ANSWER = ("The", " capital", " of", " France", " is", " Paris", ".")


@dataclass
class ScriptedEngine:
    """Says `tokens`, one every `delay` seconds; raises `error` after `fail_after` of them.

    With `held` it waits, after the first `held_at` tokens, until `release` is set. `deltas`, where there are any, are
    said instead, one after the other, whatever is asked. Counters tell how requests ended.
    """

    tokens: tuple[str, ...] = ANSWER
    delay: float = 0.0
    fail_after: int | None = None
    error: InterlaceError = field(default_factory=lambda: EngineFailed("The engine died under this request."))
    held: bool = False
    held_at: int = 1
    embeds: bool = False
    labels: tuple[str, ...] = ()  # of an engine that scores
    state: str = "ready"
    release: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    finished: int = 0
    cancelled: int = 0
    seen: list[GenerateRequest | EmbedRequest] = field(default_factory=list)
    fates: Fields = field(default_factory=lambda: LOCAL_FIELDS)
    deltas: tuple[Delta, ...] = ()

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """The scripted answer, `n` times, interleaved token by token."""
        self.seen.append(request)
        prompt = _prompt_tokens(request)
        if len(prompt) + (request.sampling.max_tokens or 1) > CONTEXT:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {CONTEXT} tokens; you asked for {len(prompt)} and more.",
                param="messages" if request.messages is not None else "prompt",
            )
        self.running += 1
        done = False
        try:
            yield _started(request, prompt)
            total = 0
            async for delta in self._deltas(request):
                total += delta.tokens
                yield delta
            done = True
            yield Usage(prompt_tokens=len(prompt), completion_tokens=total)
        finally:
            self.running -= 1
            self.finished += done
            self.cancelled += not done

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        for delta in self.deltas:
            await asyncio.sleep(self.delay)
            yield delta
        if self.deltas:
            return
        pieces, finish, stop = _plan(request, self.tokens)
        for position, piece in enumerate(pieces):
            if self.fail_after is not None and position >= self.fail_after:
                raise self.error
            if self.held and position == self.held_at:
                await self.release.wait()
            await asyncio.sleep(self.delay)
            for index in range(request.n):
                yield _delta(request, index, position, piece)
        if self.fail_after is not None and self.fail_after >= len(pieces):
            raise self.error
        for index in range(request.n):
            yield Delta(index=index, finish_reason=finish, stop=stop)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """A row per input that depends on the input alone."""
        self.seen.append(request)
        await asyncio.sleep(self.delay)
        inputs = [text.split() for text in request.texts] if not request.ids else [list(row) for row in request.ids]
        if self.labels:
            told = [struct.pack("<f", 0.5 ** len(words)) * len(self.labels) for words in inputs]
            read = sum(len(text.split()) for text in request.read)
            return Embeddings(tuple(told), len(self.labels), read, labels=self.labels)
        rows = tuple(struct.pack("<4f", 0.5, len(words), 0.1, -1.0) for words in inputs)
        return Embeddings(rows, DIMENSIONS, sum(map(len, inputs)))

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Words of the input, as `generate` and `embed` count them."""
        if isinstance(request, EmbedRequest):
            return sum(len(text.split()) for text in request.read) + sum(map(len, request.ids))
        return len(_prompt_tokens(request))

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """Exact: the tokenizer is here."""
        return await self.count(request), False

    def fields(self) -> Fields:
        """What becomes of each field of a request; as a local engine does unless a test says otherwise."""
        return self.fates

    def capabilities(self) -> Capabilities:
        """Chat with tools, embeddings, or scores."""
        if self.state == "loading":
            raise EngineUnavailable("The model is loading.")
        if self.embeds:
            return Capabilities(embed=True, dimensions=DIMENSIONS, context_length=256, vocabulary=VOCABULARY)
        if self.labels:
            return Capabilities(labels=self.labels, context_length=256, vocabulary=VOCABULARY)
        return Capabilities(generate=True, chat=True, tools=True, context_length=CONTEXT, vocabulary=VOCABULARY)

    def health(self) -> Health:
        """As told."""
        return Health(state=self.state, detail="weights 40 %" if self.state == "loading" else "", running=self.running)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Nothing to free."""
        self.state = "closed"


def _prompt_tokens(request: GenerateRequest) -> list[str]:
    if request.prompt_ids is not None:
        return [f"t{token}" for token in request.prompt_ids]
    if request.prompt is not None:
        return request.prompt.split()
    return [word for message in request.messages or () for word in message.text.split()]


def _started(request: GenerateRequest, prompt: list[str]) -> Started:
    text = " ".join(prompt) if request.prompt_ids is not None else None
    logprobs: tuple[TokenLogprob, ...] = ()
    if request.sampling.prompt_logprobs:
        logprobs = tuple(_logprob(word, i, request, first=i == 0) for i, word in enumerate(prompt))
    return Started(prompt_tokens=len(prompt), prompt_text=text, prompt_logprobs=logprobs)


def _plan(request: GenerateRequest, tokens: tuple[str, ...]) -> tuple[list[str], FinishReason, str | None]:
    """The pieces to say, why the answer ends, and the stop string that ended it."""
    finish: FinishReason = "stop"
    if _calls_a_tool(request):
        tokens, finish = ('{"city":', ' "Paris"}'), "tool_calls"
    elif request.output is not None:
        tokens = ("{", '"city": ', '"Paris"', "}")
    pieces = list(tokens)
    most = request.sampling.max_tokens
    if most is not None and most < len(pieces):
        pieces, finish = pieces[:most], "length"
    text = "".join(pieces)
    found = [(text.index(stop), stop) for stop in request.sampling.stop if stop in text]
    if found:
        end, stop = min(found)
        return [text[:end]] if end else [], "stop", stop
    return pieces, finish, None


def _calls_a_tool(request: GenerateRequest) -> bool:
    return bool(request.tools) and (request.tool_choice == "required" or request.tool_choice.startswith("function:"))


def _delta(request: GenerateRequest, index: int, position: int, piece: str) -> Delta:
    if _calls_a_tool(request):
        name = request.tool_choice.partition(":")[2] or request.tools[0].name
        first = {"id": f"call_{index}", "name": name} if position == 0 else {}
        return Delta(index=index, tokens=1, tool_calls=(ToolCallDelta(index=0, arguments=piece, **first),))
    logprobs = (_logprob(piece, position, request),) if request.sampling.logprobs is not None else ()
    return Delta(index=index, text=piece, tokens=1, logprobs=logprobs)


def _logprob(piece: str, position: int, request: GenerateRequest, *, first: bool = False) -> TokenLogprob:
    top = tuple(
        TopLogprob(id=i, bytes=piece.encode() if i == 0 else f"w{i}".encode(), logprob=-0.5 - i)
        for i in range(request.sampling.logprobs or 0)
    )
    return TokenLogprob(id=position, bytes=piece.encode(), logprob=None if first else -0.5, top=top)
