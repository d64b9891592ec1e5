"""Responses of scripted engines: thoughts, refusals, calls, failures, and what guards let pass of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from interlace.engines.types import FilePart, ImagePart, Message, TextPart, ThinkingPart, ToolCall
from interlace.ledger import Outcome
from tests.support.gateway_thread import Gateway
from tests.support.responding import KEY, PIXEL, ended, engine, get, last_seen, post, responding
from tests.support.response_events import check_stream, events_of, strict_items, strict_response


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """One engine for each way to answer; denied words, masked keys, and short conversations."""
    with responding() as running:
        yield running


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["thinker", "refuser", "caller", "cut", "silent", "leaky", "telltale", "scripted"])
def test_every_way_to_answer_makes_a_right_stream(gateway: Gateway, model: str) -> None:
    """Streamed, whole and retrieved, it is the same response, and nothing in it is unknown to the SDK."""
    streamed = check_stream(events_of(post(gateway, model, stream=True).text))
    whole = post(gateway, model).json()
    strict_response(whole)
    kept = get(gateway, streamed["id"]).json()
    assert kept == streamed
    strict_response(kept)
    told = {name: value for name, value in whole.items() if name not in {"id", "created_at", "completed_at", "output"}}
    assert told == {name: streamed[name] for name in told}
    assert [_without_ids(item) for item in whole["output"]] == [_without_ids(item) for item in streamed["output"]]


def _without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in {"id", "call_id"}}


def test_thoughts(gateway: Gateway) -> None:
    """Text, short versions and what only the provider reads; sealed content is told where it is asked for only."""
    answer = post(gateway, "thinker").json()
    thought, hidden, said = answer["output"]
    assert [part["text"] for part in thought["content"]] == ["Hm, France."]
    assert [part["text"] for part in thought["summary"]] == ["About France", "And more"]
    assert hidden["summary"] == []
    assert said["content"][0]["text"] == "Paris, it is."
    assert "encrypted_content" not in json.dumps(answer)
    assert "encrypted_content" not in post(gateway, "thinker", stream=True).text
    asked = post(gateway, "thinker", include=["reasoning.encrypted_content"], stream=True)
    sealed = check_stream(events_of(asked.text))["output"]
    assert sealed[0]["encrypted_content"] == "sealed"
    assert sealed[1]["encrypted_content"].endswith("hidden")
    again = get(gateway, f"{answer['id']}?include[]=reasoning.encrypted_content&include[]=file_search_call.results")
    assert again.json()["output"][0]["encrypted_content"] == "sealed"


@pytest.mark.parametrize("stored", [True, False])
def test_thoughts_go_back_to_their_provider(gateway: Gateway, stored: bool) -> None:
    """From the store, or from a client that sends everything, the thoughts are those that came, by their name."""
    more = {} if stored else {"include": ["reasoning.encrypted_content"], "store": False}
    first = post(gateway, "thinker", **more).json()
    if stored:
        second = post(gateway, "thinker", previous_response_id=first["id"], input="And?")
    else:
        second = post(gateway, "thinker", input=[{"role": "user", "content": "Hi"}, *first["output"], _user("And?")])
    assert second.status_code == 200, second.text
    thoughts = (
        ThinkingPart("Hm, France.", signature="sealed", summary=("About France", "And more"), id="rs_provider"),
        ThinkingPart(redacted="hidden"),
    )
    assert last_seen(gateway, "thinker").messages == (
        Message("user", "Hi"),
        Message("assistant", (*thoughts, TextPart("Paris, it is."))),
        Message("user", "And?"),
    )


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


@pytest.mark.parametrize("stored", [True, False])
def test_calls_go_back_with_what_their_provider_wants(gateway: Gateway, stored: bool) -> None:
    """Interleaved pieces are two calls; a signature travels with its call, through the store or the client."""
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]
    more = {} if stored else {"include": ["reasoning.encrypted_content"], "store": False}
    first = post(gateway, "caller", tools=tools, **more).json()
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    assert [(one["name"], one["arguments"]) for one in calls] == [("f", '{"a": 1}'), ("g", '{"b": 2}')]
    outputs = [{"type": "function_call_output", "call_id": one["call_id"], "output": "ok"} for one in calls]
    if stored:
        second = post(gateway, "caller", tools=tools, previous_response_id=first["id"], input=outputs)
    else:
        second = post(gateway, "caller", tools=tools, input=[_user("Hi"), *first["output"], *outputs])
    assert second.status_code == 200, second.text
    turn = last_seen(gateway, "caller").messages[1]
    assert turn.content == "Let me see."
    assert turn.tool_calls == (
        ToolCall("call_0", "f", '{"a": 1}'),
        ToolCall("call_1", "g", '{"b": 2}', signature="wanted back"),
    )
    assert [message.tool_call_id for message in last_seen(gateway, "caller").messages[2:]] == ["call_0", "call_1"]


def test_a_call_that_was_cut_off_is_not_gone_on_from(gateway: Gateway) -> None:
    """Half a call has no output; the conversation goes on without it."""
    first = post(gateway, "cut").json()
    assert (first["status"], first["output"][0]["status"]) == ("incomplete", "incomplete")
    assert post(gateway, "cut", previous_response_id=first["id"]).status_code == 200
    assert all(not message.tool_calls for message in last_seen(gateway, "cut").messages)


# --- what goes in ------------------------------------------------------------------------------------------------


def test_items_become_turns(gateway: Gateway) -> None:
    """Every kind of item, with its pictures and files, reaches the engine; and is listed as it was given."""
    text = base64.b64encode(b"a,b").decode()
    items = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                {"type": "input_image", "image_url": "https://example.org/x.png"},
                {"type": "input_file", "file_data": f"data:text/csv;base64,{text}", "filename": "t.csv"},
                {"type": "input_file", "file_url": "https://example.org/x.pdf"},
            ],
        },
        {"type": "reasoning", "id": "rs_theirs", "summary": [{"type": "summary_text", "text": "s"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "id": "msg_1", "status": "completed"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": PIXEL}]},
    ]
    answer = post(gateway, "scripted", input=items, instructions="Be brief.")
    assert answer.status_code == 200, answer.text
    messages = last_seen(gateway, "scripted").messages
    png = PIXEL.partition(",")[2]
    assert messages[:2] == (Message("system", "Be brief."), Message("developer", "Be kind."))
    assert messages[2].content == (
        TextPart("Look", cache="default"),
        ImagePart(png, "image/png", detail="low"),
        ImagePart(url="https://example.org/x.png"),
        FilePart(media_type="text/csv", text="a,b", name="t.csv"),
        FilePart(url="https://example.org/x.pdf"),
    )
    assert messages[3].content[0] == ThinkingPart(summary=("s",), id="rs_theirs")
    assert messages[3].tool_calls == (ToolCall("c", "f", "{}"),)
    assert messages[4] == Message("tool", (ImagePart(png, "image/png"),), tool_call_id="c")
    listed = get(gateway, f"{answer.json()['id']}/input_items?order=asc&limit=100").json()
    strict_items(listed)
    kinds = ["message", "message", "reasoning", "message", "function_call", "function_call_output"]
    assert [item["type"] for item in listed["data"]] == kinds
    again = post(gateway, "scripted", input=[{"id": item["id"]} for item in listed["data"]], instructions="Be brief.")
    assert again.status_code == 200, again.text
    assert last_seen(gateway, "scripted").messages[:-1] == messages[:-1]


def test_instructions_are_not_carried_over(gateway: Gateway) -> None:
    """As OpenAI has it: the next response has its own, or none; what was said is all there."""
    first = post(gateway, "local", instructions="Be brief.").json()
    second = post(gateway, "local", previous_response_id=first["id"], instructions="Be long.").json()
    said = "The capital of France is Paris."
    expected = [("system", "Be long."), ("user", "Hi"), ("assistant", said), ("user", "Hi")]
    assert [(turn.role, turn.text) for turn in last_seen(gateway, "local").messages] == expected
    post(gateway, "local", previous_response_id=second["id"])
    assert [turn.role for turn in last_seen(gateway, "local").messages] == ["user", "assistant"] * 2 + ["user"]


def test_a_choice_without_tools_is_refused(gateway: Gateway) -> None:
    """Whatever shape the choice has: there is nothing to choose from."""
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    for choice in ("required", {"type": "function", "name": "f"}, allowed):
        refused = post(gateway, "local", tool_choice=choice)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


def test_what_an_engine_has_no_use_for_is_told(gateway: Gateway) -> None:
    """In the header; and a field of a provider's own is refused by its name."""
    answer = post(gateway, "local", reasoning={"effort": "low"}, service_tier="flex", max_tool_calls=3)
    assert answer.headers["x-interlace-unused"] == "max_tool_calls,reasoning.effort,service_tier"
    assert answer.json()["reasoning"]["effort"] == "low"
    assert answer.json()["service_tier"] == "default"
    refused = post(gateway, "local", moderation={"model": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "moderation")


def test_strict_tools(gateway: Gateway) -> None:
    """Left out, `strict` holds where OpenAI could hold to the schema; allowed tools are all that is offered."""
    closed = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    tools = [
        {"type": "function", "name": "closed", "parameters": closed},
        {"type": "function", "name": "open", "parameters": {"type": "object"}},
        {"type": "function", "name": "said", "parameters": closed, "strict": False},
    ]
    told = post(gateway, "local", tools=tools).json()
    assert [tool["strict"] for tool in told["tools"]] == [True, False, False]
    assert [tool.strict for tool in last_seen(gateway, "local").tools] == [True, False, False]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "open"}]}
    strict_response(post(gateway, "local", tools=tools, tool_choice=allowed).json())
    assert [tool.name for tool in last_seen(gateway, "local").tools] == ["open"]
    assert last_seen(gateway, "local").tool_choice == "required"


