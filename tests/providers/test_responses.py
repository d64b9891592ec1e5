"""The engine `openai` with `api: responses`, against OpenAI's Responses API on loopback."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interlace.engines.remote import RemoteEngine
from interlace.engines.types import (
    AudioPart,
    Delta,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Reasoning,
    Sampling,
    TextPart,
    ThinkingPart,
    Thought,
    Tool,
    ToolCall,
    Usage,
)
from interlace.errors import EngineFailed, InterlaceError, InvalidRequest, ProviderLimited
from tests.providers.servers.openai import KEY, OpenAI, running_openai
from tests.providers.servers.openai_responses import SEALED
from tests.support.asking import calls_of, chat, collect, collect_into, finishes, remote, text_of

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
BILL = Usage(30, 12, 20, 3, 5, service_tier="default")


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAI]:
    """The server."""
    with running_openai() as running:
        yield running


@asynccontextmanager
async def engine(server: OpenAI, model: str = "thinks", **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine with the right key. It takes the server for OpenAI's own."""
    async with remote(f"{server.url}/v1", model, KEY, api="responses", **({"cache_marks": True} | more)) as made:
        yield made


async def sent(server: OpenAI, request: GenerateRequest, **more: Any) -> dict[str, Any]:
    """The body that the server accepted, without what every body has."""
    async with engine(server, stream=False, **more) as made:
        await made.count(request)
        await collect(made, request)
    body = dict(server.last)
    assert body.pop("model") == "thinks"
    assert body.pop("store") is more.get("store", False)
    assert body["include"][0] == "reasoning.encrypted_content"
    return body


@pytest.mark.parametrize("stream", [True, False])
async def test_thoughts_come_short_and_sealed(server: OpenAI, stream: bool) -> None:
    """Both short versions, apart from each other; the seal, with the name that it needs to come back; the bill."""
    async with engine(server, stream=stream) as made:
        events = await collect(made, chat())
    thoughts = [event.thought for event in events if isinstance(event, Delta) and event.thought]
    shown = "".join(thought.text or "|" for thought in thoughts if thought.summary)
    assert shown == "Let me see.|It is four.|"
    assert thoughts[-1] == Thought(signature=SEALED, id="rs_1")
    assert text_of(events) == "Four."
    assert finishes(events) == ["stop"]
    assert events[-1] == BILL


