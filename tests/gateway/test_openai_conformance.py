"""The official `openai` SDK against our endpoint, streaming and not, errors included.

Nothing here knows what the model will say: `endpoint` may be the scripted server or one with a real checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.gateway.conftest import Endpoint

HELLO = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The SDK as a user sets it up, without retries, so that every answer is seen."""
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.key, max_retries=0) as made:
        yield made


@pytest.fixture
def chat(client: openai.OpenAI, endpoint: Endpoint) -> Any:
    """`chat(**more)`: a short greedy chat completion."""

    def ask(**more: Any) -> Any:
        asked: dict[str, Any] = {"model": endpoint.model, "messages": HELLO, "max_tokens": 8, "temperature": 0}
        return client.chat.completions.create(**{**asked, **more})

    return ask


@pytest.fixture
def complete(client: openai.OpenAI, endpoint: Endpoint) -> Any:
    """`complete(**more)`: a short greedy completion."""

    def ask(**more: Any) -> Any:
        asked: dict[str, Any] = {"model": endpoint.model, "prompt": "The capital of", "max_tokens": 4, "temperature": 0}
        return client.completions.create(**{**asked, **more})

    return ask


# --- chat --------------------------------------------------------------------------------------------------------


def test_chat(chat: Any, endpoint: Endpoint) -> None:
    """A whole answer has its id, model, role, text, finish reason and a usage that adds up."""
    answer = chat()
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", endpoint.model)
    choice = answer.choices[0]
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_chat_stream_says_the_same(chat: Any) -> None:
    """The chunks of a greedy answer make the same text; role first, one finish reason last, one id throughout."""
    chunks = list(chat(stream=True))
    deltas = [chunk.choices[0] for chunk in chunks]
    assert "".join(delta.delta.content or "" for delta in deltas) == chat().choices[0].message.content
    assert deltas[0].delta.role == "assistant"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason in {"stop", "length"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_with_usage(chat: Any) -> None:
    """With `include_usage` the last chunk has no choices and the usage; the others have null."""
    *chunks, last = list(chat(stream=True, stream_options={"include_usage": True}))
    assert last.choices == []
    assert last.usage.completion_tokens == chat().usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_n(chat: Any, stream: bool) -> None:
    """`n` answers come back under their own indices, interleaved or not, and all are counted."""
    answer = chat(n=3, stream=stream)
    if stream:
        finished = {c.index for chunk in answer for c in chunk.choices if c.finish_reason}
    else:
        finished = {choice.index for choice in answer.choices}
        assert answer.usage.completion_tokens >= 3
    assert finished == {0, 1, 2}


def test_chat_logprobs(chat: Any) -> None:
    """Chosen tokens with bytes and alternatives; at temperature 0 the chosen one is the best."""
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert content
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert bytes(token.bytes).decode(errors="replace") == token.token or token.token.startswith("bytes:")


def test_chat_logprobs_in_the_stream(chat: Any) -> None:
    """Every generated token's logprob is in some chunk."""
    chunks = list(chat(logprobs=True, stream=True, stream_options={"include_usage": True}))
    tokens = [t for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    assert len(tokens) in {chunks[-1].usage.completion_tokens, chunks[-1].usage.completion_tokens - 1}  # the end token


def test_chat_max_tokens_and_stop(chat: Any) -> None:
    """Both bounds of length work and say so; a stop string is not part of the answer."""
    assert chat(max_tokens=1).choices[0].finish_reason == "length"
    short = chat(max_tokens=openai.omit, max_completion_tokens=2)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (2, "length")
    text = chat().choices[0].message.content
    stopped = chat(stop=[text[3:6]]).choices[0]
    assert stopped.message.content == text[: text.index(text[3:6])]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {
            "type": "json_schema",
            "json_schema": {
                "name": "place",
                "schema": WEATHER["function"]["parameters"],  # type: ignore[index]
            },
        },
    ],
    ids=lambda value: value["type"],
)
def test_chat_json(chat: Any, response_format: dict[str, Any]) -> None:
    """Constrained output is JSON, unless it was cut off."""
    choice = chat(response_format=response_format, max_tokens=64).choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_chat_tool_call(chat: Any, choice: Any) -> None:
    """A forced call has an id, the function's name and arguments that are JSON."""
    answer = chat(tools=[WEATHER], tool_choice=choice, max_tokens=128).choices[0]
    assert answer.finish_reason == "tool_calls"
    call = answer.message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "weather")
    assert call.id
    assert "city" in json.loads(call.function.arguments)


