"""The engine `anthropic` against Anthropic's API on loopback: every field out, every answer and error in."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interlace.engines.fields import Refused
from interlace.engines.remote import RemoteEngine
from interlace.engines.remote.providers.anthropic_request import DEFAULT_MAX_TOKENS
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
    RefusalPart,
    Sampling,
    Started,
    TextPart,
    ThinkingPart,
    Thought,
    Tool,
    ToolCall,
    Usage,
)
from interlace.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InterlaceError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    ProviderLimited,
)
from tests.providers.servers.anthropic import GREETING, KEY, REDACTED, SEALED, Anthropic, running_anthropic
from tests.support.asking import calls_of, chat, collect, collect_into, finishes, remote, text_of, thought_of

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
BILL = Usage(34, 7, cached_tokens=20, cache_write_tokens=3, service_tier="standard")


@pytest.fixture(scope="module")
def server() -> Iterator[Anthropic]:
    """The server."""
    with running_anthropic() as running:
        yield running


@asynccontextmanager
async def engine(server: Anthropic, model: str = "text", **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine with the right key."""
    async with remote(server.url, model, KEY, engine="anthropic", **more) as made:
        yield made


async def sent(server: Anthropic, request: GenerateRequest, model: str = "text", **more: Any) -> dict[str, Any]:
    """The body that the server accepted, without what every body has."""
    async with engine(server, model, stream=False, **more) as made:
        await made.count(request)
        await collect(made, request)
    body = dict(server.last)
    assert body.pop("model") == model
    return body


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_read_streamed_or_whole(server: Anthropic, stream: bool) -> None:
    """Text, end and the bill: what the provider counts apart (read from a cache, written to it) is in the prompt."""
    async with engine(server, stream=stream) as made:
        events = await collect(made, chat())
    assert events[0] == Started(34, 20, estimated=True)
    assert text_of(events) == GREETING
    assert finishes(events) == ["stop"]
    assert events[-1] == BILL


@pytest.mark.parametrize("stream", [True, False])
async def test_thoughts_come_with_their_seals(server: Anthropic, stream: bool) -> None:
    """A thought, its signature and one that is sealed, in order before the text; thought tokens are billed as such."""
    async with engine(server, "thinks", stream=stream) as made:
        events = await collect(made, chat(reasoning=Reasoning(adaptive=True)))
    thoughts = [event.thought for event in events if isinstance(event, Delta) and event.thought]
    assert thought_of(events) == "Let me see."
    assert thoughts[-2:] == [Thought(signature=SEALED), Thought(redacted=REDACTED)]
    assert text_of(events) == "Four."
    assert events[-1] == Usage(34, 7, 20, 3, 2, service_tier="priority")


@pytest.mark.parametrize("stream", [True, False])
async def test_parallel_calls_are_told_apart(server: Anthropic, stream: bool) -> None:
    """Two calls with their ids; the one without arguments has an empty object, not an empty text."""
    async with engine(server, "calls", stream=stream) as made:
        events = await collect(made, chat(tools=(Tool("weather"), Tool("now"))))
    first, second = calls_of(events)
    assert (first[0], first[1], json.loads(first[2])) == ("toolu_01A09q90qw90lq917835lq9", "weather", {"city": "Paris"})
    assert second == ("toolu_01B09q90qw90lq917835lq9", "now", "{}")
    assert text_of(events) == "Let me look."
    assert finishes(events) == ["tool_calls"]


ENDS = {
    "end_turn": "stop", "max_tokens": "length", "stop_sequence": "stop", "tool_use": "tool_calls",
    "pause_turn": "stop", "refusal": "content_filter", "model_context_window_exceeded": "length",
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ENDS)
async def test_every_reason_to_end_has_a_word(server: Anthropic, reason: str, stream: bool) -> None:
    """A safety stop is one, a bound is one, and the stop sequence that ended it is named."""
    async with engine(server, f"ends:{reason}", stream=stream) as made:
        events = await collect(made, chat(sampling=Sampling(stop=("END", "x"))))
    assert finishes(events) == [ENDS[reason]]
    stops = [event.stop for event in events if isinstance(event, Delta) and event.finish_reason]
    assert stops == ["END" if reason == "stop_sequence" else None]


