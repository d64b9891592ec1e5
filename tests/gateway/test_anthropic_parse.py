"""Anthropic's bodies as neutral asks: what goes in comes out again, and what has no neutral form is refused."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.engines.types import (
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    Tool,
)
from interlace.errors import InvalidRequest
from interlace.gateway.anthropic_messages import parse_count, parse_messages
from interlace.gateway.seals import named_seal, sealed_id, unnamed_seal, unsealed_id

HELLO = [{"role": "user", "content": "hello"}]
PIXEL = "iVBORw0KGgo="


def parsed(**more: Any) -> GenerateRequest:
    """The neutral request of a body with these fields."""
    body = {"model": "m", "max_tokens": 9, "messages": HELLO, **more}
    ask, _ = parse_messages(json.dumps(body).encode(), "id", 1)
    return ask.generate[0]


# --- from the neutral form back to a body, by somebody else than the product ---------------------------------------


def body_of(request: GenerateRequest) -> dict[str, Any]:
    """A body that says what the request says."""
    sampling, reasoning, options = request.sampling, request.reasoning, request.options
    body: dict[str, Any] = {"model": "m", "max_tokens": sampling.max_tokens, **request.native}
    messages = list(request.messages or ())
    if messages[0].role == "system":
        body["system"] = content_of(messages.pop(0))
    body["messages"] = [turn for _, group in groupby(messages, key=role_of) for turn in turns_of(list(group))]
    for name in ("temperature", "top_p", "top_k"):
        if name not in request.unset:
            body[name] = getattr(sampling, name)
    if sampling.stop:
        body["stop_sequences"] = list(sampling.stop)
    if request.tools:
        body["tools"] = [tool_of(tool) for tool in request.tools]
        body["tool_choice"] = choice_of(request)
    if options.user:
        body["metadata"] = {"user_id": options.user}
    if options.service_tier:
        body["service_tier"] = options.service_tier
    config: dict[str, Any] = {}
    if request.output is not None:
        config["format"] = {"type": "json_schema", "schema": json.loads(request.output.rule)}
    if reasoning is not None:
        if reasoning.effort not in ("", "none"):
            config["effort"] = reasoning.effort
        display = {"display": reasoning.summary} if reasoning.summary else {}
        if reasoning.budget_tokens:
            body["thinking"] = {"type": "enabled", "budget_tokens": reasoning.budget_tokens, **display}
        elif reasoning.adaptive:
            body["thinking"] = {"type": "adaptive", **display}
        elif reasoning.effort == "none":
            body["thinking"] = {"type": "disabled"}
    return body | ({"output_config": config} if config else {})


def role_of(message: Message) -> str:
    """The role of the turn it belongs to."""
    return "user" if message.role == "tool" else message.role


def turns_of(messages: list[Message]) -> list[dict[str, Any]]:
    """Neighbours of one role as a turn; each of the system's is a turn of its own."""
    role = role_of(messages[0])
    if role == "system":
        return [{"role": role, "content": content_of(message)} for message in messages]
    if len(messages) == 1 and messages[0].role != "tool" and isinstance(messages[0].content, str):
        return [{"role": role, "content": messages[0].content}]
    return [{"role": role, "content": [block for message in messages for block in blocks_of(message)]}]


def blocks_of(message: Message) -> list[dict[str, Any]]:
    """The blocks of one neutral turn."""
    if message.role == "tool":
        block: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id, **mark(message.cache)}
        if message.content:
            block["content"] = content_of(message)
        return [block | ({"is_error": True} if message.is_error else {})]
    calls = [
        {
            "type": "tool_use",
            "id": call.id,
            "name": call.name,
            "input": json.loads(call.arguments),
            **mark(call.cache),
        }
        for call in message.tool_calls
    ]
    return [part_of(part) for part in message.parts] + calls


def content_of(message: Message) -> Any:
    """Text, or blocks."""
    return message.content if isinstance(message.content, str) else [part_of(part) for part in message.content]


