"""Gemini through our engine, on Vertex AI and by its own API, against a server that checks tokens and bodies itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.config import ModelSettings
from interlace.engines.remote import RemoteEngine
from interlace.engines.remote.providers.vertex import make
from interlace.engines.types import (
    AudioPart,
    Delta,
    EmbedRequest,
    Event,
    FilePart,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Reasoning,
    Sampling,
    Started,
    TextPart,
    ThinkingPart,
    Thought,
    TokenLogprob,
    Tool,
    ToolCall,
    TopLogprob,
    Usage,
)
from interlace.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    NotFound,
    ProviderLimited,
)
from tests.providers.servers.vertex import KEY, LOCATION, PROJECT, SIGNATURE, Vertex, running_vertex
from tests.support.asking import calls_of, chat, collect, finishes, text_of

PRO, FLASH = "gemini-3-pro", "gemini-2.5-flash"
TOOLS = (Tool("weather", "Says the weather.", {"type": "object"}), Tool("now"))


@pytest.fixture(scope="module")
def vertex() -> Iterator[Vertex]:
    """The server."""
    with running_vertex() as running:
        yield running


@pytest.fixture(autouse=True)
def account(vertex: Vertex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a machine with a service account."""
    file = tmp_path / "account.json"
    file.write_text(json.dumps(vertex.account()))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    vertex.life, vertex.refuses = 3600, False
    return file


@asynccontextmanager
async def engine(vertex: Vertex, model: str = PRO, *, cloud: bool = True, **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine, closed at the end: on Vertex AI, or by the Gemini API."""
    given: dict[str, Any] = {"first_token_seconds": 5, "between_tokens_seconds": 5}
    if cloud:
        given |= {"base_url": f"{vertex.url}/v1beta1", "project": PROJECT, "location": LOCATION}
    else:
        given |= {"base_url": f"{vertex.url}/v1", "api_key": "${MY_KEY}"}
    running = RemoteEngine(ModelSettings(name="far", engine="vertex", model=model, **(given | more)), {"MY_KEY": KEY})
    await running.start()
    try:
        yield running
    finally:
        await running.close()


async def ask(
    vertex: Vertex, model: str = PRO, *, stream: bool = True, cloud: bool = True, **request: Any
) -> list[Event]:
    """All events of one answer."""
    async with engine(vertex, model, stream=stream, cloud=cloud) as running:
        return await collect(running, chat(**request))


def thoughts_of(events: list[Event]) -> list[Thought]:
    """What was thought."""
    return [event.thought for event in events if isinstance(event, Delta) and event.thought is not None]


both = pytest.mark.parametrize("stream", [True, False])

# --- answers -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("cloud", [True, False], ids=["vertex", "gemini-api"])
async def test_an_answer_is_started_delta_usage(vertex: Vertex, stream: bool, cloud: bool) -> None:
    """Text, end and count come through, streamed or not, with a token or with a key."""
    events = await ask(vertex, stream=stream, cloud=cloud, text="words please", max_tokens=9)
    assert isinstance(events[0], Started)
    assert text_of(events) == "Grüße, world"
    assert finishes(events) == ["stop"]
    assert events[-1] == Usage(12, 7, service_tier="default")
    where = f"/v1beta1/projects/{PROJECT}/locations/{LOCATION}/publishers/google/models" if cloud else "/v1/models"
    method = "streamGenerateContent" if stream else "generateContent"
    assert vertex.seen[-1][0] == f"{where}/{PRO}:{method}"
    assert vertex.last["generationConfig"] == {"maxOutputTokens": 9}


@both
async def test_choices_are_kept_apart(vertex: Vertex, stream: bool) -> None:
    """Each of `n` candidates gets its own text and end."""
    events = await ask(vertex, stream=stream, n=2)
    assert [text_of(events, i) for i in range(2)] == ["Grüße, world"] * 2
    assert finishes(events) == ["stop"] * 2
    assert events[-1] == Usage(12, 14, service_tier="default")


@both
async def test_parallel_calls(vertex: Vertex, stream: bool) -> None:
    """Two calls in one answer, the first with its signature, the second with an id of our own and no arguments."""
    events = await ask(vertex, stream=stream, text="calls", tools=TOOLS)
    assert text_of(events) == "Let me look."
    first, second = calls_of(events)
    assert first[:2] == ("fc1", "weather")
    assert json.loads(first[2]) == {"city": "Zürich", "days": 10}
    assert second[0].startswith("call_")
    assert second[1:] == ("now", "{}")
    signatures = [call.signature for event in events if isinstance(event, Delta) for call in event.tool_calls]
    assert signatures == [SIGNATURE, ""]
    assert finishes(events) == ["tool_calls"]


@both
async def test_thoughts_are_told_and_counted(vertex: Vertex, stream: bool) -> None:
    """Thoughts come apart from the text, with the seal that comes last; their tokens are added to the answer's."""
    events = await ask(vertex, stream=stream, text="thinks", reasoning=Reasoning(effort="high", summary="auto"))
    thoughts = thoughts_of(events)
    assert "".join(thought.text for thought in thoughts) == "First this."
    assert thoughts[-1] == Thought(signature=SIGNATURE)
    assert text_of(events) == "Done."
    assert events[-1] == Usage(12, 27, reasoning_tokens=20, service_tier="default")
    assert vertex.last["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "HIGH", "includeThoughts": True}


@both
async def test_usage_by_kind(vertex: Vertex, stream: bool) -> None:
    """What came from the cache is part of the prompt, and what tools put into the prompt is added to it."""
    events = await ask(vertex, stream=stream, text="cached")
    assert events[-1] == Usage(155, 7, cached_tokens=100, service_tier="priority")


async def test_usage_that_contradicts_is_kept_and_marked(vertex: Vertex) -> None:
    """A total that is not the sum stands as Google tells it, for reconciliation."""
    usage = (await ask(vertex, text="contradicts"))[-1]
    assert usage == Usage(12, 7, disputed=True, service_tier="default")


async def test_usage_that_never_came_is_estimated(vertex: Vertex) -> None:
    """The count is ours, and says so."""
    usage = (await ask(vertex, text="no-usage"))[-1]
    assert isinstance(usage, Usage)
    assert usage.estimated
    assert usage.completion_tokens > 0


@both
async def test_logprobs(vertex: Vertex, stream: bool) -> None:
    """The chosen token and the alternatives, with Google's ids."""
    events = await ask(vertex, stream=stream, text="logprobs", sampling=Sampling(logprobs=2))
    best = TopLogprob(5, "Grüße".encode(), -0.25)
    told = [logprob for event in events if isinstance(event, Delta) for logprob in event.logprobs]
    assert told == [TokenLogprob(5, "Grüße".encode(), -0.25, (best, TopLogprob(6, b"Hallo", -2.0)))]
    assert vertex.last["generationConfig"] == {"responseLogprobs": True, "logprobs": 2}


@both
@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("long", "length"),
        ("ends-safety", "content_filter"),
        ("ends-recitation", "content_filter"),
        ("ends-spii", "content_filter"),
        ("ends-blocklist", "content_filter"),
        ("ends-prohibited_content", "content_filter"),
        ("ends-other", "stop"),
    ],
)
async def test_reasons_to_stop(vertex: Vertex, stream: bool, wish: str, reason: str) -> None:
    """Each reason of Google's has ours."""
    events = await ask(vertex, stream=stream, text=wish)
    assert finishes(events) == [reason]
    assert text_of(events)