@pytest.mark.parametrize("stream", [True, False])
async def test_parallel_calls_are_told_apart(server: OpenAI, stream: bool) -> None:
    """Calls go by the id that their results name."""
    async with engine(server, "calls", stream=stream) as made:
        events = await collect(made, chat(tools=(Tool("weather"), Tool("now"))))
    assert calls_of(events) == [("call_weather", "weather", '{"city": "Paris"}'), ("call_now", "now", "{}")]
    assert finishes(events) == ["tool_calls"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_told_apart_from_an_answer(server: OpenAI, stream: bool) -> None:
    """Its text says why the model will not answer."""
    async with engine(server, "refusal", stream=stream) as made:
        events = await collect(made, chat())
    assert text_of(events) == "I can't help with that."
    assert all(event.refused for event in events if isinstance(event, Delta) and event.text)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")])
async def test_an_incomplete_answer_says_why(server: OpenAI, reason: str, finish: str, stream: bool) -> None:
    """A bound and a filter are two things."""
    async with engine(server, f"ends:{reason}", stream=stream) as made:
        assert finishes(await collect(made, chat())) == [finish]


HI = {"input": [{"type": "message", "role": "user", "content": "hi"}], "include": ["reasoning.encrypted_content"]}

# what is asked, settings → what is in the body beside `HI`
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}, {}),
    "sampling": (
        {"sampling": Sampling(max_tokens=20, temperature=0.5, logprobs=2), "unset": ("top_p",)},
        {},
        {"max_output_tokens": 20, "temperature": 0.5, "top_logprobs": 2,
         "include": ["reasoning.encrypted_content", "message.output_text.logprobs"]},
    ),
    "a tool": (
        {"tools": (Tool("a", "It is.", {"type": "object"}, strict=True),), "tool_choice": "function:a",
         "parallel_tool_calls": False},
        {},
        {"tools": [{"type": "function", "name": "a", "description": "It is.", "parameters": {"type": "object"},
                    "strict": True}], "tool_choice": {"type": "function", "name": "a"}, "parallel_tool_calls": False},
    ),
    "a schema": (
        {"output": OutputRule("json_schema", '{"type": "object"}', "n", "d"), "options": Options(verbosity="low")},
        {},
        {"text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "description": "d",
                                                 "schema": {"type": "object"}, "strict": True}}},
    ),
    "an object": ({"output": OutputRule("json_object")}, {}, {"text": {"format": {"type": "json_object"}}}),
    "thoughts": (
        {"reasoning": Reasoning("xhigh", summary="summarized")},
        {},
        {"reasoning": {"effort": "xhigh", "summary": "auto"}},
    ),
    "options": (
        {"options": Options("", "flex", "u", "s", "k", "24h", {"a": "b"})},
        {"store": True},
        {"service_tier": "flex", "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
         "prompt_cache_retention": "24h", "metadata": {"a": "b"}},
    ),
    "what only it knows": (
        {"native": {"context_management": [{"type": "compaction"}]}, "dialect": "openai.responses"},
        {},
        {"context_management": [{"type": "compaction"}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
async def test_every_field_goes_out_as_openai_writes_it(server: OpenAI, case: str) -> None:
    """The server, which knows OpenAI's fields only, accepts it, and it is exactly what was asked."""
    asked, settings, expected = BODIES[case]
    assert await sent(server, chat("hi", **asked), **settings) == HI | expected


async def test_a_conversation_keeps_all_its_parts(server: OpenAI) -> None:
    """Turns become items in order; thoughts go back with their seals, and those without one do not."""
    pdf = base64.b64encode(b"%PDF-1.4").decode()
    messages = (
        Message("system", "be good"),
        Message("user", (TextPart("look", "30m"), ImagePart(PNG, "image/png", detail="low"),
                         FilePart(pdf, "application/pdf", name="a.pdf"), FilePart(url="https://a.b/c.pdf"),
                         FilePart(text="t", name="n.txt"))),
        Message("assistant", (ThinkingPart("", SEALED, summary=("Hm.",), id="rs_9"), ThinkingPart("lost"),
                              TextPart("let me")), tool_calls=(ToolCall("c1", "a", "{}"),)),
        Message("tool", (TextPart("sun"), ImagePart(PNG, "image/png")), tool_call_id="c1"),
        Message("user", "and?", name="ann", cache="default"),
    )  # fmt: skip
    body = await sent(server, chat(messages=messages))
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
    assert body["input"] == [
        {"type": "message", "role": "system", "content": "be good"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "look", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}},
            {**picture, "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{pdf}"},
            {"type": "input_file", "file_url": "https://a.b/c.pdf"},
            {"type": "input_text", "text": "n.txt:\nt"},
        ]},
        {"type": "reasoning", "id": "rs_9", "encrypted_content": SEALED,
         "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"role": "assistant", "content": "let me"},
        {"type": "function_call", "call_id": "c1", "name": "a", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [
            {"type": "input_text", "text": "sun"}, {**picture, "detail": "auto"}]},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "ann: and?", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
    ]  # fmt: skip


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"messages": None, "prompt": "a"}, "prompt"),
    "n": ({"n": 2}, "n"),
    "stop": ({"sampling": Sampling(stop=("a",))}, "stop"),
    "presence_penalty": ({"sampling": Sampling(presence_penalty=0.5)}, "presence_penalty"),
    "prefill": ({"prefill": True}, "messages"),
    "sound": ({"messages": (Message("user", (AudioPart("", "wav"),)),)}, "messages"),
    "a pattern": ({"output": OutputRule("regex", "a")}, "structured_outputs"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_it_does_not_know_is_refused_by_name(server: OpenAI, case: str) -> None:
    """Before anything is reserved or sent."""
    asked, param = REFUSALS[case]
    async with engine(server) as made:
        with pytest.raises(InvalidRequest) as caught:
            await made.count(chat("hi", **asked))
    assert caught.value.param == param


FAULTS: dict[str, tuple[type[InterlaceError], str, str]] = {
    "error": (ProviderLimited, "rate limit", "one"),
    "failed": (ProviderLimited, "rate limit", "one"),
    "wrapped": (ProviderLimited, "rate limit", ""),
    "cut": (EngineFailed, "ended the connection", "one"),
    "quiet": (EngineFailed, "before it was complete", "one"),
    "garbage": (EngineFailed, "no answer", "one"),
    "endless": (EngineFailed, "endless line", "one"),
    "html": (EngineFailed, "neither events nor JSON", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_a_clean_error(server: OpenAI, fault: str) -> None:
    """The error's class and words, and what was said before it."""
    kind, words, before = FAULTS[fault]
    events: list[Any] = []
    async with engine(server, f"breaks:{fault}") as made:
        with pytest.raises(InterlaceError, match=words) as caught:
            await collect_into(events, made, chat())
    assert type(caught.value) is kind
    assert text_of(events) == before
