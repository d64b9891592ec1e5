"""Tiny calls that show what a provider's model really does: one for each capability, straight through its engine.

A probe asks for something whose answer can be judged without taste, and as little of it as there is: a word, a call, an
object. What the engine's table of fields refuses is not asked.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonschema

from interlace.engines.fields import check_fields
from interlace.engines.types import (
    Delta,
    EmbedRequest,
    Engine,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
    Reasoning,
    Sampling,
    Started,
    TextPart,
    Tool,
    ToolCall,
    Usage,
)
from interlace.errors import InterlaceError, InvalidRequest
from interlace.gateway.bounds import tokens_of
from interlace.ledger import Tokens

Status = Literal["works", "partly", "fails", "not offered", "not tried"]
"""`partly`: the call went well, but what it was for could not be seen; a model may do so of its own will."""

SECONDS = 120.0  # for one call, thoughts included
_MOST_TOKENS = 1024  # a model that thinks spends most of them before its first word
_LEFT_OPEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # newer models refuse some of them


@dataclass(frozen=True, slots=True)
class Finding:
    """What one call showed. Times in seconds; `tokens` None where nothing was used, or nobody knows."""

    name: str
    status: Status
    detail: str = ""
    seconds: float | None = None
    first_token_seconds: float | None = None
    tokens: Tokens | None = None


@dataclass
class Answer:
    """One answer, put together. `pieces` counts the events that brought text."""

    text: str = ""
    pieces: int = 0
    thoughts: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name and arguments
    finish: str | None = None
    usage: Usage | None = None
    first_seconds: float | None = None

    def take(self, delta: Delta, seconds: float) -> None:
        """What one event brought."""
        if delta.text or delta.tool_calls or delta.thought:
            self.first_seconds = self.first_seconds or seconds
        self.text += delta.text
        self.pieces += bool(delta.text)
        self.thoughts += delta.thought.text if delta.thought else ""
        for piece in delta.tool_calls:
            while len(self.calls) <= piece.index:
                self.calls.append(["", ""])
            self.calls[piece.index][0] += piece.name or ""
            self.calls[piece.index][1] += piece.arguments
        self.finish = delta.finish_reason or self.finish


Verdict = tuple[Status, str]
Judge = Callable[[Answer], Verdict]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, and what its answer must show."""

    name: str
    request: GenerateRequest
    judge: Judge


# --- the questions -----------------------------------------------------------------------------------------------


def _asking(name: str, *messages: Message | str, max_tokens: int = _MOST_TOKENS, stop: tuple[str, ...] = (),
            **more: Any) -> GenerateRequest:  # fmt: skip
    turns = tuple(Message("user", turn) if isinstance(turn, str) else turn for turn in messages)
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    return GenerateRequest(id=f"check-{name}", messages=turns, sampling=sampling, unset=_LEFT_OPEN, **more)


_WEATHER = Tool(
    "get_weather",
    "The weather in a city now.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
)
_TOWN = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def probes() -> list[Probe]:
    """All of them, for a model that chats; the first is the plainest."""
    paris = "What is the weather in Paris? Use the tool."
    asked = Message("assistant", tool_calls=(ToolCall("call_1", "get_weather", '{"city": "Paris"}'),))
    answered = Message("tool", '{"weather": "hail"}', tool_call_id="call_1")
    picture = Message("user", (TextPart("Which colour is this? Answer with one word."), _red()))
    rule = OutputRule("json_schema", json.dumps(_TOWN), name="town")
    tools = (_WEATHER,)
    chat = "Answer with one word: what is the capital of France?"
    count = "Count from 1 to 9, separated by spaces, without any other words."
    both = "What is the weather in Paris, and what in Rome? Call the tool for both at once."
    effort = Reasoning(effort="low")
    return [
        Probe("chat", _asking("chat", chat), _said("paris")),
        Probe("usage", _asking("usage", chat), _usage),
        Probe("streaming", _asking("streaming", count), _streamed),
        Probe("stop", _asking("stop", count, stop=("5",)), _stopped),
        Probe("tools", _asking("tools", paris, tools=tools, tool_choice="required"), _called),
        Probe("tool results", _asking("results", paris, asked, answered, tools=tools), _said("hail")),
        Probe("parallel tools", _asking("parallel", both, tools=tools), _called_twice),
        Probe("structured output", _asking("structured", "Berlin.", output=rule), _shaped),
        Probe("image", _asking("image", picture), _said("red")),
        Probe("reasoning", _asking("reasoning", "Is 221 a prime number?", reasoning=effort), _thought),
    ]