@both
async def test_a_blocked_prompt_is_an_answer_and_billed(vertex: Vertex, stream: bool) -> None:
    """The prompt is refused: nothing is said, the reason is the content filter, and what was read is counted."""
    events = await ask(vertex, stream=stream, text="blocked")
    assert finishes(events) == ["content_filter"]
    assert text_of(events) == ""
    assert events[-1] == Usage(12, 0)


# --- requests ----------------------------------------------------------------------------------------------------


async def test_a_whole_conversation(vertex: Vertex) -> None:
    """Every kind of part goes out in Gemini's words, in order; results stand together and name their function."""
    messages = (
        Message("system", "Be brief."),
        Message("developer", "Be kind."),
        Message(
            "user",
            (
                TextPart("What is this?", cache="5m"),
                ImagePart(data="aW1n", media_type="image/png", detail="low"),
                ImagePart(url="https://example.com/a.webp?x=1", detail="high"),
                FilePart(data="cGRm", media_type="application/pdf", name="a.pdf"),
                FilePart(url="https://example.com/b.pdf"),
                FilePart(text="plain", media_type="text/plain", name="notes"),
                AudioPart(data="d2F2", format="wav"),
            ),
        ),
        Message(
            "assistant",
            (ThinkingPart("Hm.", signature=SIGNATURE), TextPart("Let me see."), ThinkingPart(signature=SIGNATURE)),
            tool_calls=(ToolCall("c1", "weather", '{"n": 1.50}', signature=SIGNATURE), ToolCall("c2", "now", "")),
        ),
        Message("tool", (TextPart("rain"), ImagePart(data="aW1n", media_type="image/png")), tool_call_id="c1"),
        Message("tool", "no clock", tool_call_id="c2", is_error=True),
        Message("system", "Answer now."),
        Message("user", "words"),
    )
    await ask(vertex, messages=messages, tools=TOOLS)
    texts = [{"text": "Be brief."}, {"text": "Be kind."}, {"text": "Answer now."}]
    assert vertex.last["systemInstruction"] == {"parts": texts}
    user, model, results = vertex.last["contents"]
    image = {"inlineData": {"mimeType": "image/png", "data": "aW1n"}}
    assert user == {
        "role": "user",
        "parts": [
            {"text": "What is this?"},
            image,
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://example.com/a.webp?x=1"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "cGRm"}},
            {"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/b.pdf"}},
            {"text": "notes:\nplain"},
            {"inlineData": {"mimeType": "audio/wav", "data": "d2F2"}},
        ],
    }
    assert model == {
        "role": "model",
        "parts": [
            {"text": "Hm.", "thought": True, "thoughtSignature": SIGNATURE},
            {"text": "Let me see."},
            {"text": "", "thoughtSignature": SIGNATURE},
            {"functionCall": {"id": "c1", "name": "weather", "args": {"n": 1.5}}, "thoughtSignature": SIGNATURE},
            {"functionCall": {"id": "c2", "name": "now", "args": {}}},
        ],
    }
    first = {"id": "c1", "name": "weather", "response": {"output": "rain"}, "parts": [image]}
    second = {"id": "c2", "name": "now", "response": {"error": "no clock"}}
    assert results == {
        "role": "user",
        "parts": [{"functionResponse": first}, {"functionResponse": second}, {"text": "words"}],
    }
    assert vertex.last["generationConfig"] == {"mediaResolution": "MEDIA_RESOLUTION_HIGH"}
    assert vertex.last["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "Says the weather.", "parametersJsonSchema": {"type": "object"}},
                {"name": "now"},
            ]
        }
    ]


