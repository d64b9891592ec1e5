"""langchain-anthropic at our `/v1/messages`."""

from __future__ import annotations

import os

import anthropic
import pydantic
import pytest
from conftest import BAD_KEY, FRANCE
from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


def chat(server, **more) -> ChatAnthropic:
    """The chat model as its users make it."""
    made = {"model": server.model, "base_url": server.url, "api_key": server.key, "max_retries": 0, "temperature": 0}
    return ChatAnthropic(**{**made, "max_tokens": 12, **more})


def test_chat_counts_what_is_billed(server, agrees) -> None:
    """`invoke` and `stream` say the same and count the same; an id of a message finds its bill."""
    whole = chat(server).invoke(FRANCE)
    assert "Paris" in whole.text
    agrees(whole.response_metadata["id"], whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"])
    chunks = list(chat(server).stream(FRANCE))
    added = chunks[0]
    for chunk in chunks[1:]:
        added += chunk
    assert added.text == whole.text
    assert added.usage_metadata["input_tokens"] == whole.usage_metadata["input_tokens"]
    assert added.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_its_result_and_an_answer(server, stream) -> None:
    """A bound tool is called with parsed arguments; the result goes back."""
    model = chat(server, max_tokens=64, streaming=stream).bind_tools([weather], tool_choice="weather")
    question = HumanMessage("What is the weather in Paris?")
    called = model.invoke([question])
    assert called.invalid_tool_calls == []
    (call,) = called.tool_calls
    assert isinstance(call["args"]["city"], str)
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat(server).bind_tools([weather]).invoke([question, called, result]).content


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(server, method) -> None:
    """A class comes back, by a tool or by a format."""
    model = chat(server, max_tokens=64).with_structured_output(City, method=method)
    assert isinstance(model.invoke("Describe the city of Paris as JSON: name, country."), City)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "question", "error"),
    [
        ({"model": "nobody"}, FRANCE, anthropic.NotFoundError),
        ({"api_key": BAD_KEY}, FRANCE, anthropic.AuthenticationError),
        ({"api_key": os.environ["INTERLACE_POOR_KEY"]}, FRANCE, anthropic.APIStatusError),
        ({}, "word " * 9000, ContextOverflowError),
    ],
    ids=["no such model", "bad key", "no budget", "too long"],
)
def test_errors_are_known(server, more, question, error, stream) -> None:
    """The SDK's classes, and LangChain's own for a context that is too short."""
    with pytest.raises(error):
        chat(server, streaming=stream, **more).invoke(question)