def test_chat_tool_call_in_the_stream(chat: Any) -> None:
    """Pieces of arguments add up to JSON; id and name come once, first."""
    chunks = list(chat(tools=[WEATHER], tool_choice="required", max_tokens=128, stream=True))
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    assert pieces[0].id
    assert pieces[0].function.name == "weather"
    first = [piece for piece in pieces if piece.index == 0]
    assert json.loads("".join(piece.function.arguments for piece in first))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_chat_takes_a_whole_tool_conversation(chat: Any) -> None:
    """System, assistant with a tool call, and the tool's answer are all understood; so are content parts."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert chat(messages=messages, tools=[WEATHER], tool_choice="none").choices[0].message.content is not None


def test_fields_that_do_not_matter_here_are_accepted(chat: Any) -> None:
    """Documented fields without effect are taken; vLLM's extensions too."""
    answer = chat(
        user="someone",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        seed=7,
        logit_bias={"10": -1},
        presence_penalty=0.1,
        frequency_penalty=0.1,
        extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    assert answer.choices


# --- completions -------------------------------------------------------------------------------------------------


def test_completion_and_its_stream(complete: Any) -> None:
    """The stream of a greedy completion says what the whole one says."""
    whole = complete()
    assert (whole.object, whole.id[:5]) == ("text_completion", "cmpl-")
    chunks = list(complete(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_completion_of_many_prompts(complete: Any, stream: bool) -> None:
    """Two prompts times two answers are four choices, in order."""
    answer = complete(prompt=["One", "Two three"], n=2, stream=stream)
    chunks = list(answer) if stream else [answer]
    finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(finished) == [0, 1, 2, 3]


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6], [7]]])
def test_completion_of_token_ids(complete: Any, prompt: list[Any]) -> None:
    """Token ids are a prompt; lists of them are many."""
    answer = complete(prompt=prompt)
    assert answer.usage.prompt_tokens == 3
    assert len(answer.choices) == (1 if isinstance(prompt[0], int) else 2)


def test_completion_echo(complete: Any) -> None:
    """`echo` gives the prompt back before the answer; streamed alike."""
    text = complete(echo=True).choices[0].text
    assert text.startswith("The capital of")
    assert "".join(chunk.choices[0].text for chunk in complete(echo=True, stream=True)) == text


def test_completion_echo_scores_the_prompt(complete: Any) -> None:
    """`echo` with logprobs and no new tokens: what evaluation harnesses ask for."""
    choice = complete(echo=True, logprobs=1, max_tokens=0).choices[0]
    assert choice.text == "The capital of"
    columns = choice.logprobs
    assert columns.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in columns.token_logprobs[1:])
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.top_logprobs) == len(columns.text_offset)
    assert columns.text_offset[0] == 0


def test_completion_logprobs(complete: Any) -> None:
    """Four columns, a row for each token, the chosen one among the best."""
    columns = complete(logprobs=2).choices[0].logprobs
    assert len(columns.tokens) == 4
    assert all(token in top for token, top in zip(columns.tokens, columns.top_logprobs, strict=True))


# --- embeddings and models ---------------------------------------------------------------------------------------


