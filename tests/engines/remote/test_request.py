"""A neutral request in a provider's words: everything goes out or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from interlace.engines.remote.providers.openai_request import generate_body
from interlace.engines.types import EmbedRequest, GenerateRequest, Message, OutputRule, Sampling, Tool, ToolCall
from interlace.errors import InvalidRequest
from tests.support.asking import OPEN, chat, remote, remote_settings

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = '{"type": "object"}'
WEATHER = Tool("weather", "How it is.", {"type": "object"}, strict=True)

# request, settings → what is in the body beside model and messages
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}, {}),
    "max_tokens": ({"sampling": Sampling(max_tokens=5)}, {}, {"max_tokens": 5}),
    "its newer name": (
        {"sampling": Sampling(max_tokens=5)},
        {"max_tokens_field": "max_completion_tokens"},
        {"max_completion_tokens": 5},
    ),
    "n": ({"n": 2}, {}, {"n": 2}),
    "temperature": ({"sampling": Sampling(temperature=0.0), "unset": OPEN[1:]}, {}, {"temperature": 0.0}),
    "its default, said": ({"unset": OPEN[1:]}, {}, {"temperature": 1.0}),
    "top_p": ({"sampling": Sampling(top_p=0.5), "unset": ("temperature",)}, {}, {"top_p": 0.5}),
    "penalties": (
        {"sampling": Sampling(presence_penalty=-1.0, frequency_penalty=0.5)},
        {},
        {"presence_penalty": -1.0, "frequency_penalty": 0.5},
    ),
    "seed": ({"sampling": Sampling(seed=0)}, {}, {"seed": 0}),
    "stop": ({"sampling": Sampling(stop=("a", "b"))}, {}, {"stop": ["a", "b"]}),
    "bias": ({"sampling": Sampling(logit_bias={7: -100})}, {}, {"logit_bias": {"7": -100}}),
    "logprobs": ({"sampling": Sampling(logprobs=0)}, {}, {"logprobs": True}),
    "top logprobs": ({"sampling": Sampling(logprobs=3)}, {}, {"logprobs": True, "top_logprobs": 3}),
    "a tool": (
        {"tools": (WEATHER,)},
        {},
        {"tools": [{"type": "function", "function": {"name": "weather", "description": "How it is.",
                                                      "parameters": {"type": "object"}, "strict": True}}]},
    ),
    "a tool that must be": (
        {"tools": (Tool("a"),), "tool_choice": "function:a", "parallel_tool_calls": False},
        {},
        {"tools": [{"type": "function", "function": {"name": "a"}}], "parallel_tool_calls": False,
         "tool_choice": {"type": "function", "function": {"name": "a"}}},
    ),
    "a tool that must not be": (
        {"tools": (Tool("a"),), "tool_choice": "none"},
        {},
        {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "none"},
    ),
    "any tool": (
        {"tools": (Tool("a"),), "tool_choice": "required"},
        {},
        {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "required"},
    ),
    "an object": ({"output": OutputRule("json_object")}, {}, {"response_format": {"type": "json_object"}}),
    "a schema": (
        {"output": OutputRule("json_schema", SCHEMA, name="n", description="d", strict=True)},
        {},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "strict": True,
                                                                     "schema": {"type": "object"}}}},
    ),
    "a schema that may be missed": (
        {"output": OutputRule("json_schema", SCHEMA, strict=False)},
        {},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}},
    ),
    "extensions": (
        {"sampling": Sampling(top_k=4, min_p=0.1, repetition_penalty=1.1, ignore_eos=True),
         "unset": ("temperature", "top_p")},
        {"extensions": True},
        {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
    ),
    "extensions left open": ({}, {"extensions": True}, {}),
    "a pattern": (
        {"output": OutputRule("regex", "a+")},
        {"extensions": True},
        {"structured_outputs": {"regex": "a+"}},
    ),
    "a grammar": (
        {"output": OutputRule("grammar", "start: /a/")},
        {"extensions": True},
        {"structured_outputs": {"grammar": "start: /a/"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_every_field_goes_out_as_openai_writes_it(case: str) -> None:
    """The body is exactly what was asked: a field more or less would change the answer or be refused."""
    request, settings, expected = BODIES[case]
    given = {"unset": OPEN, **request}
    made = generate_body(
        chat("hi", **given), remote_settings("http://x", "m", stream=False, **settings), ask_usage=True
    )
    if "temperature" not in given["unset"]:
        expected = {"temperature": 1.0, **expected}
    if "top_p" not in given["unset"] and case != "top_p":
        expected = {"top_p": 1.0, **expected}
    assert made == PLAIN | expected


def test_a_stream_asks_for_its_usage_where_it_may() -> None:
    """Without `include_usage` the bill would be an estimate."""
    settings = remote_settings("http://x", "m")
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert generate_body(chat("hi"), settings, ask_usage=True) == PLAIN | asked
    assert generate_body(chat("hi"), settings, ask_usage=False) == PLAIN | {"stream": True}


def test_a_conversation_keeps_all_its_parts() -> None:
    """Roles, names, calls and their results arrive as they were."""
    call = ToolCall("c1", "weather", '{"a": 1}')
    messages = (
        Message("system", "be good"),
        Message("developer", "and brief"),
        Message("user", "hi", name="ann"),
        Message("assistant", "", tool_calls=(call,)),
        Message("assistant", "let me see", tool_calls=(call,)),
        Message("tool", "sun", tool_call_id="c1"),
    )
    made = generate_body(chat(messages=messages), remote_settings("http://x", "m"), ask_usage=True)["messages"]
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}]
    assert made == [
        {"role": "system", "content": "be good"},
        {"role": "developer", "content": "and brief"},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "assistant", "content": "let me see", "tool_calls": calls},
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
    ]


def test_a_prompt_goes_out_as_text_or_ids() -> None:
    """The completions endpoint calls the bound `max_tokens` whatever the chat endpoint calls it."""
    settings = remote_settings("http://x", "m", stream=False, max_tokens_field="max_completion_tokens", extensions=True)
    sampling = Sampling(max_tokens=3, logprobs=2)
    text = GenerateRequest(id="r", prompt="a", sampling=sampling, unset=OPEN, output=OutputRule("json_schema", SCHEMA))
    assert generate_body(text, settings, ask_usage=True) == {
        "model": "m", "prompt": "a", "max_tokens": 3, "logprobs": 2, "structured_outputs": {"json": {"type": "object"}}
    }  # fmt: skip
    ids = GenerateRequest(id="r", prompt_ids=(1, 2), unset=OPEN)
    assert generate_body(ids, settings, ask_usage=True) == {"model": "m", "prompt": [1, 2]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"sampling": Sampling(top_k=4)}, "top_k"),
    "min_p": ({"sampling": Sampling(min_p=0.1)}, "min_p"),
    "repetition_penalty": ({"sampling": Sampling(repetition_penalty=1.1)}, "repetition_penalty"),
    "ignore_eos": ({"sampling": Sampling(ignore_eos=True)}, "ignore_eos"),
    "prompt_logprobs": ({"sampling": Sampling(logprobs=1, prompt_logprobs=True)}, "echo"),
    "regex": ({"output": OutputRule("regex", "a")}, "structured_outputs"),
    "grammar": ({"output": OutputRule("grammar", "start: /a/")}, "structured_outputs"),
    "a schema for a prompt": (
        {"messages": None, "prompt": "a", "output": OutputRule("json_schema", SCHEMA)},
        "structured_outputs",
    ),
    "tools for a prompt": ({"messages": None, "prompt": "a", "tools": (Tool("a"),)}, "tools"),
    "no JSON": ({"output": OutputRule("json_schema", '{}, "model": "other"')}, "response_format"),
    "no object": ({"output": OutputRule("json_schema", "[]")}, "response_format"),
    "a deep one": ({"output": OutputRule("json_schema", "[" * 100_000)}, "response_format"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_the_server_does_not_know_is_refused_by_name(case: str) -> None:
    """Before anything is sent or reserved: `count` refuses what `generate` would, and no request leaves."""
    request, param = REFUSED[case]
    given = GenerateRequest(**{"id": "r", "messages": (Message("user", "hi"),), "unset": OPEN, **request})
    async with remote("http://127.0.0.1:9", "m") as engine:
        with pytest.raises(InvalidRequest) as caught:
            await anext(engine.generate(given))
        assert caught.value.param == param
        with pytest.raises(InvalidRequest):
            await engine.count(given)


# a value for each field that is not its default
OTHER: dict[str, Any] = {
    "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5, "repetition_penalty": 1.5,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 5, "stop": ("x",), "ignore_eos": True,
    "logit_bias": {5: 5.0}, "logprobs": 5, "prompt_logprobs": True,
}  # fmt: skip


@pytest.mark.parametrize("extensions", [True, False])
@pytest.mark.parametrize("field", Sampling.__struct_fields__)
def test_no_field_of_sampling_is_lost_in_silence(field: str, extensions: bool) -> None:
    """Each one changes what is sent, or is refused; a field that is added to `Sampling` must be added here."""
    settings = remote_settings("http://x", "m", extensions=extensions)
    plain = generate_body(chat("hi", unset=()), settings, ask_usage=True)
    try:
        made = generate_body(chat("hi", sampling=Sampling(**{field: OTHER[field]}), unset=()), settings, ask_usage=True)
    except InvalidRequest:
        return
    assert made != plain


async def test_embeddings_ask_for_base64() -> None:
    """A quarter of the digits on the way."""
    from interlace.engines.remote.providers.openai_request import embed_body

    settings = remote_settings("http://x", "m", embeds=True)
    asked = {"model": "m", "encoding_format": "base64"}
    assert embed_body(EmbedRequest(id="r", texts=("a", "b")), settings) == asked | {"input": ["a", "b"]}
    assert embed_body(EmbedRequest(id="r", ids=((1, 2),)), settings) == asked | {"input": [[1, 2]]}
