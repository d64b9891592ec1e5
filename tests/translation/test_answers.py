"""Nothing that models say is lost in silence: random answers of every provider reach every dialect's own SDK.

    what was said → the provider's format, whole or streamed → (our reader) → events → (a dialect) → the official SDK

What the SDK hands its caller is what was said, whole and streamed alike, however the network cuts the bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from interlace.engines.remote.wire import EVENT_STREAM, JSON
from interlace.engines.types import Delta, Event, GenerateRequest, Message, Started, Usage
from interlace.gateway.anthropic_messages_answer import MessageRendering
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.openai_chat_answer import ChatRendering
from interlace.gateway.rendering import Rendering
from interlace.gateway.responses import ask_of, read_body
from interlace.gateway.seals import unsealed_id
from tests.support import answers
from tests.support.answers import Answered, Called, Streamed, Thinking, cut, drawn_answer, neutral_events
from tests.support.drawing import Draw
from tests.support.neutral_form import said_by
from tests.translation.test_requests import WIRES

ASKED = GenerateRequest("r", messages=(Message("user", "?"),))
AWS = "application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class Format:
    """How a provider tells an answer, and what it can tell."""

    whole: Callable[[Answered], bytes]
    streamed: Streamed
    stream_type: str = EVENT_STREAM
    seals: bool = False
    redacted: bool = False
    refusals: bool = False
    sealed_calls: bool = False
    plain_usage: tuple[str, ...] = ()  # kinds of tokens that it does not tell apart


FORMATS = {
    "openai": Format(answers.whole_chat, answers.streamed_chat, refusals=True),
    "openai, another server": Format(answers.whole_chat, answers.streamed_chat, sealed_calls=True),
    "openai, api: responses": Format(answers.whole_response, answers.streamed_response, seals=True, refusals=True),
    "azure": Format(answers.whole_chat, answers.streamed_chat, refusals=True),
    "anthropic": Format(answers.whole_message, answers.streamed_message, seals=True, redacted=True),
    "bedrock, Anthropic's": Format(
        answers.whole_converse,
        answers.streamed_converse,
        AWS,
        seals=True,
        redacted=True,
        plain_usage=("reasoning_tokens",),
    ),
    "vertex, Gemini 3": Format(
        answers.whole_gemini, answers.streamed_gemini, sealed_calls=True, plain_usage=("cache_write_tokens",)
    ),
    **{
        name: Format(answers.whole_chat, answers.streamed_chat)
        for name in ("mistral", "groq", "together", "ollama", "vllm")
    },
}


# --- a provider's bytes → events ---------------------------------------------------------------------------------


def _drawn(draw: Draw, format: Format) -> Answered:
    said = drawn_answer(
        draw,
        seals=format.seals,
        redacted=format.redacted,
        refusals=format.refusals,
        sealed_calls=format.sealed_calls,
    )
    usage = {name: getattr(said.usage, name) for name in Usage.__struct_fields__}
    return dataclasses.replace(said, usage=Usage(**usage | dict.fromkeys(format.plain_usage, 0)))


def _read(name: str, draw: Draw, said: Answered, *, stream: bool) -> list[Event]:
    """The events of an answer as the remote engine reads them."""
    format, wire = FORMATS[name], WIRES[name]
    answer = wire.answer(ASKED, 5)
    if not stream:
        assert wire.frames(JSON) is None
        return [*answer.take(format.whole(said)), *answer.end(told=True)]
    frames = wire.frames(format.stream_type)
    assert frames is not None
    events: list[Event] = []
    for data in cut(draw, format.streamed(draw, said)):
        for payload in frames.feed(data):
            events += answer.take(payload)
    for payload in frames.end():
        events += answer.take(payload)
    return [*events, *answer.end(told=False)]


# --- events → a dialect's bytes → its SDK ------------------------------------------------------------------------


class _Bytes(httpx.SyncByteStream):
    """A body as a network could bring it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