# --- guards ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_guards_let_pass(gateway: Gateway) -> None:
    """A masked key is nowhere: not in what was given, not in the answer, not in the database."""
    more = {"instructions": f"Use {KEY}", "input": f"Mine is {KEY}"}
    for stream in (False, True):
        answer = post(gateway, "telltale", stream=stream, **more)
        told = events_of(answer.text)[-1]["response"] if stream else answer.json()
        assert "removed]" in told["output"][0]["content"][0]["text"]
        assert "removed]" in told["instructions"]
        assert KEY not in answer.text
        assert KEY not in get(gateway, told["id"]).text
        items = get(gateway, f"{told['id']}/input_items").text
        assert KEY not in items
        assert "removed]" in items


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_guarded_too(gateway: Gateway, stream: bool) -> None:
    """A key in a thought is masked, a denied word ends the response; neither is told or kept."""
    for model, hidden, status in (("careless", KEY[9:30], "completed"), ("forbidden", "sesame", "incomplete")):
        answer = post(gateway, model, stream=stream)
        response = check_stream(events_of(answer.text)) if stream else answer.json()
        assert response["status"] == status
        kept = get(gateway, response["id"]).text
        for text in (answer.text, kept):
            assert hidden not in text
        assert ("removed]" in kept) == (model == "careless")


