"""Well-known layouts of data sets. None is read by itself: the person is told the mapping that would read it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from interlace.tuning.columns import ROLES, Columns
from interlace.tuning.examples import Role, Task

PAIRS = (  # what is asked, and what is answered; the likelier first
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("question", "response"),
    ("input", "output"), ("query", "response"), ("context", "response"), ("prompt", "response"), ("prompt", "answer"),
    ("source", "target"),
)  # fmt: skip
ROLE_WORDS: Mapping[str, Role] = {
    "human": "user", "customer": "user", "question": "user", "instruction": "user", "prompter": "user",
    "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant", "chatbot": "assistant",
    "answer": "assistant", "response": "assistant", "agent": "assistant",
    "developer": "system", "instructions": "system",
}  # fmt: skip
TEXT_NAMES = ("sentence", "content", "review", "comment", "message", "body", "tweet", "headline", "prompt", "input")
LABEL_NAMES = ("class", "category", "target", "sentiment", "tag", "labels", "intent", "topic", "completion", "output")
_SECOND = ("input", "context")  # what Alpaca and Dolly give beside an instruction
_CONVERSATIONS = ("conversations", "conversation")
_SHOWN = 8

Named = dict[str, tuple[str, ...]]


def of_the_file(row: Mapping[str, Any], task: Task, columns: Columns) -> tuple[str, str, str] | None:
    """What the first row of a file shows to be wrong with how its columns are read: field, problem, mend. None where
    nothing is, or where no mapping would help."""
    if gone := [theirs[0] for ours, theirs in columns.of_rows.items() if ours != "system" and theirs[0] not in row]:
        return gone[0], f"the first row has no such column ({_found(row)})", _instead(row, columns, gone)
    if (other_way := _swapped(columns)) is not None:
        asked, said = ("text", "label") if task == "classify" else ("prompt", "completion")
        what = f"{columns.named(asked)[0]!r} as {asked} and {columns.named(said)[0]!r} as {said} look swapped"
        return "columns", what, f"{option(other_way)}; or, if they are not, give them other names in the file"
    if (found := meant(row, task, columns)) is not None:
        return (
            "columns",
            f"{_found(row)}, and not all names that are needed",
            f"If they are what they look like: {option(found)}",
        )
    return None


def option(columns: Columns) -> str:
    """As a person would give it to a shell."""
    return f"--columns {shlex.quote(str(columns))}"


def meant(row: Mapping[str, Any], task: Task, columns: Columns) -> Columns | None:
    """The mapping that was probably meant for a file with such a first row, with what `columns` name already; None
    where the row has all that it needs, or is of no layout that we know."""
    free = {bare(key): key for key in row if key not in columns.used}
    if task == "classify":
        named = _labelled(free, columns)
    elif columns.pairs or (not columns.conversations and "messages" not in row and {"prompt", "completion"} <= {*row}):
        named = _pair(free, columns)
    elif columns.conversations or "messages" in row:
        named = _turns(row, free, columns)
    else:
        named = _turns(row, free, columns) or _pair(free, columns)
    if not named:
        return None
    try:
        found = Columns.of([*columns.names, *named.items()])
    except ValueError:
        return None
    return found if str(found).isprintable() else None


def bare(name: str) -> str:
    """A name as two people would write it alike."""
    return name.strip().casefold().lstrip("\ufeff")


# --- layouts ------------------------------------------------------------------------------------------------------


def _labelled(free: Mapping[str, str], columns: Columns) -> Named:
    named: Named = {}
    for ours, others in (("text", TEXT_NAMES), ("label", LABEL_NAMES)):
        if ours in columns or free.get(ours) == ours:
            continue
        near = next((free[name] for name in (ours, *others) if name in free), None)
        if near is None:
            return {}
        named[ours] = (near,)
    return named


def _pair(free: Mapping[str, str], columns: Columns) -> Named:
    have = {ours for ours in ("prompt", "completion") if ours in columns or free.get(ours) == ours}
    for asked, answered in PAIRS if len(have) < 2 else ():
        if ("prompt" not in have and asked not in free) or ("completion" not in have and answered not in free):
            continue
        named: Named = {}
        if "prompt" not in have:
            more = [free[name] for name in _SECOND if name in free] if asked == "instruction" else []
            named["prompt"] = (free[asked], *more[:1])
        if "completion" not in have:
            named["completion"] = (free[answered],)
        if "system_prompt" in free and "system" not in free and "system" not in columns:
            named["system"] = (free["system_prompt"],)
        return named
    return {}


def _turns(row: Mapping[str, Any], free: Mapping[str, str], columns: Columns) -> Named:
    named: Named = {}
    (column,) = columns.named("messages")
    if column not in row:
        column = next((free[name] for name in _CONVERSATIONS if name in free), "")
        named["messages"] = (column,)
    turns = row.get(column)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        return {}
    (role,), (content,) = columns.named("role"), columns.named("content")
    if not any(role in turn or content in turn for turn in turns):
        if not all("from" in turn and "value" in turn for turn in turns):
            return {}
        role = "from"
        named |= {"role": ("from",), "content": ("value",)}
    words = {word for turn in turns if isinstance(word := turn.get(role), str) and word != "system"}
    known = {*ROLES, *(word for each in columns.of_roles.values() for word in each)}
    if not words & known:
        for word in sorted(words):
            if (meaning := ROLE_WORDS.get(bare(word))) is not None and meaning not in columns:
                named[meaning] = (*named.get(meaning, ()), word)
    return named


# --- mistakes -----------------------------------------------------------------------------------------------------


def _swapped(columns: Columns) -> Columns | None:
    """The other way round, where each of two columns has a name that says it is the other one."""
    asked, answered = zip(*PAIRS, strict=True)
    for (ours, names), (others, other_names) in (
        (("prompt", asked), ("completion", answered)),
        (("text", ("text", *TEXT_NAMES)), ("label", ("label", *LABEL_NAMES))),
    ):
        if ours not in columns or others not in columns:
            continue
        here, there = columns.named(ours), columns.named(others)
        if (
            len(here) == len(there) == 1
            and bare(here[0]) in set(other_names) - set(names)
            and bare(there[0]) in set(names) - set(other_names)
        ):
            other_way = {**dict(columns.names), ours: there, others: here}
            return Columns.of(other_way.items())
    return None


def _instead(row: Mapping[str, Any], columns: Columns, gone: Iterable[str]) -> str:
    """The mend where some columns are not there."""
    free = {bare(key): key for key in row if key not in columns.used}
    near: dict[str, str] = {}
    for name in gone:
        if "+" in name and all(part.strip() in row for part in name.split("+")):
            return f"Several columns are a list in a YAML: [{', '.join(part.strip() for part in name.split('+'))}]"
        found = difflib.get_close_matches(bare(name), free, 1)
        if not found:
            return "Name one of those, or leave it out"
        near[name] = free[found[0]]
    names = [(ours, [near.get(name, name) for name in theirs]) for ours, theirs in columns.names]
    try:
        better = Columns.of(names)
    except ValueError:
        return "Name one of those, or leave it out"
    return f"Did you mean {option(better)}" if str(better).isprintable() else "Name one of those, or leave it out"


def _found(row: Mapping[str, Any]) -> str:
    names = list(row)
    shown = ", ".join(repr(name if len(name) <= 40 else name[:40] + "…") for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"found {shown}{more}" if names else "the row is empty"