async def test_an_answer_follows_a_schema(server: Anthropic) -> None:
    """The schema goes out as the API wants it, beside an effort."""
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "additionalProperties": False}
    rule = OutputRule("json_schema", json.dumps(schema))
    async with engine(server, "json") as made:
        events = await collect(made, chat(output=rule, reasoning=Reasoning("minimal"), dialect="anthropic.messages"))
    assert text_of(events) == '{"sum": 4}'
    assert server.last["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}


async def test_the_provider_counts_prompts(server: Anthropic) -> None:
    """Its counter is asked with what the model reads, and nothing that it does not know."""
    request = chat("hello out there", max_tokens=5, tools=(Tool("a"),), options=Options(user="u"))
    async with engine(server) as made:
        told, estimated = await made.tell_count(request)
    path, body = server.seen[-1]
    assert path == "/v1/messages/count_tokens"
    assert set(body) == {"model", "messages", "tools"}
    assert (told, estimated) == (len(json.dumps(["", body["messages"], body["tools"]]).split()), False)


# --- out ---------------------------------------------------------------------------------------------------------

HI = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
PLAIN: dict[str, Any] = {"messages": HI, "max_tokens": DEFAULT_MAX_TOKENS}
TOOL = {"name": "a", "input_schema": {"type": "object", "properties": {}}}
OWN = {"dialect": "anthropic.messages"}

# what is asked → what is in the body beside `PLAIN`
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "a bound": ({"sampling": Sampling(max_tokens=5)}, {"max_tokens": 5}),
    "sampling": (
        {"sampling": Sampling(temperature=0.5, top_p=0.9, top_k=4, stop=("a", "b")), "unset": ()},
        {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["a", "b"]},
    ),
    "a tool": (
        {"tools": (Tool("a", "It is.", {"properties": {"b": {}}}, strict=True, cache="1h"),)},
        {"tools": [{"name": "a", "description": "It is.", "strict": True,
                    "input_schema": {"type": "object", "properties": {"b": {}}},
                    "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    ),
    "one call at a time": (
        {"tools": (Tool("a"),), "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    "any tool": (
        {"tools": (Tool("a"),), "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
    ),
    "that tool": (
        {"tools": (Tool("a"),), "tool_choice": "function:a", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "a", "disable_parallel_tool_use": True}},
    ),
    "no tool": (
        {"tools": (Tool("a"),), "tool_choice": "none", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
    ),
    "a budget of thoughts": (
        {"reasoning": Reasoning(budget_tokens=2000, summary="omitted")},
        {"thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"},
         "max_tokens": DEFAULT_MAX_TOKENS + 2000},
    ),
    "thinking as it likes": (
        {"reasoning": Reasoning("max", adaptive=True, summary="detailed"), **OWN},
        {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "max"}},
    ),
    "an effort": ({"reasoning": Reasoning("high"), **OWN}, {"output_config": {"effort": "high"}}),
    "an effort in another's words": (
        {"reasoning": Reasoning("high")},
        {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive"}},
    ),
    "an effort where a tool is forced": (
        {"reasoning": Reasoning("high"), "tools": (Tool("a"),), "tool_choice": "required"},
        {"output_config": {"effort": "high"}, "tools": [TOOL], "tool_choice": {"type": "any"}},
    ),
    "what changes nothing": ({"sampling": Sampling(temperature=1.0, top_p=1.0), "unset": ()}, {}),
    "no thoughts": ({"reasoning": Reasoning("none")}, {"thinking": {"type": "disabled"}}),
    "options": (
        {"options": Options(user="u", service_tier="auto", safety_identifier="s")},
        {"metadata": {"user_id": "u"}, "service_tier": "auto"},
    ),
    "options in another's words": (
        {"options": Options(safety_identifier="s", service_tier="flex")},
        {"metadata": {"user_id": "s"}, "service_tier": "standard_only"},
    ),
    "what only it knows": (
        {"native": {"inference_geo": "us"}, "tools": (Tool("a", native={"defer_loading": True}),), **OWN},
        {"inference_geo": "us", "tools": [TOOL | {"defer_loading": True}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
async def test_every_field_goes_out_as_anthropic_writes_it(server: Anthropic, case: str) -> None:
    """The strict server accepts it, and it is exactly what was asked."""
    asked, expected = BODIES[case]
    given = {"unset": ("temperature", "top_p", "top_k"), **asked}
    assert await sent(server, chat("hi", **given)) == PLAIN | expected


async def test_a_conversation_keeps_all_its_parts(server: Anthropic) -> None:
    """Instructions apart, turns of one role joined, results and pictures in them, marks and seals where they were."""
    document = base64.b64encode(b"%PDF-1.4").decode()
    messages = (
        Message("system", "be good"),
        Message("developer", (TextPart("and brief", "default"),)),
        Message("user", (TextPart("look"), ImagePart(PNG, "image/png"), ImagePart(url="https://a.b/c.png"))),
        Message("user", (FilePart(document, "application/pdf", name="a", cache="12h"), FilePart(url="https://a.b/c.pdf"),
                         FilePart(text="t", media_type="text/plain", name="n"),
                         FilePart(base64.b64encode(b"csv").decode(), "text/csv"))),
        Message("assistant", (ThinkingPart("Hm.", SEALED), ThinkingPart(redacted=REDACTED), ThinkingPart("lost"),
                              TextPart("let me")),
                tool_calls=(ToolCall("t1", "a", '{"x": 1}'), ToolCall("t2", "b", "", cache="default"))),
        Message("tool", "sun", tool_call_id="t1", cache="1h"),
        Message("tool", (TextPart("no"), ImagePart(PNG, "image/png")), tool_call_id="t2", is_error=True),
        Message("user", "and now?", name="ann"),
        Message("assistant", (RefusalPart("I will not."),)),
        Message("system", "be kind"),
        Message("user", "please"),
    )  # fmt: skip
    body = await sent(server, chat(messages=messages))
    hour, plain = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    assert body["system"] == [
        {"type": "text", "text": "be good"},
        {"type": "text", "text": "and brief", "cache_control": plain},
    ]
    assert body["messages"] == [
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            picture,
            {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}},
            {"type": "document", "title": "a", "cache_control": hour,
             "source": {"type": "base64", "media_type": "application/pdf", "data": document}},
            {"type": "document", "source": {"type": "url", "url": "https://a.b/c.pdf"}},
            {"type": "document", "title": "n", "source": {"type": "text", "media_type": "text/plain", "data": "t"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "csv"}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": SEALED},
            {"type": "redacted_thinking", "data": REDACTED},
            {"type": "text", "text": "let me"},
            {"type": "tool_use", "id": "t1", "name": "a", "input": {"x": 1}},
            {"type": "tool_use", "id": "t2", "name": "b", "input": {}, "cache_control": plain},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "sun", "cache_control": hour},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
             "content": [{"type": "text", "text": "no"}, picture]},
            {"type": "text", "text": "ann: and now?"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "I will not."}]},
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": [{"type": "text", "text": "please"}]},
    ]  # fmt: skip


async def test_a_prefill_is_the_last_turn(server: Anthropic) -> None:
    """It goes on only where that was asked; elsewhere the last turn would be continued unasked, so it is refused."""
    messages = (Message("user", "hi"), Message("assistant", "The best"))
    body = await sent(server, chat(messages=messages, prefill=True))
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "The best"}]}
    with pytest.raises(InvalidRequest, match="go on with the last message"):
        await sent(server, chat(messages=messages))


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"messages": None, "prompt": "a"}, "prompt"),
    "n": ({"n": 2}, "n"),
    "heat": ({"sampling": Sampling(temperature=1.5)}, "temperature"),
    "min_p": ({"sampling": Sampling(min_p=0.5)}, "min_p"),
    "presence_penalty": ({"sampling": Sampling(presence_penalty=0.5)}, "presence_penalty"),
    "logprobs": ({"sampling": Sampling(logprobs=1)}, "logprobs"),
    "logit_bias": ({"sampling": Sampling(logit_bias={1: 1.0})}, "logit_bias"),
    "sound": ({"messages": (Message("user", (AudioPart("", "wav"),)),)}, "messages"),
    "a sheet": ({"messages": (Message("user", (FilePart("AAAA", "application/x-sheet"),)),)}, "messages"),
    "broken arguments": (
        {"messages": (Message("assistant", tool_calls=(ToolCall("a", "b", "[1]"),)), Message("user", "a"))},
        "messages",
    ),
    "any object": ({"output": OutputRule("json_object")}, "response_format"),
    "a pattern": ({"output": OutputRule("regex", "a")}, "structured_outputs"),
    "no schema": ({"output": OutputRule("json_schema", "[]")}, "response_format"),
    "another's own": ({"native": {"prediction": {}}, "dialect": "openai.chat"}, "prediction"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_it_does_not_know_is_refused_by_name(server: Anthropic, case: str) -> None:
    """Before anything is reserved or sent."""
    asked, param = REFUSALS[case]
    before = len(server.seen)
    async with engine(server) as made:
        with pytest.raises(InvalidRequest) as caught:
            await made.count(chat("hi", **({"unset": ()} | asked)))
    assert caught.value.param == param
    assert len(server.seen) == before


def test_the_table_refuses_what_the_wire_refuses() -> None:
    """A field that the table lets through and the wire refuses would be a 400 nobody can read about."""
    from interlace.engines.remote.providers.anthropic_fields import ANTHROPIC_FIELDS

    refused = {name for name, fate in ANTHROPIC_FIELDS.items() if isinstance(fate, Refused)}
    assert {"prompt", "n", "sampling.min_p", "sampling.logprobs", "part.audio", "output.json_object"} <= refused


# --- errors ------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[type[InterlaceError], str, str]] = {
    "refuses:invalid_request_error": (InvalidRequest, "That was invalid_request_error", ""),
    "refuses:long": (ContextLengthExceeded, "208310 tokens", ""),
    "refuses:poor": (EngineFailed, "does not accept this gateway's account", ""),
    "refuses:authentication_error": (EngineFailed, "does not accept this gateway's account", ""),
    "refuses:billing_error": (EngineFailed, "does not accept this gateway's account", ""),
    "refuses:permission_error": (EngineFailed, "does not accept this gateway's account", ""),
    "refuses:not_found_error": (NotFound, "does not have it", ""),
    "refuses:request_too_large": (PayloadTooLarge, "That was", ""),
    "refuses:rate_limit_error": (ProviderLimited, "rate limit", ""),
    "refuses:api_error": (EngineFailed, "HTTP 500", ""),
    "refuses:timeout_error": (EngineFailed, "HTTP 504", ""),
    "refuses:overloaded_error": (EngineUnavailable, "not available", ""),
    "breaks:error": (EngineUnavailable, "not available", "one"),
    "breaks:first": (EngineUnavailable, "not available", ""),
    "breaks:cut": (EngineFailed, "ended the connection", "one"),
    "breaks:quiet": (EngineFailed, "before it was complete", "one"),
    "breaks:garbage": (EngineFailed, "no answer", "one"),
    "breaks:endless": (EngineFailed, "endless line", "one"),
    "wraps:": (EngineUnavailable, "not available", ""),
    "wraps:html": (EngineFailed, "neither events nor JSON", ""),
    "wraps:short": (EngineFailed, "before it was complete", ""),
}