@pytest.mark.parametrize("background", [False, True])
def test_denied_output_ends_the_response(gateway: Gateway, background: bool) -> None:
    """What was clean is there, told and kept; the rest nowhere; and it is billed."""
    answer = post(gateway, "leaky", background=background).json()
    if background:
        answer = ended(gateway, answer["id"])
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "content_filter"}
    assert answer["output"][0]["content"][0]["text"] == "Well, "
    assert "sesame" not in get(gateway, answer["id"]).text
    assert gateway.events[-1].outcome is Outcome.FILTERED


@pytest.mark.parametrize("background", [False, True])
def test_denied_input_is_refused(gateway: Gateway, background: bool) -> None:
    """Before anything is kept; also where it stands in an item, or in a tool's output."""
    asked = len(engine(gateway, "local").seen)
    output = {"type": "function_call_output", "call_id": "c", "output": "open sesame"}
    call_item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    for more in (
        {"input": "open sesame"},
        {"instructions": "open sesame"},
        {"input": [call_item, output]},
        {
            "input": [
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "open sesame"}]}
            ]
        },
    ):
        answer = post(gateway, "local", background=background, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
    assert len(engine(gateway, "local").seen) == asked


# --- failures ----------------------------------------------------------------------------------------------------


def test_an_engine_that_dies(gateway: Gateway) -> None:
    """Whole, it is a status; streamed, the events end in `error` and `failed`, which is what is kept."""
    assert post(gateway, "broken").status_code == 502
    response = check_stream(events_of(post(gateway, "broken", stream=True).text))
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "The capital"
    kept = get(gateway, response["id"]).json()
    assert kept == response
    strict_response(kept)
    refused = post(gateway, "broken", previous_response_id=response["id"])
    assert "is failed" in refused.json()["error"]["message"]
    told_again = events_of(get(gateway, f"{response['id']}?stream=true").text)
    assert check_stream(told_again) == response


def test_an_engine_that_dies_in_the_background(gateway: Gateway) -> None:
    """Whoever comes back is told, and the work is billed."""
    answer = ended(gateway, post(gateway, "broken", background=True).json()["id"])
    assert (answer["status"], answer["error"]["code"]) == ("failed", "server_error")
    assert gateway.events[-1].outcome is Outcome.FAILED


@pytest.mark.parametrize("background", [False, True])
def test_what_fails_at_once_is_a_status(gateway: Gateway, background: bool) -> None:
    """A model that is loading is not taken on, in the background either."""
    assert post(gateway, "loading", background=background).status_code == 503
