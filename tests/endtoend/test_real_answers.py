"""What only a real model shows: that numbers, texts, schemas and seeds mean what the API says they mean."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel

from tests.support.served import COMPLETIONS, Served, ask, until

MODEL = "talker"
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city today.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    """What the model is made to fill in."""

    name: str
    continent: Literal["Europe", "Asia", "Africa", "America"]
    capital: bool


# --- chat --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_it_knows_the_capital_of_france(client: openai.OpenAI, stream: bool) -> None:
    """The whole way works: template, weights, sampler, words; and usage is the same, streamed or not."""
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 0, "max_tokens": 64}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = client.chat.completions.create(**asked)
    if stream:
        *chunks, last = list(answer)
        text, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
        usage = last.usage
    else:
        text, reason, usage = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage
    assert text == "The capital of France is Paris."
    assert reason == "stop"
    # The template's own system prompt included; seven words and a full stop make 7 tokens, and the end token is one.
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (37, 8, 45)


def test_n_answers_differ_and_one_seed_gives_them_again(client: openai.OpenAI) -> None:
    """Four choices of one seeded request are not copies, and the same request gives the same four."""

    def four() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=FRANCE, temperature=1.2, seed=11, n=4, max_tokens=16
        )
        return [choice.message.content for choice in answer.choices]

    first = four()
    assert len(set(first)) > 1
    assert four() == first


def test_a_seed_holds_in_company(client: openai.OpenAI, real: Served) -> None:
    """At f32 a seeded answer is the same while strangers share the batch."""
    asked: dict[str, Any] = {
        "model": MODEL, "messages": FRANCE, "temperature": 1.0, "seed": 5, "max_tokens": 24,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    alone = client.chat.completions.create(**asked).choices[0].message.content

    async def in_company() -> str | None:
        async with openai.AsyncOpenAI(base_url=f"{real.url}/v1", api_key=real.key, max_retries=0) as many:
            strangers = [many.chat.completions.create(**{**asked, "seed": seed}) for seed in range(100, 107)]
            ours, *others = await asyncio.gather(many.chat.completions.create(**asked), *strangers)
        assert len({answer.choices[0].message.content for answer in others}) > 1
        content: str | None = ours.choices[0].message.content
        return content

    assert asyncio.run(in_company()) == alone


def test_a_stop_string_across_tokens(client: openai.OpenAI) -> None:
    """It ends the answer wherever token borders lie, streamed too, and nothing of it is shown."""
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 0, "stop": ["ance is Pa"]}
    whole = client.chat.completions.create(**asked).choices[0]
    assert (whole.message.content, whole.finish_reason) == ("The capital of Fr", "stop")
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The capital of Fr"


def test_logprobs_are_those_of_the_text(client: openai.OpenAI) -> None:
    """Tokens join to the text; each is the best of its alternatives, which are in order and no more than certain."""
    choice = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=5, logprobs=True, top_logprobs=20
    ).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode() == choice.message.content
    for token in tokens:
        best = [top.logprob for top in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert 0.2 < sum(math.exp(logprob) for logprob in best) <= 1.0001
    assert tokens[0].token == "The"


# --- completions -------------------------------------------------------------------------------------------------


def test_echo_scores_the_prompt_as_generation_did(client: openai.OpenAI) -> None:
    """What was generated with logprobs gets the same ones when it comes back as a prompt: how harnesses score."""
    prompt = "The capital of France is"
    made = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=6, logprobs=1).choices[0]
    echoed = client.completions.create(
        model=MODEL, prompt=prompt + made.text, max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert echoed.text == prompt + made.text
    assert made.logprobs is not None
    assert echoed.logprobs is not None
    assert made.logprobs.tokens is not None
    assert echoed.logprobs.tokens is not None
    assert echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.tokens[-6:] == made.logprobs.tokens
    np.testing.assert_allclose(
        np.array(echoed.logprobs.token_logprobs[-6:], float), np.array(made.logprobs.token_logprobs, float), atol=1e-3
    )
    offsets = echoed.logprobs.text_offset
    assert offsets is not None
    ends = [*offsets[1:], len(echoed.text)]
    assert [echoed.text[a:b] for a, b in zip(offsets, ends, strict=True)] == echoed.logprobs.tokens


def test_token_ids_are_the_prompt_they_spell(client: openai.OpenAI, smollm2_gguf: Any) -> None:
    """A prompt of ids is answered like its text, and echoed as text."""
    from interlace.engines.local.tokenizer import load_tokenizer

    text = "Once upon a time"
    ids = list(load_tokenizer(smollm2_gguf).encode(text, special=False))
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8, "echo": True}
    by_ids = client.completions.create(prompt=ids, **asked)
    by_text = client.completions.create(prompt=text, **asked)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.choices[0].text.startswith(text)
    assert by_ids.usage == by_text.usage


def test_the_context_ends_where_it_says(client: openai.OpenAI) -> None:
    """A prompt of all but two tokens may have two more; the third is refused, with both numbers."""
    limit = client.models.retrieve(MODEL).context_length  # type: ignore[attr-defined] # ours
    ids = [260] * (limit - 2)
    fits = client.completions.create(model=MODEL, prompt=ids, max_tokens=2, extra_body={"ignore_eos": True})
    assert fits.usage is not None
    assert (fits.usage.prompt_tokens, fits.usage.completion_tokens) == (limit - 2, 2)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=ids, max_tokens=3)
    assert caught.value.code == "context_length_exceeded"
    assert str(limit) in caught.value.message
    assert str(limit + 1) in caught.value.message


# --- constrained output ------------------------------------------------------------------------------------------


def test_a_pydantic_model_comes_back(client: openai.OpenAI) -> None:
    """`parse` sends the class' schema and gets an instance."""
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe the city of Paris as JSON: name, continent, capital."}],
        response_format=City,
        temperature=0,
        max_tokens=100,
    )
    city = answer.choices[0].message.parsed
    assert isinstance(city, City)
    assert "Paris" in city.name
    assert city.continent == "Europe"


