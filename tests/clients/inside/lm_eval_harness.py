"""EleutherAI's `lm_eval`, from its command line: `local-completions`, which scores prompts by echo with logprobs, and
`local-chat-completions`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest
from capitals import CAPITALS, CHOICES, WORDS, write_tasks
from conftest import BAD_KEY


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with our two tasks and their data; none comes from a hub."""
    write_tasks(tmp_path)
    return tmp_path


def evaluate(
    folder: Path, model: str, task: str, path: str, server, *words: str, key: str = "", **more: object
) -> dict:
    """Run a task; its results and logged samples."""
    arguments = {
        "model": server.model, "base_url": server.v1 + path, "num_concurrent": 2, "max_retries": 1, **more,
    }  # fmt: skip
    command = [
        "lm_eval", "run", "--model", model, "--tasks", task, "--include_path", str(folder),
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--output_path", str(folder / "out"), "--log_samples", *words,
    ]  # fmt: skip
    env = {**os.environ, "OPENAI_API_KEY": key or server.key, "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env, cwd=folder)
    if done.returncode:
        return {"failed": done.stdout + done.stderr}
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {"results": json.loads(results.read_text())["results"][task], "samples": rows}


@pytest.mark.parametrize("tokenized", [True, False])
def test_choices_are_scored_by_echo(tasks, server, tokenized) -> None:
    """Token ids or texts as prompts: the log-likelihood of each choice is the one our endpoint gives its tokens, and
    SmolLM2 knows the capitals."""
    more = {"tokenizer": os.environ["INTERLACE_TOKENIZER"], "tokenized_requests": tokenized}
    done = evaluate(tasks, "local-completions", CHOICES["task"], "/completions", server, "--batch_size", "2", **more)
    assert "failed" not in done, done["failed"]
    assert done["results"]["acc,none"] == 1.0
    for sample in done["samples"]:
        for city, (score, _) in zip(CHOICES["doc_to_choice"], sample["filtered_resps"], strict=True):
            expected = score_of(server, f"The capital of {sample['doc']['country']} is", f" {city}")
            assert float(score) == pytest.approx(expected, abs=1e-3)


def score_of(server, context: str, choice: str) -> float:
    """The sum of the logprobs of a choice's tokens after a context, asked without the harness."""
    body = {"model": server.model, "prompt": context + choice, "max_tokens": 0, "echo": True, "logprobs": 1}
    headers = {"authorization": f"Bearer {server.key}"}
    answer = httpx.post(f"{server.v1}/completions", json=body, headers=headers, trust_env=False, timeout=60).json()
    columns = answer["choices"][0]["logprobs"]
    pairs = zip(columns["text_offset"], columns["token_logprobs"], strict=True)
    return sum(logprob for offset, logprob in pairs if offset >= len(context))


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        ("local-completions", "/completions", ()),
        ("local-chat-completions", "/chat/completions", ("--apply_chat_template",)),
    ],
)
def test_texts_are_generated_until(tasks, server, model, path, words) -> None:
    """Answers end before the strings the task names, which are not part of them."""
    done = evaluate(tasks, model, WORDS["task"], path, server, *words, tokenizer_backend="None")
    assert "failed" not in done, done["failed"]
    answers = [sample["resps"][0][0] for sample in done["samples"]]
    assert len(answers) == len(CAPITALS)
    assert all("." not in answer and "\n" not in answer for answer in answers)
    if "chat" in model:
        assert done["results"]["exact_match,city"] >= 0.5
        assert all(answers)


def test_a_refusal_ends_the_run(tasks, server) -> None:
    """A wrong key fails the run, with our message to be read."""
    words = ("--apply_chat_template",)
    more = {"key": BAD_KEY, "tokenizer_backend": "None"}
    done = evaluate(tasks, "local-chat-completions", WORDS["task"], "/chat/completions", server, *words, **more)
    assert "Incorrect API key" in done["failed"]