def part_of(part: Any) -> dict[str, Any]:
    """One part as a block."""
    match part:
        case TextPart():
            return {"type": "text", "text": part.text, **mark(part.cache)}
        case ThinkingPart(redacted=data) if data:
            return {"type": "redacted_thinking", "data": data}
        case ThinkingPart():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case ImagePart():
            source = {"type": "url", "url": part.url} if part.url else {
                "type": "base64", "data": part.data, "media_type": part.media_type
            }  # fmt: skip
            return {"type": "image", "source": source, **mark(part.cache)}
    assert isinstance(part, FilePart)
    if part.url:
        source = {"type": "url", "url": part.url}
    elif part.text:
        source = {"type": "text", "data": part.text, "media_type": part.media_type}
    else:
        source = {"type": "base64", "data": part.data, "media_type": part.media_type}
    title = {"title": part.name} if part.name else {}
    return {"type": "document", "source": source, **title, **mark(part.cache)}


def mark(cache: str) -> dict[str, Any]:
    """A cache mark, where there is one."""
    if not cache:
        return {}
    return {"cache_control": {"type": "ephemeral"} | ({} if cache == "default" else {"ttl": cache})}


def tool_of(tool: Tool) -> dict[str, Any]:
    """A tool."""
    body: dict[str, Any] = {"name": tool.name, "input_schema": dict(tool.parameters), **tool.native}
    if tool.description:
        body["description"] = tool.description
    return body | ({"strict": True} if tool.strict else {}) | mark(tool.cache)


def choice_of(request: GenerateRequest) -> dict[str, Any]:
    """The choice of a tool."""
    kind, _, name = request.tool_choice.partition(":")
    choice: dict[str, Any] = {"type": {"required": "any", "function": "tool"}.get(kind, kind)}
    if name:
        choice["name"] = name
    return choice | ({} if request.parallel_tool_calls else {"disable_parallel_tool_use": True})


# --- bodies, drawn from the published fields ---------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
MARK = st.sampled_from(["", "default", "5m", "1h"]).map(mark)
NAME = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)


@st.composite
def block(draw: Any, kind: str, **fields: Any) -> dict[str, Any]:
    """A block of a kind; the fields are strategies."""
    made = {"type": kind, **{name: draw(strategy) for name, strategy in fields.items()}}
    return made | (draw(MARK) if kind in MARKED else {})


MARKED = {"text", "image", "document", "tool_use", "tool_result"}
TEXTS = block("text", text=TEXT)
IMAGES = block(
    "image",
    source=st.sampled_from(
        [
            {"type": "url", "url": "https://example.org/x.png"},
            {"type": "base64", "data": PIXEL, "media_type": "image/png"},
        ]
    ),
)
DOCUMENTS = st.builds(
    lambda made, title: made | ({"title": title} if title else {}),
    block(
        "document",
        source=st.sampled_from(
            [
                {"type": "url", "url": "https://example.org/x.pdf"},
                {"type": "base64", "data": PIXEL, "media_type": "application/pdf"},
                {"type": "text", "data": "words", "media_type": "text/plain"},
            ]
        ),
    ),
    st.just("") | TEXT,
)
SEEN = TEXTS | IMAGES | DOCUMENTS
RESULTS = st.builds(
    lambda made, content, failed: (
        made | ({"content": content} if content else {}) | ({"is_error": True} if failed else {})
    ),
    block("tool_result", tool_use_id=NAME | st.just("functions.get:0")),
    st.just("") | TEXT | st.lists(SEEN, min_size=1, max_size=2),
    st.booleans(),
)
CALLS = block("tool_use", id=NAME | st.just("functions.get:0"), name=NAME, input=OBJECT)
THOUGHTS = block("thinking", thinking=TEXT, signature=TEXT) | block("redacted_thinking", data=TEXT)

