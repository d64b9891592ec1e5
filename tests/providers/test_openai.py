"""The engine `openai` against OpenAI's API on loopback, which takes what OpenAI's schemas take and nothing else."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interlace.engines.remote import RemoteEngine
from interlace.engines.types import (
    AudioPart,
    Delta,
    EmbedRequest,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    Usage,
)
from interlace.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InterlaceError,
    InvalidRequest,
    Overloaded,
    ProviderLimited,
)
from tests.providers.servers.openai import GREETING, KEY, OpenAI, running_openai
from tests.support.asking import OPEN, calls_of, chat, collect, collect_into, finishes, remote, text_of, thought_of

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
BILL = Usage(30, 7, cached_tokens=20, cache_write_tokens=3, reasoning_tokens=2, service_tier="default")
TOOLS = (Tool("weather"), Tool("now"))


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAI]:
    """The server."""
    with running_openai() as running:
        yield running


@asynccontextmanager
async def engine(server: OpenAI, model: str = "text", **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine with the right key. It takes the server for OpenAI's own."""
    async with remote(f"{server.url}/v1", model, KEY, **({"cache_marks": True} | more)) as made:
        yield made


async def sent(server: OpenAI, request: GenerateRequest, **more: Any) -> dict[str, Any]:
    """The body that the server accepted, without what every body has."""
    async with engine(server, stream=False, **more) as made:
        await made.count(request)
        await collect(made, request)
    body = dict(server.last)
    assert body.pop("model") == "text"
    return body


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_read_streamed_or_whole(server: OpenAI, stream: bool) -> None:
    """Text, end, tier and the bill by kind."""
    async with engine(server, stream=stream) as made:
        events = await collect(made, chat(n=2))
    assert [text_of(events, i) for i in (0, 1)] == [GREETING] * 2
    assert finishes(events) == ["stop"] * 2
    assert events[-1] == BILL


@pytest.mark.parametrize("stream", [True, False])
async def test_parallel_calls_are_told_apart(server: OpenAI, stream: bool) -> None:
    """Two calls with their ids and arguments; one, where one at a time was asked for."""
    async with engine(server, "calls", stream=stream) as made:
        events = await collect(made, chat(tools=TOOLS))
        assert calls_of(events) == [("call_weather", "weather", '{"city": "Paris"}'), ("call_now", "now", "{}")]
        assert finishes(events) == ["tool_calls"]
        one = await collect(made, chat(tools=TOOLS, parallel_tool_calls=False))
    assert [name for _, name, _ in calls_of(one)] == ["weather"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_told_apart_from_an_answer(server: OpenAI, stream: bool) -> None:
    """Its text says why the model will not answer."""
    async with engine(server, "refusal", stream=stream) as made:
        events = await collect(made, chat())
    assert text_of(events) == "I can't help with that."
    assert all(event.refused for event in events if isinstance(event, Delta) and event.text)


@pytest.mark.parametrize("stream", [True, False])
async def test_thoughts_are_shown(server: OpenAI, stream: bool) -> None:
    """What compatible servers show of a model's thoughts reaches the caller, apart from the answer."""
    async with engine(server, "thinks", stream=stream) as made:
        events = await collect(made, chat())
    assert thought_of(events) == "Let me see."
    assert text_of(events) == "Four."


async def test_thoughts_of_mistral_and_signatures_of_gemini(server: OpenAI) -> None:
    """Each in its makers' own shape: a list of chunks, and what must come back with a call."""
    async with engine(server, "plays:mistral-thinking.sse") as made:
        events = await collect(made, chat("is this fixture about two and two, and what does that make, if anything?"))
    assert (thought_of(events), text_of(events)) == ("Two and two make four.", "Four.")
    assert events[-1] == Usage(10, 12)
    async with engine(server, "plays:gemini-calls.sse") as made:
        events = await collect(made, chat(tools=TOOLS))
    pieces = [piece for event in events if isinstance(event, Delta) for piece in event.tool_calls]
    assert [(piece.name, piece.signature) for piece in pieces if piece.name] == [("weather", "c2VhbGVk"), ("now", "")]


async def test_an_answer_follows_a_schema(server: OpenAI) -> None:
    """The schema goes out strictly, and the answer keeps to it."""
    rule = OutputRule("json_schema", '{"type": "object"}', name="sum", description="A sum.")
    async with engine(server, "json") as made:
        assert text_of(await collect(made, chat(output=rule))) == '{"sum": 4}'
    assert server.last["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "sum", "description": "A sum.", "schema": {"type": "object"}, "strict": True},
    }


ENDS = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter",
        "function_call": "tool_calls"}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ENDS)
async def test_every_reason_to_end_has_a_word(server: OpenAI, reason: str, stream: bool) -> None:
    """A safety stop is one, and a bound is one."""
    async with engine(server, f"ends:{reason}", stream=stream) as made:
        assert finishes(await collect(made, chat())) == [ENDS[reason]]


