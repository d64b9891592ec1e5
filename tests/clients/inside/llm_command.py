"""simonw's `llm`, from its command line, with our models in its `extra-openai-models.yaml`."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import BAD_KEY, FRANCE
from llm import get_async_model
from llm.cli import cli


@pytest.fixture
def home(server, tmp_path, monkeypatch) -> Path:
    """`llm`'s folder with two models of ours, one for each endpoint, and the key."""
    common = {"api_base": server.v1, "api_key_name": "interlace"}
    models = [
        {"model_id": "chat", "model_name": server.model, "supports_schema": True, "supports_tools": True, **common},
        {"model_id": "text", "model_name": server.model, "completion": True, **common},
        {"model_id": "nobody", "model_name": "nobody", **common},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    (tmp_path / "keys.json").write_text(json.dumps({"interlace": server.key}))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


def llm(*words: str) -> Result:
    """One call of the command, within this process: starting it anew takes seconds."""
    return CliRunner().invoke(cli, list(words), catch_exceptions=False)


def said(*words: str) -> str:
    """What it printed, when it had no complaint."""
    done = llm(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def logged() -> dict:
    """The last answer, as `llm` keeps it."""
    return json.loads(said("logs", "list", "-n", "1", "--json"))[0]


def test_prompt_counts_what_is_billed(home, agrees) -> None:
    """Streamed, which is its habit, and whole: one answer, and the tokens it logs are those of the bill."""
    greedy = (FRANCE, "-m", "chat", "-o", "temperature", "0", "-o", "max_tokens", "12")
    texts = []
    for more in ((), ("--no-stream",)):
        texts.append(said(*greedy, *more))
        log = logged()
        agrees(log["response_json"]["id"], log["input_tokens"], log["output_tokens"])
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]


def test_a_conversation_goes_on(home) -> None:
    """`--continue` sends what was said before, and is answered."""
    first = said(FRANCE, "-m", "chat", "-s", "Be brief.", "-o", "max_tokens", "12")
    assert said("And of Italy?", "--continue", "-o", "max_tokens", "12").strip()
    assert first.strip()


def test_a_schema_is_followed(home) -> None:
    """`--schema` in its short language gives JSON of that shape, streamed and not."""
    for more in ((), ("--no-stream",)):
        words = ("Invent a dog", "-m", "chat", "--schema", "name, age int", "-o", "max_tokens", "100")
        dog = json.loads(said(*words, "-o", "temperature", "0", *more))
        assert isinstance(dog["name"], str)
        assert isinstance(dog["age"], int)


def test_a_tool_can_be_offered(home) -> None:
    """`-T` sends a tool; whether this small model calls it is its own affair, but it is answered."""
    for more in ((), ("--no-stream",)):
        said("Which version of llm is this?", "-m", "chat", "-T", "llm_version", "-o", "max_tokens", "40", *more)


def test_the_completion_endpoint(home) -> None:
    """A model of the older endpoint continues a text."""
    assert said("The capital of France is", "-m", "text", "-o", "max_tokens", "4", "-o", "temperature", "0").strip()


def test_as_a_library_and_asynchronously(home, server) -> None:
    """`get_async_model` streams what the command says."""

    async def work() -> str:
        response = get_async_model("chat").prompt(FRANCE, temperature=0, max_tokens=12, key=server.key)
        return "".join([piece async for piece in response])

    assert "Paris" in asyncio.run(work())


@pytest.mark.parametrize("stream", [(), ("--no-stream",)], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-m", "nobody"), "`nobody` does not exist"),
        (("-m", "chat", "--key", BAD_KEY), "Incorrect API key"),
        (("-m", "chat", "--key", os.environ["INTERLACE_POOR_KEY"]), "budget of your API key"),
        (("-m", "chat", "-s", "word " * 9000), "maximum context length"),
    ],
    ids=["no such model", "bad key", "no budget", "too long"],
)
def test_errors_are_told_in_a_line(home, words, told, stream) -> None:
    """An error is a line and exit code 1, never a stack trace; it is our message."""
    done = llm(FRANCE, *words, *stream)
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert told in done.stderr