USER = st.builds(
    lambda content: {"role": "user", "content": content}, TEXT | st.lists(SEEN | RESULTS, min_size=1, max_size=4)
)
ASSISTANT = st.builds(
    lambda thoughts, said, calls: {"role": "assistant", "content": [*thoughts, *said, *calls]},
    st.lists(THOUGHTS, max_size=2),
    st.lists(TEXTS, min_size=1, max_size=2),
    st.lists(CALLS, max_size=2),
) | st.builds(lambda text: {"role": "assistant", "content": text}, TEXT)
SYSTEM = st.builds(
    lambda content: {"role": "system", "content": content}, TEXT | st.lists(TEXTS, min_size=1, max_size=2)
)
PREFILL = st.builds(lambda text: {"role": "assistant", "content": f"{text}."}, TEXT)
TOOL = st.builds(
    lambda made, more: made | more,
    st.fixed_dictionaries(
        {"name": NAME, "input_schema": OBJECT.map(lambda schema: {"type": "object", "properties": schema})},
        optional={"description": TEXT, "strict": st.just(True), "input_examples": st.lists(OBJECT, min_size=1)},
    ),
    MARK,
)
THINKING = st.sampled_from(
    [
        {"type": "enabled", "budget_tokens": 2048},
        {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        {"type": "adaptive"},
        {"type": "adaptive", "display": "summarized"},
        {"type": "between_tools"},
        {"type": "disabled"},
    ]
)
CONFIG = st.fixed_dictionaries({}, optional={"effort": st.sampled_from(["low", "medium", "high", "xhigh", "max"])})
OPTIONS = {
    "system": TEXT | st.lists(TEXTS, min_size=1, max_size=2),
    "temperature": st.floats(0, 1),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 100),
    "stop_sequences": st.lists(TEXT.filter(str.strip), min_size=1, max_size=3),
    "metadata": st.fixed_dictionaries({"user_id": TEXT}),
    "service_tier": st.sampled_from(["auto", "standard_only"]),
    "thinking": THINKING,
    "output_config": CONFIG.filter(bool),
    "speed": st.just("fast"),
    "container": TEXT,
    "context_management": OBJECT,
    "diagnostics": OBJECT,
    "inference_geo": TEXT,
    "user_profile_id": TEXT,
}


@st.composite
def bodies(draw: Any) -> dict[str, Any]:
    """A body of `/v1/messages` with any of the fields that the neutral form holds."""
    turns = [draw(USER)]
    for _ in range(draw(st.integers(0, 3))):
        turns += [*draw(st.lists(SYSTEM, max_size=1)), draw(ASSISTANT), draw(USER)]
    body = draw(st.fixed_dictionaries({}, optional=OPTIONS))
    if draw(st.booleans()):
        turns.append(draw(PREFILL))
    elif draw(st.booleans()):
        schema = draw(OBJECT)
        body["output_config"] = {**body.get("output_config", {}), "format": {"type": "json_schema", "schema": schema}}
    if tools := draw(st.lists(TOOL, max_size=2, unique_by=lambda tool: tool["name"])):
        choices = [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": tools[0]["name"]}]
        choice = draw(st.sampled_from(choices))
        lone = {"disable_parallel_tool_use": True} if choice["type"] != "none" and draw(st.booleans()) else {}
        body |= {"tools": tools, "tool_choice": choice | lone}
    return {"model": "m", "max_tokens": draw(st.integers(1, 9)), "messages": turns, **body}


@settings(max_examples=400, deadline=None)
@given(body=bodies())
def test_what_goes_in_comes_out(body: dict[str, Any]) -> None:
    """A field that the parser lost, or put in another place, would be missing from the body that is written from what
    it made."""
    ask, _ = parse_messages(json.dumps(body).encode(), "id", 1)
    (request,) = ask.generate
    assert body_of(request) == body
    assert request.prefill == (body["messages"][-1]["role"] == "assistant")


@settings(max_examples=50, deadline=None)
@given(body=bodies())
def test_a_count_reads_what_a_message_reads(body: dict[str, Any]) -> None:
    """The prompt that is counted is the prompt that is then billed."""
    message, _ = parse_messages(json.dumps(body).encode(), "id", 1)
    known = {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"}
    count = parse_count(json.dumps({name: body[name] for name in body if name in known}).encode(), "id")
    one, other = message.generate[0], count.generate[0]
    for name in ("messages", "tools", "tool_choice", "output", "prefill", "parallel_tool_calls", "reasoning"):
        assert getattr(one, name) == getattr(other, name)


@given(id=NAME | st.just("a__sealed__b"), signature=st.text(min_size=1))
def test_a_seal_survives_in_an_id(id: str, signature: str) -> None:
    """Ids with seals fit the pattern of ids, and give both back."""
    made = sealed_id(id, signature)
    assert unsealed_id(made) == (id, signature)
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in made)


@given(id=st.text(min_size=1), seal=st.text(min_size=1))
def test_an_id_survives_before_a_seal(id: str, seal: str) -> None:
    """A thought's id and its signature come back as they were, whatever is in them."""
    assert unnamed_seal(named_seal(seal, id)) == (seal, id)


@pytest.mark.parametrize("seal", ["interlace:", "interlace:%:x", "interlace:aa", "EqQBCgIYAhI:M"])
def test_a_seal_that_only_looks_named_stays(seal: str) -> None:
    """What is not named by us is the provider's own."""
    assert unnamed_seal(seal) == (seal, "")


@pytest.mark.parametrize("id", ["call__sealed__%", "call__sealed__gA", "call__sealed__A"])
def test_an_id_that_only_looks_sealed_stays(id: str) -> None:
    """What is no seal of ours is a part of somebody's id."""
    assert unsealed_id(id) == (id, "")


def test_neighbours_of_one_role_are_one_turn() -> None:
    """As Anthropic's API reads them; results of tools stay turns of their own."""
    turns = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
        {"role": "user", "content": "d"},
    ]
    messages = parsed(messages=turns).messages
    assert messages is not None
    assert [(message.role, message.text, len(message.tool_calls)) for message in messages] == [
        ("user", "a\nb", 0),
        ("assistant", "c", 1),
        ("tool", "", 0),
        ("user", "d", 0),
    ]


