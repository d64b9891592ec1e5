"""Classifiers that several processes learn, on one machine or on several, are those of one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.labelled import Classes
from tests.support.served import served
from tests.support.together import (
    DDP,
    DEEPSPEED,
    FSDP2,
    KINDS,
    Machines,
    is_as,
    logs,
    lose_a_process_and_go_on,
)
from tests.support.tuned import needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]

# 57 texts to learn from in steps of four: the last step of a pass has one, which two processes cannot share out.
SETTINGS = (
    "{task: classify, epochs: 2, batch: 4, max_tokens: 24, learning_rate: 0.003, evaluate_every: 5, threads: 1, "
    "patience: 0, nice: 0, rank: 4, dropout: 0, held_out: 0.35, launcher: LAUNCHER}"
)
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KNOWN: dict[str, Any] = {
    "family": "roberta", "head": "ForSequenceClassification", "id2label": {0: "other", 1: "feline", 2: "canine"},
}  # fmt: skip
TEXTS = ["z cat sleeps cat q", "b dog barks dog", "a dog b barks cat", "x y", "cat dog"]


def _classes(folder: Path, launcher: str, **base: Any) -> Classes:
    return Classes(folder, SETTINGS.replace("LAUNCHER", launcher), **STILL, **base)


def _learnt(classes: Classes, *more: str) -> Classes:
    done = classes.run(*more)
    assert done.returncode == 0, done.stderr + logs(classes)
    return classes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    """One process."""
    classes = _learnt(_classes(tmp_path_factory.mktemp("alone"), "single"))
    assert classes.report()["data"]["examples"] % 4 == 1
    return classes


def _logits(texts: list[str], folder: Path, *learnt: Classes) -> list[np.ndarray]:
    """Of each one's checkpoint as the server gives them, [texts, labels]; up to a number for each text."""
    models = [
        {"name": f"m{number}", "checkpoint": str(classes.checkpoint), "threads": 1}
        for number, classes in enumerate(learnt)
    ]
    found = []
    folder.mkdir()
    here = (sys.executable, "-m", "interlace")  # DeepSpeed may be installed where our script is not
    with served(folder, models, command=here) as running:
        for model in models:
            body = {"model": model["name"], "input": texts}
            answer = httpx.post(
                f"{running.url}/v1/classify", json=body, headers={"authorization": f"Bearer {running.key}"},
                trust_env=False, timeout=60,
            )  # fmt: skip
            assert answer.status_code == 200, answer.text
            assert answer.json()["labels"] == ["canine", "feline"]
            found.append(np.log([one["probs"] for one in answer.json()["data"]]))
    return found


@pytest.mark.parametrize("launcher", [pytest.param(DDP, id="ddp"), pytest.param(FSDP2, id="fsdp2"), *DEEPSPEED])
def test_two_processes_make_the_classifier_of_one(alone: Classes, tmp_path: Path, launcher: str) -> None:
    """With the same texts in a step, every loss is the same to float32's rounding, in the last step of a pass, too,
    where texts that are learnt twice would weigh double; the new head's rate is its own; and no weight is missing from
    what is kept: `/v1/classify` gives the logits of one process's."""
    classes = _learnt(_classes(tmp_path, launcher))
    is_as(alone, classes)
    one, two = _logits(TEXTS, tmp_path / "served", alone, classes)
    np.testing.assert_allclose(two, one, atol=1e-3)


@pytest.mark.parametrize("launcher", [pytest.param(FSDP2, id="fsdp2"), DEEPSPEED[2]])
@pytest.mark.parametrize("what", [("--method", "lora"), ("--private", "blocks:1-1")], ids=lambda what: what[0])
def test_parts_of_a_classifier_are_learnt_by_several(tmp_path: Path, what: tuple[str, str], launcher: str) -> None:
    """An adapter with the base's own head, and a slice of blocks, are shared out and put together again, too."""
    one, two = (
        _learnt(_classes(tmp_path / name, block, **KNOWN), *what)
        for name, block in (("one", "single"), ("two", launcher))
    )
    is_as(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_make_the_classifier_of_one_though_one_dies(alone: Classes, tmp_path: Path, kind: str) -> None:
    """`kill -9` of one machine's training process: both commands end soon and say so, the same commands go on at the
    main machine's checkpoint, though nothing is shared, and come to the losses of one process."""
    machines = Machines(tmp_path, kind, _classes)
    machines.lose_one_and_go_on()
    is_as(alone, machines.each[0])


@pytest.mark.parametrize("launcher", [pytest.param(FSDP2, id="fsdp2"), *DEEPSPEED[1:]])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(alone: Classes, tmp_path: Path, launcher: str) -> None:
    """`kill -9` of the second process: the command ends and says why, and the same command comes to the losses of one
    process, the new head's rate and averages among what is kept."""
    classes = _classes(tmp_path, launcher)
    lose_a_process_and_go_on(classes)
    is_as(alone, classes)
