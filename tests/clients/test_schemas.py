"""Our answers, as they are on the wire, by the schemas OpenAI publishes: nothing missing, nothing made up."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Provided
from tests.clients.published import complaints
from tests.support.served import CHAT, COMPLETIONS, EMBEDDINGS, PATIENCE_SECONDS

HELLO = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two": {"n": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "stop": {"stop": [" Paris"], "max_tokens": 32},
    "tool": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 64},
    "json": {"response_format": {"type": "json_object"}},
    "usage": {"stream_options": {"include_usage": True}},
}
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "many": {"prompt": ["One", "Two"], "n": 2},
    "logprobs": {"logprobs": 2},
    "echo": {"logprobs": 1, "echo": True, "max_tokens": 0},
    "usage": {"stream_options": {"include_usage": True}},
}

FUNCTION = {"type": "function", "strict": False, **WEATHER["function"]}  # type: ignore[dict-item]
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"instructions": "Be brief.", "metadata": {"a": "b"}},
    "short": {"max_output_tokens": 1},
    "tool": {"tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 64},
    "json": {"text": {"format": {"type": "json_schema", "name": "place", "schema": FUNCTION["parameters"]}}},
}


@pytest.fixture
def post(provided: Provided) -> Any:
    """`post(path, body)`: the whole answer, or the events of a stream."""

    def send(path: str, body: dict[str, Any]) -> list[Any]:
        response = _call(provided, "POST", path, body)
        if response.headers["content-type"].startswith("text/event-stream"):
            *lines, last = response.text.strip().split("\n\n")
            assert last == "data: [DONE]"
            return [json.loads(line.removeprefix("data: ")) for line in lines]
        return [response.json()]

    return send


def _call(provided: Provided, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.request(
        method, provided.server.url + path, json=body, timeout=PATIENCE_SECONDS, trust_env=False,
        headers={"authorization": f"Bearer {provided.server.key}", **headers},
    )  # fmt: skip


@pytest.mark.parametrize("case", CHATS)
def test_chats(post: Any, case: str) -> None:
    """Whole and streamed; the text of both is the same, and a usage chunk has no choices."""
    body = {"model": "talker", "messages": HELLO, "max_tokens": 8, "temperature": 0, **CHATS[case]}
    (whole,) = post(CHAT, {name: value for name, value in body.items() if name != "stream_options"})
    assert complaints("CreateChatCompletionResponse", whole) == []
    chunks = post(CHAT, {**body, "stream": True})
    assert [each for chunk in chunks for each in complaints("CreateChatCompletionStreamResponse", chunk)] == []
    assert all((chunk["choices"] == []) == bool(chunk.get("usage")) for chunk in chunks)
    assert {c["finish_reason"] for c in whole["choices"]} == {
        c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]
    }


@pytest.mark.parametrize("case", TEXTS)
def test_completions(post: Any, case: str) -> None:
    """Whole and streamed: a chunk is a completion too."""
    body = {"model": "talker", "prompt": "The capital of", "max_tokens": 4, "temperature": 0, **TEXTS[case]}
    (whole,) = post(COMPLETIONS, {name: value for name, value in body.items() if name != "stream_options"})
    assert complaints("CreateCompletionResponse", whole) == []
    for chunk in post(COMPLETIONS, {**body, "stream": True}):
        for choice in chunk["choices"]:  # the schema knows only the whole answer, where each choice has ended
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        if chunk.get("usage", 0) is None:  # null until the last chunk, as OpenAI says in its guide
            del chunk["usage"]
        assert complaints("CreateCompletionResponse", chunk) == []


@pytest.mark.parametrize("case", RESPONSES)
def test_responses(provided: Provided, case: str) -> None:
    """Whole, retrieved, and each event of a stream; an event's name is its type."""
    body = {"model": "talker", "input": "What is the capital of France?", "max_output_tokens": 16, "temperature": 0}
    body |= RESPONSES[case]
    whole = _call(provided, "POST", "/v1/responses", body).json()
    assert complaints("Response", whole) == []
    again = _call(provided, "GET", f"/v1/responses/{whole['id']}").json()
    assert complaints("Response", again) == []
    items = _call(provided, "GET", f"/v1/responses/{whole['id']}/input_items").json()
    assert complaints("ResponseItemList", items) == []
    text = _call(provided, "POST", "/v1/responses", {**body, "stream": True}).text
    for event in text.strip().split("\n\n"):
        name, _, data = event.partition("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        assert complaints("ResponseStreamEvent", told) == []


def test_embeddings_and_models(post: Any, provided: Provided) -> None:
    """Vectors as numbers; the list of models and each of it."""
    (made,) = post(EMBEDDINGS, {"model": "embedder", "input": ["a cat", "a dog"], "encoding_format": "float"})
    assert complaints("CreateEmbeddingResponse", made) == []
    listed = _call(provided, "GET", "/v1/models").json()
    assert complaints("ListModelsResponse", listed) == []
    for model in listed["data"]:
        assert complaints("Model", _call(provided, "GET", f"/v1/models/{model['id']}").json()) == []


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [{"model": "nobody"}, {"model": 7}, {"unknown": 1}, {"model": "talker", "max_tokens": "many"}, [], "text", None],
    ids=str,
)
def test_errors(provided: Provided, path: str, stream: bool, wrong: Any) -> None:
    """Every refusal is an `ErrorResponse`: code and param are text or null, never a number, and `type` is there."""
    body = {"model": "talker", "stream": stream, **wrong} if isinstance(wrong, dict) else wrong
    response = _call(provided, "POST", path, body)
    assert 400 <= response.status_code < 500
    assert complaints("ErrorResponse", response.json()) == []


def test_errors_before_the_body_is_read(provided: Provided) -> None:
    """So are those of keys, pages and methods."""
    asked = (
        _call(provided, "GET", "/v1/models", authorization="Bearer wrong"),
        _call(provided, "POST", CHAT, {}, authorization="Bearer wrong"),
        _call(provided, "GET", "/v1/nothing"),
        _call(provided, "GET", CHAT),
    )
    assert [response.status_code for response in asked] == [401, 401, 404, 405]
    for response in asked:
        assert complaints("ErrorResponse", response.json()) == []


def test_a_wrong_answer_is_noticed(post: Any) -> None:
    """The schemas are no sieve: a number as code, a missing and a made-up field, each is told."""
    assert complaints("ErrorResponse", {"error": {"message": "m", "type": "t", "param": None, "code": 404}})
    (whole,) = post(CHAT, {"model": "talker", "messages": HELLO, "max_tokens": 1})
    for change in (
        lambda a: a.pop("created"),
        lambda a: a.update(extra=1),
        lambda a: a["choices"][0].update(index="0"),
    ):
        broken = copy.deepcopy(whole)
        change(broken)
        assert complaints("CreateChatCompletionResponse", broken)