async def test_calls_of_another_model_are_taken(vertex: Vertex) -> None:
    """A call without a signature, such as a client that knows none sends back, is not refused by Gemini 3; Gemini 2
    needs no such word."""
    messages = (
        Message("user", "a"),
        Message("assistant", tool_calls=(ToolCall("c", "now", "{}"),)),
        Message("tool", "b", tool_call_id="c"),
    )
    assert text_of(await ask(vertex, messages=messages, tools=TOOLS))
    assert text_of(await ask(vertex, FLASH, messages=messages, tools=TOOLS))
    assert "thoughtSignature" not in vertex.last["contents"][1]["parts"][0]


async def test_wishes(vertex: Vertex) -> None:
    """Sampling, format and tier have fields of their own."""
    await ask(
        vertex,
        sampling=Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            seed=7,
            stop=("x", "y"),
        ),
        unset=(),
        output=OutputRule("json_schema", '{"type": "object"}', description="A shape."),
        options=Options(service_tier="flex"),
    )
    assert vertex.last["generationConfig"] == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "seed": 7,
        "stopSequences": ["x", "y"],
        "responseMimeType": "application/json",
        "responseJsonSchema": {"description": "A shape.", "type": "object"},
    }
    assert vertex.last["serviceTier"] == "flex"
    await ask(vertex, output=OutputRule("json_object"))
    assert vertex.last["generationConfig"] == {"responseMimeType": "application/json"}


@pytest.mark.parametrize(
    ("choice", "strict", "config"),
    [
        ("auto", False, None),
        ("auto", True, {"mode": "VALIDATED"}),
        ("none", True, {"mode": "NONE"}),
        ("required", False, {"mode": "ANY"}),
        ("function:now", False, {"mode": "ANY", "allowedFunctionNames": ["now"]}),
    ],
)
async def test_which_tools_are_called(vertex: Vertex, choice: str, strict: bool, config: Any) -> None:
    """Each choice has its mode."""
    await ask(vertex, tools=(Tool("now", strict=strict),), tool_choice=choice)
    assert vertex.last.get("toolConfig", {}).get("functionCallingConfig") == config


@pytest.mark.parametrize(
    ("model", "reasoning", "config"),
    [
        (PRO, Reasoning(effort="minimal"), {"thinkingLevel": "MINIMAL"}),
        (PRO, Reasoning(effort="max"), {"thinkingLevel": "HIGH"}),
        (PRO, Reasoning(budget_tokens=2048), {"thinkingBudget": 2048, "includeThoughts": True}),
        (PRO, Reasoning(adaptive=True, summary="omitted"), {"thinkingBudget": -1}),
        (FLASH, Reasoning(effort="none"), {"thinkingBudget": 0}),
        (FLASH, Reasoning(effort="medium", summary="detailed"), {"thinkingBudget": 8192, "includeThoughts": True}),
        (FLASH, Reasoning(effort="xhigh"), {"thinkingBudget": 24576}),
    ],
)
async def test_how_much_a_model_thinks(vertex: Vertex, model: str, reasoning: Reasoning, config: Any) -> None:
    """Levels for later models, budgets for earlier ones, and thoughts shown where somebody wants to see them."""
    await ask(vertex, model, reasoning=reasoning)
    assert vertex.last["generationConfig"]["thinkingConfig"] == config