@pytest.mark.parametrize("model", FAULTS)
async def test_a_fault_is_a_clean_error(server: Anthropic, model: str) -> None:
    """The error's class and words, and what was said before it; no key in it."""
    kind, words, before = FAULTS[model]
    async with engine(server, model) as made:
        events: list[Any] = []
        with pytest.raises(InterlaceError) as caught:
            await collect_into(events, made, chat())
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert text_of(events) == before
    assert KEY not in f"{caught.value!r}"


@pytest.mark.parametrize("model", ["refuses:rate_limit_error", "refuses:overloaded_error"])
async def test_a_busy_provider_says_when_to_come_back(server: Anthropic, model: str) -> None:
    """Retry-After reaches the caller."""
    async with engine(server, model) as made:
        with pytest.raises(InterlaceError) as caught:
            await collect(made, chat())
    assert caught.value.retry_after_seconds == 13


async def test_what_is_new_is_passed_over(server: Anthropic) -> None:
    """Anthropic may add events and blocks at any time; an answer with one is an answer."""
    async with engine(server, "breaks:news") as made:
        events = await collect(made, chat())
    assert text_of(events) == "one"
    assert events[-1] == BILL


COUNTS: dict[str, tuple[dict[str, Any], Usage]] = {
    "nothing at all": ({"input_tokens": 0, "output_tokens": 0}, Usage(8, 3, estimated=True)),
    "no output": ({"input_tokens": 9, "output_tokens": 0}, Usage(9, 0, disputed=True)),
    "more than the bound": ({"input_tokens": 9, "output_tokens": 700}, Usage(9, 700, disputed=True)),
    "a long prompt": ({"input_tokens": 9000, "output_tokens": 7}, Usage(9000, 7, disputed=True)),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("case", COUNTS)
async def test_a_bill_that_cannot_be_is_marked(server: Anthropic, case: str, stream: bool) -> None:
    """It stands, for they will ask for it; a provider that counts nothing is counted for."""
    told, expected = COUNTS[case]
    async with engine(server, f"counts:{json.dumps(told)}", stream=stream) as made:
        events = await collect(made, chat("hello out there", max_tokens=50))
    assert isinstance(events[-1], Usage)
    assert events[-1].disputed == expected.disputed
    assert events[-1].estimated == expected.estimated
    assert events[-1].prompt_tokens == expected.prompt_tokens
    assert expected.estimated or events[-1].completion_tokens == expected.completion_tokens
