"""Examples of a data set: several files as one, and what is told of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from interlace.errors import ConfigError
from interlace.models import DataSet
from interlace.tuning.settings import read_settings
from interlace.tuning.sources import both_digests, find_sources, read_source
from tests.support.tuned import chats

GIVEN = {"base": "b", "name": "n"}
COMMIT = "d" * 40


def _set(folder: Path, **texts: str) -> DataSet:
    """A data set of one split, its files by stem."""
    for stem, text in texts.items():
        (folder / f"{stem}.jsonl").write_text(text)
    files = [(f"data/{stem}.jsonl", folder / f"{stem}.jsonl") for stem in texts]
    return DataSet("org/talks", COMMIT, "", "MIT", {"train": files})


def test_several_files_are_one_set_of_examples(tmp_path: Path) -> None:
    """Their rows have lines of their own, that count on: two rows with one line would be taken for one; each problem
    says in which file it is, and each file has its digest."""
    lines = chats(6).splitlines(keepends=True)
    found, digests = read_source(_set(tmp_path, a="".join(lines[:3]), b="".join(lines[3:]) + "{\n"))
    assert [row.line for row in found.rows] == [1, 2, 3, 4, 5, 6]
    assert [problem.file for problem in found.problems] == [f"hub:org/talks@{COMMIT}/data/b.jsonl"]
    assert set(digests) == {"data/a.jsonl", "data/b.jsonl"}
    assert digests["data/a.jsonl"] == hashlib.sha256("".join(lines[:3]).encode()).hexdigest()


def test_of_one_file_the_messages_name_it(tmp_path: Path) -> None:
    """Then a line is a line of that file."""
    found, _ = read_source(_set(tmp_path, a=chats(3)))
    assert found.file == f"hub:org/talks@{COMMIT}/data/a.jsonl"


def test_a_file_is_read_as_ever(tmp_path: Path) -> None:
    """A path that a YAML gives is relative to it; the name of a data set is none."""
    (tmp_path / "d.jsonl").write_text(chats(3))
    (tmp_path / "tune.yaml").write_text("data: d.jsonl\nheld_out_data: hub:org/talks\n")
    settings = read_settings(tmp_path / "tune.yaml", GIVEN)
    assert settings.held_out_data == "hub:org/talks"
    assert len(read_source(settings.data)[0]) == 3


def test_a_split_of_a_file_is_refused() -> None:
    """It would mean nothing, and the person would not know."""
    with pytest.raises(ConfigError, match="held_out_split: is for a data set on the Hub"):
        read_settings(None, {**GIVEN, "data": "d.jsonl", "held_out_split": "test"})


def test_what_is_wrong_with_a_data_set_is_told_with_the_setting(tmp_path: Path) -> None:
    """As all that is wrong with settings: before anything runs."""
    with pytest.raises(ConfigError, match=r"^data: 'hub:talks' is no data set of the Hub"):
        find_sources(read_settings(None, {**GIVEN, "data": "hub:talks"}), tmp_path)


def test_two_files_of_one_name_keep_both_digests() -> None:
    """`--data a/data.jsonl --held-out b/data.jsonl`: the manifest would say that it learnt from the held-out file."""
    assert both_digests({"data.jsonl": "1"}, {"data.jsonl": "2", "more.jsonl": "3"}) == {
        "data.jsonl": "1", "held_out/data.jsonl": "2", "more.jsonl": "3",
    }  # fmt: skip
    assert both_digests({"a.jsonl": "1", "held_out/a.jsonl": "2"}, {"a.jsonl": "3"})["held_out/held_out/a.jsonl"] == "3"
    assert both_digests({"a.jsonl": "1"}, {"a.jsonl": "1", "b.jsonl": "2"}) == {"a.jsonl": "1", "b.jsonl": "2"}
