"""Responses of scripted engines: thoughts, refusals, calls, failures; what is kept of them, for whom, and how long."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from interlace.config import GuardSettings, LimitSettings, ModelSettings, SecretSettings, Settings
from interlace.config.settings import ResponseSettings
from interlace.deposits import Deposits, Responses, responses
from interlace.engines.fields import ALL_KEPT
from interlace.engines.types import (
    Delta,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    Thought,
    ToolCall,
    ToolCallDelta,
)
from interlace.ledger import Outcome
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.operations.tenants import ProjectNamed
from interlace.ledger.schema import stored_responses
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.response_events import check_stream, events_of, strict_items, strict_response
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant, tenant

PATH = "/v1/responses"
KEY = "sk-or-v1-" + "0123456789abcdef" * 4  # what a secret guard takes for a key
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def call(index: int, arguments: str, *, name: str = "", signature: str = "") -> Delta:
    """A piece of a call; the first one has the name."""
    head = {"id": f"call_{index}", "name": name} if name else {}
    return Delta(tokens=1, tool_calls=(ToolCallDelta(index=index, arguments=arguments, signature=signature, **head),))


THINKER = (
    Delta(tokens=1, thought=Thought(text="Hm, ", id="rs_provider")),
    Delta(tokens=1, thought=Thought(text="France.")),
    Delta(thought=Thought(text="About ", summary=True)),
    Delta(thought=Thought(text="France", summary=True)),
    Delta(thought=Thought(summary=True)),
    Delta(thought=Thought(text="And more", summary=True)),
    Delta(thought=Thought(signature="sealed")),
    Delta(thought=Thought(redacted="hidden")),
    Delta(tokens=2, text="Paris"),
    Delta(tokens=1, text=", it is."),
    Delta(finish_reason="stop"),
)
REFUSER = (
    Delta(tokens=1, text="Well. "),
    Delta(tokens=1, text="I can", refused=True),
    Delta(tokens=1, text="not.", refused=True),
    Delta(finish_reason="stop"),
)
CALLER = (
    Delta(tokens=1, text="Let me see."),
    call(0, "", name="f"),
    call(1, '{"b"', name="g", signature="wanted back"),
    call(0, '{"a":'),
    call(1, ": 2}"),
    call(0, " 1}"),
    Delta(finish_reason="tool_calls"),
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """One engine for each way to answer; denied words, masked keys, and short conversations."""
    made = {
        "scripted": ScriptedEngine(fates=ALL_KEPT),
        "local": ScriptedEngine(),
        "thinker": ScriptedEngine(deltas=THINKER, fates=ALL_KEPT),
        "refuser": ScriptedEngine(deltas=REFUSER),
        "caller": ScriptedEngine(deltas=CALLER, fates=ALL_KEPT),
        "cut": ScriptedEngine(deltas=(call(0, '{"a":', name="f"), Delta(finish_reason="length"))),
        "silent": ScriptedEngine(deltas=(Delta(finish_reason="stop"),)),
        "leaky": ScriptedEngine(tokens=("Well", ", op", "en se", "same", " and", " more")),
        "telltale": ScriptedEngine(tokens=("It is ", KEY, ".")),
        "careless": ScriptedEngine(
            deltas=(
                Delta(tokens=1, thought=Thought(text=f"Mine is {KEY[:20]}")),
                Delta(tokens=1, thought=Thought(text=f"{KEY[20:]}, so.")),
                Delta(tokens=1, text="Hello"),
                Delta(finish_reason="stop"),
            )
        ),
        "forbidden": ScriptedEngine(
            deltas=(
                Delta(tokens=1, thought=Thought(text="So I say open ")),
                Delta(tokens=1, thought=Thought(text="sesame")),
                Delta(tokens=1, text="Hello"),
                Delta(finish_reason="stop"),
            )
        ),
        "broken": ScriptedEngine(fail_after=2),
        "held": ScriptedEngine(held=True),
        "loading": ScriptedEngine(state="loading"),
        "endless": ScriptedEngine(tokens=("word ",) * 3000, delay=0.002),
    }
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in made),
        guards=GuardSettings(
            deny=("open sesame",),
            secrets_input=SecretSettings(api_key="mask"),
            secrets_output=SecretSettings(api_key="mask"),
        ),
        limits=LimitSettings(body_bytes=100_000, body_seconds=2),
        responses=ResponseSettings(chain_turns=3, chain_bytes=20_000),
        drain_seconds=5,
    )
    with running_gateway(settings, made) as running:
        yield running


@pytest.fixture(autouse=True)
def _engines_as_new(gateway: Gateway) -> None:
    """What one test released must hold the next one again."""
    gateway.engines["held"].release.clear()  # type: ignore[attr-defined]


def post(gateway: Gateway, model: str, *, who: Tenant | None = None, path: str = "", **more: Any) -> httpx.Response:
    """Make a response, or post to a page of one."""
    headers = gateway.headers if who is None else who.headers
    body = None if path else {"model": model, "input": "Hi", **more}
    return httpx.post(gateway.url + PATH + path, json=body, headers=headers, trust_env=False, timeout=20)


def get(gateway: Gateway, path: str, *, who: Tenant | None = None) -> httpx.Response:
    """Retrieve."""
    headers = gateway.headers if who is None else who.headers
    return httpx.get(f"{gateway.url}{PATH}/{path}", headers=headers, trust_env=False, timeout=20)


def engine(gateway: Gateway, name: str) -> ScriptedEngine:
    """The engine behind a model."""
    found = gateway.engines[name]
    assert isinstance(found, ScriptedEngine)
    return found


def last_seen(gateway: Gateway, name: str) -> Any:
    """The request that an engine saw last."""
    return engine(gateway, name).seen[-1]


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


# --- in the background -------------------------------------------------------------------------------------------


def ended(gateway: Gateway, id: str) -> dict[str, Any]:
    """The response, once it has ended."""
    answer: dict[str, Any] = {}

    def over() -> bool:
        answer.update(get(gateway, id).json())
        return answer["status"] not in {"queued", "in_progress"}

    wait_for(over)
    return answer


def test_one_that_runs_is_told_as_it_stands_and_cancelled(gateway: Gateway) -> None:
    """In progress with the text so far; cancelled, twice, with what was generated billed and kept."""
    first = post(gateway, "held", background=True).json()
    strict_response(first)
    id = first["id"]
    wait_for(lambda: get(gateway, id).json()["output"])
    running = get(gateway, id).json()
    strict_response(running)
    assert (running["status"], running["output"][0]["content"][0]["text"]) == ("in_progress", "The")
    strict_items(get(gateway, f"{id}/input_items").json())
    assert "nothing can go on from it" in post(gateway, "held", previous_response_id=id).text
    cancelled = post(gateway, "held", path=f"/{id}/cancel").json()
    strict_response(cancelled)
    assert cancelled["status"] == "cancelled"
    assert cancelled["usage"]["output_tokens"] == 1
    assert post(gateway, "held", path=f"/{id}/cancel").json() == cancelled
    assert get(gateway, id).json() == cancelled
    event = gateway.events[-1]
    assert (event.id, event.outcome, event.tokens.completion) == (id.removeprefix("resp_"), Outcome.CLIENT_GONE, 1)
    assert engine(gateway, "held").running == 0


def test_one_that_runs_can_be_deleted(gateway: Gateway) -> None:
    """It stops, and does not come back when its end is written."""
    id = post(gateway, "held", background=True).json()["id"]
    headers = gateway.headers
    gone = httpx.delete(f"{gateway.url}{PATH}/{id}", headers=headers, trust_env=False, timeout=20)
    assert gone.json() == {"id": id, "object": "response", "deleted": True}
    assert get(gateway, id).status_code == 404
    assert engine(gateway, "held").running == 0


def test_a_stream_in_the_background_is_taken_up_again(gateway: Gateway) -> None:
    """Who was cut off goes on after the last number it has seen; together it is one whole stream."""
    body = {"model": "held", "input": "Hi", "background": True, "stream": True}
    seen = b""
    with httpx.stream("POST", gateway.url + PATH, json=body, headers=gateway.headers, trust_env=False) as answer:
        for data in answer.iter_raw():
            seen += data
            if b"output_text.delta" in seen:
                break
    first = events_of(seen.decode())
    id = first[0]["response"]["id"]
    gateway.call(engine(gateway, "held").release.set)
    rest = events_of(get(gateway, f"{id}?stream=true&starting_after={first[-1]['sequence_number']}").text)
    response = check_stream([*first, *rest] if rest[0]["type"] != "response.completed" else _retold(gateway, id))
    assert response["status"] == "completed"
    assert get(gateway, id).json() == response


def _retold(gateway: Gateway, id: str) -> list[dict[str, Any]]:
    return events_of(get(gateway, f"{id}?stream=true").text)


def test_hanging_up_ends_a_stream(gateway: Gateway) -> None:
    """Without `background` the work stops with its caller; what was said is kept as cancelled, and billed."""
    body = {"model": "endless", "input": "Hi", "stream": True}
    with httpx.stream("POST", gateway.url + PATH, json=body, headers=gateway.headers, trust_env=False) as answer:
        seen = next(answer.iter_raw())
    id = events_of(seen.decode().rpartition("\n\n")[0] + "\n\n")[0]["response"]["id"]
    wait_for(lambda: get(gateway, id).status_code == 200)
    kept = get(gateway, id).json()
    strict_response(kept)
    assert kept["status"] == "cancelled"
    assert gateway.events[-1].outcome is Outcome.CLIENT_GONE


# --- whose, and how long -----------------------------------------------------------------------------------------


def test_a_response_is_there_for_its_project_only(gateway: Gateway) -> None:
    """To every other key it does not exist, whatever it asks for."""
    owner, stranger = tenant(gateway.registry), tenant(gateway.registry)
    id = post(gateway, "local", who=owner).json()["id"]
    item = get(gateway, f"{id}/input_items", who=owner).json()["data"][0]["id"]
    running = post(gateway, "held", who=owner, background=True).json()["id"]
    for one in (id, running):
        for path in (one, f"{one}/input_items", f"{one}?stream=true"):
            assert get(gateway, path, who=owner).status_code == (400 if one == running and "stream" in path else 200)
            assert get(gateway, path, who=stranger).status_code == 404
        assert post(gateway, "", who=stranger, path=f"/{one}/cancel").status_code == 404
        headers = stranger.headers
        assert httpx.delete(f"{gateway.url}{PATH}/{one}", headers=headers, trust_env=False).status_code == 404
        refused = post(gateway, "local", who=stranger, previous_response_id=one)
        assert refused.json()["error"]["code"] == "previous_response_not_found"
    refused = post(gateway, "local", who=stranger, input=[{"type": "item_reference", "id": item}])
    assert refused.json()["error"]["code"] == "item_not_found"
    assert post(gateway, "local", who=owner, input=[{"type": "item_reference", "id": item}]).status_code == 200
    assert post(gateway, "", who=owner, path=f"/{running}/cancel").json()["status"] == "cancelled"


def test_a_conversation_has_an_end(gateway: Gateway) -> None:
    """So many turns, and so many bytes, are taken up again; more is refused before it is read."""
    id = post(gateway, "local").json()["id"]
    for _ in range(2):
        id = post(gateway, "local", previous_response_id=id).json()["id"]
    refused = post(gateway, "local", previous_response_id=id)
    assert refused.status_code == 400
    assert "3 responses" in refused.json()["error"]["message"]
    large = post(gateway, "local", input="long " * 4000, max_output_tokens=5).json()["id"]
    assert "bytes" in post(gateway, "local", previous_response_id=large).json()["error"]["message"]


def test_what_is_referred_to_is_read_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request that names a thousand items of one large response would read it a thousand times; and what is read
    for one request has a bound."""
    found: list[str] = []
    find = Responses.find
    monkeypatch.setattr(Responses, "find", lambda self, project, one: found.append(one) or find(self, project, one))
    said = {"role": "user", "content": "hello"}
    one = post(gateway, "local", input=[said] * 9).json()["id"]
    items = [{"type": "item_reference", "id": f"msg_{one.removeprefix('resp_')}{0x8000 + i:04x}"} for i in range(9)]
    assert post(gateway, "local", input=items).status_code == 200
    assert found == [one]
    refused = post(gateway, "local", input=[{"type": "item_reference", "id": f"msg_{'0' * 24}8000"}, *items])
    assert refused.json()["error"]["code"] == "item_not_found"
    large = post(gateway, "local", input="long " * 4000, max_output_tokens=5).json()["id"]
    item = {"type": "item_reference", "id": f"msg_{large.removeprefix('resp_')}8000"}
    assert "bytes" in post(gateway, "local", input=[item]).json()["error"]["message"]
    several = [post(gateway, "local").json()["id"] for _ in range(4)]
    items = [{"type": "item_reference", "id": f"msg_{id.removeprefix('resp_')}8000"} for id in several]
    assert "responses" in post(gateway, "local", input=items).json()["error"]["message"]


