"""How well held-out texts are told apart: loss, accuracy and macro F1, each with a 95 % interval.

Loss is the mean negative log-likelihood of a text's label, in nats. Accuracy is the share of the texts whose likeliest
label is theirs. F1 of a label is twice the right ones over all that have it and all that were given it; macro F1 is the
mean over the labels that occur, rare ones weighing as much as common ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from interlace.tuning.scores import Interval, Known, drawn, middle, score, wilson

if TYPE_CHECKING:
    import numpy as np


class Judged(Known, frozen=True):
    """How well one text is known: in nats of its one label, which is the number `label` of the head; `guess` is the
    likeliest."""

    label: int
    guess: int


class LabelScore(msgspec.Struct, frozen=True):
    """One label: how many texts have it, and of those given it and having it, how many are right."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


class ClassScore(msgspec.Struct, frozen=True):
    """A classifier on the held-out texts."""

    loss: Interval
    accuracy: Interval
    macro_f1: Interval
    examples: int
    by_label: list[LabelScore]


def class_score(judged: Sequence[Judged], labels: Sequence[str], seed: int = 0) -> ClassScore:
    """All figures. Intervals of loss and macro F1 come from drawing texts anew, accuracy's from Wilson's formula."""
    truth, guesses = _numbers(judged)
    draws = drawn(len(judged), seed)
    low, high = middle([macro_f1(truth[draw], guesses[draw], len(labels)) for draw in draws])
    return ClassScore(
        loss=score(judged, seed).loss,
        accuracy=wilson(sum(one.exact for one in judged), len(judged)),
        macro_f1=Interval(macro_f1(truth, guesses, len(labels)), low, high),
        examples=len(judged),
        by_label=_by_label(truth, guesses, labels),
    )


def accuracy_change(before: Sequence[Judged], after: Sequence[Judged], seed: int = 0) -> Interval:
    """How the accuracy changed on the same texts, drawn in pairs; above zero is better."""
    import numpy as np

    moved = np.array([float(then.exact) - float(one.exact) for one, then in zip(before, after, strict=True)])
    low, high = middle([float(moved[draw].mean()) for draw in drawn(len(moved), seed)])
    return Interval(float(moved.mean()), low, high)


def macro_f1(truth: np.ndarray, guesses: np.ndarray, count: int) -> float:
    """Of labels by their numbers below `count`, [texts] each."""
    import numpy as np

    right = np.bincount(truth[truth == guesses], minlength=count)
    both = np.bincount(truth, minlength=count) + np.bincount(guesses, minlength=count)
    occurs = both > 0
    return float((2 * right[occurs] / both[occurs]).mean())


def _numbers(judged: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    return np.array([one.label for one in judged]), np.array([one.guess for one in judged])


def _by_label(truth: np.ndarray, guesses: np.ndarray, labels: Sequence[str]) -> list[LabelScore]:
    found = []
    for number, label in enumerate(labels):
        has, given = truth == number, guesses == number
        right = int((has & given).sum())
        examples, named = int(has.sum()), int(given.sum())
        precision, recall = right / max(named, 1), right / max(examples, 1)
        found.append(LabelScore(label, examples, precision, recall, 2 * right / max(examples + named, 1)))
    return found


CLASS_SCORES = ("accuracy", "macro_f1")
"""What is told of a classifier in one figure each."""


def words_of_classes(metrics: Mapping[str, Any]) -> str:
    """One line, of what `metrics_of` gives: the accuracy before and after."""
    before, after = ("{:.0f} %".format(100 * metrics[when]["accuracy"]["value"]) for when in ("before", "after"))
    return f"Accuracy: {before} before, {after} after."


def metrics_of(before: Sequence[Any], after: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
    """What a manifest tells of both, beside how the loss changed."""
    return {
        "before": msgspec.to_builtins(class_score(before, labels)),
        "after": msgspec.to_builtins(class_score(after, labels)),
        "accuracy_change": msgspec.to_builtins(accuracy_change(before, after)),
    }
