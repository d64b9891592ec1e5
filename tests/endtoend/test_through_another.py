"""A gateway in front of a real one: what the model says there is what callers hear here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import CompletionUsage

from interlace.engines.remote.counting import most_prompt_tokens
from interlace.gateway.openai_chat import parse_chat
from tests.endtoend.test_real_answers import FRANCE, WEATHER
from tests.support.asking import gateway_to
from tests.support.served import Served


@pytest.fixture(scope="module")
def far(real: Served) -> Iterator[openai.OpenAI]:
    """The official SDK at a gateway whose models run on the real server."""
    models = {"talker": "talker", "embedder": "embedder"}
    with (
        gateway_to(f"{real.url}/v1", models, real.key, extensions=True) as front,
        openai.OpenAI(base_url=f"{front.url}/v1", api_key=front.key, max_retries=0) as made,
    ):
        yield made


@pytest.fixture
def near(client: openai.OpenAI) -> openai.OpenAI:
    """The official SDK at the real server itself."""
    return client


ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 32, "temperature": 0},
    "seeded": {"max_tokens": 12, "seed": 7, "top_k": 20},
    "logprobs": {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 3},
    "stopped": {"max_tokens": 32, "temperature": 0, "stop": [" Paris"]},
    "a pattern": {"max_tokens": 8, "temperature": 0, "structured_outputs": {"regex": "(Paris|London)"}},
    "a tool": {"max_tokens": 64, "temperature": 0, "tools": [WEATHER], "tool_choice": "required"},
    "two": {"max_tokens": 6, "temperature": 0, "n": 2},
}
EXTENSIONS = ("top_k", "structured_outputs")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", ASKED)
def test_the_same_answer_here_as_there(near: openai.OpenAI, far: openai.OpenAI, case: str, stream: bool) -> None:
    """Text, logprobs, tool calls, ends and usage are those of the server where the model runs; but for what its cache
    had of the prompt, which grows from one to the other."""
    answers = [_told(client, ASKED[case], stream=stream) for client in (near, far)]
    assert answers[0] == answers[1]


def test_embeddings_are_the_same_numbers(near: openai.OpenAI, far: openai.OpenAI) -> None:
    """To the last bit."""
    made = [client.embeddings.create(model="embedder", input=["a cat", "a dog"]) for client in (near, far)]
    assert [row.embedding for row in made[0].data] == [row.embedding for row in made[1].data]
    assert made[0].usage == made[1].usage


@pytest.mark.parametrize("text", ["hi", "Straßenbahn 😀 \u200b" * 30, "x" * 500, "0 1 2 3 " * 50, "\n\n\t" * 40])
@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_the_bound_of_a_prompt_holds(far: openai.OpenAI, text: str, tools: list[Any]) -> None:
    """A reservation made of it is never too small: the model's own tokenizer and template stay below."""
    body: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    if tools:
        body["tools"] = tools
    ask, _ = parse_chat(json.dumps(body).encode(), "r", 1)
    usage = far.chat.completions.create(**body).usage
    assert usage is not None
    assert 0 < usage.prompt_tokens <= most_prompt_tokens(ask.generate[0])


def _told(client: openai.OpenAI, more: dict[str, Any], *, stream: bool) -> list[Any]:
    extra = {name: value for name, value in more.items() if name in EXTENSIONS}
    asked = {name: value for name, value in more.items() if name not in EXTENSIONS}
    body: dict[str, Any] = {"model": "talker", "messages": FRANCE, **asked, "extra_body": extra}
    if not stream:
        answer = client.chat.completions.create(**body)
        return [[_plain(choice.model_dump()) for choice in answer.choices], _counts(answer.usage)]
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**body))
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    texts: dict[int, str] = {}
    for piece in pieces:
        texts[piece.index] = texts.get(piece.index, "") + (piece.delta.content or "")
        for call in piece.delta.tool_calls or ():
            assert call.function is not None
            texts[piece.index] += (call.function.name or "") + (call.function.arguments or "")
    ends = sorted((piece.index, piece.finish_reason) for piece in pieces if piece.finish_reason)
    logprobs = [token for piece in pieces if piece.logprobs for token in piece.logprobs.content or ()]
    return [texts, ends, logprobs, _counts(chunks[-1].usage)]


def _counts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def _plain(choice: dict[str, Any]) -> dict[str, Any]:
    """Without the ids of tool calls, which are made up anew."""
    for call in choice["message"]["tool_calls"] or ():
        del call["id"]
    return choice