@pytest.mark.parametrize(
    "message",
    [
        Message("user", (ImagePart(url="https://example.com/picture"),)),
        Message("assistant", tool_calls=(ToolCall("c", "now", "[1]"),)),
        Message("tool", "a", tool_call_id="never-called"),
        Message("system", (ImagePart(data="AAAA", media_type="image/png"),)),
    ],
    ids=["address without a type", "arguments", "result without a call", "picture in instructions"],
)
async def test_what_gemini_cannot_be_told(vertex: Vertex, message: Message) -> None:
    """It is refused by us, before anything is sent, with the field named."""
    before = len(vertex.seen)
    with pytest.raises(InvalidRequest) as caught:
        await ask(vertex, messages=(message,))
    assert caught.value.param == "messages"
    assert len(vertex.seen) == before


@pytest.mark.parametrize("cloud", [True, False], ids=["vertex", "gemini-api"])
async def test_google_counts(vertex: Vertex, cloud: bool) -> None:
    """Google's own counter is asked, with instructions and tools."""
    messages = (Message("system", "Be brief."), Message("user", "words"))
    async with engine(vertex, cloud=cloud) as running:
        told, estimated = await running.tell_count(chat(messages=messages, tools=TOOLS))
    assert (told > 0, estimated) == (True, False)
    counted = vertex.last if cloud else vertex.last["generateContentRequest"]
    assert {"contents", "systemInstruction", "tools"} <= set(counted)


@pytest.mark.parametrize(
    ("cloud", "model", "method"),
    [
        (True, "text-embedding-005", "predict"),
        (True, "gemini-embedding-001", "batchEmbedContents"),
        (False, "gemini-embedding-001", "batchEmbedContents"),
    ],
)
async def test_embeddings(vertex: Vertex, cloud: bool, model: str, method: str) -> None:
    """Rows in order, counted by Google; one text on Vertex AI has a method of its own."""
    async with engine(vertex, model, cloud=cloud, embeds=True, dimensions=2) as running:
        several = await running.embed(EmbedRequest("e", texts=("a", "bb", "ccc")))
        assert vertex.seen[-1][0].endswith(f"{model}:{method}")
        one = await running.embed(EmbedRequest("e", texts=("a",)))
    rows = [np.frombuffer(row, "<f4").tolist() for row in several.rows]
    assert rows == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    assert (several.dimensions, several.estimated) == (2, False)
    assert several.prompt_tokens == (6 if method == "predict" else 9)
    assert len(one.rows) == 1
    if cloud and method != "predict":
        assert vertex.seen[-1][0].endswith(":embedContent")


async def test_a_long_text_is_not_cut_short(vertex: Vertex) -> None:
    """Google would embed the beginning and say nothing; we have it refuse."""
    async with engine(vertex, "text-embedding-005", embeds=True) as running:
        with pytest.raises(InvalidRequest, match="token count"):
            await running.embed(EmbedRequest("e", texts=("x" * 10_001,)))
        with pytest.raises(InvalidRequest, match="token ids"):
            await running.embed(EmbedRequest("e", ids=((1, 2),)))


# --- failures ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("wish", "error", "again"),
    [
        ("exhausted", ProviderLimited, 36.5),
        ("unavailable", EngineUnavailable, 5),
        ("internal", EngineFailed, None),
        ("denied", EngineFailed, None),
        ("missing", NotFound, None),
        ("too-long", ContextLengthExceeded, None),
        ("billing", EngineFailed, None),
        ("ends-malformed", EngineFailed, None),
        ("html", EngineFailed, None),
    ],
)
async def test_refusals(vertex: Vertex, stream: bool, wish: str, error: type[Exception], again: Any) -> None:
    """Each error of Google's is one of ours, with its hint when to come back; what concerns the account is not for the
    caller."""
    with pytest.raises(error) as caught:
        await ask(vertex, stream=stream, text=wish)
    assert type(caught.value) is error
    assert caught.value.retry_after_seconds == again  # type: ignore[attr-defined]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wish", "error"),
    [("error-inside", ProviderLimited), ("cut", EngineFailed), ("unfinished", EngineFailed), ("garbage", EngineFailed)],
)
async def test_failures_inside_a_stream(vertex: Vertex, wish: str, error: type[Exception]) -> None:
    """An error inside a stream, one that is cut off, and one that ends without saying why fail cleanly."""
    with pytest.raises(error) as caught:
        await ask(vertex, text=wish)
    assert type(caught.value) is error


