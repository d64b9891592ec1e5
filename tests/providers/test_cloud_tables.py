"""The tables of both clouds tell the truth: what they say is kept or mapped changes the request, what they say has no
use does not, and there is an example of every field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from interlace.engines.fields import NAMES, Fields, Kept, Mapped, Refused, Unused, fields_of
from interlace.engines.remote.providers.bedrock_fields import fields_of_bedrock
from interlace.engines.remote.providers.bedrock_request import converse_body
from interlace.engines.remote.providers.vertex_fields import VERTEX_FIELDS
from interlace.engines.remote.providers.vertex_request import generate_body
from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Part,
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)

HELLO = Message("user", "hello")
SEALED = "c2VhbGVk"
SCHEMA = '{"type": "object"}'


def ask(*messages: Message, **more: Any) -> GenerateRequest:
    """A request that says nothing but this."""
    return GenerateRequest("r", messages=messages or (HELLO,), **({"unset": ("temperature", "top_p", "top_k")} | more))


def asked(request: GenerateRequest) -> GenerateRequest:
    """The request with a user's turn last, unless it says to go on with the assistant's, which models would do."""
    messages = request.messages
    if not messages or messages[-1].role != "assistant" or request.prefill:
        return request
    return msgspec.structs.replace(request, messages=(*messages, Message("user", "and?")))


def part(one: Part, *, role: Any = "user") -> GenerateRequest:
    """A turn of a text and one part."""
    return ask(HELLO, Message(role, (TextPart("a"), one)))


def result(**more: Any) -> tuple[Message, ...]:
    """A call and its result."""
    given = {"content": "x", "tool_call_id": "c"} | more
    return (HELLO, Message("assistant", tool_calls=(ToolCall("c", "f", "{}"),)), Message("tool", **given))


def called(**more: Any) -> GenerateRequest:
    """A call."""
    return ask(HELLO, Message("assistant", tool_calls=(ToolCall("c", "f", "{}", **more),)), *result()[2:])


def tool(**more: Any) -> GenerateRequest:
    """A tool."""
    return ask(tools=(Tool("f", **more),))


def sampled(**more: Any) -> GenerateRequest:
    """Wishes about sampling, and nothing else."""
    return ask(sampling=Sampling(**more), unset=tuple({"temperature", "top_p", "top_k"} - set(more)))


IMAGE = {"data": "aW1n", "media_type": "image/png"}
FILE = {"data": "ZmlsZQ==", "media_type": "application/pdf"}

# For each field two requests: one that says it, one that does not.
PAIRS: dict[str, tuple[GenerateRequest, GenerateRequest]] = {
    "messages": (ask(Message("user", "other")), ask()),
    "message.developer": (ask(Message("developer", "be"), HELLO), ask()),
    "message.late_system": (ask(HELLO, Message("system", "be"), HELLO), ask(HELLO, HELLO)),
    "message.name": (ask(Message("user", "hello", name="ann")), ask()),
    "message.is_error": (ask(*result(is_error=True)), ask(*result())),
    "message.cache": (ask(Message("user", "hello", cache="5m")), ask()),
    "part.text.cache": (ask(Message("user", (TextPart("hello", cache="5m"),))), ask()),
    "part.refusal": (part(RefusalPart("no"), role="assistant"), ask(HELLO, Message("assistant", "a"))),
    "part.thinking.text": (
        part(ThinkingPart("hm", SEALED), role="assistant"),
        part(ThinkingPart("", SEALED), role="assistant"),
    ),
    "part.thinking.signature": (
        part(ThinkingPart("hm", SEALED), role="assistant"),
        part(ThinkingPart("hm"), role="assistant"),
    ),
    "part.thinking.redacted": (
        part(ThinkingPart(redacted=SEALED), role="assistant"),
        part(ThinkingPart(), role="assistant"),
    ),
    "part.thinking.summary": (
        part(ThinkingPart(signature=SEALED, summary=("short",)), role="assistant"),
        part(ThinkingPart(signature=SEALED), role="assistant"),
    ),
    "part.image.data": (part(ImagePart(**IMAGE)), ask(HELLO, Message("user", "a"))),
    "part.image.url": (part(ImagePart(url="https://example.com/a.png")), ask(HELLO, Message("user", "a"))),
    "part.image.detail": (part(ImagePart(**IMAGE, detail="high")), part(ImagePart(**IMAGE))),
    "part.image.cache": (part(ImagePart(**IMAGE, cache="5m")), part(ImagePart(**IMAGE))),
    "part.image.in_result": (
        ask(*result(content=(TextPart("x"), ImagePart(**IMAGE)))),
        ask(*result(content=(TextPart("x"),))),
    ),
    "part.file.data": (part(FilePart(**FILE)), ask(HELLO, Message("user", "a"))),
    "part.file.url": (part(FilePart(url="https://example.com/a.pdf")), ask(HELLO, Message("user", "a"))),
    "part.file.text": (part(FilePart(text="t", media_type="text/plain")), ask(HELLO, Message("user", "a"))),
    "part.file.name": (
        part(FilePart(text="t", media_type="text/plain", name="n")),
        part(FilePart(text="t", media_type="text/plain")),
    ),
    "part.file.cache": (part(FilePart(**FILE, cache="5m")), part(FilePart(**FILE))),
    "part.in_instructions": (part(ImagePart(**IMAGE), role="system"), ask(Message("system", "a"), HELLO)),
    "part.audio.cache": (part(AudioPart("d2F2", "wav", "5m")), part(AudioPart("d2F2", "wav"))),
    "part.audio": (part(AudioPart("d2F2", "wav")), ask(HELLO, Message("user", "a"))),
    "call": (called(), ask()),
    "call.followed_by": (
        ask(HELLO, Message("assistant", "a", tool_calls=(ToolCall("c", "f", "{}", followed_by=1),)), *result()[2:]),
        ask(HELLO, Message("assistant", "a", tool_calls=(ToolCall("c", "f", "{}"),)), *result()[2:]),
    ),
    "call.kind": (called(kind="shell_call"), called()),
    "call.custom": (called(kind="custom"), called()),
    "call.signature": (called(signature=SEALED), called()),
    "call.cache": (called(cache="5m"), called()),
    "prompt": (GenerateRequest("r", prompt="a"), ask()),
    "prompt_ids": (GenerateRequest("r", prompt_ids=(1,)), ask()),
    "n": (ask(n=2), ask()),
    "output.json_object": (ask(output=OutputRule("json_object")), ask()),
    "output.json_schema": (ask(output=OutputRule("json_schema", SCHEMA)), ask()),
    "output.lax": (
        ask(output=OutputRule("json_schema", SCHEMA, strict=False)),
        ask(output=OutputRule("json_schema", SCHEMA)),
    ),
    "output.description": (
        ask(output=OutputRule("json_schema", SCHEMA, description="d")),
        ask(output=OutputRule("json_schema", SCHEMA)),
    ),
    "output.regex": (ask(output=OutputRule("regex", "a")), ask()),
    "output.grammar": (ask(output=OutputRule("grammar", "a")), ask()),
    "tools": (tool(), ask()),
    "tools.strict": (tool(strict=True), tool()),
    "tools.cache": (tool(cache="5m"), tool()),
    "tools.native": (tool(native={"type": "web"}), tool()),
    "tools.kind": (tool(kind="shell"), tool()),
    "tools.custom": (tool(kind="custom"), tool()),
    "tool_choice.none": (ask(tools=(Tool("f"),), tool_choice="none"), tool()),
    "tool_choice.required": (ask(tools=(Tool("f"),), tool_choice="required"), tool()),
    "tool_choice.function": (ask(tools=(Tool("f"),), tool_choice="function:f"), tool()),
    "parallel_tool_calls": (ask(tools=(Tool("f"),), parallel_tool_calls=False), tool()),
    "prefill": (ask(HELLO, Message("assistant", "I"), prefill=True), ask()),
    "native": (ask(native={"x": 1}, dialect="d"), ask(dialect="d")),
    "native.aside": (ask(native={"x": 1}, asides=("x",), dialect="d"), ask(dialect="d")),
    **{
        f"sampling.{name}": (sampled(**{name: value}), sampled())
        for name, value in {
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.5,
            "top_k": 5,
            "min_p": 0.5,
            "repetition_penalty": 1.5,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "seed": 5,
            "stop": ("x",),
            "ignore_eos": True,
            "logit_bias": {1: 1.0},
            "logprobs": 1,
        }.items()
    },
    "sampling.prompt_logprobs": (sampled(logprobs=1, prompt_logprobs=True), sampled(logprobs=1)),
    "reasoning.effort": (ask(reasoning=Reasoning(effort="high")), ask()),
    "reasoning.budget_tokens": (ask(reasoning=Reasoning(budget_tokens=2000)), ask()),
    "reasoning.adaptive": (ask(reasoning=Reasoning(adaptive=True)), ask()),
    "reasoning.summary": (
        ask(reasoning=Reasoning(budget_tokens=2000, summary="omitted")),
        ask(reasoning=Reasoning(budget_tokens=2000)),
    ),
    **{
        f"options.{name}": (ask(options=Options(**{name: value})), ask())
        for name, value in {
            "verbosity": "low",
            "service_tier": "flex",
            "user": "u",
            "safety_identifier": "u",
            "cache_key": "k",
            "cache_retention": "24h",
            "metadata": {"a": "b"},
        }.items()
    },
}

SAME = {"output.lax"}  # is mapped to the same as without it: a schema always holds

Write = Callable[[GenerateRequest], object]


def _bedrock(family: str) -> tuple[Fields, Write]:
    return fields_of_bedrock(family), lambda request: converse_body(request, family)


TABLES: dict[str, tuple[Fields, Write]] = {
    "bedrock, Anthropic's": _bedrock("anthropic"),
    "bedrock, Amazon's": _bedrock("amazon"),
    "bedrock, another's": _bedrock(""),
    "vertex, Gemini 3": (VERTEX_FIELDS, lambda request: generate_body(request, "gemini-3-pro")),
    "vertex, Gemini 2": (VERTEX_FIELDS, lambda request: generate_body(request, "gemini-2.5-pro")),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_true(table: str, name: str) -> None:
    """A field that is kept or mapped is seen in the request; one that has no use is not; one that is refused never
    comes so far."""
    fields, write = TABLES[table]
    told, plain = PAIRS[name]
    assert name in fields_of(told)
    assert name not in fields_of(plain) or name == "messages"
    fate = fields[name]
    if isinstance(fate, Refused):
        assert fate.why.endswith(".")
        return
    bodies = [msgspec.json.encode(write(asked(request))) for request in (told, plain)]
    assert isinstance(fate, Kept | Mapped | Unused)
    assert (bodies[0] == bodies[1]) == (isinstance(fate, Unused) or name in SAME), fate
