"""Data whose columns have other names: what a mapping says is read as if the names were ours, and nothing is
guessed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.errors import ConfigError
from interlace.models import DataSet
from interlace.tuning import Examples, check, read_examples, split
from interlace.tuning.columns import OURS, Columns
from interlace.tuning.examples import Task, errors_of
from interlace.tuning.scores import Known
from interlace.tuning.settings import read_settings
from interlace.tuning.sources import read_source
from interlace.tuning.tables import parquet_class_names
from interlace.tuning.work import Base, Data, Work
from tests.support.tuned import needs_parts

ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GIVEN = {"base": "b", "data": "d.jsonl", "name": "n"}
SHAREGPT = "messages=conversations,role=from,content=value,user=human,assistant=gpt"
ALPACA = "prompt=instruction+input,completion=output"


def rows(*found: dict[str, Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in found)


def talk(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A row of ShareGPT."""
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **more}


def read(folder: Path, content: str, columns: str, name: str = "a.jsonl", task: Task = "chat") -> Examples:
    """What is read of a file with that content."""
    (folder / name).write_text(content, encoding="utf-8")
    return read_examples(folder / name, task=task, columns=Columns.read(columns))


def texts(found: Examples) -> list[tuple[str, ...]]:
    """What each example says."""
    assert errors_of(found.problems) == []
    return [tuple(turn.content for turn in row.messages) for row in found.rows]


# --- what is read -------------------------------------------------------------------------------------------------


def test_the_layouts_that_are_met_most_are_read(tmp_path: Path) -> None:
    """Alpaca, whose second column may be empty or missing; questions in a spreadsheet; ShareGPT; labelled sentences."""
    alpaca = rows(
        {"instruction": "Sort.", "input": "b, a", "output": "a, b"},
        {"instruction": "Hi.", "input": " ", "output": "Hello."},
        {"instruction": "Bye.", "output": "Bye."},
    )
    assert texts(read(tmp_path, alpaca, ALPACA)) == [("Sort.\n\nb, a", "a, b"), ("Hi.", "Hello."), ("Bye.", "Bye.")]
    sheet = 'question;answer\n"Why; so?";Because.\n'
    assert texts(read(tmp_path, sheet, "prompt=question,completion=answer", "a.csv")) == [("Why; so?", "Because.")]
    shared = read(tmp_path, rows(talk(("system", "s"), ("human", "q"), ("gpt", "a"))), SHAREGPT)
    assert texts(shared) == [("s", "q", "a")]
    assert [turn.role for turn in shared.rows[0].messages] == ["system", "user", "assistant"]
    glue = read(tmp_path, rows({"sentence": "t", "label": 1, "idx": 0}), "text=sentence", task="classify")
    assert [(row.question, row.label) for row in glue.rows] == [("t", "1")]


def test_words_and_columns_may_be_several(tmp_path: Path) -> None:
    """Two programs that answered are one assistant; and a word of ours stays what it is beside those."""
    both = rows(talk(("human", "q"), ("bing", "a")), talk(("user", "q"), ("gpt", "b")))
    assert texts(read(tmp_path, both, SHAREGPT + "+bing")) == [("q", "a"), ("q", "b")]
    news = rows({"title": "T", "body": "B", "label": "x"})
    assert texts(read(tmp_path, news, "text=title+body", task="classify")) == [("T\n\nB",)]


