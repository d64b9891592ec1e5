"""The official `openai` SDK against `/v1/responses`, streaming and not, errors included.

Nothing here knows what the model will say: `endpoint` may be the scripted server or one with a real checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.gateway.conftest import Endpoint
from tests.support.response_events import check_stream, events_of, strict_items, strict_response

HELLO = "What is the capital of France?"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Place(BaseModel):
    """What a structured answer is read into."""

    city: str


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The SDK as a user sets it up, without retries, so that every answer is seen."""
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.key, max_retries=0) as made:
        yield made


@pytest.fixture
def respond(client: openai.OpenAI, endpoint: Endpoint) -> Any:
    """`respond(**more)`: a short greedy response."""

    def ask(**more: Any) -> Any:
        asked: dict[str, Any] = {"model": endpoint.model, "input": HELLO, "max_output_tokens": 16, "temperature": 0}
        return client.responses.create(**{**asked, **more})

    return ask


@pytest.fixture
def wire(endpoint: Endpoint) -> Any:
    """`wire(**more)`: the same, as the bytes that came."""

    def ask(**more: Any) -> httpx.Response:
        body = {"model": endpoint.model, "input": HELLO, "max_output_tokens": 16, "temperature": 0, **more}
        headers = {"authorization": f"Bearer {endpoint.key}"}
        return httpx.post(f"{endpoint.base_url}/responses", json=body, headers=headers, trust_env=False, timeout=120)

    return ask


# --- one response ------------------------------------------------------------------------------------------------


def test_a_response(respond: Any, endpoint: Endpoint) -> None:
    """Its id, model, status, text and a usage that adds up."""
    answer = respond()
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.model) == ("response", endpoint.model)
    assert answer.status in {"completed", "incomplete"}
    assert answer.output_text
    assert answer.output[0].role == "assistant"
    assert 0 < answer.usage.output_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id


def test_a_response_is_what_the_sdk_declares(wire: Any) -> None:
    """Every required field is there, and none that the SDK does not know, at any depth."""
    strict_response(wire().json())
    strict_response(wire(tools=[WEATHER], tool_choice="required").json())
    strict_response(wire(include=["message.output_text.logprobs"], top_logprobs=2, metadata={"a": "b"}).json())