@pytest.mark.parametrize(
    ("turn", "marked"),
    [
        ({"role": "user", "content": "x"}, Message("user", (TextPart("x", "1h"),))),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
            Message("tool", "x", tool_call_id="1", cache="1h"),
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
            Message("user", (TextPart("x", "default"),)),
        ),
    ],
    ids=["text", "result", "marked already"],
)
def test_the_mark_of_a_request_is_one_of_its_last_block(turn: Any, marked: Message) -> None:
    """`cache_control` beside the messages marks the last block, unless that has a mark."""
    messages = parsed(messages=[turn], cache_control={"type": "ephemeral", "ttl": "1h"}).messages
    assert messages == (marked,)


def test_an_empty_beginning_is_none() -> None:
    """An empty last message of the assistant's begins nothing."""
    request = parsed(messages=[*HELLO, {"role": "assistant", "content": ""}])
    assert (request.prefill, request.messages) == (False, (Message("user", "hello"),))


def test_thinking_can_be_off_with_an_effort() -> None:
    """Both are said: the effort in the neutral form, the switch in Anthropic's own words."""
    request = parsed(thinking={"type": "disabled"}, output_config={"effort": "low"})
    assert request.reasoning is not None
    assert (request.reasoning.effort, request.native) == ("low", {"thinking": {"type": "disabled"}})


def test_the_older_word_for_a_format() -> None:
    """`output_format` is `output_config.format`; both at once are refused."""
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert parsed(output_format=form).output == parsed(output_config={"format": form}).output
    with pytest.raises(InvalidRequest, match="output_format"):
        parsed(output_format=form, output_config={"format": form})


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "assistant", "content": ""}, *HELLO]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "context": "x",
             "source": {"type": "text", "media_type": "text/plain", "data": "x"}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "content", "content": "x"}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"},
             "citations": {"enabled": True}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://x.org/x"}, "transformations": {}}]}]},
        {"messages": [*HELLO, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "x", "signature": "x"}]}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "{"}],
         "output_config": {"format": {"type": "json_schema", "schema": {}}}},
        {"tools": [{"name": "f", "input_schema": {"type": "array"}}]},
    ],
)  # fmt: skip
def test_what_has_no_neutral_form_is_refused(more: dict[str, Any]) -> None:
    """Nothing is lost in silence; the error names the field."""
    with pytest.raises(InvalidRequest) as caught:
        parsed(**more)
    assert caught.value.param