def test_a_project_stores_only_so_much(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key would fill the disk that the ledger of everybody lies on: pictures cost few tokens and many bytes."""
    who, other = tenant(gateway.registry), tenant(gateway.registry)
    monkeypatch.setattr(responses, "COUNT_SECONDS", 0)
    few = dataclasses.replace(gateway.registry.settings.responses, project_bytes=20_000)
    monkeypatch.setattr(gateway.registry, "settings", dataclasses.replace(gateway.registry.settings, responses=few))
    large = post(gateway, "local", who=who, input="long " * 4000, max_output_tokens=5).json()["id"]
    refused = post(gateway, "local", who=who)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "response_quota_exceeded")
    assert post(gateway, "local", who=who, store=False).status_code == 200
    assert post(gateway, "local", who=other).status_code == 200
    httpx.delete(f"{gateway.url}{PATH}/{large}", headers=who.headers, trust_env=False)
    assert post(gateway, "local", who=who).status_code == 200


def test_a_conversation_that_lost_a_turn_is_not_gone_on_from(gateway: Gateway) -> None:
    """A deleted turn is not left out in silence: it is named."""
    first = post(gateway, "local").json()["id"]
    second = post(gateway, "local", previous_response_id=first).json()["id"]
    httpx.delete(f"{gateway.url}{PATH}/{first}", headers=gateway.headers, trust_env=False)
    refused = post(gateway, "local", previous_response_id=second)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert first in refused.json()["error"]["message"]
    assert get(gateway, second).status_code == 200


def test_an_erased_project_leaves_no_response(gateway: Gateway) -> None:
    """Others' stay."""
    who, other = tenant(gateway.registry), tenant(gateway.registry)
    gone, stays = (post(gateway, "local", who=one).json()["id"] for one in (who, other))
    OPERATIONS["projects.erase"].run(gateway.registry, ProjectNamed(project=who.project.id))
    assert get(gateway, gone, who=who).status_code == 404
    assert get(gateway, stays, who=other).status_code == 200
    Deposits(gateway.registry).erase(other.project.id)  # by itself, before any sweep
    assert get(gateway, stays, who=other).status_code == 404


def test_responses_expire(gateway: Gateway) -> None:
    """After the days that are set it is not there, and the next sweep deletes it."""
    id = post(gateway, "local").json()["id"]
    store = gateway.registry.store
    past = update(stored_responses).where(stored_responses.c.id == id).values(expires_at=gateway.registry.clock.now())
    count = select(func.count()).where(stored_responses.c.id == id)
    store.write(lambda connection: connection.execute(past))
    assert get(gateway, id).status_code == 404
    assert store.read(lambda connection: connection.scalar(count)) == 1
    Deposits(gateway.registry).responses.expire()
    assert store.read(lambda connection: connection.scalar(count)) == 0


def test_usage_is_found_by_the_response(gateway: Gateway) -> None:
    """The id of a response is that of its usage event, which was written with it."""
    id = post(gateway, "local").json()["id"]
    spent = httpx.get(f"{gateway.url}/v1/usage/{id}", headers=gateway.headers, trust_env=False)
    assert spent.json()["id"] == id.removeprefix("resp_")
