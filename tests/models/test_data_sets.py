"""Data sets of the Hub, pulled with the real client from a loopback server: pinned, verified, no program ever."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import CheckpointError
from interlace.models import dataset_layout, pull_data_set
from interlace.models.dataset_layout import class_names_of, files_of, splits_of
from tests.support.file_server import FileServer, put_hub_data_set
from tests.support.pulling import environment

ENDINGS = [".jsonl", ".csv", ".parquet"]
COMMIT = "d" * 40
PULL = f"""
import sys
from pathlib import Path
from interlace.errors import InterlaceError
from interlace.models import pull_data_set
try:
    found = pull_data_set(sys.argv[1], Path(sys.argv[2]), config=sys.argv[3], splits=[sys.argv[4]], endings={ENDINGS!r})
except InterlaceError as error:
    print(error.message)
    sys.exit(1)
print(found, found.config, found.licence, *(path.read_text() for _, path in found.files[sys.argv[4]]), sep=chr(124))
"""


def _pull(
    server: FileServer, home: Path, what: str = "hub:org/talks", config: str = "", split: str = "train", **more: str
) -> tuple[int, str]:
    """A pull in a process of its own: the Hub's client reads where it is when it is imported."""
    command = [sys.executable, "-c", PULL, what, str(home), config, split]
    done = subprocess.run(command, env=environment(server) | more, check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


def test_the_files_of_a_split_come_with_commit_and_licence(server: FileServer, tmp_path: Path) -> None:
    """The files of that split alone are fetched, no code beside them, and the commit is what the Hub says; a pinned one
    that is here needs no Hub at all."""
    files = {"train.jsonl": b"a", "test.jsonl": b"b", "README.md": b"#", "tools/make.py": b"evil()"}
    put_hub_data_set(server, "org/talks", files, {"license": "cc-by-4.0"})
    assert _pull(server, tmp_path) == (0, f"hub:org/talks@{COMMIT}||CC-BY-4.0|a")
    fetched = [path for path, _ in server.requests if "resolve" in path]
    assert fetched == [f"/datasets/org/talks/resolve/{COMMIT}/train.jsonl"]
    server.files.clear()
    pinned = f"hub:org/talks@{COMMIT}"
    assert _pull(server, tmp_path, pinned, HF_HUB_OFFLINE="1") == (0, f"{pinned}||CC-BY-4.0|a")
    code, said = _pull(server, tmp_path, pinned, split="test", HF_HUB_OFFLINE="1")
    assert (code, said) == (1, "test.jsonl of hub:org/talks is not here, and HF_HUB_OFFLINE is set.")


def test_a_file_that_is_not_what_the_hub_states_is_refused(server: FileServer, tmp_path: Path) -> None:
    """Small files are held to git's id, as large ones to their SHA-256."""
    put_hub_data_set(server, "org/talks", {"train.jsonl": b"good"})
    server.files[f"/datasets/org/talks/resolve/{COMMIT}/train.jsonl"] = b"evil"
    code, said = _pull(server, tmp_path)
    assert code == 1
    assert "digests differ" in said


def test_a_data_set_that_is_made_by_a_program_is_refused(server: FileServer, tmp_path: Path) -> None:
    """Nothing of it is fetched, and the Hub's own conversion to files is named; which is read by its folders."""
    put_hub_data_set(server, "org/talks", {"talks.py": b"evil()", "train.jsonl": b"a"})
    code, said = _pull(server, tmp_path)
    assert code == 1
    assert "talks.py" in said
    assert said.endswith("hub:org/talks@refs/convert/parquet")
    assert not any("resolve" in path for path, _ in server.requests)
    converted = {f"{config}/{split}/0000.parquet": config.encode() for config in ("de", "en") for split in ("train",)}
    put_hub_data_set(server, "org/talks", converted, commit="e" * 40, revision="refs/convert/parquet")
    code, said = _pull(server, tmp_path, "hub:org/talks@refs/convert/parquet")
    assert (code, "data_config: de, en" in said) == (1, True), said
    assert _pull(server, tmp_path, "hub:org/talks@refs/convert/parquet", "en")[1].endswith("|en|None|en")


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        ("hub:org/none", {}, "hub:org/none does not exist, or is private"),
        ("hub:org/talks", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "The Hub cannot be reached"),
        ("hub:org/talks", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("hub:org/talks@v9", {}, "hub:org/talks has no revision v9"),
        ("hub:org/talks.", {}, "is no name that a repository of the Hub can have"),
        ("hub:org/shut", {}, "accept its terms on the Hub, then set HF_TOKEN"),
    ],
)
def test_what_cannot_be_had_is_told_in_words(
    server: FileServer, tmp_path: Path, what: str, more: dict[str, str], said: str
) -> None:
    """With what to do, and no traceback."""
    server.gates["org/shut"] = True
    put_hub_data_set(server, "org/shut", {"train.jsonl": b"a"})
    code, told = _pull(server, tmp_path, what, **more)
    assert code == 1
    assert said in told


