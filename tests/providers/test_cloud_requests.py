"""Random requests in both clouds' words: whatever a caller says that the table does not refuse is valid by the
provider's own published model, with every text in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.fields import Fields, Refused, fields_of
from interlace.engines.remote.providers.bedrock_fields import fields_of_bedrock
from interlace.engines.remote.providers.bedrock_request import converse_body, count_body
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
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.errors import InvalidRequest
from tests.providers.servers import bedrock, vertex

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
seals = st.binary(min_size=1, max_size=9).map(lambda data: msgspec.json.encode(data)[1:-1].decode())
marks = st.sampled_from(["", "", "default", "5m", "1h"])
names = st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True)
arguments = st.one_of(
    st.dictionaries(words, st.one_of(st.integers(), st.booleans(), words, st.none())).map(json.dumps),
    st.sampled_from(["", "{}", '{"a": 1.50}', '{"a": 12345678901234567890.5}']),
)

texts = st.builds(TextPart, words, marks)
images = st.builds(
    ImagePart,
    data=seals,
    media_type=st.sampled_from(["image/png", "image/jpeg", "image/webp"]),
    detail=st.sampled_from(["", "low", "high", "auto"]),
    cache=marks,
)
files = st.one_of(
    st.builds(FilePart, data=seals, media_type=st.sampled_from(["application/pdf", "text/csv"]), name=words),
    st.builds(FilePart, text=words, media_type=st.just("text/plain"), name=st.one_of(st.just(""), words), cache=marks),
)
thoughts = st.builds(
    ThinkingPart,
    text=st.one_of(st.just(""), words),
    signature=st.one_of(st.just(""), seals),
    redacted=st.one_of(st.just(""), seals),
    summary=st.lists(words, max_size=2).map(tuple),
)


def parts(*kinds: Any) -> Any:
    """A content of several parts, or one text."""
    return st.one_of(words, st.lists(st.one_of(*kinds), min_size=1, max_size=4).map(tuple))


@st.composite
def turns(draw: st.DrawFn) -> tuple[Message, ...]:
    """A conversation: instructions anywhere, calls with their results."""
    said: list[Message] = [Message("user", draw(words))]
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["user", "assistant", "system", "developer", "calls"]))
        if kind == "user":
            audio = st.builds(AudioPart, seals, st.sampled_from(["wav", "mp3"]))
            said.append(Message("user", draw(parts(texts, images, files, audio)), cache=draw(marks)))
        elif kind == "assistant":
            said.append(Message("assistant", draw(parts(texts, thoughts, st.builds(RefusalPart, words)))))
        elif kind == "calls":
            calls = tuple(
                ToolCall(f"call_{number}_{i}", draw(names), draw(arguments), draw(st.one_of(st.just(""), seals)))
                for i in range(draw(st.integers(1, 3)))
            )
            said.append(Message("assistant", draw(st.one_of(st.just(""), words)), tool_calls=calls))
            said += [
                Message("tool", draw(parts(texts, images)), tool_call_id=call.id, is_error=draw(st.booleans()))
                for call in calls
            ]
        else:
            said.append(Message(kind, draw(parts(texts))))  # type: ignore[arg-type]
    if said[-1].role == "assistant":  # which both would go on with
        said.append(Message("user", draw(words)))
    return tuple(said)


tools = st.lists(
    st.builds(
        Tool,
        names,
        st.one_of(st.just(""), words),
        st.sampled_from([{}, {"type": "object", "properties": {"a": {"type": "string"}}}]),
        st.booleans(),
        marks,
    ),
    max_size=3,
).map(tuple)
samplings = st.builds(
    Sampling,
    max_tokens=st.one_of(st.none(), st.integers(1, 9999)),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.1, 1.0]),
    top_k=st.integers(0, 50),
    seed=st.one_of(st.none(), st.integers(0, 2**31 - 1)),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    stop=st.lists(words, max_size=2).map(tuple),
    logprobs=st.one_of(st.none(), st.integers(0, 5)),
)
reasonings = st.builds(
    Reasoning,
    effort=st.sampled_from(["", "none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    budget_tokens=st.sampled_from([0, 2048]),
    adaptive=st.booleans(),
    summary=st.sampled_from(["", "auto", "omitted"]),
)
outputs = st.sampled_from([OutputRule("json_object"), OutputRule("json_schema", '{"type":"object"}', description="d")])
requests = st.builds(
    GenerateRequest,
    id=st.just("r"),
    messages=turns(),
    n=st.integers(1, 2),
    sampling=samplings,
    unset=st.sampled_from([(), ("temperature", "top_p", "top_k")]),
    output=st.one_of(st.none(), outputs),
    tools=tools,
    tool_choice=st.sampled_from(["auto", "none", "required", "function:f"]),
    parallel_tool_calls=st.booleans(),
    reasoning=st.one_of(st.none(), reasonings),
    options=st.builds(
        Options,
        service_tier=st.sampled_from(["", "auto", "default", "flex", "priority", "scale"]),
        metadata=st.sampled_from([{}, {"team": "red"}]),
    ),
)


def said_in(request: GenerateRequest) -> list[str]:
    """The texts that a model must read, whatever the words around them."""
    return [
        part.text
        for message in request.messages or ()
        for part in message.parts
        if isinstance(part, TextPart | RefusalPart)
    ]


def strings_in(value: Any) -> set[str]:
    """Every text in a body, and every line of one."""
    if isinstance(value, str):
        return {value, *value.split("\n")}
    if isinstance(value, dict):
        return set().union(*map(strings_in, value.values()))
    return set().union(*map(strings_in, value)) if isinstance(value, list) else set()


def holds(body: Any, request: GenerateRequest) -> None:
    """Nothing that was said is lost."""
    there = strings_in(body)
    missing = [text for text in said_in(request) if text not in there and not any(text in one for one in there)]
    assert not missing


def sayable(request: GenerateRequest, fields: Fields) -> GenerateRequest:
    """The request without what the table says is refused, which never comes so far."""
    plain = Sampling()
    refused = {name for name, fate in fields.items() if isinstance(fate, Refused)} & fields_of(request)
    kept = {name.partition(".")[2] for name in refused if name.startswith("sampling.")}
    sampling = msgspec.structs.replace(request.sampling, **{name: getattr(plain, name) for name in kept})
    more: dict[str, Any] = {"sampling": sampling}
    if "n" in refused:
        more["n"] = 1
    if "parallel_tool_calls" in refused:
        more["parallel_tool_calls"] = True
    if "output.json_object" in refused:
        more["output"] = None
    request = msgspec.structs.replace(request, **more)
    assert not any(isinstance(fields[name], Refused) for name in fields_of(request))
    return request


@given(requests, st.sampled_from(["anthropic", "amazon", ""]))
def test_bedrock_takes_what_is_sent(request: GenerateRequest, family: str) -> None:
    """A body is valid by AWS's model of Converse and CountTokens, and all texts are in it; only to call no tool once
    there were calls cannot be said."""
    request = sayable(request, fields_of_bedrock(family))
    if request.tool_choice == "none" and request.tools and any(turn.tool_calls for turn in request.messages or ()):
        with pytest.raises(InvalidRequest, match="tool_choice"):
            converse_body(request, family)
        return
    body, counted = (json.loads(msgspec.json.encode(write(request, family))) for write in (converse_body, count_body))
    bedrock._check(body, bedrock._MODEL.operation_model("Converse").input_shape, "body")
    bedrock._check(counted, bedrock._MODEL.operation_model("CountTokens").input_shape, "body")
    holds(body, request)


@given(requests, st.sampled_from(["gemini-3-pro", "gemini-2.5-flash"]))
def test_gemini_takes_what_is_sent(request: GenerateRequest, model: str) -> None:
    """A body is valid by Google's published types, and all texts are in it."""
    request = sayable(request, VERTEX_FIELDS)
    data = msgspec.json.encode(generate_body(request, model))
    vertex._valid(vertex._Generate, data)
    holds(json.loads(data), request)
