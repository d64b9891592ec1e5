"""The data sets in `examples/` are what their pages say they are, and pass the checks of `interlace tune`."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from interlace.tuning import check, read_examples
from interlace.tuning.examples import Task
from interlace.tuning.settings import read_settings

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = {"agri-advisor": "jsonl", "agri-desk": "csv", "translate": "jsonl"}  # and the format of each
_ESPERANTO = re.compile(r"[A-PR-VZa-pr-vzĈĜĤĴŜŬĉĝĥĵŝŭ ,.!?-]+")


def rows_of(folder: str, name: str) -> list[dict]:
    """The rows as plain JSON."""
    text = (EXAMPLES / folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def labelled(name: str) -> list[dict[str, str]]:
    """The rows of the agri-desk by column."""
    with (EXAMPLES / "agri-desk" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_example_passes_the_checks(folder: str) -> None:
    """An example that `interlace tune` warns of, or whose held-out part leaks, teaches the wrong thing."""
    files = [EXAMPLES / folder / f"{name}.{FOLDERS[folder]}" for name in ("train", "held-out")]
    task: Task = "classify" if folder == "agri-desk" else "chat"
    train, held_out = (read_examples(file, task=task) for file in files)
    assert check(train, held_out, count_tokens=lambda row: len(row.question + row.answer) // 2, max_tokens=512) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_page_tells_the_true_counts(folder: str) -> None:
    """A page that gives other counts is one of another data set; and the licence must lie beside the data."""
    page = (EXAMPLES / folder / "README.md").read_text(encoding="utf-8")
    for name in ("train", "held-out"):
        count = len(labelled(name) if folder == "agri-desk" else rows_of(folder, name))
        assert f"| `{name}.{FOLDERS[folder]}` | {count} |" in page
    assert "must not be used for" in page
    licence = (EXAMPLES / folder / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("Creative Commons Attribution 4.0 International")
    assert "Section 8 -- Interpretation." in licence


@pytest.mark.parametrize("folder", FOLDERS)
def test_settings_lie_beside_the_data(folder: str) -> None:
    """Settings that name other files, or choose by the held-out rows, would make the page's figures worth nothing."""
    settings = read_settings(EXAMPLES / folder / "tune.yaml", {})
    assert Path(settings.data) == EXAMPLES / folder / f"train.{FOLDERS[folder]}"
    assert Path(settings.held_out_data) == EXAMPLES / folder / f"held-out.{FOLDERS[folder]}"
    assert settings.patience == 0
    assert settings.evaluate_every >= 1000
    assert settings.licence == "CC-BY-4.0"


def test_the_advice_is_short_varied_and_has_its_sources() -> None:
    """Answers that ramble teach rambling; a fact without a source cannot be looked up; repeated ones are padding."""
    rows = rows_of("agri-advisor", "train")
    held_out = rows_of("agri-advisor", "held-out")
    assert len(rows) >= 300
    assert len(held_out) == 60
    answers = Counter(row["messages"][1]["content"] for row in rows + held_out)
    assert max(answers.values()) == 1
    for row in rows + held_out:
        question, answer = (turn["content"] for turn in row["messages"])
        assert row["source"].strip()
        assert question[-1] in "?."
        assert answer[-1] == "."
        assert 10 <= len(answer) <= 400
        assert len(re.findall(r"[.!?](?= |$)", answer)) <= 3, answer
    assert len({row["source"] for row in rows}) >= 20


def test_the_translations_are_written_in_esperanto() -> None:
    """A letter that Esperanto does not have (q, w, x, y), or one without its mark, is a slip of the keyboard."""
    for row in rows_of("translate", "train") + rows_of("translate", "held-out"):
        asked, answer = (turn["content"] for turn in row["messages"])
        assert asked.startswith("Translate into Esperanto: ")
        assert _ESPERANTO.fullmatch(answer), answer
        assert asked[-1] == answer[-1], asked
    known = " ".join(row["messages"][1]["content"] for row in rows_of("translate", "train")).lower()
    stems = {re.sub(r"(as|is|os|us|u|i|[oae]j?n?)$", "", word) for word in re.findall(r"\w+", known)}
    for row in rows_of("translate", "held-out"):
        words = re.findall(r"\w+", row["messages"][1]["content"].lower())
        unknown = [word for word in words if re.sub(r"(as|is|os|us|u|i|[oae]j?n?)$", "", word) not in stems]
        assert len(unknown) <= 2, unknown


def test_every_desk_has_enough_questions_to_learn_from_and_to_be_scored_by() -> None:
    """A desk with few questions is learnt badly, and how badly is not seen; one with many is a good guess."""
    page = (EXAMPLES / "agri-desk" / "README.md").read_text(encoding="utf-8")
    counts = [Counter(row["label"] for row in labelled(name)) for name in ("train", "held-out")]
    for count in counts:
        assert max(count.values()) == min(count.values())
    assert min(counts[0].values()) >= 50
    assert min(counts[1].values()) >= 15
    assert set(re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)) == set(counts[0]) == set(counts[1])


def test_desk_questions_are_varied_and_no_held_out_one_is_a_training_one_in_other_words() -> None:
    """Held-out questions that share most words with one to learn from would be told apart by memory alone."""
    train, held_out = labelled("train"), labelled("held-out")
    known = [(set(re.findall(r"\w+", row["text"].lower())), row["text"]) for row in train]
    for row in held_out:
        words = set(re.findall(r"\w+", row["text"].lower()))
        near = max(known, key=lambda other: len(words & other[0]) / len(words | other[0]))
        assert len(words & near[0]) / len(words | near[0]) < 0.6, (row["text"], near[1])
    for rows in (train, held_out):
        asked = sum(row["text"].endswith("?") for row in rows) / len(rows)
        assert 0.3 < asked < 0.8
        lengths = sorted(len(row["text"].split()) for row in rows)
        assert (lengths[len(rows) // 20], lengths[-len(rows) // 20]) >= (3, 17)


def test_desk_questions_name_the_data_set_that_they_are_from() -> None:
    """A question that the agri-advisor has is there word for word, and on the same side: what a model was tuned on by
    the one must not be held out by the other."""
    both = ("train", "held-out")
    asked = {name: {row["messages"][0]["content"] for row in rows_of("agri-advisor", name)} for name in both}
    for name in both:
        for row in labelled(name):
            assert row["source"] in ("agri-advisor", "agri-desk")
            if row["source"] == "agri-advisor":
                assert row["text"] in asked[name]
            else:
                assert row["text"] not in asked["train"] | asked["held-out"]