async def test_prompts_logprobs_and_embeddings(server: OpenAI) -> None:
    """The older endpoint, tokens with their alternatives, and rows of numbers."""
    async with engine(server) as made:
        prompted = await collect(made, GenerateRequest(id="r", prompt="a b", unset=OPEN))
        assert text_of(prompted) == GREETING
        events = await collect(made, chat(sampling=Sampling(logprobs=1)))
    tokens = [token for event in events if isinstance(event, Delta) for token in event.logprobs]
    assert b"".join(token.bytes for token in tokens).decode() == GREETING
    assert tokens[0].top[0].bytes == b"x"
    async with engine(server, "e", embeds=True) as made:
        got = await made.embed(EmbedRequest(id="r", texts=("a", "b")))
    assert [struct.unpack("<2f", row) for row in got.rows] == [(0.0, 0.5), (1.0, 0.5)]
    assert got.prompt_tokens == 5


# --- out ---------------------------------------------------------------------------------------------------------

HI = {"messages": [{"role": "user", "content": "hi"}]}
NATIVE = {"prediction": {"type": "content", "content": "a"}}

# what is asked, settings → what is in the body beside `HI`
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "an effort": ({"reasoning": Reasoning("xhigh", summary="auto")}, {}, {"reasoning_effort": "xhigh"}),
    "a small budget": ({"reasoning": Reasoning(budget_tokens=4096)}, {}, {"reasoning_effort": "low"}),
    "a budget": ({"reasoning": Reasoning(budget_tokens=9000)}, {}, {"reasoning_effort": "medium"}),
    "a large budget": ({"reasoning": Reasoning(budget_tokens=30000)}, {}, {"reasoning_effort": "high"}),
    "as it likes": ({"reasoning": Reasoning(adaptive=True)}, {}, {}),
    "options": (
        {"options": Options("low", "flex", "u", "s", "k", "24h", {"a": "b"})},
        {},
        {"verbosity": "low", "service_tier": "flex", "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
         "prompt_cache_retention": "24h"},
    ),
    "tags": (
        {"options": Options(metadata={"a": "b"})},
        {"store": True},
        {"metadata": {"a": "b"}, "store": True},
    ),
    "nothing to keep": ({}, {"store": True}, {}),
    "what only it knows": ({"native": NATIVE, "dialect": "openai.chat"}, {}, NATIVE),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
async def test_every_wish_goes_out_as_openai_writes_it(server: OpenAI, case: str) -> None:
    """The server, which knows OpenAI's fields only, accepts it, and it is exactly what was asked."""
    asked, settings, expected = BODIES[case]
    assert await sent(server, chat("hi", **asked), **settings) == HI | expected


async def test_a_conversation_keeps_all_its_parts(server: OpenAI) -> None:
    """Pictures, files, sounds, refusals and marks are where they were; what a result cannot hold follows it."""
    pdf = base64.b64encode(b"%PDF-1.4").decode()
    messages = (
        Message("developer", (TextPart("be good", "12h"),)),
        Message("user", (TextPart("look"), ImagePart(PNG, "image/png", detail="low", cache="30m"),
                         ImagePart(url="https://a.b/c.png"), FilePart(pdf, "application/pdf", name="a.pdf"),
                         FilePart(text="t", name="n.txt"), AudioPart("UklGRg==", "wav"))),
        Message("assistant", (ThinkingPart("hm"), TextPart("one"), RefusalPart("no"))),
        Message("assistant", "", tool_calls=(ToolCall("c1", "a", "{}"), ToolCall("c2", "b", "{}"))),
        Message("tool", (TextPart("sun"), ImagePart(PNG, "image/png")), tool_call_id="c1"),
        Message("tool", "rain", tool_call_id="c2", is_error=True),
        Message("user", "and?", name="ann", cache="1h"),
    )  # fmt: skip
    body = await sent(server, chat(messages=messages))
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert body["messages"] == [
        {"role": "developer", "content": [
            {"type": "text", "text": "be good", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}]},
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {**picture["image_url"], "detail": "low"},  # type: ignore[dict-item]
             "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}},
            {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{pdf}"}},
            {"type": "text", "text": "n.txt:\nt"},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ]},
        {"role": "assistant", "content": "one", "refusal": "no"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}
            for id, name in (("c1", "a"), ("c2", "b"))]},
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
        {"role": "tool", "content": "rain", "tool_call_id": "c2"},
        {"role": "user", "content": [picture]},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "and?", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
    ]  # fmt: skip


