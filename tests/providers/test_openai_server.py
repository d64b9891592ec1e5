"""OpenAI's own SDK against the server on loopback, as OpenAI and as Azure; its answers against OpenAI's schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.providers.servers.openai import AZURE_KEY, GREETING, KEY, VERSION, OpenAI, running_openai
from tests.providers.servers.openai_schemas import ANSWERS, complaints_about

HELLO: Any = [{"role": "user", "content": "hello out there"}]
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "now")]


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAI]:
    """The server."""
    with running_openai() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: OpenAI) -> Iterator[openai.OpenAI]:
    """The SDK, without its retries."""
    with openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as made:
        yield made


def test_the_sdk_is_answered(client: openai.OpenAI) -> None:
    """Chat whole and streamed, text completions and embeddings are as the SDK reads them."""
    whole = client.chat.completions.create(model="text", messages=HELLO, n=2)
    assert [choice.message.content for choice in whole.choices] == [GREETING] * 2
    with client.chat.completions.create(
        model="text", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == GREETING
    assert chunks[-1].usage is not None
    assert client.completions.create(model="text", prompt="a").choices[0].text == GREETING
    assert client.embeddings.create(model="e", input=["a", "b"]).data[1].embedding == [1.0, 0.5]


def test_the_sdk_puts_the_stream_together(client: openai.OpenAI) -> None:
    """Calls, refusals and responses come out of the SDK's own accumulation as they do when asked for whole."""
    for model in ("calls", "refusal"):
        with client.chat.completions.stream(model=model, messages=HELLO, tools=TOOLS) as stream:
            streamed = stream.get_final_completion().choices[0].message
        whole = client.chat.completions.create(model=model, messages=HELLO, tools=TOOLS).choices[0].message
        assert (streamed.content or None, streamed.refusal) == (whole.content, whole.refusal)
        assert [c.id for c in streamed.tool_calls or ()] == [c.id for c in whole.tool_calls or ()]
    for model in ("thinks", "calls", "refusal"):
        with client.responses.stream(model=model, input="hi") as events:
            response = events.get_final_response()
        whole_response = client.responses.create(model=model, input="hi")
        assert response.output_text == whole_response.output_text
        assert [(item.type, item.id) for item in response.output] == [(i.type, i.id) for i in whole_response.output]


def test_the_sdk_speaks_to_azure(server: OpenAI) -> None:
    """By deployment with a version, and without one; with a key."""
    with openai.AzureOpenAI(api_key=AZURE_KEY, azure_endpoint=server.url, api_version=VERSION, max_retries=0) as client:
        assert client.chat.completions.create(model="text", messages=HELLO).choices[0].message.content == GREETING
    assert server.seen[-1][0] == "/openai/deployments/text/chat/completions"
    with (
        openai.AzureOpenAI(api_key="no", azure_endpoint=server.url, api_version=VERSION, max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.chat.completions.create(model="text", messages=HELLO)


def test_the_sdk_knows_the_errors(client: openai.OpenAI) -> None:
    """Statuses and bodies become the SDK's own exceptions."""
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-other").chat.completions.create(model="text", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="fails:429", messages=HELLO)
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="text", messages=HELLO, extra_body={"top_k": 3})
    with client.responses.create(model="breaks:error", input="hi", stream=True) as stream:
        assert list(stream)[-1].type == "error"


def _asked(server: OpenAI, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(f"{server.url}/v1{path}", json=body, headers=headers, trust_env=False)


@pytest.mark.parametrize("model", ["text", "calls", "refusal"])
def test_chat_is_as_published(server: OpenAI, model: str) -> None:
    """Whole answers and chunks keep to OpenAI's schemas, so that reading them proves something."""
    body = {"model": model, "messages": HELLO}
    assert (
        complaints_about("CreateChatCompletionResponse", _asked(server, "/chat/completions", body).json(), file=ANSWERS)
        == []
    )
    for line in _asked(server, "/chat/completions", body | {"stream": True}).text.split("\n\n"):
        if line.startswith("data: {"):
            assert complaints_about("CreateChatCompletionStreamResponse", json.loads(line[6:]), file=ANSWERS) == []


@pytest.mark.parametrize("model", ["thinks", "calls", "refusal", "ends:max_output_tokens"])
def test_responses_are_as_published(server: OpenAI, model: str) -> None:
    """So do responses and each of their events."""
    body = {"model": model, "input": "hi"}
    assert complaints_about("Response", _asked(server, "/responses", body).json(), file=ANSWERS) == []
    for line in _asked(server, "/responses", body | {"stream": True}).text.split("\n\n"):
        if "data: " in line:
            assert complaints_about("ResponseStreamEvent", json.loads(line.partition("data: ")[2]), file=ANSWERS) == []
