"""What is wrong with training data as a whole is found, and a held-out part is the same wherever it is made."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.tuning import Example, Examples, Message, Problem, check, split
from interlace.tuning.examples import normal

KEY = "sk-proj-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0fG"
CARD = "4111 1111 1111 1111"


def pairs(*rows: tuple[str, str], file: str = "train.jsonl") -> Examples:
    """Questions with their answers, one a line."""
    made = [Example(line, (Message("user", q), Message("assistant", a))) for line, (q, a) in enumerate(rows, 1)]
    return Examples(file, "chat", tuple(made))


def labelled(*rows: tuple[str, str], file: str = "train.jsonl") -> Examples:
    """Texts with their labels, one a line."""
    made = [Example(line, (Message("user", text),), label) for line, (text, label) in enumerate(rows, 1)]
    return Examples(file, "classify", tuple(made))


def told(problems: Sequence[Problem]) -> list[tuple[str, int, str, str]]:
    """What a person sees first of each."""
    return [(one.severity, one.line, one.field, one.problem) for one in problems]


GOOD = pairs(("When to plant beans?", "After the last frost."), ("How deep?", "Two to five centimetres."))

CASES: dict[str, tuple[Examples, tuple[str, int, str, str]]] = {
    "key": (pairs((f"Use {KEY}", "a")), ("error", 1, "messages[0].content", "the text has an API key in it")),
    "card": (pairs(("q", f"Pay by {CARD}.")), ("error", 1, "messages[1].content", "the text has a card number in it")),
    "same row": (pairs(("q", "a"), ("r", "b"), ("q", "a")), ("warning", 3, "", "the same as line 1")),
    "nearly the same row": (
        pairs(("How deep?", "A lot."), ("how deep", "a lot")),
        ("warning", 2, "", "the same as line 1 but for case, punctuation or spaces"),
    ),
    "two answers": (
        pairs(("How deep?", "A lot."), ("How  DEEP?", "Not much.")),
        ("warning", 2, "", "asks the same, with another answer, as line 1"),
    ),
    "lost characters": (
        pairs(("q", "caf\ufffd")),
        ("warning", 1, "messages[1].content", "the text has replacement characters (U+FFFD)"),
    ),
    "decoded twice": (
        pairs(("cafÃ©", "a")), ("warning", 1, "messages[0].content", "the text looks wrongly decoded ('Ã©')"),
    ),
    "carriage returns": (
        pairs(("q", "a\r\nb")),
        ("warning", 1, "messages[1].content", "the text has carriage returns, which will be learnt"),
    ),
    "space before": (pairs(("q", " a")), ("warning", 1, "", "the answer begins with white space")),
    "space after": (pairs(("q", "a\n")), ("warning", 1, "", "the answer ends with white space")),
    "swapped": (
        pairs(*((f"It is {i}.", f"What is {i}?") for i in range(9))),
        ("warning", 0, "", "9 of 9 answers end with a question mark, 0 of the questions: they look swapped"),
    ),
    "swapped labels": (
        labelled(*(("spam", f"text {i}") for i in range(9))),
        ("error", 0, "label", "9 labels stand for 1 texts: the columns look swapped"),
    ),
    "one label": (
        labelled(("s", "a"), ("t", "a")),
        ("error", 0, "label", "all examples have one label, so there is nothing to tell apart"),
    ),
    "one label in two ways": (
        labelled(("s", "Spam"), ("t", "spam"), ("u", "Spam"), ("v", "spam")),
        ("warning", 0, "label", "'spam' differs from 'Spam' by case, punctuation or spaces alone"),
    ),
    "rare label": (
        labelled(("s", "a"), ("t", "a"), ("u", "b")), ("warning", 0, "label", "'b' has one example"),
    ),
    "two labels for a text": (
        labelled(("s", "a"), ("S!", "b"), ("t", "a"), ("u", "b")),
        ("warning", 2, "label", "has another label than line 1, which has the same text"),
    ),
    "one label drowns the others": (
        labelled(*((f"text {i}", "a") for i in range(18)), ("u", "b"), ("v", "b")),
        ("warning", 0, "label", "'a' has 18 of 20 examples: to say it always is right in 90%"),
    ),
    "nothing": (pairs(), ("error", 0, "", "the training split is empty")),
}  # fmt: skip


@pytest.mark.parametrize(("examples", "expected"), CASES.values(), ids=CASES.keys())
def test_each_is_told(examples: Examples, expected: tuple[str, int, str, str]) -> None:
    """What is not told here is found after the training, by its users."""
    assert told(check(examples)) == [expected]


def test_good_data_is_good() -> None:
    """A warning on good data teaches people to read none."""
    assert check(GOOD, pairs(("How far apart?", "A hand's width."), file="held.jsonl")) == []


LEAKS = {
    "whole": (("When to plant beans?", "After the last frost."), "the example is also line 1 of train.jsonl"),
    "question": (("when to plant BEANS", "In May."), "line 1 of train.jsonl asks the same"),
    "wide letters": (("Ｈｏｗ deep ?", "Deep."), "line 2 of train.jsonl asks the same"),
}


@pytest.mark.parametrize(("row", "problem"), LEAKS.values(), ids=LEAKS.keys())
def test_leaks_between_the_splits_are_errors(row: tuple[str, str], problem: str) -> None:
    """A question of the test that was trained on, also when spelt a little otherwise, makes a gain out of nothing."""
    held = pairs(("Another?", "Yes."), row, file="held.jsonl")
    assert told(check(GOOD, held)) == [("error", 2, "", problem)]


def test_a_system_turn_makes_another_question_but_hides_no_leak() -> None:
    """One question under two instructions is no duplicate; with another instruction a leak is one still."""
    asked, rows = [Message("user", "q"), Message("assistant", "a")], []
    for line, system in enumerate(("Be brief.", "Be rude."), 1):
        rows.append(Example(line, (Message("system", system), *asked)))
    train = Examples("train.jsonl", "chat", tuple(rows))
    assert check(train) == []
    assert told(check(train, pairs(("q", "b"), file="held.jsonl")))[0][3] == "line 1 of train.jsonl asks the same"


def test_an_empty_held_out_split_is_an_error() -> None:
    """A training without anything to score by ends without a figure, hours later."""
    assert told(check(GOOD, pairs(file="held.jsonl"))) == [("error", 0, "", "the held-out split is empty")]


def test_unknown_labels_in_the_held_out_split_are_errors() -> None:
    """A class that cannot be predicted is wrong every time, and the score says nothing."""
    train, held = labelled(("s", "a"), ("t", "b"), ("u", "a"), ("v", "b")), labelled(("w", "c"), file="held.jsonl")
    found = [one for one in check(train, held) if one.severity == "error"]
    assert told(found) == [("error", 1, "label", "no training example has the label 'c'")]


def test_a_label_that_is_never_held_out_is_told() -> None:
    """A score that says nothing of a label is taken for one that does; a text that is in both splits is a leak."""
    train, held = labelled(("s", "a"), ("t", "b"), ("u", "a"), ("v", "b")), labelled(("S?", "a"), file="held.jsonl")
    assert told(check(train, held)) == [
        ("error", 1, "", "line 1 of train.jsonl has the same text"),
        ("warning", 0, "label", "no held-out example has the label 'b', so how well it is known is not measured"),
    ]


def test_lengths_are_counted_by_who_can() -> None:
    """An example that does not fit would be cut off, and the model would learn to stop in the middle."""

    def words(row: Example) -> int:
        return sum(len(message.content.split()) for message in row.messages)

    assert check(GOOD, count_tokens=words, max_tokens=8) == []
    assert told(check(GOOD, count_tokens=words, max_tokens=7)) == [
        ("error", 1, "", "the example has 8 tokens, at most 7 fit")
    ]


def test_a_secret_is_never_shown_and_may_be_a_warning() -> None:
    """The list of problems ends up in logs: a key in it is one more place where it has to be removed from."""
    examples = pairs((f"Use {KEY}", "a"))
    (problem,) = check(examples, secrets="warning")
    assert problem.severity == "warning"
    assert KEY[8:] not in str(problem)
    assert "revoked" in problem.mend


def test_alike_problems_are_counted() -> None:
    """Ten thousand duplicates are one problem, not ten thousand lines."""
    found = check(pairs(*[("q", "a")] * 100))
    assert len(found) == 21
    assert found[-1].problem == "79 more problems of this kind"


def test_what_was_found_by_reading_comes_first() -> None:
    """Problems of reading that `check` dropped would let a training begin on half of a file."""
    wrong = Problem("train.jsonl", 3, "messages", "w", "m")
    examples = Examples("train.jsonl", "chat", (), (wrong,))
    assert check(examples) == [wrong]


# --- the split ---------------------------------------------------------------------------------------------------

MANY = pairs(*((f"What is {i}?", f"It is {i}.") for i in range(2000)))


def test_a_split_is_of_about_the_wanted_share() -> None:
    """A share that is far from what was asked for is a test that is too small, or a training."""
    train, held = split(MANY, held_out=0.1)
    assert len(train) + len(held) == 2000
    assert 150 < len(held) < 250
    assert split(MANY, held_out=0.1, seed=1)[1].rows != held.rows


@given(order=st.permutations(range(60)), held_out=st.floats(0.05, 0.95), seed=st.integers())
def test_a_split_depends_on_nothing_but_content_and_seed(order: list[int], held_out: float, seed: int) -> None:
    """A held-out example that moves into the training when the file is sorted, or when a row is added, is a leak
    between two runs that are compared."""
    few = Examples("t", "chat", MANY.rows[:60])
    shuffled = Examples("t", "chat", tuple(MANY.rows[index] for index in order if index % 7))
    train, held = split(few, held_out=held_out, seed=seed)
    other_train, other_held = split(shuffled, held_out=held_out, seed=seed)
    assert set(other_train.rows) <= set(train.rows)
    assert set(other_held.rows) <= set(held.rows)
    assert [row.line for row in held.rows] == sorted(row.line for row in held.rows)


def test_rows_that_ask_the_same_stay_together() -> None:
    """Two phrasings of a question on both sides of the split are a leak of our own making."""
    train, held = split(pairs(*((f"{word} {i}?", "a") for i in range(200) for word in ("Why", "why  ", "WHY,"))))
    assert train.rows
    assert held.rows
    assert not [one for one in check(train, held) if "asks the same" in one.problem and one.file == held.file]
    assert {normal(row.question) for row in train.rows}.isdisjoint(normal(row.question) for row in held.rows)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 10.0])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    """10 for "10 percent" would hold everything out."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        split(GOOD, held_out=share)