async def test_a_server_that_knows_more_gets_more(server: OpenAI) -> None:
    """With `extensions` a prefill goes on as vLLM has it, thoughts go back, and a call keeps its signature."""
    server.more = {"continue_final_message": {"const": True}, "add_generation_prompt": {"const": False}}
    messages = (Message("user", "hi"), Message("assistant", "The best"))
    try:
        body = await sent(server, chat(messages=messages, prefill=True), extensions=True)
    finally:
        server.more = {}
    assert body["continue_final_message"] is True
    assert body["messages"][-1] == {"role": "assistant", "content": "The best"}
    from interlace.engines.remote.providers.openai_messages import Manners, messages_of

    thought = Message("assistant", (ThinkingPart("hm"), TextPart("a")), tool_calls=(ToolCall("c", "a", "{}", "sig"),))
    (made,) = messages_of([thought], Manners(thoughts=True, signatures=True))
    assert made["reasoning_content"] == "hm"
    assert made["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "sig"}}


# --- errors ------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[type[InterlaceError], str]] = {
    "fails:429": (ProviderLimited, "rate limit"),
    "fails:quota": (EngineFailed, "does not accept this gateway's account"),
    "fails:500": (EngineFailed, "HTTP 500"),
    "fails:503": (EngineUnavailable, "not available"),
    "fails:long": (ContextLengthExceeded, "maximum context length"),
    "fails:filter": (ContentFiltered, "flagged"),
    "plays:azure-filtered-prompt.json": (ContentFiltered, "content management policy"),
}


@pytest.mark.parametrize("model", FAULTS)
async def test_a_fault_is_a_clean_error(server: OpenAI, model: str) -> None:
    """The error's class and words."""
    kind, words = FAULTS[model]
    async with engine(server, model) as made:
        with pytest.raises(InterlaceError, match=words) as caught:
            await collect(made, chat())
    assert type(caught.value) is kind


async def test_a_rate_limit_says_to_the_millisecond_when_to_come_back(server: OpenAI) -> None:
    """`retry-after-ms` goes before Retry-After."""
    async with engine(server, "fails:429") as made:
        with pytest.raises(Overloaded) as caught:
            await collect(made, chat())
    assert caught.value.retry_after_seconds == 2.5


# --- presets -----------------------------------------------------------------------------------------------------

PRESETS = {
    "mistral": ({"sampling": Sampling(seed=4, max_tokens=5)}, {"random_seed": 4, "max_tokens": 5}),
    "groq": ({"sampling": Sampling(seed=4, max_tokens=5)}, {"seed": 4, "max_completion_tokens": 5}),
    "together": (
        {"sampling": Sampling(top_k=4), "unset": ("temperature", "top_p", "min_p", "repetition_penalty")},
        {"top_k": 4},
    ),
    "ollama": ({"reasoning": Reasoning("low")}, {"reasoning_effort": "low"}),
    "vllm": ({"output": OutputRule("regex", "a")}, {"structured_outputs": {"regex": "a"}}),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
async def test_presets_speak_as_their_makers_document(server: OpenAI, preset: str) -> None:
    """Each server gets its own words, instructions as it knows them, and nothing that it passes over in silence."""
    server.more = {name: {} for name in ("random_seed", "top_k", "structured_outputs")}
    asked, expected = PRESETS[preset]
    messages = (Message("developer", "be good"), Message("user", "hi"))
    try:
        async with remote(f"{server.url}/v1", "text", KEY, engine=preset) as made:
            await collect(made, chat(messages=messages, **({"unset": OPEN} | asked)))
    finally:
        server.more = {}
    body = {name: value for name, value in server.last.items() if name not in {"stream", "stream_options", "model"}}
    assert body.pop("messages")[0] == {"role": "system", "content": "be good"}
    assert body == expected


SILENT: dict[str, dict[str, Any]] = {
    "mistral": {"sampling": Sampling(logit_bias={1: 1.0})},
    "groq": {"n": 2},
    "together": {"sampling": Sampling(logprobs=1)},
    "ollama": {"tools": TOOLS, "tool_choice": "required"},
    "vllm": {"messages": (Message("user", (FilePart("AAAA", "application/pdf"),)),)},
}


@pytest.mark.parametrize("preset", SILENT)
async def test_what_a_preset_would_pass_over_is_refused(preset: str) -> None:
    """Some servers ignore what they do not know: the caller hears it from us."""
    async with remote("http://127.0.0.1:9/v1", "m", engine=preset) as made:
        with pytest.raises(InvalidRequest, match="does not know it"):
            await made.count(chat("hi", **SILENT[preset]))


def test_presets_know_their_address_and_key() -> None:
    """Only what was left out is filled in."""
    from interlace.config import ModelSettings
    from interlace.engines.remote.providers.presets import filled

    made = filled(ModelSettings(name="a", engine="mistral", model="m"))
    assert (made.base_url, made.api_key) == ("https://api.mistral.ai/v1", "${MISTRAL_API_KEY}")
    own = ModelSettings(name="a", engine="vllm", model="m", base_url="http://x/v1", extensions=False, api_key="${K}")
    assert filled(own) == filled(filled(own))
    assert (filled(own).base_url, filled(own).extensions, filled(own).api_key) == ("http://x/v1", False, "${K}")


async def test_what_came_before_a_fault_is_kept(server: OpenAI) -> None:
    """Azure's filter stops an answer in the middle: what was said stays, and why it ended is told."""
    events: list[Any] = []
    async with engine(server, "filtered") as made:
        await collect_into(events, made, chat())
    assert text_of(events) == "one"
    assert finishes(events) == ["content_filter"]
    assert events[-1] == BILL