def test_embeddings_floats_and_base64_agree(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """The SDK's default (base64) and plain floats are the same numbers, in the order of the inputs."""
    texts = ["one", "two words"]
    packed = client.embeddings.create(model=endpoint.embedding_model, input=texts)
    plain = client.embeddings.create(model=endpoint.embedding_model, input=texts, encoding_format="float")
    assert [row.index for row in packed.data] == [0, 1]
    np.testing.assert_allclose([r.embedding for r in packed.data], [r.embedding for r in plain.data], rtol=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0
    one = client.embeddings.create(model=endpoint.embedding_model, input="two words")
    np.testing.assert_allclose(one.data[0].embedding, packed.data[1].embedding, atol=1e-4)


def test_embeddings_dimensions(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """Asking for the model's own length is fine; another one is refused by name."""
    model = endpoint.embedding_model
    length = len(client.embeddings.create(model=model, input="x").data[0].embedding)
    assert client.embeddings.create(model=model, input="x", dimensions=length).data
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=model, input="x", dimensions=length + 1)
    assert caught.value.param == "dimensions"


def test_models(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """The list has the served models, and each can be asked for by name."""
    assert {endpoint.model, endpoint.embedding_model} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(endpoint.model)
    assert (model.id, model.object) == (endpoint.model, "model")
    assert model.created > 0
    assert model.owned_by


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(chat: Any, stream: bool) -> None:
    """404 with OpenAI's code, before any stream begins."""
    with pytest.raises(openai.NotFoundError) as caught:
        chat(model="no-such-model", stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_model_by_name(client: openai.OpenAI) -> None:
    """`models.retrieve` of what is not there is the same 404."""
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_wrong_key(endpoint: Endpoint) -> None:
    """401 with OpenAI's code, on every endpoint that needs a key."""
    with openai.OpenAI(base_url=endpoint.base_url, api_key="sk-wrong", max_retries=0) as client:
        for ask in (
            lambda: client.chat.completions.create(model=endpoint.model, messages=HELLO),  # type: ignore[arg-type]
            lambda: client.completions.create(model=endpoint.model, prompt="x"),
            lambda: client.embeddings.create(model=endpoint.embedding_model, input="x"),
            client.models.list,
        ):
            with pytest.raises(openai.AuthenticationError) as caught:
                ask()
            assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, None),
        ({"extra_body": {"structured_outputs": {"regex": "a", "grammar": "b"}}}, "structured_outputs"),
        ({"extra_body": {"continue_final_message": True}}, "continue_final_message"),
        ({"extra_body": {"continue_final_message": True, "add_generation_prompt": True}}, "add_generation_prompt"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
    ],
    ids=str,
)
def test_bad_requests_name_the_field(chat: Any, more: dict[str, Any], param: str | None) -> None:
    """400 in OpenAI's shape; `param` says which field is wrong."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(**more)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]  # type: ignore[index]
    if param is not None:
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [999_999_999]}, "prompt"),
        ({"prompt": ["x"] * 300}, "n"),
    ],
    ids=str,
)
def test_bad_completions_name_the_field(complete: Any, more: dict[str, Any], param: str) -> None:
    """The same for the older endpoint's own fields."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(**more)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "given", ["", [], [""], [[]], ["a", 5], [999_999_999], ["x"] * 2049], ids=lambda v: str(v)[:20]
)
def test_bad_embedding_inputs(client: openai.OpenAI, endpoint: Endpoint, given: Any) -> None:
    """Empty, mixed, unknown and too many inputs are refused, naming `input`."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=endpoint.embedding_model, input=given)
    assert str(caught.value.param).startswith("input")


def test_image_parts_are_refused(chat: Any) -> None:
    """Text only, and it says which part."""
    part = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
    with pytest.raises(openai.BadRequestError, match="text only") as caught:
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}])
    assert caught.value.param == "messages[].content[].image_url.url"


def test_context_length(chat: Any) -> None:
    """A prompt past the context is OpenAI's `context_length_exceeded`."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(messages=[{"role": "user", "content": "a b " * 4900}])
    assert caught.value.code == "context_length_exceeded"


def test_wrong_kind_of_model(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """Asking an embedder to talk, or a talker to embed, is a 400 that names the model."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=endpoint.embedding_model, messages=HELLO)  # type: ignore[arg-type]
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=endpoint.model, input="x")
    assert caught.value.param == "model"


async def test_the_async_client_streams_too(endpoint: Endpoint) -> None:
    """Many streams at once through the asynchronous SDK."""
    import asyncio

    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.key, max_retries=0) as client:

        async def one() -> int:
            stream = await client.chat.completions.create(
                model=endpoint.model,
                messages=HELLO,  # type: ignore[arg-type]
                stream=True,
                max_tokens=8,
            )
            return len([chunk async for chunk in stream])

        assert all(count > 2 for count in await asyncio.gather(*(one() for _ in range(8))))