def test_a_tool_call_its_result_and_an_answer(client: openai.OpenAI) -> None:
    """Round and back: a required call, its arguments by the schema, the result, words."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "temperature": 0, "max_tokens": 100}
    first = client.chat.completions.create(messages=messages, tool_choice="required", **asked).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls
    call: Any = first.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] == "Paris"
    assert arguments["unit"] in {"celsius", "fahrenheit"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'}
    messages += [first.message.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(messages=messages, tool_choice="none", **asked).choices[0]
    assert last.message.content
    assert not last.message.tool_calls


# --- embeddings --------------------------------------------------------------------------------------------------


def test_what_means_the_same_lies_close(client: openai.OpenAI) -> None:
    """Unit vectors whose products order sentences as a reader would; floats and base64 alike."""
    texts = ["A man is playing a guitar.", "Somebody plays an instrument.", "The stock market fell sharply today."]
    packed = client.embeddings.create(model="embedder", input=texts)
    plain = client.embeddings.create(model="embedder", input=texts, encoding_format="float")
    rows = np.array([row.embedding for row in packed.data])
    np.testing.assert_allclose(rows, [row.embedding for row in plain.data], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)
    similar = rows @ rows.T
    assert similar[0, 1] > 0.5
    assert max(similar[0, 2], similar[1, 2]) < 0.2


# --- many at once ------------------------------------------------------------------------------------------------


async def test_32_streams_say_what_each_says_alone(real: Served) -> None:
    """Thirty-two different prompts at once: every stream is, to the letter, the answer its prompt gets alone."""
    subjects = ("river", "engine", "violin", "planet", "bread", "winter", "market", "forest")
    starts = ("The oldest {} in the", "My {} is", "Every {} has a", "def {}(x):")
    bodies: list[dict[str, Any]] = [
        {"model": MODEL, "prompt": start.format(subject), "temperature": 0, "max_tokens": 5}
        for subject in subjects
        for start in starts
    ]
    async with real.callers() as client:
        alone = [(await ask(client, body, COMPLETIONS)).events[0] for body in bodies]
        streams = await asyncio.gather(*(ask(client, {**body, "stream": True}, COMPLETIONS) for body in bodies))
    assert all(stream.done for stream in streams)
    said = ["".join(event["choices"][0]["text"] for event in stream.events) for stream in streams]
    assert said == [answer["choices"][0]["text"] for answer in alone]
    assert len(set(said)) > 16
    await until(real.idle)
