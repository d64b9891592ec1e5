"""Training data as the rest of the room sees it, whatever file it came from; and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Role = Literal["system", "user", "assistant"]
Task = Literal["chat", "classify"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, what it is, how to mend it. `line` counts from 1 (rows, in Parquet); 0 where it is
    about the file. Texts of the data are quoted only where they are no content: roles, keys, labels."""

    file: str
    line: int
    field: str
    problem: str
    mend: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        field = f"{self.field}: " if self.field else ""
        return f"{place}: {'warning: ' if self.severity == 'warning' else ''}{field}{self.problem}. {self.mend}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its text exactly as in the file."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with an assistant's turn (task `chat`), or a text with its label (task
    `classify`, where `messages` is the text as one user's turn). `line` is where it begins in its file."""

    line: int
    messages: tuple[Message, ...]
    label: str | None = None

    @property
    def answer(self) -> str:
        """What is learnt: the last assistant's turn, or the label."""
        return self.messages[-1].content if self.label is None else self.label

    @property
    def question(self) -> str:
        """The turn before the answer, or the text."""
        turns = self.messages[:-1] if self.label is None else self.messages
        return turns[-1].content if turns else ""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that is in the row, roles included: equal rows have equal ones, in any format."""
        whole = [[one.role, one.content] for one in self.messages], self.label
        return hashlib.sha256(json.dumps(whole, ensure_ascii=True).encode()).digest()

    @cached_property
    def prompt_digest(self) -> bytes:
        """SHA-256 of what is asked, in normal form: all turns but the answer and the system's."""
        turns = self.messages[:-1] if self.label is None else self.messages
        asked = [[one.role, normal(one.content)] for one in turns if one.role != "system"]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=True).encode()).digest()

    def chat(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        return [{"role": one.role, "content": one.content} for one in self.messages]


@dataclass(frozen=True)
class Examples:
    """The sound rows of a file, and the problems of the others. `sha256` is that of the file, in hexadecimal digits.
    `class_names` are the names, by column, that stand here for numbers of the file, from 0 on."""

    file: str
    task: Task
    rows: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
    sha256: str = ""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classification, each once, sorted."""
        return tuple(sorted({row.label for row in self.rows if row.label is not None}))


def normal(text: str) -> str:
    """A text as two people would call it the same: compatibility forms, case, punctuation and spacing are ignored.
    What consists of punctuation alone keeps it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if _ignored(letter) else letter for letter in folded).split()
    return " ".join(words or folded.split())


def _ignored(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PZC"


def errors_of(problems: Sequence[Problem]) -> list[Problem]:
    """Those that training must not begin with."""
    return [problem for problem in problems if problem.severity == "error"]