def test_a_column_of_our_name_that_is_not_meant_is_told(tmp_path: Path) -> None:
    """The file's own `prompt` is another thing where `question` is the prompt; so are its conversations. And columns
    may change places."""
    row = {"prompt": "no", "question": "q", "completion": "a", "messages": []}
    found = read(tmp_path, rows(row), "prompt=question")
    assert texts(found) == [("q", "a")]
    assert sorted(one.field for one in found.problems) == ["messages", "prompt"]
    assert texts(read(tmp_path, rows({"prompt": "a", "completion": "q"}), "prompt=completion,completion=prompt")) == [
        ("q", "a")
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
MAPPINGS = {
    "pair": ("prompt", "completion", "system"),
    "talk": ("messages", "role", "content", "user", "assistant", "system"),
    "label": ("text", "label"),
}


def _named_so(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The row, with other names for keys, for those of turns, and for who speaks."""
    renamed: dict[str, Any] = {}
    for key, value in row.items():
        renamed[names.get(key, key)] = value
        if key == "messages":
            role, content = names.get("role", "role"), names.get("content", "content")
            renamed[names.get(key, key)] = [
                {role: names.get(one["role"], one["role"]), content: one["content"]} for one in value
            ]
    return renamed


@ANY
@given(
    data=st.data(), kind=st.sampled_from(sorted(MAPPINGS)),
    said=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
)  # fmt: skip
def test_a_mapping_renames_and_does_nothing_else(
    tmp_path: Path, data: st.DataObject, kind: str, said: list[tuple[str, str]]
) -> None:
    """Whatever names a file has, its examples and problems are those of the same file with our names."""
    mapped = data.draw(st.lists(st.sampled_from(MAPPINGS[kind]), unique=True, min_size=1))
    if kind == "talk" and not set(mapped) - {"system"}:
        mapped.append("messages")
    others = NAMES.filter(lambda name: name not in OURS)
    theirs = data.draw(st.lists(others, unique_by=str.casefold, min_size=len(mapped), max_size=len(mapped)))
    names = dict(zip(mapped, theirs, strict=True))
    if kind == "talk":
        turns = [[{"role": "system", "content": "s"}, {"role": "user", "content": asked},
                  {"role": "assistant", "content": told}] for asked, told in said]  # fmt: skip
        plain: list[dict[str, Any]] = [{"messages": each} for each in turns]
    elif kind == "pair":
        plain = [{"system": "s", "prompt": asked, "completion": told} for asked, told in said]
    else:
        plain = [{"text": asked, "label": told} for asked, told in said]
    task: Task = "classify" if kind == "label" else "chat"
    columns = Columns.of([(ours, [name]) for ours, name in names.items()])
    assert Columns.read(str(columns)) == columns, "what is written is read again"
    found = read(tmp_path, rows(*(_named_so(row, names) for row in plain)), str(columns), task=task)
    wanted = read(tmp_path, rows(*plain), "", task=task)
    assert found.rows == wanted.rows
    assert found.problems == wanted.problems == ()


@ANY
@given(text=st.lists(st.sampled_from([*OURS, *'=,+" \na'])).map("".join) | st.text())
def test_any_words_are_a_mapping_or_a_mistake(text: str) -> None:
    """What is typed never ends in a traceback, and what is taken says the same when it is written again."""
    try:
        columns = Columns.read(text)
    except ValueError:
        return
    assert Columns.read(str(columns)) == columns


# --- mistakes -----------------------------------------------------------------------------------------------------

QUESTIONS = rows({"question": "q", "answer": "a"})
SHARED = rows(talk(("human", "q"), ("gpt", "a")))

MISTAKES: dict[str, tuple[str, str, str, int, str, str, str]] = {
    # what was done: (columns, task, content, line, field, part of the problem, part of the mend)
    "a column that is not there": (
        "prompt=query,completion=answer", "chat", QUESTIONS, 0, "query", "'question', 'answer'", "Name one of those",
    ),
    "a column of nearly that name": (
        "prompt=Question,completion=answers", "chat", QUESTIONS, 0, "Question", "'question'",
        "--columns prompt=question,completion=answer",
    ),
    "a list as on the command line": (
        'prompt="instruction+input",completion=output', "chat",
        rows({"instruction": "q", "input": "i", "output": "a"}), 0, "instruction+input", "no such column",
        "[instruction, input]",
    ),
    "a second column in no row": (
        ALPACA, "chat", rows({"instruction": "q", "output": "a"}), 0, "input", "no row", "Mend",
    ),
    "a system's column in no row": (
        "system=persona", "chat", rows({"prompt": "q", "completion": "a"}), 0, "persona", "no row", "Mend",
    ),
    "half of what is needed": (
        "prompt=question", "chat", QUESTIONS, 0, "columns", "'answer'", "--columns prompt=question,completion=answer",
    ),
    "one row without the column": (
        "prompt=question,completion=answer", "chat", QUESTIONS + rows({"answer": "a"}), 2, "question", "missing",
        "Add it",
    ),
    "swapped": (
        "prompt=answer,completion=question", "chat", QUESTIONS, 0, "columns", "look swapped",
        "--columns prompt=question,completion=answer",
    ),
    "text and label swapped": (
        "text=label,label=sentence", "classify", rows({"sentence": "t", "label": "a"}), 0, "columns", "look swapped",
        "--columns text=sentence,label=label",
    ),
    "words of the speakers not said": (
        "messages=conversations,role=from,content=value", "chat", SHARED, 0, "columns", "'conversations'",
        f"--columns {SHAREGPT}",
    ),
    "a word that is not said": (
        SHAREGPT, "chat", SHARED + rows(talk(("human", "q"), ("bing", "a"))), 2, "conversations[1].from",
        "unknown role 'bing'", "assistant=gpt+IT",
    ),
    "a turn without the key": (
        SHAREGPT, "chat", SHARED + rows({"conversations": [{"from": "human"}]}), 2, "conversations[0].value", "missing",
        "Add it",
    ),
    "an empty answer": (
        "prompt=question,completion=answer", "chat", rows({"question": "q", "answer": ""}), 1, "answer", "empty",
        "Write it",
    ),
    "a second column that is no text": (
        ALPACA, "chat", rows({"instruction": "q", "input": 5, "output": "a"}), 1, "input", "not a number", "quotes",
    ),
    "an empty first column": (
        ALPACA, "chat", rows({"instruction": "", "input": "x", "output": "a"}), 1, "instruction", "empty", "Write it",
    ),
    "speakers out of turn": (
        SHAREGPT, "chat", rows(talk(("human", "q"), ("human", "q"), ("gpt", "a"))), 1, "conversations[1].from", "twice",
        "Join",
    ),
    "a text in place of turns": (
        SHAREGPT, "chat", rows({"conversations": "q"}), 1, "conversations", "a list", "itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_with_columns_is_told(tmp_path: Path, case: tuple[str, str, str, int, str, str, str]) -> None:
    """By the names that the file has, with what to write: the person has not seen ours in it."""
    columns, task, content, line, field, problem, mend = case
    found = errors_of(read(tmp_path, content, columns, task=task).problems)
    assert found, "no error"
    assert (found[0].line, found[0].field) == (line, field), str(found[0])
    assert problem in found[0].problem, str(found[0])
    assert mend in found[0].mend, str(found[0])


def test_a_file_of_another_layout_gets_one_message(tmp_path: Path) -> None:
    """One for each of a million rows says no more, and what is read by the line that it tells is without a mistake."""
    content = rows(*({"instruction": f"q{number}", "input": "i", "output": "a"} for number in range(200)))
    found = read(tmp_path, content, "")
    assert len(found.problems) == 1
    told = found.problems[0].mend.partition("--columns ")[2]
    assert len(texts(read(tmp_path, content, told))) == 200
    assert check(*split(found)) == list(found.problems), "nor is a part of it called empty"


SAID = {
    "a name that is not ours": ("prmpt=question", "'prmpt' is none of our names. Did you mean prompt?"),
    "a name of nobody": ("foo=bar", "There are: messages, role"),
    "theirs first": ("question=prompt", "Our name stands first: prompt=question"),
    "the same column twice": ("prompt=a,completion=a", "'a' is named twice, for prompt and for completion"),
    "the same column twice in one": ("prompt=a+a", "'a' is named twice, for prompt. Name it once"),
    "ours twice": ("prompt=a,prompt=b", "prompt is there twice. Keep one"),
    "two columns of labels": ("task=classify,label=a+b", "label names 2 columns, and can be one"),
    "conversations and pairs": ("messages=a,prompt=b", "messages is of conversations, and prompt of pairs"),
    "no column": ("prompt=", "cannot be read from 'prompt=' on"),
    "an empty column": ('prompt=""', "prompt names no column"),
    "no sign": ("prompt question", "cannot be read from 'prompt question' on"),
    "of another task": ("task=classify,prompt=a", "prompt is of task chat, not classify. Name text and label"),
    "of the other task": ("text=a", "text is of task classify, not chat"),
}


@pytest.mark.parametrize("case", SAID.values(), ids=SAID.keys())
def test_a_mapping_that_cannot_be_meant_is_refused(case: tuple[str, str]) -> None:
    """Before any file is read, with the mend."""
    said, told = case
    task = "classify" if said.startswith("task=") else "chat"
    with pytest.raises(ConfigError) as caught:
        read_settings(None, {**GIVEN, "task": task, "columns": said.removeprefix("task=classify,")})
    assert told in caught.value.message
    assert "columns: " in caught.value.message


def test_a_yaml_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    """In any order, with names that need quotes there; what is of another form is told with its line."""
    file = tmp_path / "tune.yaml"
    file.write_text("columns:\n  completion: 'a, b'\n  prompt: [instruction, in+put]\n")
    settings = read_settings(file, GIVEN)
    assert settings.columns == 'prompt=instruction+"in+put",completion="a, b"'
    assert read_settings(None, {**GIVEN, "columns": ' completion = "a, b",prompt=instruction+"in+put"'}) == \
        read_settings(None, {**GIVEN, "columns": settings.columns})  # fmt: skip
    for text, told in (
        ("columns: [a, b]", "tune.yaml:1: columns: is no mapping of names"),
        ("columns: {prompt: {a: b}}", "tune.yaml:1: columns: is no mapping of names"),
        ("columns: {prompt: a, prompt: b}", "tune.yaml:1: columns: prompt is there twice"),
        ("columns: {prompt: }", "tune.yaml:1: columns: prompt names no column"),
        ("columns: {question: prompt}", "tune.yaml:1: columns: 'question' is none of our names"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_settings(file, GIVEN)
        assert told in caught.value.message


# --- names of classes ---------------------------------------------------------------------------------------------


def _labelled_parquet(path: Path, labels: list[Any], features: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"sentence": [f"t{number}" for number in range(len(labels))], "label": labels})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), path)


CLASS = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}, "sentence": {"_type": "Value"}}


def test_numbers_of_classes_become_their_names(tmp_path: Path) -> None:
    """As a Parquet file's schema tells them: a classifier that answers `1` is one that nobody can use. -1 and numbers
    without a name are no labels."""
    _labelled_parquet(tmp_path / "a.parquet", [0, 1, -1, 2], CLASS)
    found = read_examples(tmp_path / "a.parquet", task="classify", columns=Columns.read("text=sentence"))
    assert [row.label for row in found.rows] == ["negative", "positive"]
    assert found.class_names == {"label": ("negative", "positive")}
    assert [(one.line, one.field, one.problem) for one in found.problems] == [
        (3, "label", "-1 stands for no class"), (4, "label", "2 is none of the 2 classes that the data set names"),
    ]  # fmt: skip


def test_names_come_from_the_library_that_writes_such_files(tmp_path: Path) -> None:
    """What `datasets` writes is what is read: its form is theirs to change."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).to_parquet(str(tmp_path / "a.parquet"))
    found = read_examples(tmp_path / "a.parquet", task="classify")
    assert [row.label for row in found.rows] == ["yes", "no"]


@pytest.mark.parametrize(
    "features",
    [None, [], "x", {"label": 5}, {"label": {"_type": "ClassLabel"}}, {"label": {"_type": "ClassLabel", "names": [1]}},
     {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}, {"label": {"_type": "Value", "names": ["a", "b"]}}],
)  # fmt: skip
def test_what_tells_no_names_leaves_the_numbers(tmp_path: Path, features: Any) -> None:
    """Two classes of one name would become one; and a file's metadata may be anything."""
    _labelled_parquet(tmp_path / "a.parquet", [0, 1], features)
    assert parquet_class_names(tmp_path / "a.parquet") == {}
    found = read_examples(tmp_path / "a.parquet", task="classify", columns=Columns.read("text=sentence"))
    assert [row.label for row in found.rows] == ["0", "1"]
    assert found.class_names == {}


def test_the_names_of_a_card_are_for_all_its_files(tmp_path: Path) -> None:
    """In CSV a number is text; a label that is a name already stays, and so does any other column."""
    (tmp_path / "a.csv").write_text("text,label,stars\nt,1,0\nu,spam,1\nv,0,1\n")
    names = {"label": ("ham", "spam"), "stars": ("one", "two")}
    source = DataSet("org/mails", "d" * 40, "", "MIT", {"train": [("a.csv", tmp_path / "a.csv")]}, names)
    found, _ = read_source(source, "classify")
    assert [row.label for row in found.rows] == ["spam", "spam", "ham"]
    assert found.class_names == {"label": ("ham", "spam")}, "of the column that is read alone"
    mapped, _ = read_source(source, "classify", Columns.read("label=stars"))
    assert [row.label for row in mapped.rows] == ["one", "two", "two"]


def test_a_held_out_file_is_read_by_the_same_names(tmp_path: Path) -> None:
    """Where it has others, that is told with its own name: it would else be scored by nothing."""
    found = read(tmp_path, QUESTIONS, "prompt=question,completion=answer")
    other = read(tmp_path, rows({"prompt": "q", "completion": "a"}), "prompt=question,completion=answer", "b.jsonl")
    told = errors_of(check(found, other))
    assert [(Path(one.file).name, one.field) for one in told] == [("b.jsonl", "question")]


@needs_parts
def test_the_manifest_has_mapping_and_names() -> None:
    """Without them, nobody could make the same examples of the same file again."""
    from interlace.tuning.report import Curve, Outcome, manifest_of
    from interlace.tuning.trainer import Spent

    settings = read_settings(None, {**GIVEN, "columns": ALPACA})
    base = Base("b", "b", "", "", 0, {}, None, "")
    work = Work("home", asdict(settings), base, Data([], [], "", ""), {}, 1, class_names={"label": ["no", "yes"]})
    known = [Known(1.0, 1, exact=True)]
    data = manifest_of(work, settings, Outcome(known, known, Curve([], []), 1, 1, 1, 1, Spent(), 1, 1, 1, None))["data"]
    assert data["columns"] == {"prompt": ["instruction", "input"], "completion": ["output"]}
    assert data["class_names"] == {"label": ["no", "yes"]}


@needs_parts
def test_the_manifest_says_whose_energy_it_is() -> None:
    """That of one machine, taken for that of eight, would be an eighth of the truth."""
    from interlace.tuning.report import Curve, Outcome, manifest_of
    from interlace.tuning.trainer import Spent

    base = Base("b", "b", "", "", 0, {}, None, "")
    work = Work("home", {}, base, Data([], [], "", ""), {}, 1)
    known, spent = [Known(1.0, 1, exact=True)], Spent(1.0, 1, {"processors": 3.6e6})
    outcome = Outcome(known, known, Curve([], []), 1, 1, 1, 1, spent, 1, 1, 1, None)
    for machines, words in ((1, "processors"), (2, "processors of the main machine")):
        manifest = manifest_of(work, replace(read_settings(None, GIVEN), machines=machines), outcome)
        assert (manifest["energy_kwh"], manifest["energy_of"]) == (1.0, [words])
