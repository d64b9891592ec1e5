"""The labels that a classifier tells apart, and whether the base's head is kept for them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from interlace.errors import ConfigError
from interlace.models import Checkpoint, EncoderArchitecture, read_architecture
from interlace.tuning.examples import Examples, Problem


class Head(msgspec.Struct, frozen=True):
    """Labels in the order of the head's numbers; `fresh`: the base has none for them, so it begins at random."""

    labels: tuple[str, ...]
    fresh: bool


def head_of(base: Sequence[str], data: Sequence[str], named: Sequence[str] = ()) -> Head:
    """The base's own head where it knows all labels of the data (and they are named in its order, where they are
    named); else a new one, in the order of the names, or sorted."""
    wanted = tuple(named) or tuple(sorted(set(data)))
    if set(wanted) <= set(base) and (not named or tuple(base) == wanted):
        return Head(tuple(base), fresh=False)
    return Head(wanted, fresh=True)


def checkpoint_to_classify(base: Checkpoint) -> Checkpoint:
    """The base itself, if it is an encoder; raises `ConfigError`."""
    if not isinstance(read_architecture(base.path), EncoderArchitecture):
        raise ConfigError(
            f"base: {base.name} makes text, and task classify tunes encoders. Give one of the BERT, RoBERTa or "
            "XLM-RoBERTa family, or leave out the task to tune it on conversations."
        )
    return base


def head_over(base: Checkpoint, data: Sequence[str], named: Sequence[str]) -> tuple[Head, str]:
    """The head that a base gets for the labels of the data; and, where it is a new one, what a person is told."""
    architecture = read_architecture(base.path)
    assert isinstance(architecture, EncoderArchitecture)
    head = head_of(architecture.labels, data, named)
    if not head.fresh:
        return head, ""
    has = f"knows other labels ({', '.join(architecture.labels)[:200]})" if architecture.labels else "has no head"
    return head, f"{base.name} {has}, so a new head is learnt from the beginning, for: {', '.join(head.labels)[:400]}."


def check_names(named: Sequence[str], train: Examples, held_out: Examples) -> list[Problem]:
    """What is wrong with the data where the labels are named: one that is not among them, one that has no example."""
    found = []
    for examples in (train, held_out):
        first = {row.label: row.line for row in reversed(examples.rows) if row.label is not None}
        for label, line in sorted(first.items(), key=lambda item: item[1]):
            if named and label not in named:
                mend = f"Mend the spelling, or name it: labels are {', '.join(named)[:200]}"
                found.append(Problem(examples.file, line, "label", f"the label {label[:40]!r} is not named", mend))
    for label in named:
        if label not in train.labels:
            what = f"the settings name the label {label[:40]!r}, which no training example has"
            found.append(Problem(train.file, 0, "label", what, "Add some, or leave it out of the names"))
    return found