# --- credentials -------------------------------------------------------------------------------------------------


async def test_one_token_for_many_requests(vertex: Vertex) -> None:
    """Requests at once wait for one token, and later ones use it too."""
    before = len(vertex.issued)
    async with engine(vertex) as running:
        await asyncio.gather(*(collect(running, chat()) for _ in range(5)))
        await collect(running, chat())
    assert len(vertex.issued) == before + 1


async def test_a_token_is_renewed_ahead(vertex: Vertex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near its end a token is still used while the next one is fetched; nobody waits for it."""
    before = len(vertex.issued)
    async with engine(vertex) as running:
        await collect(running, chat())
        real = time.time
        monkeypatch.setattr("interlace.engines.remote.refreshing.time.time", lambda: real() + 3600 - 200)
        await collect(running, chat())
        for _ in range(200):
            if len(vertex.issued) == before + 2:
                break
            await asyncio.sleep(0.01)
    assert len(vertex.issued) == before + 2


async def test_a_token_that_is_not_taken_is_replaced(vertex: Vertex) -> None:
    """Once Google does not take a token any more, the next request brings another; the caller of the failed one hears
    nothing of accounts."""
    async with engine(vertex) as running:
        await collect(running, chat())
        vertex.revoked.update(vertex.issued)
        with pytest.raises(EngineFailed, match="does not accept this gateway's account"):
            await collect(running, chat())
        assert text_of(await collect(running, chat()))


async def test_an_account_that_gets_no_token(vertex: Vertex, account: Path) -> None:
    """The request fails with an error for the operator, and so does one without any account."""
    vertex.refuses = True
    with pytest.raises(EngineFailed, match="no Google Cloud credentials"):
        await ask(vertex)
    account.unlink()
    with pytest.raises(EngineFailed, match="no Google Cloud credentials"):
        await ask(vertex)


async def test_a_wrong_key_is_the_operators(vertex: Vertex) -> None:
    """Google calls it a bad request; the caller did nothing wrong, and does not see the key."""
    async with engine(vertex, cloud=False) as running:
        running._wire._key._text = "wrong"  # type: ignore[attr-defined]
        with pytest.raises(EngineFailed, match="does not accept this gateway's account"):
            await collect(running, chat())


async def _never(outgoing: object) -> Any:
    raise AssertionError(outgoing)


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({"model": PRO}, f"https://generativelanguage.googleapis.com/v1/models/{PRO}"),
        ({"model": "tunedModels/a b"}, "https://generativelanguage.googleapis.com/v1/tunedModels/a%20b"),
        (
            {"model": PRO, "project": "p"},
            f"https://aiplatform.googleapis.com/v1beta1/projects/p/locations/global/publishers/google/models/{PRO}",
        ),
        (
            {"model": "m", "project": "p", "location": "eu", "publisher": "meta"},
            "https://aiplatform.eu.rep.googleapis.com/v1beta1/projects/p/locations/eu/publishers/meta/models/m",
        ),
        (
            {"model": "endpoints/12", "project": "p", "location": "europe-west4"},
            "https://europe-west4-aiplatform.googleapis.com/v1beta1/projects/p/locations/europe-west4/endpoints/12",
        ),
    ],
)
async def test_addresses(more: dict[str, str], url: str) -> None:
    """Each place and kind of model has its address, as Google's own SDK builds it."""
    settings = ModelSettings(name="far", engine="vertex", api_key="${MY_KEY}", **more)
    outgoing = await make(settings, {"MY_KEY": KEY}, _never).generate(chat(), ask_usage=True)
    assert outgoing.url == f"{url}:streamGenerateContent?alt=sse"


def test_a_project_or_a_key_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either there is nobody to ask; without google-auth no token. The error says what to do."""
    with pytest.raises(ConfigError, match="GEMINI_API_KEY"):
        RemoteEngine(ModelSettings(name="far", engine="vertex", model=PRO), {})
    assert RemoteEngine(ModelSettings(name="far", engine="vertex", model=PRO), {"GEMINI_API_KEY": KEY})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"interlace\[vertex\]"):
        RemoteEngine(ModelSettings(name="far", engine="vertex", model=PRO, project="p"), {})
