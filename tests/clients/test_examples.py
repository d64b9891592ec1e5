"""`examples/`: each file runs as it is, in its client's environment, against the real engine."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import Provided, run_in
from tests.clients.environments import python_of
from tests.clients.inside.capitals import CHOICES, WORDS, write_tasks

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Example:
    """In which environment it runs, and what it must print, in this order."""

    group: str
    prints: tuple[str, ...]
    arguments: tuple[str, ...] = ()


RUN = {
    "openai_chat.py": Example("sdks", ("Paris", "\n", "Paris", "\n", "name='Paris'")),
    "openai_responses.py": Example("sdks", ("Paris", "\n", "\n", "Paris", "\n", "name='Paris'")),
    "openai_tools.py": Example("sdks", ("The model asks for the weather in", "\n")),
    "openai_embeddings.py": Example("sdks", ("Somebody plays", "stock market")),
    "anthropic_messages.py": Example("sdks", ("Paris", "\n", "Paris", "\n", "[{'city': ", "37 tokens")),
    "langchain_anthropic_chat.py": Example("sdks", ("Paris", "\n", "Paris")),
    "langchain_openai_chat.py": Example("sdks", ("Paris", "\n", "Paris", "\n", "name='Paris'")),
    "pydantic_ai_agent.py": Example("sdks", ("Paris", "\n", "Paris", "\n", "name='")),
    "litellm_chat.py": Example("sdks", ("Paris", "\n", "Paris")),
    "llm.sh": Example("sdks", ("Paris", "\n", '"name"', '"country"')),
    "lm_eval.sh": Example("harnesses", (CHOICES["task"], WORDS["task"]), (CHOICES["task"], WORDS["task"])),
    "inspect_ai_task.py": Example("harnesses", ("Paris", "accuracy 1.0")),
}


def _cases(group: str) -> list[str]:
    return [name for name, example in RUN.items() if example.group == group]


def test_every_example_is_run() -> None:
    """A new file in `examples/` has a row here; scripts of the shell can be started."""
    there = [path for path in EXAMPLES.iterdir() if path.is_file()]
    assert sorted(path.name for path in there) == sorted(RUN)
    assert all(path.stat().st_mode & stat.S_IXUSR for path in there if path.suffix == ".sh")


@pytest.mark.clients
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", _cases("sdks"))
def test_an_example(provided: Provided, tmp_path: Path, name: str) -> None:
    """It ends well and prints what it promises."""
    _run(provided, tmp_path, name)


@pytest.mark.clients
@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", _cases("harnesses"))
def test_an_example_of_a_harness(provided: Provided, tmp_path: Path, smollm2_f32: Path, name: str) -> None:
    """So do those that need a gigabyte more."""
    write_tasks(tmp_path)
    more = {"INTERLACE_TOKENIZER": str(smollm2_f32), "TASKS": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    _run(provided, tmp_path, name, **more)


def _run(provided: Provided, folder: Path, name: str, **more: str) -> None:
    example, python = RUN[name], python_of(RUN[name].group)
    script = str(EXAMPLES / name)
    command = [script] if name.endswith(".sh") else [str(python), script]
    done = run_in(python, [*command, *example.arguments], {**provided.environment, **more}, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    rest = done.stdout
    for expected in example.prints:
        assert expected in rest, done.stdout + done.stderr
        rest = rest.partition(expected)[2]
