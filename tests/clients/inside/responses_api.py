"""The Responses API by those who use it: the official `openai` SDK, langchain-openai, pydantic-ai, llm and litellm."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import litellm
import openai
import pydantic
import pytest
import yaml
from click.testing import CliRunner
from conftest import BAD_KEY, FRANCE
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llm.cli import cli
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

litellm.suppress_debug_info = True


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str


PARAMETERS = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {
    "type": "function", "name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS,
    "strict": True,
}  # fmt: skip


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    """The SDK as its users make it."""
    with openai.OpenAI(base_url=server.v1, api_key=server.key, max_retries=0) as made:
        yield made


def asked(server, **more) -> dict:
    """What every call says."""
    return {"model": server.model, "input": FRANCE, "max_output_tokens": 16, "temperature": 0, **more}


def test_a_response_counts_what_is_billed(client, server, agrees) -> None:
    """Text, status, and usage as billed."""
    response = client.responses.create(**asked(server))
    assert (response.object, response.status, response.model) == ("response", "completed", server.model)
    assert "Paris" in response.output_text
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    agrees(response._request_id, response.usage.input_tokens, response.usage.output_tokens)


def test_a_stream_in_openais_order(client, server) -> None:
    """The SDK's accumulator takes the events, which are numbered and in the documented order, and makes the same."""
    whole = client.responses.create(**asked(server))
    with client.responses.stream(**asked(server)) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == whole.output_text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens, whole.usage.output_tokens,
    )  # fmt: skip


def test_what_is_stored_goes_on_is_found_and_is_deleted(client, server) -> None:
    """`previous_response_id` goes on from what was said, which can be retrieved until it is deleted."""
    first = client.responses.create(**asked(server, instructions="Be brief."))
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text
    assert [item.type for item in client.responses.input_items.list(first.id)] == ["message"]
    second = client.responses.create(**asked(server, input="Why?", previous_response_id=first.id))
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.output_tokens + 5
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unstored = client.responses.create(**asked(server, store=False))
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_too_few_tokens_is_incomplete(client, server) -> None:
    """Cut off is told, with why."""
    response = client.responses.create(**asked(server, max_output_tokens=2))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_its_result_and_an_answer(client, server, stream) -> None:
    """A required function call has arguments as JSON text; its output goes back as an item."""
    body = asked(server, tools=[WEATHER], tool_choice="required", max_output_tokens=64)
    if stream:
        with client.responses.stream(**body) as running:
            response = running.get_final_response()
    else:
        response = client.responses.create(**body)
    (call,) = (item for item in response.output if item.type == "function_call")
    assert isinstance(json.loads(call.arguments)["city"], str)
    items = [
        {"role": "user", "content": FRANCE},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert client.responses.create(**asked(server, input=items, tools=[WEATHER], tool_choice="none")).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_a_class_is_parsed(client, server, stream) -> None:
    """`text_format` sends the class' schema and gets an instance."""
    body = asked(server, input="Describe Paris as JSON: name, country.", text_format=City, max_output_tokens=64)
    if stream:
        with client.responses.stream(**body) as running:
            made = running.get_final_response().output_parsed
    else:
        made = client.responses.parse(**body).output_parsed
    assert isinstance(made, City)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("key", "more", "error", "code"),
    [
        ("INTERLACE_API_KEY", {"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ("INTERLACE_API_KEY", {"max_output_tokens": -1}, openai.BadRequestError, None),
        ("INTERLACE_API_KEY", {"input": "word " * 9000}, openai.BadRequestError, "context_length_exceeded"),
        ("INTERLACE_API_KEY", {"previous_response_id": "resp_" + "0" * 24}, openai.APIStatusError, None),
        ("INTERLACE_POOR_KEY", {}, openai.RateLimitError, "insufficient_quota"),
        (None, {}, openai.AuthenticationError, "invalid_api_key"),
    ],
    ids=["no such model", "bad value", "too long", "unknown response", "no budget", "bad key"],
)
def test_errors_are_the_sdks_own(server, key, more, error, code, stream) -> None:
    """The class for each status, with a code that is text."""
    used = BAD_KEY if key is None else os.environ[key]
    with openai.OpenAI(base_url=server.v1, api_key=used, max_retries=0) as client:
        with pytest.raises(error) as caught:
            client.responses.create(**asked(server, **more), stream=stream)
        assert isinstance(caught.value.code, str | None)
        assert code is None or caught.value.code == code


def test_langchain(server) -> None:
    """`use_responses_api`: text and stream alike, a tool, a class."""

    @tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    model = ChatOpenAI(
        model=server.model, base_url=server.v1, api_key=server.key, max_retries=0, temperature=0, max_tokens=64,
        use_responses_api=True,
    )  # fmt: skip
    whole = model.invoke(FRANCE)
    assert "Paris" in whole.text
    assert "".join(chunk.text for chunk in model.stream(FRANCE)) == whole.text
    (call,) = model.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Paris?").tool_calls
    assert isinstance(call["args"]["city"], str)
    assert isinstance(model.with_structured_output(City).invoke("Describe Paris as JSON: name, country."), City)


def test_pydantic_ai(server) -> None:
    """`OpenAIResponsesModel`: text, stream, a class."""
    provider = OpenAIProvider(base_url=server.v1, api_key=server.key)
    model = OpenAIResponsesModel(server.model, provider=provider)
    settings = {"max_tokens": 64, "temperature": 0.0}
    whole = Agent(model, model_settings=settings).run_sync(FRANCE)
    assert "Paris" in whole.output

    async def streamed() -> str:
        async with Agent(model, model_settings=settings).run_stream(FRANCE) as running:
            return "".join([text async for text in running.stream_text(delta=True)])

    assert asyncio.run(streamed()) == whole.output
    made = Agent(model, model_settings=settings, output_type=City, retries=0).run_sync("Describe the city of Paris.")
    assert isinstance(made.output, City)


def test_llm(server, tmp_path, monkeypatch) -> None:
    """A model with `responses: true`, streamed and not, and with a schema."""
    model = {
        "model_id": "resp", "model_name": server.model, "api_base": server.v1, "api_key_name": "interlace",
        "responses": True, "supports_schema": True,
    }  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([model]))
    (tmp_path / "keys.json").write_text(json.dumps({"interlace": server.key}))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    for more in ((), ("--no-stream",), ("--schema", "name, country")):
        done = CliRunner().invoke(
            cli,
            [FRANCE, "-m", "resp", "-o", "temperature", "0", "-o", "max_tokens", "64", *more],
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.output
        assert done.stdout.strip()


def test_litellm(server) -> None:
    """`litellm.responses`, whole and streamed."""
    call = {
        "model": f"openai/{server.model}", "api_base": server.v1, "api_key": server.key, "input": FRANCE,
        "temperature": 0, "max_output_tokens": 16,
    }  # fmt: skip
    whole = litellm.responses(**call)
    assert "Paris" in whole.output[0].content[0].text
    kinds = [str(event.type) for event in litellm.responses(**call, stream=True)]
    assert "completed" in kinds[-1].lower()