def test_the_stream_says_the_same(respond: Any) -> None:
    """The deltas of a greedy answer make the same text, and the last event has the whole response."""
    events = list(respond(stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == respond().output_text
    assert events[-1].response.output_text == text
    assert events[-1].response.usage.output_tokens == respond().usage.output_tokens


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_output_tokens": 1},
        {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 60},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 60},
        {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 40},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"background": True},
        {"store": False},
    ],
    ids=lambda more: ",".join(more) or "plain",
)
def test_the_order_of_events(wire: Any, more: dict[str, Any]) -> None:
    """Numbers, order, pairs of added and done, texts that add up, and only fields that the SDK knows."""
    answer = wire(stream=True, **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    response = check_stream(events_of(answer.text))
    assert response["status"] in {"completed", "incomplete"}


def test_too_short(respond: Any) -> None:
    """One that ends at its bound says so, in its status and why."""
    answer = respond(max_output_tokens=1)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 1


def test_logprobs(respond: Any) -> None:
    """Chosen tokens with bytes and alternatives, where `include` asks for them."""
    logprobs = respond(include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0].logprobs
    assert logprobs
    for token in logprobs:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
    assert respond().output[0].content[0].logprobs == []


def test_structured_output(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """`responses.parse` reads the answer into a model of the caller's."""
    parsed = client.responses.parse(
        model=endpoint.model, input=HELLO, text_format=Place, max_output_tokens=60, temperature=0
    )
    assert isinstance(parsed.output_parsed, Place)


def test_the_sdk_puts_a_stream_together(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """`responses.stream` accumulates our events into the very response that is stored."""
    with client.responses.stream(model=endpoint.model, input=HELLO, max_output_tokens=8, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert client.responses.retrieve(final.id).output_text == final.output_text


# --- coming back -------------------------------------------------------------------------------------------------


def test_retrieve_list_and_delete(client: openai.OpenAI, respond: Any) -> None:
    """A stored response is what was told, with what it was given; once deleted it is not there."""
    answer = respond(instructions="Be brief.", metadata={"topic": "geography"})
    assert client.responses.retrieve(answer.id) == answer
    assert answer.instructions == "Be brief."
    (item,) = client.responses.input_items.list(answer.id).data
    assert (item.type, item.role, item.content[0].text) == ("message", "user", HELLO)
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError, match=answer.id):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(answer.id)


def test_input_items_come_in_pages(client: openai.OpenAI, respond: Any, endpoint: Endpoint) -> None:
    """The newest first unless asked otherwise; `after` and `limit` lead through all of them."""
    turns = [{"role": "user", "content": f"Number {number}"} for number in range(5)]
    answer = respond(input=turns)
    listed = [item.content[0].text for item in client.responses.input_items.list(answer.id, limit=2, order="asc")]
    assert listed == [f"Number {number}" for number in range(5)]
    newest = client.responses.input_items.list(answer.id, limit=2).data
    assert [item.content[0].text for item in newest] == ["Number 4", "Number 3"]
    headers = {"authorization": f"Bearer {endpoint.key}"}
    page = httpx.get(f"{endpoint.base_url}/responses/{answer.id}/input_items?limit=2", headers=headers, trust_env=False)
    assert strict_items(page.json()).has_more


def test_not_stored(client: openai.OpenAI, respond: Any) -> None:
    """With `store` false nothing is kept, and nothing can go on from it."""
    answer = respond(store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError, match="not found") as refused:
        respond(previous_response_id=answer.id)
    assert refused.value.code == "previous_response_not_found"


def test_in_the_background(client: openai.OpenAI, respond: Any) -> None:
    """It is told at once, and ends without its caller; cancelling what has ended is refused."""
    answer = respond(background=True)
    assert answer.status in {"queued", "in_progress", "completed", "incomplete"}
    assert answer.background
    while (now := client.responses.retrieve(answer.id)).status in {"queued", "in_progress"}:
        pass
    assert now.status in {"completed", "incomplete"}
    assert now.output_text
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(answer.id)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(respond().id)


def test_an_ended_stream_is_told_again(client: openai.OpenAI, respond: Any) -> None:
    """`retrieve(stream=True)` gives events that make the same response."""
    answer = respond()
    events = list(client.responses.retrieve(answer.id, stream=True))
    assert check_stream([event.model_dump(mode="json", exclude_unset=True) for event in events])["id"] == answer.id
    assert events[-1].response == answer
    (last,) = client.responses.retrieve(answer.id, stream=True, starting_after=40)
    assert (last.sequence_number, last.response) == (41, answer)


# --- tools -------------------------------------------------------------------------------------------------------


def call_of(answer: Any) -> Any:
    """The one function call of a response."""
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"]
    return call


def test_a_loop_of_tools_from_response_to_response(respond: Any) -> None:
    """The call, its output, and an answer: with `previous_response_id` only what is new is sent."""
    first = respond(tools=[WEATHER], tool_choice="required", max_output_tokens=60)
    output = {"type": "function_call_output", "call_id": call_of(first).call_id, "output": "Sunny, 20 degrees."}
    second = respond(previous_response_id=first.id, input=[output], tools=[WEATHER], tool_choice="none")
    assert second.previous_response_id == first.id
    assert second.output_text
    third = respond(previous_response_id=second.id, input="Thanks.")
    assert third.output_text
    assert third.usage.input_tokens > second.usage.input_tokens


def test_a_loop_of_tools_that_sends_everything(respond: Any) -> None:
    """Without anything stored, the SDK's own output items go back in as they came."""
    first = respond(tools=[WEATHER], tool_choice="required", max_output_tokens=60, store=False)
    output = {"type": "function_call_output", "call_id": call_of(first).call_id, "output": "Sunny, 20 degrees."}
    items = [{"role": "user", "content": HELLO}, *first.output, output]
    second = respond(input=items, tools=[WEATHER], tool_choice="none", store=False)
    assert second.output_text


def test_calls_and_outputs_belong_together(respond: Any) -> None:
    """A call without its output, or an output without its call, is refused as OpenAI does it."""
    first = respond(tools=[WEATHER], tool_choice="required", max_output_tokens=60)
    with pytest.raises(openai.BadRequestError, match="No tool output found for function call"):
        respond(previous_response_id=first.id, input="And?")
    with pytest.raises(openai.BadRequestError, match="No tool call found"):
        respond(input=[{"type": "function_call_output", "call_id": "call_nowhere", "output": "x"}])


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, None, "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"background": True, "store": False}, "store", None),
        ({"previous_response_id": "resp_nowhere"}, "previous_response_id", "previous_response_not_found"),
        ({"input": [{"type": "item_reference", "id": "msg_nowhere"}]}, "input", "item_not_found"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    ],
    ids=str,
)
def test_what_is_refused(respond: Any, more: dict[str, Any], param: str | None, code: str | None) -> None:
    """Each names its field and says what to do; nothing that a caller asked for is left out in silence."""
    extra = {name: value for name, value in more.items() if name == "nonsense"}
    with pytest.raises(openai.BadRequestError) as refused:
        respond(extra_body=extra, **{name: value for name, value in more.items() if name not in extra})
    if param is not None:
        assert refused.value.param == param
    assert refused.value.code == code
    assert len(refused.value.message) > 20


def test_unknown_models_keys_and_ids(client: openai.OpenAI, respond: Any, endpoint: Endpoint) -> None:
    """The SDK's own exceptions, as a client of OpenAI's catches them."""
    with pytest.raises(openai.NotFoundError):
        respond(model="nowhere")
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve("resp_nowhere")
    with openai.OpenAI(base_url=endpoint.base_url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.responses.create(model=endpoint.model, input="x")
        with pytest.raises(openai.AuthenticationError):
            stranger.responses.retrieve(respond().id)
