"""inspect-ai: `openai-api/interlace/MODEL` finds our address and key in the environment."""

from __future__ import annotations

import os

import pytest
from conftest import BAD_KEY, FRANCE
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import ToolFunction, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class City(BaseModel):
    """A city."""

    name: str
    country: str


@tool
def weather():
    """The weather of a city."""

    async def execute(city: str) -> str:
        """The weather of a city.

        Args:
            city: The name of the city.
        """
        return f"It is sunny in {city}."

    return execute


def run(server, tmp_path, monkeypatch, *solvers, key: str = "", name: str = "", **more) -> EvalLog:
    """One evaluation of one question, with its log in the folder."""
    monkeypatch.setenv("INTERLACE_BASE_URL", server.v1)
    monkeypatch.setenv("INTERLACE_API_KEY", key or server.key)
    arguments = more.pop("model_args", {})
    model = get_model(f"openai-api/interlace/{name or server.model}", memoize=False, **arguments)
    config = {"max_tokens": 16, "temperature": 0, "max_retries": 0, "log_dir": str(tmp_path), "display": "none"}
    question = more.pop("question", FRANCE)
    task = Task(dataset=[Sample(input=question, target="Paris")], solver=[*solvers], scorer=includes())
    (log,) = eval(task, model=model, **{**config, **more})
    return log


@pytest.mark.parametrize("stream", [False, True])
def test_a_task_counts_what_is_billed(server, tmp_path, monkeypatch, agrees, stream) -> None:
    """The score, and the tokens in its log, streamed or not."""
    log = run(server, tmp_path, monkeypatch, generate(), model_args={"stream": stream})
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    (usage,) = log.stats.model_usage.values()
    (sample,) = log.samples
    calls = [event.call for event in sample.events if event.event == "model"]
    assert len(calls) == 1
    prompt = usage.input_tokens + (usage.input_tokens_cache_read or 0)  # it counts apart what the cache had
    agrees(calls[0].response["id"], prompt, usage.output_tokens)


@pytest.mark.parametrize("dialect", ["responses", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_other_dialects(server, tmp_path, dialect, stream) -> None:
    """The same task by the Responses API, and by Anthropic's."""
    if dialect == "anthropic":
        more = {"base_url": server.url, "streaming": stream}
        model = get_model(f"anthropic/{server.model}", api_key=server.key, memoize=False, **more)
    else:
        more = {"base_url": server.v1, "responses_api": True, "stream": stream}
        model = get_model(f"openai-api/interlace/{server.model}", api_key=server.key, memoize=False, **more)
    task = Task(dataset=[Sample(input=FRANCE, target="Paris")], solver=generate(), scorer=includes())
    more = {"temperature": 0, "max_tokens": 16, "max_retries": 0, "display": "none"}
    (log,) = eval(task, model=model, log_dir=str(tmp_path), **more)
    assert log.status == "success", log.error
    if dialect == "responses":  # through Anthropic's SDK no temperature is sent, and the model may say anything
        assert log.results.scores[0].metrics["accuracy"].value == 1.0
    (usage,) = log.stats.model_usage.values()
    assert usage.total_tokens > 0


def test_logprobs(server, tmp_path, monkeypatch) -> None:
    """Logprobs and alternatives come through."""
    log = run(server, tmp_path, monkeypatch, generate(), logprobs=True, top_logprobs=2)
    (sample,) = log.samples
    content = sample.output.choices[0].logprobs.content
    assert content
    assert all(len(token.top_logprobs) == 2 for token in content)


def test_several_choices(server, tmp_path, monkeypatch) -> None:
    """`num_choices` asks for `n`."""
    log = run(server, tmp_path, monkeypatch, generate(), num_choices=3, temperature=1, seed=1)
    assert len(log.samples[0].output.choices) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(server, tmp_path, monkeypatch, stream) -> None:
    """A tool that must be called is, with arguments that parse, and inspect runs it."""
    solvers = (use_tools(weather(), tool_choice=ToolFunction("weather")), generate(tool_calls="single"))
    log = run(server, tmp_path, monkeypatch, *solvers, max_tokens=64, model_args={"stream": stream})
    assert log.status == "success", log.error
    (call,) = (call for m in log.samples[0].messages if m.role == "assistant" for call in m.tool_calls or ())
    assert call.parse_error is None
    assert isinstance(call.arguments["city"], str)
    assert any("It is sunny in" in m.text for m in log.samples[0].messages if m.role == "tool")


def test_structured_output(server, tmp_path, monkeypatch) -> None:
    """A response schema is followed."""
    config = GenerateConfig(response_schema=ResponseSchema(name="city", json_schema=json_schema(City)), max_tokens=64)
    solver = generate(**config.model_dump(exclude_none=True))
    log = run(server, tmp_path, monkeypatch, solver, question="Describe Paris as JSON: name, country.", max_tokens=64)
    assert log.status == "success", log.error
    assert City.model_validate_json(log.samples[0].output.completion)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"name": "nobody"}, "nobody"),
        ({"key": BAD_KEY}, "Incorrect API key"),
        ({"key": os.environ["INTERLACE_POOR_KEY"]}, "RateLimitError"),
    ],
    ids=["no such model", "bad key", "no budget"],
)
def test_errors_end_the_task(server, tmp_path, monkeypatch, more, told, stream) -> None:
    """The log's error has our message; of what inspect would have tried again, the class."""
    log = run(server, tmp_path, monkeypatch, generate(), model_args={"stream": stream}, **more)
    assert log.status == "error"
    assert told in log.error.message


def test_too_long_is_the_models_limit(server, tmp_path, monkeypatch) -> None:
    """inspect knows our refusal for a context that is too short, and ends the sample as `model_length`."""
    log = run(server, tmp_path, monkeypatch, generate(), question="word " * 9000)
    assert log.status == "success", log.error
    assert log.samples[0].output.stop_reason == "model_length"
