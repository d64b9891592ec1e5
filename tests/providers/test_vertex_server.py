"""Google's own SDK against the server on loopback: what it says is what Gemini says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types
from google.oauth2 import service_account

from tests.providers.servers.vertex import KEY, LOCATION, PROJECT, SCOPE, SIGNATURE, Vertex, running_vertex

TOOLS = [types.Tool(function_declarations=[types.FunctionDeclaration(name=name) for name in ("weather", "now")])]


@pytest.fixture(scope="module")
def vertex() -> Iterator[Vertex]:
    """The server."""
    with running_vertex() as running:
        yield running


def _client(vertex: Vertex, *, cloud: bool, key: str = KEY) -> genai.Client:
    options = types.HttpOptions(base_url=vertex.url, retry_options=types.HttpRetryOptions(attempts=1))
    if not cloud:
        return genai.Client(api_key=key, vertexai=False, http_options=options)
    account = service_account.Credentials.from_service_account_info(vertex.account(), scopes=[SCOPE])
    return genai.Client(vertexai=True, project=PROJECT, location=LOCATION, credentials=account, http_options=options)


both = pytest.mark.parametrize("cloud", [True, False], ids=["vertex", "gemini-api"])


@both
def test_the_sdk_is_answered(vertex: Vertex, cloud: bool) -> None:
    """Address, token or key, and answer are as the SDK makes and reads them."""
    client = _client(vertex, cloud=cloud)
    answer = client.models.generate_content(model="gemini-3-pro", contents="words please")
    assert answer.text == "Grüße, world"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.total_token_count == 19
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP


@both
def test_the_sdk_reads_the_stream(vertex: Vertex, cloud: bool) -> None:
    """Chunks come one by one, with thoughts and their signature."""
    config = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(include_thoughts=True))
    client = _client(vertex, cloud=cloud)
    stream = client.models.generate_content_stream(model="gemini-3-pro", contents="thinks", config=config)
    parts: list[Any] = [part for chunk in stream for part in chunk.candidates[0].content.parts]
    assert [part.text for part in parts] == ["First ", "this.", "Done.", ""]
    assert [bool(part.thought) for part in parts] == [True, True, False, False]
    assert parts[3].thought_signature == b"what was thought"


@both
def test_the_sdk_sends_calls_back(vertex: Vertex, cloud: bool) -> None:
    """A conversation with calls, as the SDK keeps it, is taken; the same without its signature is not."""
    client = _client(vertex, cloud=cloud)
    config = types.GenerateContentConfig(
        tools=TOOLS, automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True)
    )
    asked = types.Content(role="user", parts=[types.Part(text="calls")])
    answer = client.models.generate_content(model="gemini-3-pro", contents=[asked], config=config)
    assert answer.function_calls is not None
    assert [call.name for call in answer.function_calls] == ["weather", "now"]
    assert answer.candidates is not None
    said = answer.candidates[0].content
    assert said is not None
    results = [
        types.Part.from_function_response(name=str(call.name), response={"output": "x"})
        for call in answer.function_calls
    ]
    told = types.Content(role="user", parts=results)
    after = types.Content(role="user", parts=[types.Part(text="words")])
    assert client.models.generate_content(model="gemini-3-pro", contents=[asked, said, told, after], config=config).text
    bare = json.loads(said.model_dump_json(exclude={"parts": {"__all__": {"thought_signature"}}}))
    with pytest.raises(errors.ClientError, match="thought_signature"):
        client.models.generate_content(
            model="gemini-3-pro", contents=[asked, types.Content(**bare), told, after], config=config
        )
    assert SIGNATURE


@both
def test_the_sdk_reads_errors_and_blocks(vertex: Vertex, cloud: bool) -> None:
    """Refusals have Google's shape; a blocked prompt is an answer without candidates."""
    client = _client(vertex, cloud=cloud)
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="gemini-3-pro", contents="exhausted")
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    answer = client.models.generate_content(model="gemini-3-pro", contents="blocked")
    assert answer.candidates is None
    assert answer.prompt_feedback is not None
    assert answer.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT


@both
def test_the_sdk_counts_and_embeds(vertex: Vertex, cloud: bool) -> None:
    """The counter and the methods for embeddings are where the SDK looks for them."""
    client = _client(vertex, cloud=cloud)
    assert (client.models.count_tokens(model="gemini-3-pro", contents="words").total_tokens or 0) > 0
    for model, texts in (
        ("gemini-embedding-001", ["a", "bb"]),
        ("gemini-embedding-001", ["a"]),
        ("text-embedding-005", ["a", "bb"]),
    ):
        answer = client.models.embed_content(model=model, contents=texts)  # type: ignore[arg-type]
        assert answer.embeddings is not None
        assert [row.values for row in answer.embeddings] == [[float(len(text)), 1.0] for text in texts]


def test_wrong_keys_and_members_are_refused(vertex: Vertex) -> None:
    """A server that took everything would prove nothing."""
    client = _client(vertex, cloud=False, key="wrong")
    with pytest.raises(errors.ClientError, match="API key not valid"):
        client.models.generate_content(model="gemini-3-pro", contents="words")
    for body, status in (({"contents": [{"parts": [{"text": "a"}]}]}, 200), ({"contents": [], "top_k": 1}, 400)):
        answer = httpx.post(f"{vertex.url}/v1/models/m:generateContent", json=body, headers={"x-goog-api-key": KEY})
        assert answer.status_code == status, answer.text
    anonymous = httpx.post(
        f"{vertex.url}/v1beta1/projects/{PROJECT}/locations/x/publishers/google/models/m:generateContent", json={}
    )
    assert anonymous.status_code == 401
