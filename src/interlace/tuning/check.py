"""What is wrong with training data as a whole: what one row alone does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

from interlace.safety import secrets_in
from interlace.tuning.examples import Example, Examples, Problem, Severity, normal

CountTokens = Callable[[Example], int]
"""How many tokens an example has as it is trained on, template included."""

_MOST = 20  # problems of one kind and file; the rest is counted
_MOJIBAKE = ("Ã©", "Ã¨", "Ã¼", "Ã¶", "Ã¤", "Ã±", "Ã§", "â€™", "â€œ", "â€“", "Â°", "Â ")  # UTF-8 read as Windows-1252
_LOPSIDED = 0.9  # the share of one label from which on the others drown
_SWAPPED_ROWS = 5  # fewer tell nothing about a file


def check(
    examples: Examples,
    held_out: Examples | None = None,
    *,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    secrets: Severity = "error",
) -> list[Problem]:
    """Everything wrong with the examples and the held-out ones, what was found by reading them first.

    `count_tokens` and `max_tokens` (of one example) go together; without them lengths are not checked. `secrets` says
    how grave a secret in a text is. Nothing is changed, whatever is found.
    """
    files = [examples] if held_out is None else [examples, held_out]
    found = list(chain.from_iterable(one.problems for one in files))
    for one, name in zip(files, ("training", "held-out"), strict=False):
        if one.rows:
            found += _checked(one, count_tokens, max_tokens, secrets, labels=one is examples)
        elif not any(problem.severity == "error" and problem.file == one.file for problem in found):
            mend = "Give more examples, a larger share, or a file of held-out examples"
            found.append(Problem(one.file, 0, "", f"the {name} split is empty", mend))
    if held_out is not None and examples.rows and held_out.rows:
        found += _limited(_leaks(examples, held_out))
        found += _unknown_labels(examples, held_out)
    return found


def _checked(
    examples: Examples, count_tokens: CountTokens | None, max_tokens: int | None, secrets: Severity, *, labels: bool
) -> Iterator[Problem]:
    yield from _limited(_secrets(examples, secrets))
    swapped = list(_swapped(examples))
    yield from swapped
    if any(problem.severity == "error" for problem in swapped):
        return  # what follows would say the same, a hundred times
    yield from _limited(_repeated(examples))
    yield from _limited(_damaged(examples))
    yield from _limited(_edges(examples))
    if count_tokens is not None and max_tokens is not None:
        yield from _limited(_long(examples, count_tokens, max_tokens))
    if labels:
        yield from _labels(examples)


def _limited(problems: Iterator[Problem]) -> Iterator[Problem]:
    """The first of them, and how many more there are."""
    more, last = 0, None
    for index, problem in enumerate(problems):
        if index < _MOST:
            yield problem
        else:
            more, last = more + 1, problem
    if last is not None:
        yield Problem(last.file, 0, "", f"{more} more problems of this kind", last.mend, last.severity)


# --- one row after the other --------------------------------------------------------------------------------------


def _texts(row: Example) -> Iterator[tuple[str, str]]:
    """Field and text of each turn, by the names of the chat format."""
    if row.label is not None:
        yield "text", row.messages[0].content
    else:
        for index, message in enumerate(row.messages):
            yield f"messages[{index}].content", message.content


def _secrets(examples: Examples, severity: Severity) -> Iterator[Problem]:
    mend = "Remove it from the data: a model may say what it was trained on. A key that is real must be revoked"
    if severity == "error":
        mend += ". Where it only looks like one, write in the YAML: secrets: warn"
    for row in examples.rows:
        for field, text in _texts(row):
            for kind in secrets_in(text):
                article = "an" if kind[0] in "aeiouAEIOU" else "a"
                yield Problem(examples.file, row.line, field, f"the text has {article} {kind} in it", mend, severity)


def _repeated(examples: Examples) -> Iterator[Problem]:
    whole: dict[bytes, int] = {}
    asked: dict[bytes, Example] = {}
    for row in examples.rows:
        first = whole.setdefault(row.digest, row.line)
        earlier = asked.setdefault(row.prompt_digest, row)
        if first != row.line:
            yield _warning(examples, row, "", f"the same as line {first}", "Remove one of them")
        elif earlier.line != row.line and _same_frame(row, earlier):
            same = normal(row.answer) == normal(earlier.answer)
            other = "asks the same, with another answer, as" if row.label is None else "has another label than"
            what = "the same as" if same else other
            spelt = " but for case, punctuation or spaces" if same else ""
            if row.label is not None and not same:
                spelt = ", which has the same text"
            field = "" if row.label is None or same else "label"
            yield _warning(examples, row, field, f"{what} line {earlier.line}{spelt}", "Keep the better one")


def _same_frame(one: Example, other: Example) -> bool:
    """Whether two rows have the same system's turn: another makes it another question."""
    systems = [[turn.content for turn in row.messages if turn.role == "system"] for row in (one, other)]
    return systems[0] == systems[1]


