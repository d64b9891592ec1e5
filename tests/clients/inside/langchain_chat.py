"""langchain-openai: chat, completion and embeddings of ours behind LangChain's interfaces."""

from __future__ import annotations

import asyncio
import os

import openai
import pydantic
import pytest
from conftest import BAD_KEY, FRANCE
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


def chat(server, **more) -> ChatOpenAI:
    """The chat model as its users make it."""
    made = {"model": server.model, "base_url": server.v1, "api_key": server.key, "max_retries": 0, "temperature": 0}
    return ChatOpenAI(**{**made, "max_tokens": 12, **more})


def test_chat_counts_what_is_billed(server, agrees) -> None:
    """`invoke` and `stream` say the same, with LangChain's usage metadata equal to the bill."""
    whole = chat(server).invoke(FRANCE)
    assert "Paris" in whole.content
    agrees(whole.response_metadata["id"], whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"])
    chunks = list(chat(server, stream_usage=True).stream(FRANCE))
    added = chunks[0]
    for chunk in chunks[1:]:
        added += chunk
    assert added.content == whole.content
    assert added.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]
    # LangChain leaves our id out of a streamed answer; greedy, it is billed as the whole one was.
    agrees(whole.response_metadata["id"], added.usage_metadata["input_tokens"], added.usage_metadata["output_tokens"])


def test_asynchronously_and_in_batches(server) -> None:
    """`ainvoke`, `astream`, `abatch`."""

    async def work() -> set[str]:
        model = chat(server)
        one = (await model.ainvoke(FRANCE)).content
        two = "".join([chunk.content async for chunk in model.astream(FRANCE)])
        more = [answer.content for answer in await model.abatch([FRANCE] * 4)]
        return {one, two, *more}

    assert len(asyncio.run(work())) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_its_result_and_an_answer(server, stream) -> None:
    """A bound tool is called with parsed arguments; nothing is invalid; the result goes back."""
    model = chat(server, max_tokens=64, streaming=stream).bind_tools([weather], tool_choice="weather")
    question = HumanMessage("What is the weather in Paris?")
    called = model.invoke([question])
    assert called.invalid_tool_calls == []
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    assert isinstance(call["args"]["city"], str)
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat(server).bind_tools([weather], tool_choice="none").invoke([question, called, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(server, method) -> None:
    """Each of LangChain's three ways to ask for a class."""
    model = chat(server, max_tokens=64).with_structured_output(City, method=method, include_raw=True)
    made = model.invoke('Describe the city of Paris as JSON: {"name": ..., "country": ...}')
    if method == "json_mode":  # any JSON object is right here
        assert made["raw"].content.startswith("{")
    else:
        assert made["parsing_error"] is None
        assert isinstance(made["parsed"], City)


def test_completion(server) -> None:
    """The older endpoint behind `OpenAI`, whole and streamed."""
    model = OpenAI(model=server.model, base_url=server.v1, api_key=server.key, temperature=0, max_tokens=6)
    whole = model.invoke("The capital of France is")
    assert "Paris" in whole
    assert "".join(model.stream("The capital of France is")) == whole


def test_embeddings(server) -> None:
    """Documents and queries are the same vectors; texts are sent as texts, or as the token ids tiktoken makes."""
    made = {"model": server.embedder, "base_url": server.v1, "api_key": server.key}
    embeddings = OpenAIEmbeddings(**made, check_embedding_ctx_length=False)
    documents = embeddings.embed_documents(["a cat", "a dog"])
    assert documents[0] == pytest.approx(embeddings.embed_query("a cat"), abs=1e-5)
    assert documents[0] != documents[1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "question", "error"),
    [
        ({"model": "nobody"}, FRANCE, openai.NotFoundError),
        ({"api_key": BAD_KEY}, FRANCE, openai.AuthenticationError),
        ({"api_key": os.environ["INTERLACE_POOR_KEY"]}, FRANCE, openai.RateLimitError),
        ({}, "word " * 9000, ContextOverflowError),
        ({"temperature": 9}, FRANCE, openai.BadRequestError),
    ],
    ids=["no such model", "bad key", "no budget", "too long", "bad value"],
)
def test_errors_are_known(server, more, question, error, stream) -> None:
    """The SDK's classes, and LangChain's own for a context that is too short."""
    with pytest.raises(error):
        chat(server, streaming=stream, **more).invoke(question)