class _Answering(httpx.BaseTransport):
    """Answers with the same bytes whatever is asked."""

    def __init__(self, draw: Draw, body: bytes, *, stream: bool) -> None:
        self._draw, self._body = draw, body
        self._type = EVENT_STREAM if stream else JSON

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The body in random pieces."""
        del request
        return httpx.Response(200, headers={"content-type": self._type}, stream=_Bytes(cut(self._draw, self._body)))


def _rendered(draw: Draw, rendering: Rendering, events: list[Event]) -> bytes:
    """What callers get, the events in random batches."""
    happenings: list[Happening] = []
    usage = Usage(0, 0)
    for event in events:
        match event:
            case Started():
                happenings.append(PartStarted(0, event))
            case Delta():
                happenings.append(event)
            case Usage():
                usage = event
    out = b""
    while happenings:
        size = draw.random.randint(1, 4)
        batch, happenings = happenings[:size], happenings[size:]
        if rendering.stream:
            out += rendering.chunks(batch)
        else:
            rendering.take(batch)
    return out + rendering.last_chunks(Done(usage)) if rendering.stream else rendering.whole(Done(usage))


def _openai(draw: Draw, body: bytes, *, stream: bool) -> openai.OpenAI:
    http = httpx.Client(transport=_Answering(draw, body, stream=stream))
    return openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1", http_client=http, max_retries=0)


def _from_chat(draw: Draw, events: list[Event], *, stream: bool) -> Answered:
    """What OpenAI's SDK says of a chat completion."""
    rendering = ChatRendering("r", "m", 1, stream=stream, usage=stream, logprobs=False)
    client = _openai(draw, _rendered(draw, rendering, events), stream=stream)
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    blocks: list[Any] = []
    if stream:
        state: Any = ChatCompletionStreamState()
        for chunk in client.chat.completions.create(**ask, stream=True):
            state.handle_chunk(chunk)
            for choice in chunk.choices:
                blocks += getattr(choice.delta, "thinking_blocks", None) or []
        whole = state.current_completion_snapshot
    else:
        whole = client.chat.completions.create(**ask)
        blocks = getattr(whole.choices[0].message, "thinking_blocks", None) or []
    choice = whole.choices[0]
    message, usage = choice.message, whole.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    text = getattr(message, "reasoning_content", None) or ""
    thoughts = [_thinking(block) for block in blocks]
    if text and not any(thought.seal for thought in thoughts):
        thoughts.append(Thinking(text))
    else:
        assert text == "".join(thought.text for thought in thoughts)
    return Answered(
        tuple(thoughts),
        message.content or "",
        message.refusal or "",
        tuple(_chat_call(call) for call in message.tool_calls or ()),
        choice.finish_reason,
        Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens_details.cached_tokens or 0,
            getattr(usage.prompt_tokens_details, "cache_write_tokens", None) or 0,
            usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0,
        ),
    )


def _thinking(block: Any) -> Thinking:
    return Thinking(block.get("thinking", ""), _bare(block.get("signature", "")), _bare(block.get("data", "")))


def _bare(seal: str) -> str:
    """A seal without the name of its thought."""
    return seal.partition(":")[2].partition(":")[2] if seal.startswith("interlace:") else seal


def _chat_call(call: Any) -> Called:
    extra = getattr(call, "extra_content", None) or {}
    seal = extra.get("google", {}).get("thought_signature", "")
    return Called(call.id, call.function.name, call.function.arguments, seal)


def _from_responses(draw: Draw, events: list[Event], *, stream: bool) -> Answered:
    """What OpenAI's SDK says of a response."""
    asked = {"model": "m", "input": "?", "stream": stream, "store": False, "include": ["reasoning.encrypted_content"]}
    _, rendering = ask_of(read_body(json.dumps(asked).encode()), "0" * 24, (), {})
    client = _openai(draw, _rendered(draw, rendering, events), stream=stream)
    ask: Any = {"model": "m", "input": "?"}
    if stream:
        deltas, whole = "", None
        for number, event in enumerate(client.responses.create(**ask, stream=True)):
            assert event.sequence_number == number
            if event.type in {"response.output_text.delta", "response.refusal.delta"}:
                deltas += event.delta
            if event.type in {"response.completed", "response.incomplete"}:
                whole = event.response
        assert whole is not None
    else:
        whole = client.responses.create(**ask)
    thoughts, calls, text, refusal = list[Thinking](), list[Called](), "", ""
    for item in whole.output:
        match item.type:
            case "reasoning" if (item.encrypted_content or "").startswith("interlace-call:"):
                id, _, seal = item.encrypted_content.removeprefix("interlace-call:").partition("\n")
                calls = [dataclasses.replace(call, seal=seal) if call.id == id else call for call in calls]
            case "reasoning":
                thoughts.append(_reasoning(item))
            case "message":
                text += "".join(part.text for part in item.content if part.type == "output_text")
                refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
            case "function_call":
                calls.append(Called(item.call_id, item.name, item.arguments))
    if stream:
        assert deltas == text + refusal
    usage = whole.usage
    reason = whole.incomplete_details.reason if whole.incomplete_details else None
    finish: Any = {"max_output_tokens": "length", "content_filter": "content_filter"}.get(reason or "")
    return Answered(
        tuple(thoughts),
        text,
        refusal,
        tuple(calls),
        finish or ("tool_calls" if calls else "stop"),
        Usage(
            usage.input_tokens,
            usage.output_tokens,
            usage.input_tokens_details.cached_tokens,
            getattr(usage.input_tokens_details, "cache_write_tokens", None) or 0,
            usage.output_tokens_details.reasoning_tokens,
        ),
    )


def _reasoning(item: Any) -> Thinking:
    sealed = item.encrypted_content or ""
    text = "".join(part.text for part in item.content or ()) + "".join(part.text for part in item.summary)
    if sealed.startswith("interlace-redacted:"):
        return Thinking(text, redacted=sealed.removeprefix("interlace-redacted:"))
    return Thinking(text, sealed)