def _damaged(examples: Examples) -> Iterator[Problem]:
    for row in examples.rows:
        for field, text in _texts(row):
            if "\ufffd" in text:
                mend = "Export the text again, in UTF-8: characters were lost"
                yield _warning(examples, row, field, "the text has replacement characters (U+FFFD)", mend)
            elif sign := next((sign for sign in _MOJIBAKE if sign in text), None):
                mend = "It was UTF-8, read as Windows-1252: export it again"
                yield _warning(examples, row, field, f"the text looks wrongly decoded ({sign!r})", mend)
            elif "\r" in text:
                mend = "Write line breaks as \\n"
                yield _warning(examples, row, field, "the text has carriage returns, which will be learnt", mend)


def _edges(examples: Examples) -> Iterator[Problem]:
    for row in examples.rows:
        if row.label is None and row.answer != row.answer.strip():
            where = "begins" if row.answer != row.answer.lstrip() else "ends"
            mend = "Remove it, unless it is to be learnt"
            yield _warning(examples, row, "", f"the answer {where} with white space", mend)


def _long(examples: Examples, count_tokens: CountTokens, max_tokens: int) -> Iterator[Problem]:
    for row in examples.rows:
        tokens = count_tokens(row)
        if tokens > max_tokens:
            what = f"the example has {tokens} tokens, at most {max_tokens} fit"
            yield Problem(examples.file, row.line, "", what, "Shorten, divide or remove it, or allow more tokens")


def _warning(examples: Examples, row: Example, field: str, problem: str, mend: str) -> Problem:
    return Problem(examples.file, row.line, field, problem, mend, "warning")


# --- the file as a whole ------------------------------------------------------------------------------------------


def _swapped(examples: Examples) -> Iterator[Problem]:
    """Whether answers ask and questions tell; or, of a classification, whether labels differ and texts repeat."""
    count = len(examples.rows)
    if count < _SWAPPED_ROWS:
        return
    if examples.task == "classify":
        texts = len({row.question for row in examples.rows})
        if len(examples.labels) > count // 2 and texts <= count // 4:
            what = f"{len(examples.labels)} labels stand for {texts} texts: the columns look swapped"
            yield Problem(examples.file, 0, "label", what, 'Exchange "text" and "label"')
        return
    asked = sum(_asks(row.question) for row in examples.rows)
    answered = sum(_asks(row.answer) for row in examples.rows)
    if answered > count * 0.6 and asked < count * 0.2:
        what = f"{answered} of {count} answers end with a question mark, {asked} of the questions: they look swapped"
        mend = "Exchange questions and answers, unless questions are what the model shall learn to ask"
        yield Problem(examples.file, 0, "", what, mend, "warning")


def _asks(text: str) -> bool:
    return text.rstrip().endswith(("?", "？", "؟"))


def _labels(examples: Examples) -> Iterator[Problem]:
    counts = Counter(row.label for row in examples.rows if row.label is not None)
    if len(counts) == 1:  # none, of conversations
        what = "all examples have one label, so there is nothing to tell apart"
        yield Problem(examples.file, 0, "label", what, "Give examples of at least two labels")
    alike: dict[str, str] = {}
    for label in sorted(counts):
        other = alike.setdefault(normal(label), label)
        if other != label:
            what = f"{label[:40]!r} differs from {other[:40]!r} by case, punctuation or spaces alone"
            yield Problem(examples.file, 0, "label", what, "Write a label in one way", "warning")
        if counts[label] == 1 and len(counts) > 1:
            what = f"{label[:40]!r} has one example"
            yield Problem(examples.file, 0, "label", what, "Give more of it, or leave it out", "warning")
    yield from _lopsided(examples, counts)


def _lopsided(examples: Examples, counts: Counter[str]) -> Iterator[Problem]:
    """Where one label has nearly all examples, so that always saying it looks like knowledge."""
    if len(counts) < 2:
        return
    label, most = max(counts.items(), key=lambda item: item[1])
    share = most / counts.total()
    if share >= _LOPSIDED:
        what = f"{label[:40]!r} has {most} of {counts.total()} examples: to say it always is right in {share:.0%}"
        yield Problem(examples.file, 0, "label", what, "Give more of the others, and look at macro F1", "warning")


# --- between the splits -------------------------------------------------------------------------------------------


def _leaks(examples: Examples, held_out: Examples) -> Iterator[Problem]:
    whole = {row.digest: row.line for row in reversed(examples.rows)}
    asked = {row.prompt_digest: row.line for row in reversed(examples.rows)}
    mend = "Remove it from one of the two: what was trained on says nothing about what was learnt"
    for row in held_out.rows:
        if (line := whole.get(row.digest)) is not None:
            yield Problem(held_out.file, row.line, "", f"the example is also line {line} of {examples.file}", mend)
        elif (line := asked.get(row.prompt_digest)) is not None:
            what = f"line {line} of {examples.file} {'asks the same' if row.label is None else 'has the same text'}"
            yield Problem(held_out.file, row.line, "", what, mend)


def _unknown_labels(examples: Examples, held_out: Examples) -> Iterator[Problem]:
    known = set(examples.labels)
    for label in held_out.labels:
        if label not in known:
            line = next(row.line for row in held_out.rows if row.label == label)
            what = f"no training example has the label {label[:40]!r}"
            yield Problem(held_out.file, line, "label", what, "Add some, or mend the spelling")
    for label in examples.labels:
        if label not in held_out.labels:
            what = f"no held-out example has the label {label[:40]!r}, so how well it is known is not measured"
            yield Problem(held_out.file, 0, "label", what, "Hold more out, or give a file of its own", "warning")
