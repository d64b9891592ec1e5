"""The front door of training data: a file of any format to `Examples`, with a problem for each row that is none.

    examples = read_examples(Path("train.jsonl"))
    problems = check(examples, held_out)      # those of reading among them
    errors_of(problems)                       # not empty: do not train

Formats, by the name of the file: `.jsonl` (or `.ndjson`, `.json`), `.csv`, `.tsv`, `.parquet`. Rows are conversations
(`messages`), or `prompt` and `completion` (and `system`, where wanted); for the task `classify`, `text` and `label`;
or what `columns` says of their names. Nothing is changed on the way: texts come with the white space and the characters
that they have in the file, and only the numbers of classes that the data set names become those names.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from interlace.tuning.columns import Columns
from interlace.tuning.examples import Example, Examples, Problem, Severity, Task
from interlace.tuning.json_rows import json_rows
from interlace.tuning.layouts import of_the_file
from interlace.tuning.lines import foreign
from interlace.tuning.renaming import ClassNames, Renaming
from interlace.tuning.shapes import example_of
from interlace.tuning.tables import csv_rows, parquet_class_names, parquet_rows

FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": ",", ".tsv": "\t", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
MOST_PROBLEMS = 100  # told of one file, of each severity; the rest is counted
_ALIKE = 3  # warnings of one kind and field told of a file
_HEAD_BYTES = 4096
_PARQUET = b"PAR1"
_OUR_NAMES = Columns()


def read_examples(
    path: Path, *, task: Task = "chat", columns: Columns = _OUR_NAMES, class_names: ClassNames | None = None
) -> Examples:
    """Everything in a file that can be trained on, and what is wrong with the rest. Raises nothing for a file that is
    missing, unreadable or no training data at all: that is a problem, too. `class_names` are what the data set says of
    the numbers in a column; what a Parquet file says of its own goes before."""
    taker = _Taker(path)
    rows: list[Example] = []
    sha256, named = "", {}
    try:
        if stat.S_ISFIFO(mode := path.stat().st_mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
            taker.take(0, "", "this is a pipe or a device, and is read twice", "Write the examples to a file first")
            return Examples(str(path), task, (), taker.problems(), "", {})
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            own = parquet_class_names(path) if head.startswith(_PARQUET) else {}
            renaming = Renaming(columns, task, {**(class_names or {}), **own})
            rows = list(_examples(_rows(path, file, head, taker), task, columns, renaming, taker))
            named = renaming.named
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        taker.take(0, "", "there is no such file", "Check the path")
    except IsADirectoryError:
        taker.take(0, "", "this is a folder", "Name one file in it")
    except OSError as error:
        taker.take(0, "", f"the file cannot be read ({error.strerror or error})", "Check its permissions")
    return Examples(str(path), task, tuple(rows), taker.problems(), sha256, named)


def _examples(
    rows: Iterator[tuple[int, dict[str, Any]]], task: Task, columns: Columns, renaming: Renaming, taker: _Taker
) -> Iterator[Example]:
    """Those of sound rows. A file whose columns are called otherwise gets one problem, not one a row."""
    for index, (number, values) in enumerate(rows):
        if index == 0 and (wrong := of_the_file(values, task, columns)) is not None:
            taker.take(0, *wrong)
            return
        renamed = renaming(number, values, taker.take)
        if renamed is not None and (row := example_of(number, renamed[0], task, renamed[1])) is not None:
            yield row
    renaming.tell_unseen(taker.take)


def _rows(path: Path, file: BinaryIO, head: bytes, taker: _Taker) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        mend = f"Name it by its format: {', '.join(FORMATS)}"
        taker.take(0, "", f"the format of {path.suffix or 'a file without an ending'} is unknown", mend)
    elif not head:
        taker.take(0, "", "the file is empty", "Check that it was written to the end")
    elif kind == "parquet":
        if head.startswith(_PARQUET):
            yield from parquet_rows(path, taker.take)
        else:
            taker.take(0, "", "this is not a Parquet file", "Name it by its format: *.jsonl or *.csv")
    elif wrong := foreign(head):
        taker.take(0, "", *wrong)
    elif kind == "json":
        yield from json_rows(file, taker.take)
    else:
        yield from csv_rows(file, kind, taker.take)


class _Taker:
    """Takes down problems, as many as a person reads."""

    def __init__(self, path: Path) -> None:
        self._file = str(path)
        self._problems: list[Problem] = []
        self._more: Counter[Severity] = Counter()
        self._told: Counter[Severity] = Counter()
        self._alike: Counter[tuple[str, str]] = Counter()

    def take(self, line: int, field: str, problem: str, mend: str, severity: Severity = "error") -> None:
        """Take one down."""
        self._alike[field, problem] += 1
        if self._told[severity] >= MOST_PROBLEMS or (severity == "warning" and self._alike[field, problem] > _ALIKE):
            self._more[severity] += 1
            return
        self._told[severity] += 1
        self._problems.append(Problem(self._file, line, field, problem, mend, severity))

    def problems(self) -> tuple[Problem, ...]:
        """All of them, and how many were left out."""
        severities: tuple[Severity, ...] = ("error", "warning")
        more = [
            Problem(self._file, 0, "", f"{count} more {severity}s like these", "Mend these first", severity)
            for severity in severities
            if (count := self._more[severity])
        ]
        return (*self._problems, *more)