def _from_messages(draw: Draw, events: list[Event], *, stream: bool) -> Answered:
    """What Anthropic's SDK says of a message."""
    body = _rendered(draw, MessageRendering("r", "m", stream=stream), events)
    http = httpx.Client(transport=_Answering(draw, body, stream=stream))
    client = anthropic.Anthropic(api_key="k", base_url="http://127.0.0.1", http_client=http, max_retries=0)
    ask: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}]}
    if stream:
        with client.messages.stream(**ask) as told:
            whole = told.get_final_message()
    else:
        whole = client.messages.create(**ask)
    thoughts, calls, text = list[Thinking](), list[Called](), ""
    for block in whole.content:
        match block.type:
            case "thinking":
                thoughts.append(Thinking(block.thinking, _bare(block.signature)))
            case "redacted_thinking":
                thoughts.append(Thinking(redacted=_bare(block.data)))
            case "text":
                text += block.text
            case "tool_use":
                calls.append(_tool_use(block))
    usage = whole.usage
    cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    details = getattr(usage, "output_tokens_details", None)
    return Answered(
        tuple(thoughts),
        text,
        "",
        tuple(calls),
        _FINISHES[whole.stop_reason or ""],
        Usage(
            usage.input_tokens + cached + written,
            usage.output_tokens,
            cached,
            written,
            details.thinking_tokens if details is not None else 0,
        ),
    )


_FINISHES: dict[str, Any] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def _tool_use(block: Any) -> Called:
    id, seal = unsealed_id(block.id)
    return Called(id, block.name, json.dumps(block.input), seal)


# --- what was said, as a dialect can say it ----------------------------------------------------------------------


def _in_messages(said: Answered) -> Answered:
    """Anthropic's messages tell a refusal as text that ends in one."""
    if said.refusal:
        return dataclasses.replace(said, text=said.refusal, refusal="", finish="content_filter")
    return said


DIALECTS: dict[str, tuple[Callable[..., Answered], Callable[[Answered], Answered]]] = {
    "openai.chat": (_from_chat, lambda said: said),
    "openai.responses": (_from_responses, lambda said: said),
    "anthropic.messages": (_from_messages, _in_messages),
}


def _plain(said: Answered) -> Any:
    """To compare: arguments as what they say, and usage as its counts."""
    calls = [(call.id, call.name, _loose(said_by(call.arguments)), call.seal) for call in said.calls]
    usage = said.usage
    counts = (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    return said.thoughts, said.text, said.refusal, calls, said.finish, counts


def _loose(value: Any) -> Any:
    """Numbers as an SDK that hands out objects reads them."""
    if isinstance(value, dict):
        return {name: _loose(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_loose(one) for one in value]
    return float(value.removeprefix("number ")) if isinstance(value, str) and value.startswith("number ") else value


def _reaches_every_client(draw: Draw, said: Answered, events: Callable[[bool], list[Event]]) -> None:
    for dialect, (read, shown) in DIALECTS.items():
        for provider_streams in (False, True):
            for stream in (False, True):
                got = read(draw, events(provider_streams), stream=stream)
                assert _plain(got) == _plain(shown(said)), f"{dialect}, stream={stream}, provider={provider_streams}"


# --- the properties ----------------------------------------------------------------------------------------------

_CI = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
_NIGHT = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


def _through(name: str, random: Random) -> None:
    draw = Draw(random, {})
    said = _drawn(draw, FORMATS[name])
    _reaches_every_client(draw, said, lambda stream: _read(name, draw, said, stream=stream))


def _from_engine(random: Random) -> None:
    draw = Draw(random, {})
    said = drawn_answer(draw, seals=True, redacted=True, refusals=True, sealed_calls=draw.chance(0.5))
    _reaches_every_client(draw, said, lambda _: neutral_events(draw, said))


@pytest.mark.parametrize("name", FORMATS)
@given(random=st.randoms(use_true_random=False))
@_CI
def test_what_a_provider_says_is_what_the_sdk_reads(name: str, random: Random) -> None:
    """A word, a thought, a call or a count would be lost between a provider and a client, or only where one streams."""
    _through(name, random)


@given(random=st.randoms(use_true_random=False))
@_CI
def test_what_an_engine_says_is_what_the_sdk_reads(random: Random) -> None:
    """As above, for everything that the neutral form can say."""
    _from_engine(random)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FORMATS)
@given(random=st.randoms(use_true_random=False))
@_NIGHT
def test_what_a_provider_says_is_what_the_sdk_reads_all_night(name: str, random: Random) -> None:
    """As above, for the rare."""
    _through(name, random)


@pytest.mark.nightly
@given(random=st.randoms(use_true_random=False))
@_NIGHT
def test_what_an_engine_says_is_what_the_sdk_reads_all_night(random: Random) -> None:
    """As above, for the rare."""
    _from_engine(random)


def test_every_format_has_a_provider() -> None:
    """A provider whose answers nobody draws could lose what it likes."""
    assert {name.partition(",")[0] for name in FORMATS} == {name.partition(",")[0] for name in WIRES}
