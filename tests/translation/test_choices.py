"""Several choices and their logprobs: what an engine says of each token reaches OpenAI's own SDK, whole and streamed.

`test_answers` goes from every provider to every dialect, one choice at a time; here are the two dialects that have
several choices, and the logprobs that each of OpenAI's three writes in its own way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.engines.types import Delta, Event, FinishReason, Started, TokenLogprob, TopLogprob, Usage
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.openai_chat import parse_chat
from interlace.gateway.openai_completions import parse_completion
from interlace.gateway.responses import ask_of, read_body
from tests.support.drawing import Draw

ID = "0" * 24


@dataclass(frozen=True, slots=True)
class Choice:
    """What one choice says: its tokens with their logprobs, and why it ended."""

    tokens: tuple[TokenLogprob, ...]
    finish: FinishReason

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(token.bytes.decode() for token in self.tokens)


def _token(draw: Draw) -> TokenLogprob:
    def weight() -> float:
        return -draw.random.randint(0, 800) / 100

    chosen, logprob = draw.text(2), weight()
    others = tuple(TopLogprob(7, f"{draw.text(1)}{i}".encode(), weight()) for i in range(draw.random.randint(0, 2)))
    return TokenLogprob(1, chosen.encode(), logprob, (TopLogprob(1, chosen.encode(), logprob), *others))


def _choices(draw: Draw, most: int) -> list[Choice]:
    count = draw.random.randint(1, most)
    return [
        Choice(tuple(_token(draw) for _ in range(draw.random.randint(1, 5))), draw.one(("stop", "length")))
        for _ in range(count)
    ]


def _events(draw: Draw, said: list[Choice]) -> list[Event]:
    """The choices side by side, in any order of their tokens."""
    waiting: list[list[Event]] = [
        [
            *(Delta(i, token.bytes.decode(), 1, (token,)) for token in choice.tokens),
            Delta(i, finish_reason=choice.finish),
        ]
        for i, choice in enumerate(said)
    ]
    events: list[Event] = [Started(3)]
    while any(waiting):
        events.append(draw.one([queue for queue in waiting if queue]).pop(0))
    return events


def _rendered(draw: Draw, path: str, said: list[Choice], *, stream: bool) -> bytes:
    asked = {"model": "m", "n": len(said), "stream": stream}
    if path == "chat":
        body = asked | {"messages": [{"role": "user", "content": "?"}], "logprobs": True, "top_logprobs": 3}
        rendering: Any = parse_chat(json.dumps(body).encode(), ID, 128)[1]
    elif path == "responses":
        told: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 3, "store": False}
        body = {"model": "m", "stream": stream, "input": "?", **told}
        rendering = ask_of(read_body(json.dumps(body).encode()), ID, (), {})[1]
    else:
        rendering = parse_completion(json.dumps(asked | {"prompt": "?", "logprobs": 3}).encode(), ID, 128)[1]
    happenings: list[Happening] = [
        PartStarted(0, event) if isinstance(event, Started) else event  # type: ignore[misc]
        for event in _events(draw, said)
    ]
    out = b""
    while happenings:
        size = draw.random.randint(1, 4)
        batch, happenings = happenings[:size], happenings[size:]
        if stream:
            out += rendering.chunks(batch)
        else:
            rendering.take(batch)
    done = Done(Usage(3, sum(len(choice.tokens) for choice in said)))
    return out + (rendering.last_chunks(done) if stream else rendering.whole(done))


def _client(body: bytes, *, stream: bool) -> openai.OpenAI:
    kind = "text/event-stream" if stream else "application/json"
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-type": kind}, content=body))
    http = httpx.Client(transport=transport)
    return openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1", http_client=http, max_retries=0)


Read = dict[int, tuple[str, str | None, list[Any]]]


def _chat(client: openai.OpenAI, *, stream: bool) -> Read:
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    read: Read = {}
    answers = client.chat.completions.create(**ask, stream=True) if stream else [client.chat.completions.create(**ask)]
    for answer in answers:
        for choice in answer.choices:
            said = choice.delta.content if stream else choice.message.content
            text, finish, tokens = read.get(choice.index, ("", None, []))
            told = choice.logprobs.content or () if choice.logprobs else ()
            rows = list(map(_row, told))
            read[choice.index] = (text + (said or ""), choice.finish_reason or finish, [*tokens, *rows])
    return read


def _completions(client: openai.OpenAI, *, stream: bool) -> Read:
    ask: Any = {"model": "m", "prompt": "?"}
    read: Read = {}
    answers = client.completions.create(**ask, stream=True) if stream else [client.completions.create(**ask)]
    for answer in answers:
        for choice in answer.choices:
            text, finish, tokens = read.get(choice.index, ("", None, []))
            rows: list[Any] = []
            if (told := choice.logprobs) is not None:
                assert told.text_offset[0] == len(text)
                rows = list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))
            read[choice.index] = (text + choice.text, choice.finish_reason or finish, [*tokens, *rows])
    return read


def _responses(client: openai.OpenAI, *, stream: bool) -> Read:
    ask: Any = {"model": "m", "input": "?"}
    rows: list[Any] = []
    if stream:
        for event in client.responses.create(**ask, stream=True):
            if event.type == "response.output_text.delta":
                rows += map(_row, event.logprobs)
            elif event.type == "response.output_text.done":
                assert list(map(_row, event.logprobs)) == rows
            elif event.type in {"response.completed", "response.incomplete"}:
                whole = event.response
    else:
        whole = client.responses.create(**ask)
    (message,) = whole.output
    (part,) = message.content
    told = list(map(_row, part.logprobs))
    assert not stream or told == rows
    return {0: (part.text, "stop" if whole.status == "completed" else "length", told)}


def _row(one: Any) -> Any:
    return one.token, one.logprob, {top.token: top.logprob for top in one.top_logprobs}


READERS = {"chat": _chat, "completions": _completions, "responses": _responses}


def _through(path: str, random: Random) -> None:
    draw = Draw(random, {})
    said = _choices(draw, 1 if path == "responses" else 4)  # a response has no choices
    want = {
        i: (
            choice.text,
            choice.finish,
            [
                (token.bytes.decode(), token.logprob, {top.bytes.decode(): top.logprob for top in token.top})
                for token in choice.tokens
            ],
        )
        for i, choice in enumerate(said)
    }
    for stream in (False, True):
        got = READERS[path](_client(_rendered(draw, path, said, stream=stream), stream=stream), stream=stream)
        assert got == want, f"stream={stream}"


@pytest.mark.parametrize("path", READERS)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_choice_and_its_logprobs_reach_the_sdk(path: str, random: Random) -> None:
    """A choice would get another's tokens, or a logprob be lost where an answer streams."""
    _through(path, random)


@pytest.mark.nightly
@pytest.mark.parametrize("path", READERS)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_choice_and_its_logprobs_reach_the_sdk_all_night(path: str, random: Random) -> None:
    """As above, for the rare."""
    _through(path, random)