def _red() -> ImagePart:
    """Sixty-four by sixty-four red pixels, as PNG."""
    size = 64
    rows = zlib.compress((b"\0" + b"\xff\0\0" * size) * size)
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return ImagePart(data=base64.b64encode(png).decode(), media_type="image/png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- the verdicts ------------------------------------------------------------------------------------------------


def _said(word: str) -> Judge:
    """Text, with this word in it if the model is any good."""

    def judge(answer: Answer) -> Verdict:
        if not answer.text.strip():
            return _nothing(answer)
        return ("works", "") if word in answer.text.lower() else ("partly", f"it said {_short(answer.text)}")

    return judge


def _nothing(answer: Answer) -> Verdict:
    return "fails", f"no text came, only the end: {answer.finish}"


def _usage(answer: Answer) -> Verdict:
    usage = answer.usage
    assert usage is not None
    if usage.estimated:
        return "partly", "the provider tells no usage: counted here, and marked as estimated"
    if usage.disputed or not usage.prompt_tokens or not usage.completion_tokens:
        return "fails", f"{usage.prompt_tokens} in, {usage.completion_tokens} out: contradicts itself, or what was seen"
    return "works", f"{usage.prompt_tokens} in, {usage.completion_tokens} out"


def _streamed(answer: Answer) -> Verdict:
    if not answer.text.strip():
        return _nothing(answer)
    return ("works", f"{answer.pieces} pieces") if answer.pieces > 1 else ("partly", "it came in one piece")


def _stopped(answer: Answer) -> Verdict:
    if "5" in answer.text:
        return "fails", f"it went on: {_short(answer.text)}"
    return ("works", "") if answer.text.strip() else ("partly", "it stopped before it began")


def _called(answer: Answer) -> Verdict:
    if not answer.calls:
        return "partly", f"it called nothing and said {_short(answer.text)}"
    for name, arguments in answer.calls:
        if name != _WEATHER.name:
            return "fails", f"it called {_short(name)}, which nobody offered"
        if problem := _misfit(arguments, _WEATHER.parameters):
            return "fails", f"its arguments: {problem}"
    return "works", ""


def _called_twice(answer: Answer) -> Verdict:
    verdict = _called(answer)
    if verdict[0] == "works" and len(answer.calls) < 2:
        return "partly", "it called once"
    return verdict


def _shaped(answer: Answer) -> Verdict:
    problem = _misfit(answer.text, _TOWN)
    return ("fails", problem) if problem else ("works", "")


def _thought(answer: Answer) -> Verdict:
    tokens = answer.usage.reasoning_tokens if answer.usage else 0
    if tokens or answer.thoughts:
        return "works", f"{tokens} tokens, {'shown' if answer.thoughts else 'not shown'}"
    return "partly", "no thoughts were seen"


def _misfit(text: str, schema: Mapping[str, Any]) -> str:
    """Why the text is no JSON of that shape; empty where it is."""
    try:
        jsonschema.validate(json.loads(text), dict(schema))
    except (ValueError, RecursionError):
        return f"no JSON: {_short(text)}"
    except jsonschema.ValidationError as error:
        return _short(error.message)
    return ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


# --- asking ------------------------------------------------------------------------------------------------------


async def check(engine: Engine, *, embeds: bool, begun: Callable[[str], None]) -> list[Finding]:
    """Ask everything, one after the other; `begun` hears of each. Where the plainest question fails, the others are not
    tried."""
    if embeds:
        begun("embeddings")
        return await _embeddings(engine)
    found: list[Finding] = []
    for probe in probes():
        if found and found[0].status == "fails":
            found.append(Finding(probe.name, "not tried"))
            continue
        begun(probe.name)
        found.append(await _asked(engine, probe))
        if probe.name == "usage":
            begun("count")
            found.append(await _counted(engine, probe.request, found[-1]))
    return found


async def _asked(engine: Engine, probe: Probe) -> Finding:
    try:
        unused = check_fields(probe.request, engine.fields(), {})
    except InvalidRequest as refusal:
        return Finding(probe.name, "not offered", refusal.message.partition(". ")[0])
    if unused:
        return Finding(probe.name, "not offered", f"it is not passed on: {', '.join(unused)}")
    answer, began = Answer(), time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS), aclosing(engine.generate(probe.request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    answer.take(event, time.perf_counter() - began)
                elif not isinstance(event, Started):
                    answer.usage = event
        status, detail = probe.judge(answer)
    except (InterlaceError, TimeoutError) as error:
        status, detail = "fails", _reason(error)
    tokens = None if answer.usage is None else tokens_of(answer.usage, embedding=False)
    return Finding(probe.name, status, detail, time.perf_counter() - began, answer.first_seconds, tokens)


async def _counted(engine: Engine, request: GenerateRequest | EmbedRequest, billed: Finding) -> Finding:
    """Whether what is held before a request runs covers what it is then billed for."""
    if billed.tokens is None:
        return Finding("count", "not tried")
    began = time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS):
            most = await engine.count(request)
    except (InterlaceError, TimeoutError) as error:
        return Finding("count", "fails", _reason(error), time.perf_counter() - began)
    read = billed.tokens.prompt + billed.tokens.embedding
    detail = f"at most {most}, billed {read}"
    return Finding("count", "works" if most >= read else "fails", detail, time.perf_counter() - began)


async def _embeddings(engine: Engine) -> list[Finding]:
    request = EmbedRequest(id="check-embeddings", texts=("A dog barks.", "The tax is due."))
    began = time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS):
            made = await engine.embed(request)
    except (InterlaceError, TimeoutError) as error:
        seconds = time.perf_counter() - began
        return [Finding("embeddings", "fails", _reason(error), seconds), Finding("count", "not tried")]
    usage = Usage(made.prompt_tokens, 0, estimated=made.estimated)
    tokens, seconds = tokens_of(usage, embedding=True), time.perf_counter() - began
    status: Status = "works"
    detail = f"{made.dimensions} numbers each" + (", usage counted here" if made.estimated else "")
    if len(set(made.rows)) < 2:
        status, detail = "fails", "both texts got the same numbers"
    billed = Finding("embeddings", status, detail, seconds, tokens=tokens)
    return [billed, await _counted(engine, request, billed)]


def _reason(error: InterlaceError | TimeoutError) -> str:
    return error.message if isinstance(error, InterlaceError) else f"no answer within {SECONDS:g} seconds"