@pytest.mark.parametrize(
    "what", ["hub:talks", "hub:org/../talks", "hub:org/talks/more", "hub:org/talks@a..b", "hub:a--b/c"]
)
def test_a_name_of_another_form_is_refused(tmp_path: Path, what: str) -> None:
    """Before anything is asked: it becomes part of addresses and of paths."""
    with pytest.raises(CheckpointError, match="Write hub:OWNER/NAME or hub:OWNER/NAME@REVISION"):
        pull_data_set(what, tmp_path, config="", splits=["train"], endings=ENDINGS)
    assert list(tmp_path.iterdir()) == []


def test_without_the_hub_the_commits_that_are_here_are_named(server: FileServer, tmp_path: Path) -> None:
    """Who is cut off from the network learns how to go on."""
    put_hub_data_set(server, "org/talks", {"train.jsonl": b"a"})
    assert _pull(server, tmp_path)[0] == 0
    code, said = _pull(server, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert (code, said.endswith(f"hub:org/talks@{COMMIT}")) == (1, True), said


CARD = {
    "configs": [
        {"config_name": "en", "data_files": "en/*.csv"},
        {
            "config_name": "de",
            "default": True,
            "data_files": [{"split": "train", "path": ["de/**"]}, {"split": "held", "path": "x/[0-9]*.csv"}],
        },
        {"config_name": "fr", "data_dir": "fr"},
    ]
}


@pytest.mark.parametrize(
    ("names", "card", "config", "splits"),
    [
        (["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/rest-00000-of-00001.csv"], {}, "",
         {"train": ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv"],
          "rest": ["data/rest-00000-of-00001.csv"]}),
        (["my_train.jsonl", "dev-v1.jsonl", "contest.jsonl", "dataset_infos.json"], {}, "",
         {"train": ["my_train.jsonl"], "validation": ["dev-v1.jsonl"]}),
        (["training/a.csv", "b/test/a.csv"], {}, "", {"train": ["training/a.csv"], "test": ["b/test/a.csv"]}),
        (["a.csv", "b.csv", ".c.csv", "d.txt"], {}, "", {"train": ["a.csv", "b.csv"]}),
        (["de/a.csv", "de/b/c.csv", "x/1.csv", "x/y.csv"], CARD, "",
         {"train": ["de/a.csv", "de/b/c.csv"], "held": ["x/1.csv"]}),
        (["en/a.csv", "en/b/c.csv"], CARD, "en", {"train": ["en/a.csv"]}),
        (["fr/test.csv", "test.csv"], CARD, "fr", {"test": ["fr/test.csv"]}),
        (["en/train.csv", "de/train.csv"], {}, "en", {"train": ["en/train.csv"]}),
        (["a.csv"], {"configs": 5}, "", {"train": ["a.csv"]}),
    ],
)  # fmt: skip
def test_splits_are_read_as_the_hub_reads_them(
    names: list[str], card: Mapping[str, Any], config: str, splits: dict[str, list[str]]
) -> None:
    """By the card, else by the files' names; the wrong files would be learnt from, and without a word."""
    found = splits_of(names, json.loads(json.dumps(card)), config, ENDINGS, "hub:a/b")[1]
    assert {split: sorted(each) for split, each in found.items()} == splits


@pytest.mark.parametrize(
    ("names", "card", "config", "said"),
    [
        (["a.txt", "b.arrow"], {}, "", "but .arrow, .txt"),
        (["a.csv"], CARD, "it", "has no configuration it. Name one with data_config: en, de, fr"),
        (["a.csv"], {"configs": [{"data_files": "https://elsewhere/x.csv"}]}, "", "outside of the data set"),
        (["a.csv"], {"configs": [{"data_files": "../*.csv"}]}, "", "outside of the data set"),
        (["a.csv"], {"configs": [{"data_files": "b.csv"}]}, "", "that are not there"),
        (["a.csv"], {"configs": [{"data_files": "[z-a].csv"}]}, "", "which is no pattern of files"),
        (["a.csv"], {"configs": [{"data_files": "a" * 5000}]}, "", "which is no pattern of files"),
        (["a.csv"], {}, "it", "no folder is so"),
    ],
)
def test_what_has_no_split_is_refused(names: list[str], card: Mapping[str, Any], config: str, said: str) -> None:
    """With what there is instead; a card never leads outside of its data set."""
    with pytest.raises(CheckpointError) as caught:
        splits_of(names, card, config, ENDINGS, "hub:a/b")
    assert said in caught.value.message
    with pytest.raises(CheckpointError, match=r"has no split test. There are: train"):
        files_of({"train": ["a.csv"]}, "test", "hub:a/b")


def _feature(names: Any) -> dict[str, Any]:
    label = {"name": "label", "dtype": {"class_label": {"names": names}}}
    return {"features": [{"name": "text", "dtype": "string"}, label]}


@pytest.mark.parametrize(
    ("info", "config", "names"),
    [
        (_feature({"0": "ham", "1": "spam"}), "", {"label": ("ham", "spam")}),
        (_feature({1: "spam", 0: "ham"}), "", {"label": ("ham", "spam")}),
        (_feature(["ham", "spam"]), "", {"label": ("ham", "spam")}),
        ([{"config_name": "en", **_feature(["a"])}, {"config_name": "de", **_feature(["b"])}], "de", {"label": ("b",)}),
        ([{"config_name": "en", **_feature(["a"])}], "", {"label": ("a",)}),
        ([{"config_name": "en", **_feature(["a"])}], "de", {}),
        (_feature({"0": "ham", "2": "spam"}), "", {}),
        (_feature(["ham", "ham"]), "", {}),
        (_feature([0, 1]), "", {}),
        (_feature("ham"), "", {}),
        ({"features": [5, {"dtype": {"class_label": 5}}]}, "", {}),
        ({"features": {"label": 5}}, "", {}),
        ([5], "", {}),
        (None, "", {}),
    ],
)
def test_the_card_tells_what_classes_are_called(info: Any, config: str, names: dict[str, tuple[str, ...]]) -> None:
    """Of the configuration that is meant, in the order of the numbers: another order would teach the opposite. A card
    of any other form tells none."""
    assert class_names_of(json.loads(json.dumps({"dataset_info": info})), config) == names


def test_names_of_classes_come_with_a_data_set(server: FileServer, tmp_path: Path) -> None:
    """From the Hub's card, kept with the listing; one that an earlier release kept without them is asked for anew where
    the Hub can be reached, and is good enough where it cannot."""
    card = {"dataset_info": _feature({"0": "ham", "1": "spam"})}
    put_hub_data_set(server, "org/mails", {"train.jsonl": b"a"}, card)
    pinned = f"hub:org/mails@{COMMIT}"
    shown = PULL.replace("found.licence", "dict(found.class_names)")

    def pulled(**more: str) -> str:
        command = [sys.executable, "-c", shown, pinned, str(tmp_path), "", "train"]
        done = subprocess.run(command, env=environment(server) | more, check=False, capture_output=True, text=True)
        return done.stdout.strip() + done.stderr

    assert "|{'label': ('ham', 'spam')}|" in pulled()
    kept = tmp_path / "datasets" / "org--mails" / COMMIT / "listing.json"
    assert "|{'label': ('ham', 'spam')}|" in pulled(HF_HUB_OFFLINE="1")
    older = json.loads(kept.read_text())
    older["card"] = {"configs": None}
    kept.write_text(json.dumps(older))
    assert "|{}|" in pulled(HF_HUB_OFFLINE="1")
    assert "|{'label': ('ham', 'spam')}|" in pulled()


def test_a_split_without_files_is_none() -> None:
    """The card may name a folder that has nothing in it; that is told, and is no error of the program."""
    splits = splits_of(["a.csv"], {"configs": [{"data_dir": "none"}]}, "", ENDINGS, "hub:a/b")[1]
    with pytest.raises(CheckpointError, match=r"has no split train. There are: none."):
        files_of(splits, "train", "hub:a/b")


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card is written by others: one line of it must not hold the command for ever. Python's own `re` would try this
    one for years; what would hold `regex` up is cut off by the clock."""
    card = {"configs": [{"data_files": "*a" * 30 + "[0-9]b.csv"}]}
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"that are not there|take too long"):
        splits_of(["a" * 90 + "b.csv"], card, "", ENDINGS, "hub:a/b")
    assert time.monotonic() - began < 30
    monkeypatch.setattr(dataset_layout, "_MATCH_SECONDS", 0)
    with pytest.raises(CheckpointError, match="take too long"):
        splits_of(["a.csv"], {"configs": [{"data_files": "*.csv"}]}, "", ENDINGS, "hub:a/b")


def test_a_listing_survives_what_another_run_left_and_a_damaged_one_is_asked_for_again(
    server: FileServer, tmp_path: Path
) -> None:
    """On a shared home, two runs may write it at once, and one may be cut off; the commit would be lost for good."""
    put_hub_data_set(server, "org/talks", {"train.jsonl": b"a"})
    folder = tmp_path / "datasets" / "org--talks" / COMMIT
    (folder / ".listing.partial").mkdir(parents=True)  # as of another run, which is writing
    pinned = f"hub:org/talks@{COMMIT}"
    put_hub_data_set(server, "org/talks", {"train.jsonl": b"a"}, revision=COMMIT)
    for damage in (None, b"{", b"[]", b""):
        if damage is not None:
            (folder / "listing.json").write_bytes(damage)
        assert _pull(server, tmp_path, pinned) == (0, f"{pinned}||None|a")
    assert [each.name for each in folder.glob(".listing*")] == [".listing.partial"]
