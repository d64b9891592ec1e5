"""What the data's columns are called: our names, and the file's. What is not named here keeps its own name.

    prompt=question,completion=answer               on a command line: our name first
    prompt=instruction+input,completion=output      two columns with a blank line between; an empty second is left out
    messages=conversations,role=from,content=value,user=human,assistant=gpt

The last one is of conversations: the keys of a turn, and the words that stand for who speaks. A name that has one of
, = + " in it, or white space at an end, stands in quotes, with a quote in it written twice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from interlace.tuning.examples import Role, Task
from interlace.tuning.said import Said

OF_TURNS = ("role", "content")
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
OURS: Mapping[str, Task] = {
    "messages": "chat", "role": "chat", "content": "chat", "system": "chat", "user": "chat", "assistant": "chat",
    "prompt": "chat", "completion": "chat", "text": "classify", "label": "classify",
}  # fmt: skip
"""Our names, in the order in which they are written, and the task whose data they are of."""
_SEVERAL = frozenset({"prompt", "completion", "text", *ROLES})  # may be several columns, or several words
_OF_CONVERSATIONS = frozenset({"messages", *OF_TURNS, "user", "assistant"})
_OF_PAIRS = frozenset({"prompt", "completion"})
_ONE = r'(?:\s*"(?:[^"]|"")*"\s*|[^,=+"]+)'
_PAIR = re.compile(rf"({_ONE})=({_ONE}(?:\+{_ONE})*)(?:,|\Z)")
_HELP = "Write such as prompt=question,completion=answer"


@dataclass(frozen=True, slots=True)
class Columns:
    """Our names, each once, with the file's. It comes from `of` or `read`, which check it."""

    names: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, names: Iterable[tuple[str, Sequence[str]]]) -> Columns:
        """Checked, and put in order. Raises `ValueError` that says what is wrong, and the mend."""
        found: dict[str, tuple[str, ...]] = {}
        for ours, theirs in names:
            _check_name(ours, theirs)
            if ours in found:
                raise ValueError(f"{ours} is there twice. Keep one of them.")
            found[ours] = tuple(theirs)
        kinds = [[name for name in found if name in kind] for kind in (_OF_CONVERSATIONS, _OF_PAIRS)]
        if all(kinds):
            raise ValueError(
                f"{kinds[0][0]} is of conversations, and {kinds[1][0]} of pairs. Name what one of the two needs."
            )
        columns = cls(tuple((ours, found[ours]) for ours in OURS if ours in found))
        for level in (columns.of_rows, columns.of_turns, columns.of_roles):
            _check_once(level)
        return columns

    @classmethod
    def read(cls, text: str) -> Columns:
        """As a command line says it. Raises `ValueError` as `of` does."""
        pairs, place = [], 0
        while place < len(text):
            found = _PAIR.match(text, place)
            if found is None:
                raise ValueError(f"cannot be read from {text[place : place + 60]!r} on. {_HELP}.")
            theirs = [_bare(one) for one in re.findall(_ONE, found[2])]
            pairs.append((_bare(found[1]), theirs))
            place = found.end()
        return cls.of(pairs)

    def __str__(self) -> str:
        return written(self.names)

    def __contains__(self, ours: str) -> bool:
        return any(ours == each for each, _ in self.names)

    def named(self, ours: str) -> tuple[str, ...]:
        """What the file calls it: our own name where nothing else is said."""
        return dict(self.names).get(ours, (ours,))

    @property
    def conversations(self) -> bool:
        """Whether it is of conversations for certain. Then `system` is a word for who speaks, else a column."""
        return any(ours in _OF_CONVERSATIONS for ours, _ in self.names)

    @property
    def pairs(self) -> bool:
        """Whether it is of prompts and completions for certain."""
        return any(ours in _OF_PAIRS for ours, _ in self.names)

    @property
    def of_rows(self) -> dict[str, tuple[str, ...]]:
        """The columns of a row, by our names."""
        words = ROLES if self.conversations else ()
        return {ours: theirs for ours, theirs in self.names if ours not in (*OF_TURNS, *words)}

    @property
    def of_turns(self) -> dict[str, tuple[str, ...]]:
        """The keys of a turn, by our names."""
        return {ours: theirs for ours, theirs in self.names if ours in OF_TURNS}

    @property
    def of_roles(self) -> dict[str, tuple[str, ...]]:
        """The words for who speaks, by our own."""
        return {ours: theirs for ours, theirs in self.names if ours in ROLES} if self.conversations else {}

    @property
    def used(self) -> frozenset[str]:
        """The file's columns that are named."""
        return frozenset(name for theirs in self.of_rows.values() for name in theirs)

    def as_mapping(self) -> dict[str, list[str]]:
        """For the manifest."""
        return {ours: list(theirs) for ours, theirs in self.names}


def written(names: Iterable[tuple[str, Sequence[str]]]) -> str:
    """As a command line says it, with quotes where a name needs them."""
    return ",".join(f"{_quoted(ours)}={'+'.join(map(_quoted, theirs))}" for ours, theirs in names)


def of_yaml(node: yaml.MappingNode) -> str | None:
    """The same from a YAML, where several columns are a list, and names stand as they are; None where it is another
    form."""
    names = []
    for key, value in node.value:
        theirs = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(one, yaml.ScalarNode) for one in (key, *theirs)):
            return None
        names.append((key.value, ["" if one.tag.endswith(":null") else one.value for one in theirs]))
    return written(names)


def column_problems(values: Mapping[str, Any], said: Said) -> Iterator[str]:
    """What is wrong with sound columns beside the other settings."""
    task = values.get("task", "chat")
    names = [ours for ours, _ in Columns.read(values.get("columns", "")).names if OURS[ours] != task]
    if names and task in ("chat", "classify"):
        wanted = "text and label" if task == "classify" else "messages, or prompt and completion"
        other, are = OURS[names[0]], "is" if len(names) == 1 else "are"
        yield (
            f"columns: {' and '.join(names)} {are} of task {other}, not {task}. Name {wanted}, or write "
            f"{said.write('task', other)}."
        )


# --- one name after the other -------------------------------------------------------------------------------------


def _check_name(ours: str, theirs: Sequence[str]) -> None:
    if ours not in OURS:
        if len(theirs) == 1 and theirs[0] in OURS:
            mend = f"Our name stands first: {written([(theirs[0], [ours])])}."
        elif near := difflib.get_close_matches(ours.strip().casefold(), OURS, 1):
            mend = f"Did you mean {near[0]}?"
        else:
            mend = f"There are: {', '.join(OURS)}."
        raise ValueError(f"{ours[:60]!r} is none of our names. {mend}")
    if not theirs or not all(theirs):
        raise ValueError(f"{ours} names no column. {_HELP}.")
    if len(theirs) > 1 and ours not in _SEVERAL:
        raise ValueError(f"{ours} names {len(theirs)} columns, and can be one. Name that.")


def _check_once(level: Mapping[str, Sequence[str]]) -> None:
    owner: dict[str, str] = {}
    for ours, theirs in level.items():
        for name in theirs:
            if name in owner:
                both = f"for {owner[name]} and for {ours}" if owner[name] != ours else f"for {ours}"
                raise ValueError(f"{name[:60]!r} is named twice, {both}. Name it once.")
            owner[name] = ours


def _bare(name: str) -> str:
    name = name.strip()
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _quoted(name: str) -> str:
    if name and name == name.strip() and not set(name) & set(',=+"'):
        return name
    return '"' + name.replace('"', '""') + '"'
