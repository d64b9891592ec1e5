"""Labels, heads, figures of classifiers, and bases that cannot be had for a task: parts that need no training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.errors import ConfigError
from interlace.gateway.ledger_client import Where
from interlace.tuning import Example, Examples, Message
from interlace.tuning.class_scores import Judged, accuracy_change, class_score, macro_f1
from interlace.tuning.commands import Asked, tune_command
from interlace.tuning.heads import Head, check_names, head_of
from interlace.tuning.planning import plan_of
from interlace.tuning.settings import read_settings
from tests.support.encoders import tiny_encoder
from tests.support.labelled import labelled_texts
from tests.support.tiny import tiny_llama_safetensors
from tests.support.tuned import chats, needs_parts

HEADS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], Head]] = {
    "no head": ((), ("b", "a"), (), Head(("a", "b"), fresh=True)),
    "a reranker's": (("LABEL_0",), ("a", "b"), (), Head(("a", "b"), fresh=True)),
    "all known": (("c", "a", "b"), ("a", "b"), (), Head(("c", "a", "b"), fresh=False)),
    "one unknown": (("a", "b"), ("a", "c"), (), Head(("a", "c"), fresh=True)),
    "named": ((), ("a", "b"), ("b", "a"), Head(("b", "a"), fresh=True)),
    "named as known": (("b", "a"), ("a", "b"), ("b", "a"), Head(("b", "a"), fresh=False)),
    "named otherwise": (("a", "b"), ("a", "b"), ("b", "a"), Head(("b", "a"), fresh=True)),
}


@pytest.mark.parametrize("case", HEADS.values(), ids=HEADS.keys())
def test_the_head_is_the_bases_where_it_knows_the_labels(
    case: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], Head],
) -> None:
    """A head thrown away loses what the base knew; one that is kept for other labels answers with wrong names."""
    base, data, named, expected = case
    assert head_of(base, data, named) == expected


def test_labels_that_are_named_are_those_of_the_data() -> None:
    """A slip in the names makes a label that nothing has, and a text whose label there is not."""
    rows = tuple(
        Example(line, (Message("user", f"t{line}"),), label) for line, label in enumerate(("spam", "ham", "Spam"), 1)
    )
    train = Examples("t.jsonl", "classify", rows)
    assert check_names((), train, train) == []
    without = "which no training example has. Add some, or leave it out of the names"
    told = [str(problem) for problem in check_names(("ham", "spam", "eggs"), train, Examples("h", "classify", ()))]
    assert told == [
        "t.jsonl:3: label: the label 'Spam' is not named. Mend the spelling, or name it: labels are ham, spam, eggs",
        f"t.jsonl: label: the settings name the label 'eggs', {without}",
    ]


def test_settings_of_a_classifier_have_their_own_usual_values(tmp_path: Path) -> None:
    """Nothing said: whole weights and sixteen texts a step; what is said stays, and a list of labels is one."""
    given = {"base": "b", "data": "d.jsonl", "name": "n", "task": "classify"}
    usual = read_settings(None, given)
    assert (usual.method, usual.batch, usual.makes_checkpoint) == ("full", 16, True)
    file = tmp_path / "tune.yaml"
    file.write_text("labels: [spam, ham]\nmethod: lora\nbatch: 4\n")
    said = read_settings(file, given)
    assert (said.method, said.batch, said.named_labels, said.makes_checkpoint) == ("lora", 4, ("spam", "ham"), True)


# --- figures -----------------------------------------------------------------------------------------------------


def _judged(truth: str, guesses: str) -> list[Judged]:
    return [
        Judged(0.1 if a == b else 2.0, 1, a == b, "abc".index(a), "abc".index(b))
        for a, b in zip(truth, guesses, strict=True)
    ]


def test_macro_f1_weighs_labels_alike() -> None:
    """By hand: a 6/7, b 1/2, c 0; of labels that occur on neither side nothing is said."""
    judged = _judged("aaabbc", "aaabab")
    truth, guesses = (np.array([getattr(one, name) for one in judged]) for name in ("label", "guess"))
    by_hand = [2 * 3 / (3 + 4), 2 * 1 / (2 + 2), 0.0]
    assert macro_f1(truth, guesses, 3) == pytest.approx(sum(by_hand) / 3)
    assert macro_f1(truth, guesses, 9) == pytest.approx(sum(by_hand) / 3)
    said = class_score(judged, ("a", "b", "c"))
    assert said.macro_f1.low <= said.macro_f1.value <= said.macro_f1.high
    assert said.accuracy.value == pytest.approx(4 / 6)
    assert [(one.label, one.examples, one.precision, one.recall) for one in said.by_label] == [
        ("a", 3, 0.75, 1.0), ("b", 2, 0.5, 0.5), ("c", 1, 0.0, 0.0),
    ]  # fmt: skip
    assert [one.f1 for one in said.by_label] == pytest.approx(by_hand)


def test_a_change_of_accuracy_is_that_of_the_same_texts() -> None:
    """In pairs: two classifiers that err on the same texts differ by nothing, for certain."""
    before, after = _judged("aaaabbbb", "abababab"), _judged("aaaabbbb", "aaaabbbb")
    assert accuracy_change(before, before).high == 0
    moved = accuracy_change(before, after)
    assert moved.value == pytest.approx(0.5)
    assert moved.low <= 0.5 <= moved.high


# --- the plan ------------------------------------------------------------------------------------------------------


@needs_parts
def test_a_plan_counts_whole_steps_of_texts(tmp_path: Path) -> None:
    """All weights are learnt, sixteen texts at a time, none longer than the base reads; else the memory that is
    foretold is that of one text."""
    tiny_encoder("bert", "Model", tmp_path / "bert")
    given = {"base": "b", "data": "d.jsonl", "name": "n", "task": "classify"}
    planned = plan_of(tmp_path / "bert", read_settings(None, given), 100, [])
    assert (planned.job.rows, planned.job.row_tokens, planned.job.tokens) == (16, 40, 300)
    assert planned.learnt.trained == planned.size.parameters
    adapter = plan_of(tmp_path / "bert", read_settings(None, given | {"method": "lora", "rank": 4}), 100, [])
    assert adapter.learnt.trained == 2 * 4 * (4 * (24 + 24) + 2 * (24 + 40))


# --- bases that do not fit the task ------------------------------------------------------------------------------


def _tune(folder: Path, **given: Any) -> str:
    """The message of a run that is refused before anything is trained."""
    where = Where(os.environ, home=folder / "home")
    (folder / "home").mkdir(exist_ok=True)
    with pytest.raises(ConfigError) as caught:
        tune_command(given | {"name": "n"}, Asked(None, False, True), where)
    return caught.value.message


@needs_parts
def test_a_base_that_does_not_fit_the_task_is_refused(tmp_path: Path) -> None:
    """With what to give instead: an encoder cannot chat, a decoder has no labels, and data fit one task."""
    tiny_encoder("bert", "Model", tmp_path / "bert")
    tiny_llama_safetensors(tmp_path / "llama")
    (tmp_path / "chats.jsonl").write_text(chats())
    (tmp_path / "texts.jsonl").write_text(labelled_texts())
    texts = {"base": str(tmp_path / "bert"), "data": str(tmp_path / "texts.jsonl")}
    assert "--task classify" in _tune(tmp_path, base=texts["base"], data=str(tmp_path / "chats.jsonl"))
    assert "makes text" in _tune(tmp_path, **(texts | {"base": str(tmp_path / "llama")}), task="classify")
    assert "texts.jsonl:1: messages: these are labelled texts" in _tune(
        tmp_path, base=str(tmp_path / "llama"), data=texts["data"]
    )
    assert "'canine' is not named" in _tune(tmp_path, **texts, task="classify", labels="feline, dogs")
