"""What `docs/how-to/training-data.md` shows is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from interlace.tuning import check, read_examples
from interlace.tuning.columns import Columns
from interlace.tuning.data import FORMATS
from interlace.tuning.settings import read_settings

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "training-data.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    """A code block of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]


def line(question: str, answer: str, role: str = "user") -> str:
    """A row of the chat format."""
    turns = [{"role": role, "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def test_the_rows_of_the_page_are_read(tmp_path: Path) -> None:
    """A row that is copied from the page and refused ends the trust in it; so does an ending that is missing there."""
    (tmp_path / "a.jsonl").write_text(block("json", 0) + block("json", 1), encoding="utf-8")
    found = read_examples(tmp_path / "a.jsonl")
    assert [len(row.messages) for row in found.rows] == [2, 3]
    assert found.problems == ()
    assert all(f"`{ending}`" in PAGE for ending in FORMATS)


def test_the_columns_of_the_page_read_the_rows_beside_them(tmp_path: Path) -> None:
    """What is copied from the page must read the layout that it stands beside, on a command line and in a YAML."""
    found = re.findall(r"^\| `(\{.*\})`.* \| `(\w+=.*)` \|$", PAGE, re.MULTILINE)
    assert len(found) == 3
    for row, columns in found:
        (tmp_path / "a.jsonl").write_text(row.replace(", …]", ', {"from": "gpt", "value": "…"}]'), encoding="utf-8")
        examples = read_examples(tmp_path / "a.jsonl", columns=Columns.read(columns))
        assert (len(examples.rows), examples.problems) == (1, ()), row
        assert columns in str(read_examples(tmp_path / "a.jsonl").problems), "it is not what the message tells"
    (tmp_path / "a.yaml").write_text(block("yaml"), encoding="utf-8")
    assert read_settings(tmp_path / "a.yaml", {}).columns == found[1][1]


def test_the_messages_of_the_page_are_those_of_the_checks(tmp_path: Path) -> None:
    """Messages are searched for in the documentation: those there must be the real ones, to the letter."""
    rows = [line(f"Question {number}?", f"Answer {number}.") for number in range(1, 61)]
    rows[6] = line("Question 7?", "Answer 7.", role="human")
    rows[11] = line("Question 12?", " ")
    rows[57] = rows[19]
    (tmp_path / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    held_out = [line("Another?", "Yes."), line("One more?", "No."), line("question 41", "Other.")]
    (tmp_path / "held-out.jsonl").write_text("".join(held_out), encoding="utf-8")
    train, held = (read_examples(tmp_path / name) for name in ("train.jsonl", "held-out.jsonl"))
    told = [str(problem).replace(f"{tmp_path}/", "") for problem in check(train, held)]
    assert sorted(told) == sorted(block("text").splitlines())


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    """The shortest way from Python must work as it stands."""
    (tmp_path / "train.jsonl").write_text(
        "".join(line(f"Question {number}?", f"Answer {number}.") for number in range(60)), encoding="utf-8"
    )
    command = [sys.executable, "-c", block("python")]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
