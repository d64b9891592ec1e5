"""Training data is read as it is, whatever file it comes in, and every mistake is told with its place and mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.tuning import Examples, Message, Problem, read_examples
from interlace.tuning.examples import errors_of
from interlace.tuning.lines import MOST_LINE_BYTES

ANY_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)


def turn(role: str, content: Any) -> dict[str, Any]:
    """One message of the chat format."""
    return {"role": role, "content": content}


def chat(*turns: dict[str, Any], **more: Any) -> str:
    """A line of the chat format."""
    return json.dumps({"messages": turns} | more, ensure_ascii=False)


def read(folder: Path, content: str | bytes, name: str = "train.jsonl", task: str = "chat") -> Examples:
    """What is read from a file with that content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_examples(path, task=task)  # type: ignore[arg-type]


GOOD = chat(turn("user", "When to plant?"), turn("assistant", "After the rains have set in."))
ASK, SAY = turn("user", "q"), turn("assistant", "a")
WIDE = MOST_LINE_BYTES * b"x"

LINES = "a.jsonl"

MISTAKES: dict[str, tuple[str, str | bytes, int, str, str, str]] = {
    # what was done: (file name, content, line, field, part of the problem, part of the mend)
    "role of ShareGPT": (LINES, chat(turn("human", "q"), SAY), 1, "messages[0].role", "'human'", '"user"'),
    "role of Gemini": (LINES, chat(ASK, turn("model", "a")), 1, "messages[1].role", "'model'", '"assistant"'),
    "role in capitals": (LINES, chat(turn("User", "q"), SAY), 1, "messages[0].role", "'User'", '"user"'),
    "role with a space": (LINES, chat(ASK, turn("assistant ", "a")), 1, "messages[1].role", "unknown", '"assistant"'),
    "role nobody knows": (LINES, chat(turn("narrator", "q"), SAY), 1, "messages[0].role", "'narrator'", "Roles are"),
    "role missing": (LINES, chat({"content": "q"}, SAY), 1, "messages[0].role", "missing", '"role"'),
    "role is a number": (LINES, chat(turn(0, "q"), SAY), 1, "messages[0].role", "not a number", '"user"'),
    "tool's turn": (LINES, chat(ASK, turn("tool", "q"), SAY), 1, "messages[1].role", "tools", "Leave out"),
    "tool call": (
        LINES, chat(ASK, {"role": "assistant", "tool_calls": []}), 1, "messages[1].tool_calls", "tools", "Leave out",
    ),
    "roles swapped": (LINES, chat(SAY, ASK), 1, "messages[0].role", "speaks first", "swapped"),
    "greeting first": (LINES, chat(SAY, ASK, SAY), 1, "messages[0].role", "speaks first", "Begin with"),
    "user twice": (LINES, chat(ASK, ASK, SAY), 1, "messages[1].role", "user speaks twice", "Join"),
    "assistant twice": (LINES, chat(ASK, SAY, SAY), 1, "messages[2].role", "assistant speaks twice", "Join"),
    "system later": (LINES, chat(ASK, turn("system", "s"), SAY), 1, "messages[1].role", "after the first", "front"),
    "no answer": (LINES, chat(ASK), 1, "messages", "no assistant's turn", "Add the answer"),
    "user last": (LINES, chat(ASK, SAY, ASK), 1, "messages", "last turn is the user's", "End with"),
    "no turns": (LINES, chat(), 1, "messages", "empty", "at least"),
    "answer empty": (LINES, chat(ASK, turn("assistant", "")), 1, "messages[1].content", "empty", "remove the line"),
    "answer of spaces": (LINES, chat(ASK, turn("assistant", " \n")), 1, "messages[1].content", "empty", "Write it"),
    "answer null": (LINES, chat(ASK, turn("assistant", None)), 1, "messages[1].content", "not null", "quotes"),
    "answer a number": (LINES, chat(ASK, turn("assistant", 4)), 1, "messages[1].content", "not a number", "quotes"),
    "parts": (LINES, chat(turn("user", [{"text": "q"}]), SAY), 1, "messages[0].content", "list of parts", "pictures"),
    "messages in quotes": (LINES, '{"messages": "[]"}', 1, "messages", "not a string", "not JSON in quotes"),
    "messages an object": (LINES, '{"messages": {}}', 1, "messages", "not an object", "[{"),
    "turn a string": (LINES, '{"messages": ["q", "a"]}', 1, "messages[0]", "not a string", "role"),
    "ShareGPT": (
        LINES, '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}', 0, "columns",
        "'conversations'", "--columns messages=conversations,role=from,content=value,user=human,assistant=gpt",
    ),
    "ShareGPT's turns": (
        LINES, '{"messages": [{"from": "human", "value": "q"}]}', 0, "columns", "found 'messages'",
        "--columns role=from,content=value,user=human",
    ),
    "ShareGPT's turns later": (
        LINES, f'{GOOD}\n{{"messages": [{{"from": "human", "value": "q"}}]}}', 2, "messages[0]", "ShareGPT", '"role"',
    ),
    "words of others alone": (
        LINES, chat(turn("human", "q"), turn("model", "a")), 0, "columns", "found 'messages'",
        "--columns user=human,assistant=model",
    ),
    "Alpaca": (
        LINES, '{"instruction": "q", "input": "", "output": "a"}', 0, "columns", "'instruction', 'input', 'output'",
        "--columns prompt=instruction+input,completion=output",
    ),
    "Alpaca later": (LINES, f'{GOOD}\n{{"instruction": "q", "output": "a"}}', 2, "prompt", "missing", "'instruction'"),
    "OpenOrca": (
        LINES, '{"id": 1, "system_prompt": "s", "question": "q", "response": "a"}', 0, "columns", "'system_prompt'",
        "--columns system=system_prompt,prompt=question,completion=response",
    ),
    "questions": (
        LINES, '{"Question": "q", "Answer": "a"}', 0, "columns", "'Question', 'Answer'",
        "--columns prompt=Question,completion=Answer",
    ),
    "names with spaces": (
        LINES, '{" question": "q", "answer": "a"}', 0, "columns", "' question'",
        """--columns 'prompt=" question",completion=answer'""",
    ),
    "name in capitals": (
        LINES, '{"Prompt": "q", "completion": "a"}', 0, "columns", "'Prompt'", "--columns prompt=Prompt",
    ),
    "name in capitals later": (
        LINES, f'{GOOD}\n{{"Prompt": "q", "completion": "a"}}', 2, "Prompt", "case or spaces", '"prompt"',
    ),
    "no completion": (LINES, '{"prompt": "q"}', 1, "completion", "missing", '"completion"'),
    "labelled text": (LINES, '{"text": "q", "label": "a"}', 1, "messages", "labelled", "--task classify"),
    "fields nobody knows": (LINES, '{"foo": 1}', 1, "messages", "'foo'", "messages"),
    "empty object": (LINES, "{}", 1, "messages", "the row is empty", "messages"),
    "half a surrogate": (
        LINES, '{"prompt": "\\ud83d", "completion": "a"}', 1, "prompt", "surrogate", "whole character",
    ),
    "a NUL": (LINES, '{"prompt": "a\\u0000", "completion": "a"}', 1, "prompt", "NUL", "Remove it"),
    "second line wrong": (LINES, f"{GOOD}\n\n{{}}\n", 3, "messages", "missing", "messages"),
    "JSON array": ("a.json", f"[{GOOD}]", 1, "", "JSON array", "jq -c '.[]'"),
    "JSON array in lines": ("a.json", f"[\n{GOOD},\n{GOOD}\n]", 1, "", "JSON array", "jq -c '.[]'"),
    "pretty JSON": (LINES, json.dumps(json.loads(GOOD), indent=1), 1, "", "several lines", "jq -c . OLD"),
    "key repeated": (LINES, '{"prompt": "q", "prompt": "r", "completion": "a"}', 1, "prompt", "repeated", "Keep one"),
    "two on a line": (LINES, GOOD + GOOD, 1, "", "no JSON at column", "line of its own"),
    "comma at the end": (LINES, GOOD + ",", 1, "", "no JSON", "comma"),
    "Python's notation": (LINES, str(json.loads(GOOD)), 1, "", "no JSON", "json.dumps"),
    "typographic quotes": (LINES, '{“prompt”: “q”}', 1, "", "no JSON", "typographic"),
    "not a number": (LINES, '{"prompt": NaN, "completion": "a"}', 1, "", "no JSON", "NaN"),
    "line break in a text": (LINES, '{"prompt": "q\nr", "completion": "a"}', 1, "", "no JSON", "\\n"),
    "plain text": (LINES, "Hello, world", 1, "", "no JSON at column 1", "one JSON object"),
    "a number": (LINES, f"{GOOD}\n5", 2, "", "no object", "messages"),
    "nested": (LINES, '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}", 1, "", "nested deeper", "flat"),
    "one huge line": (LINES, WIDE + WIDE + b"\n" + GOOD.encode(), 1, "", "longer than 8 MiB", "jq -c"),
    "old Mac line ends": (LINES, f"{GOOD}\r{GOOD}\r", 1, "", "carriage return", "tr "),
    "UTF-16": (LINES, GOOD.encode("utf-16"), 0, "", "UTF-16", "iconv -f UTF-16"),
    "UTF-16 unmarked": ("a.csv", GOOD.encode("utf-16-le"), 0, "", "UTF-16LE", "iconv -f UTF-16LE"),
    "UTF-32": (LINES, GOOD.encode("utf-32"), 0, "", "UTF-32", "iconv -f UTF-32"),
    "Latin-1": (LINES, f"{GOOD}\n{GOOD}".replace("?", "é").encode("latin-1"), 1, "", "(0xe9)", "ISO-8859-1"),
    "Windows-1252": (LINES, GOOD.replace("?", "’").encode("cp1252"), 1, "", "(0x92)", "WINDOWS-1252"),
    "zipped": (LINES, b"\x1f\x8b\x08\x00\x00", 0, "", "gzip", "gunzip"),
    "spreadsheet": ("a.csv", b"PK\x03\x04rest", 0, "", "spreadsheet", "CSV"),
    "Parquet by another name": (LINES, b"PAR1rest", 0, "", "Parquet", "*.parquet"),
    "JSON called Parquet": ("a.parquet", GOOD, 0, "", "not a Parquet file", "*.jsonl"),
    "binary": (LINES, bytes(range(256)), 0, "", "binary", "JSON lines"),
    "empty file": (LINES, b"", 0, "", "empty", "written to the end"),
    "unknown ending": ("a.txt", GOOD, 0, "", ".txt", ".jsonl"),
    "TSV with semicolons": ("a.tsv", "prompt;completion\nq;a\n", 1, "", "semicolons", "tabs"),
    "CSV with bars": ("a.csv", "prompt|completion\nq|a\n", 1, "", "bars", "commas"),
    "CSV with tabs": ("a.csv", "prompt\tcompletion\nq\ta\n", 1, "", "tabs", "*.tsv"),
    "CSV without header": ("a.csv", "How?,So.\nWhy?,Thus.\n", 2, "messages", "'How?', 'So.'", "prompt"),
    "CSV header twice": ("a.csv", "prompt,prompt\nq,a\n", 1, "prompt", "two columns", "Keep one"),
    "CSV column unnamed": ("a.csv", "prompt,\nq,a\n", 1, "", "column 2 has no name", "Name each"),
    "CSV comma unquoted": ("a.csv", "prompt,completion\nq,yes, a\n", 2, "", "3 cells, the header 2", "quotes"),
    "CSV cell missing": ("a.csv", 'prompt,completion\n"q\nr",a\nq\n', 4, "", "1 cells", "quotes"),
    "CSV quote open": ("a.csv", 'prompt,completion\nq,"a\nq,a\n', 2, "", "cannot be read", "Close each"),
    "CSV quote within": ("a.csv", 'prompt,completion\nq,"a"b\n', 2, "", "cannot be read", "twice"),
    "CSV answer empty": ("a.csv", "prompt,completion\nq,\n", 2, "completion", "empty", "Write it"),
    "CSV in Latin-1": ("a.csv", "prompt,completion\nq,é\n".encode("latin-1"), 2, "", "(0xe9)", "iconv"),
    "CSV header in Latin-1": ("a.csv", "é,prompt,completion\nq,a,b\n".encode("latin-1"), 1, "", "(0xe9)", "iconv"),
    "CSV of others": (
        "a.csv", "question,answer\nq,a\n", 0, "columns", "'question', 'answer'",
        "--columns prompt=question,completion=answer",
    ),
    "CSV of others with semicolons": (
        "a.csv", "question;answer\nq;a\n", 0, "columns", "'question', 'answer'",
        "--columns prompt=question,completion=answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_with_its_place_and_mend(
    tmp_path: Path, case: tuple[str, str | bytes, int, str, str, str]
) -> None:
    """A mistake that is passed over, or told without place or mend, costs its author a training run."""
    name, content, line, field, problem, mend = case
    examples = read(tmp_path, content, name)
    found = errors_of(examples.problems)
    assert found, "no error"
    first = found[0]
    assert first.line not in [row.line for row in examples.rows], "trained on all the same"
    assert (first.line, first.field) == (line, field), str(first)
    assert problem in first.problem, str(first)
    assert mend in first.mend, str(first)
    assert str(first).startswith(f"{tmp_path / name}:{line}: " if line else f"{tmp_path / name}: ")


LABELS: dict[str, tuple[str, str, str, str]] = {
    "no label": ('{"text": "t"}', "label", "missing", '"label"'),
    "another name": ('{"sentence": "t", "label": "a"}', "columns", "'sentence'", "--columns text=sentence"),
    "category": ('{"text": "t", "Category": "a"}', "columns", "'Category'", "--columns label=Category"),
    "category later": (
        '{"text": "t", "label": "a"}\n{"text": "t", "Category": "a"}',
        "label",
        "missing",
        "'Category'",
    ),
    "label null": ('{"text": "t", "label": null}', "label", "not null", "name of the class"),
    "label a list": ('{"text": "t", "label": ["a"]}', "label", "not a list", "name of the class"),
    "label a fraction": ('{"text": "t", "label": 0.5}', "label", "not a number", "name of the class"),
    "label empty": ('{"text": "t", "label": " "}', "label", "empty", "Name the class"),
    "two texts": ('{"text": "t", "text_pair": "u", "label": "a"}', "text_pair", "one text at a time", 'into "text"'),
    "text empty": ('{"text": "", "label": "a"}', "text", "empty", "Write it"),
    "conversation": (GOOD, "text", "missing", '"text"'),
}


@pytest.mark.parametrize("case", LABELS.values(), ids=LABELS.keys())
def test_a_mistake_in_a_classification_is_told(tmp_path: Path, case: tuple[str, str, str, str]) -> None:
    """A row without text or label would be trained on as another class, or end the training half-way."""
    content, field, problem, mend = case
    found = errors_of(read(tmp_path, content, task="classify").problems)
    assert [one for one in found if one.field == field and problem in one.problem and mend in one.mend], found


def test_missing_files_and_folders_are_problems_too(tmp_path: Path) -> None:
    """A wrong path that raised would end the command without a word on the mend."""
    missing = read_examples(tmp_path / "none.jsonl")
    folder = read_examples(tmp_path)
    assert [one.problem for one in missing.problems] == ["there is no such file"]
    assert [one.problem for one in folder.problems] == ["this is a folder"]
    assert len(missing) == len(folder) == 0


# --- what is read ------------------------------------------------------------------------------------------------

ASKED, ANSWERED = 'Why,\n"so"?', "  Because:\r\n- é\t"
WANTED = (Message("user", ASKED), Message("assistant", ANSWERED))


def _csv(separator: str) -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in (ASKED, ANSWERED)]
    return f"prompt{separator}completion\r\n{quoted[0]}{separator}{quoted[1]}\r\n"


SAME = {
    "chat": ("a.jsonl", chat(turn("user", ASKED), turn("assistant", ANSWERED))),
    "pair": ("a.jsonl", json.dumps({"prompt": ASKED, "completion": ANSWERED})),
    "with notes": (LINES, chat(turn("user", ASKED), turn("assistant", ANSWERED), id="7", source="FAO")),
    "pair without a system": ("a.jsonl", json.dumps({"system": None, "prompt": ASKED, "completion": ANSWERED})),
    "csv": ("a.csv", _csv(",")),
    "tsv": ("a.tsv", _csv("\t")),
}


@pytest.mark.parametrize(("name", "content"), SAME.values(), ids=SAME.keys())
def test_every_format_gives_the_same_example(tmp_path: Path, name: str, content: str) -> None:
    """Two formats of one text that differ would train two models from one data set; and no character may change."""
    found = read(tmp_path, content, name)
    assert found.problems == ()
    assert [row.messages for row in found.rows] == [WANTED]
    assert found.rows[0].line == (1 if name.endswith("l") else 2)


def test_parquet_is_read_as_the_others(tmp_path: Path) -> None:
    """Conversations in Parquet that come out otherwise than from JSON lines would train another model."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [turn("user", ASKED), turn("assistant", ANSWERED)]}, {"messages": [turn("user", "q")]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_examples(tmp_path / "a.parquet")
    assert [(row.line, row.messages) for row in found.rows] == [(1, WANTED)]
    assert [(one.line, one.field) for one in found.problems] == [(2, "messages")]
    whole = (tmp_path / "a.parquet").read_bytes()
    cut = read(tmp_path, whole[: len(whole) // 2], "cut.parquet")
    assert "cannot be read as Parquet" in cut.problems[0].problem


def test_parquet_without_its_library_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is an extra: without a word on it, a good file looks broken."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    found = read(tmp_path, b"PAR1rest", "a.parquet")
    assert "interlace[tune]" in found.problems[0].mend


def test_windows_files_are_read_and_their_mark_told(tmp_path: Path) -> None:
    """Data saved on Windows is good data; its byte order mark must not become part of the first field's name."""
    for name, text in (("a.jsonl", f"{GOOD}\r\n{GOOD}\r\n"), ("a.csv", "prompt,completion\r\nq,a\r\nr,b\r\n")):
        found = read(tmp_path, b"\xef\xbb\xbf" + text.encode(), name)
        assert len(found) == 2
        assert [(one.severity, one.line) for one in found.problems] == [("warning", 1)]
        assert "byte order mark" in found.problems[0].problem
        assert all("\r" not in message.content for row in found.rows for message in row.messages)


def test_a_spreadsheet_with_semicolons_is_read_and_told(tmp_path: Path) -> None:
    """What Excel calls CSV in half of Europe must not have to be saved anew; nor may commas in its texts, or semicolons
    in the texts of another file, be taken for separators."""
    found = read(tmp_path, '\ufeff\nprompt;completion\nOne, two?;"so; so"\n', "a.csv")
    assert [(row.question, row.answer) for row in found.rows] == [("One, two?", "so; so")]
    assert [(one.severity, "semicolons" in one.problem) for one in found.problems if "mark" not in one.problem] == [
        ("warning", True)
    ]
    plain = read(tmp_path, "prompt,completion;x\nq;r,a\n", "b.csv")
    assert [(one.line, one.field) for one in plain.problems] == [(2, "completion")], "the comma separates"


def test_what_is_not_trained_on_is_told(tmp_path: Path) -> None:
    """A field that is dropped in silence is one that its author believes the model learns; ten thousand warnings are
    read by nobody."""
    line = chat({"role": "user", "content": "q", "name": "Ada"}, SAY, weight=3)
    found = read(tmp_path, f"{line}\n" * 50)
    assert len(found) == 50
    told = [(one.severity, one.line, one.field) for one in found.problems]
    assert told[:2] == [("warning", 1, "messages[0].name"), ("warning", 1, "weight")]
    assert len(told) == 7
    assert "94 more warnings" in found.problems[-1].problem


def test_errors_are_told_up_to_a_number(tmp_path: Path) -> None:
    """A file of another format, of a million lines, must not print a million messages."""
    found = read(tmp_path, "{}\n" * 1000)
    assert len(found.problems) == 101
    assert found.problems[-1] == Problem(found.file, 0, "", "900 more errors like these", "Mend these first", "error")


def test_numbers_are_labels(tmp_path: Path) -> None:
    """Classes that are numbered are common; 1 and "1" are one class."""
    found = read(tmp_path, '{"text": "s", "label": 1}\n{"text": "t", "label": "1"}\n', task="classify")
    assert found.problems == ()
    assert found.labels == ("1",)
    assert [row.answer for row in found.rows] == ["1", "1"]


# --- anything at all ---------------------------------------------------------------------------------------------


@ANY_FILE
@given(
    talks=st.lists(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), min_size=1, max_size=5),
    system=st.none() | TEXTS, end=st.sampled_from(["\n", "\r\n", "\n\n"]), escaped=st.booleans(), mark=st.booleans(),
)  # fmt: skip
def test_good_conversations_come_back_as_they_went(
    tmp_path: Path, talks: list[list[tuple[str, str]]], system: str | None, end: str, escaped: bool, mark: bool
) -> None:
    """A character that changes between file and training is learnt wrongly, and nobody sees it."""
    written = []
    for talk in talks:
        turns = [turn("system", system)] if system is not None else []
        for asked, answered in talk:
            turns += [turn("user", asked), turn("assistant", answered)]
        written.append(turns)
    text = "".join(json.dumps({"messages": turns}, ensure_ascii=escaped) + end for turns in written)
    found = read(tmp_path, (b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert errors_of(found.problems) == []
    assert [row.chat() for row in found.rows] == written
    assert [row.line for row in found.rows] == [1 + index * end.count("\n") for index in range(len(talks))]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from(["messages", "prompt", "completion", "text", "label", "system", "conversations"]) | st.text(),
    VALUES,
    max_size=4,
)


@ANY_FILE
@given(rows=st.lists(ROWS | VALUES, max_size=5), task=st.sampled_from(["chat", "classify"]))
def test_each_row_is_an_example_or_a_problem(tmp_path: Path, rows: list[Any], task: str) -> None:
    """A row that is neither was lost in silence; one that is both was trained on though it is wrong."""
    found = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), task=task)
    good = {row.line for row in found.rows}
    wrong = {one.line for one in errors_of(found.problems) if one.line}
    assert not good & wrong
    if not any("not JSON lines" in one.problem or one.field == "columns" for one in found.problems):
        assert good | wrong == set(range(1, len(rows) + 1))


@ANY_FILE
@given(
    content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    name=st.sampled_from(["a.jsonl", "a.csv", "a.tsv"]),
)
def test_any_bytes_are_read_or_told(tmp_path: Path, content: bytes, name: str) -> None:
    """A file that makes the reader fail gives a traceback instead of a line number."""
    found = read(tmp_path, content, name)
    assert all(str(problem) for problem in found.problems)


@ANY_FILE
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), separator=st.sampled_from([",", "\t"]))
def test_tables_come_back_as_they_went(tmp_path: Path, rows: list[tuple[str, str]], separator: str) -> None:
    """Cells with separators, quotes and line breaks in them are texts like others."""
    quoted = [[text.replace('"', '""') for text in row] for row in [("prompt", "completion"), *rows]]
    text = "".join(f'"{row[0]}"{separator}"{row[1]}"\n' for row in quoted)
    found = read(tmp_path, text, "a.csv" if separator == "," else "a.tsv")
    assert errors_of(found.problems) == []
    assert [(row.question, row.answer) for row in found.rows] == rows
