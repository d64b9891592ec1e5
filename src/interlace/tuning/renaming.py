"""Rows under our names: columns as the settings name them, and numbers of classes as the data set names those."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from interlace.tuning.columns import OURS, ROLES, Columns
from interlace.tuning.examples import Task
from interlace.tuning.lines import Say

ClassNames = Mapping[str, Sequence[str]]
"""By column: the names of the classes that the numbers from 0 on stand for."""

_OF_ROWS = ("prompt", "completion", "text", "label")  # where a number of a class may stand
_FIELD = re.compile(r"(\w+)(\[\d+\])?(?:\.(\w+))?")
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_BETWEEN = "\n\n"


class Renaming:
    """Of one file. Beside the names nothing changes; without any, rows stay as they are."""

    def __init__(self, columns: Columns, task: Task, class_names: ClassNames) -> None:
        self._columns = columns
        self._of_rows, self._of_turns = columns.of_rows, columns.of_turns
        self._roles = {word: role for role, words in columns.of_roles.items() for word in words}
        self._taken = {*columns.used, *self._of_rows, *(("messages",) if columns.pairs else ())}
        read = {name for ours in _OF_ROWS if OURS[ours] == task for name in columns.named(ours)}
        self._class_names = {column: names for column, names in class_names.items() if column in read}
        self._seen: set[str] = set()
        self.named: dict[str, tuple[str, ...]] = {}
        """By column: the names that stand for numbers which were met."""

    def __call__(self, number: int, row: Mapping[str, Any], say: Say) -> tuple[Mapping[str, Any], Say] | None:
        """The row by our names, and what takes problems by them and tells them by the file's; None after a problem."""
        if self._class_names:
            told = self._with_class_names(number, row, say)
            if told is None:
                return None
            row = told
        if not self._columns.names:
            return row, say
        self._seen.update(row)
        here = {key: value for key, value in row.items() if key not in self._taken}
        for key in row:
            if key in self._taken and key not in self._columns.used:
                say(number, _short(key), "this field is not trained on", "Leave it out", severity="warning")
        names: dict[str, str] = {}
        for ours, theirs in self._of_rows.items():
            if theirs[0] in row:
                here[ours], names[ours] = _joined(row, theirs)
            elif ours != "system":
                say(number, _short(theirs[0]), "the field is missing", "Add it, or remove the row")
                return None
        if self._columns.conversations and isinstance(turns := here.get("messages"), list):
            where = names.get("messages", "messages")
            renamed = [self._turn(number, turn, f"{where}[{place}]", say) for place, turn in enumerate(turns)]
            if None in renamed:
                return None
            here["messages"] = renamed
        return here, partial(self._tell, say, names)

    def tell_unseen(self, say: Say) -> None:
        """At the end of the file: a column that is named, and that no row has."""
        if not self._seen:
            return
        for ours, theirs in self._of_rows.items():
            for name in theirs:
                if name not in self._seen:
                    what = f"no row has this column, which columns names for {ours}"
                    say(0, _short(name), what, "Mend its name, or leave it out")

    # --- parts ---------------------------------------------------------------------------------------------------

    def _with_class_names(self, number: int, row: Mapping[str, Any], say: Say) -> dict[str, Any] | None:
        told = dict(row)
        for column, names in self._class_names.items():
            value = row.get(column)
            if isinstance(value, bool) or not isinstance(value, int | str) or value in names:
                continue
            if isinstance(value, str):
                if not _WHOLE.fullmatch(value):
                    continue
                value = int(value)
            if value == -1:
                say(number, _short(column), "-1 stands for no class", "Remove the row, or take a split with labels")
                return None
            if not 0 <= value < len(names):
                what = f"{value} is none of the {len(names)} classes that the data set names"
                say(number, _short(column), what, f"Write a number from 0 to {len(names) - 1}")
                return None
            told[column] = names[value]
            self.named[column] = tuple(names)
        return told

    def _turn(self, number: int, turn: Any, where: str, say: Say) -> Any:
        """A turn by our names; as it is, where it is none; None after a problem."""
        if not isinstance(turn, dict):
            return turn
        mapped = {theirs[0]: ours for ours, theirs in self._of_turns.items()}
        here: dict[str, Any] = {}
        for key, value in cast("dict[str, Any]", turn).items():
            if key not in mapped and key in self._of_turns:
                field = f"{where}.{_short(key)}"
                say(number, field, "this field is not trained on", "Leave it out", severity="warning")
            else:
                here[mapped.get(key, key)] = value
        for theirs, ours in mapped.items():
            if ours not in here:
                say(number, f"{where}.{_short(theirs)}", "the key is missing", "Add it, or remove the row")
                return None
        return here if not self._roles or self._says_who(number, here, where, say) else None

    def _says_who(self, number: int, turn: dict[str, Any], where: str, say: Say) -> bool:
        """Whether the word for who speaks is known, which is put in place."""
        word = turn.get("role")
        if not isinstance(word, str) or word in ("tool", "function"):
            return True
        if word in self._roles:
            turn["role"] = self._roles[word]
        elif word not in ROLES:
            (key,) = self._columns.named("role")
            known = ", ".join(dict.fromkeys((*self._roles, *ROLES)))
            mend = f"Known are {known}. Have columns name it, too, such as assistant={'+'.join((*self._words(), 'IT'))}"
            say(number, f"{where}.{_short(key)}", f"unknown role {_short(word)!r}", mend)
            return False
        return True

    def _words(self) -> list[str]:
        return [word for word, role in self._roles.items() if role == "assistant"]

    def _tell(
        self, say: Say, names: Mapping[str, str], number: int, field: str, *more: str, severity: str = "error"
    ) -> None:
        """Pass a problem on, its field by the file's name."""
        found = _FIELD.fullmatch(field)
        if found is not None and found[1] in ("messages", *names):
            key = found[3] and self._columns.named(found[3])[0] if found[3] in self._of_turns else found[3]
            field = f"{_short(names.get(found[1], found[1]))}{found[2] or ''}{f'.{key}' if key else ''}"
        say(number, field, *more, severity=severity)


def _joined(row: Mapping[str, Any], theirs: Sequence[str]) -> tuple[Any, str]:
    """The value of one column, or the texts of several, and what a problem with it is told by. What is no text comes
    alone, to be told."""
    first, *others = theirs
    value = row[first]
    if not others or not isinstance(value, str) or not value.strip():
        return value, first
    texts = [value]
    for name in others:
        part = row.get(name)
        if part is None or (isinstance(part, str) and not part.strip()):
            continue
        if not isinstance(part, str):
            return part, name
        texts.append(part)
    return _BETWEEN.join(texts), "+".join(theirs)


def _short(text: str) -> str:
    return repr(text[:40])[1:-1]
