"""Which files of a data set on the Hub are of which split: from its card, or from their names, as the Hub reads them.

In this order: the `configs` of the card; the layout of the Hub's own conversion (`CONFIG/SPLIT/0000.parquet`); names
such as `data/SPLIT-00000-of-00002.parquet`; words such as `train`, `valid` or `test` in the files' names, then in the
folders'; else all files are `train`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeGuard

import regex

from interlace.errors import CheckpointError

Splits = dict[str, list[str]]
"""Files by split, each list sorted."""

_CONVERTED = re.compile(r"([^/]+)/([^/]+)/\d{4}\.parquet")
_SHARD = re.compile(r"data/([\w.-]+?)-\d{5}-of-\d{5}[^/]*")
_WORDS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("testing", "test", "evaluation", "eval"),
}
_PATTERN_CHARACTERS = 1000
_MATCH_SECONDS = 10.0  # for all patterns of a card: a hostile one tries every way to read a name
_BETWEEN = "[-._ 0-9]"
_NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}


def splits_of(
    names: Iterable[str], card: Mapping[str, Any], config: str, endings: Sequence[str], where: str
) -> tuple[str, Splits]:
    """The configuration that is meant, "" where there is but one without a name, and its splits. `names` are all files,
    `card` is the card's data, `endings` those that can be read. CheckpointError says what there is instead."""
    data = sorted(
        name for name in names
        if PurePosixPath(name).suffix.lower() in endings and PurePosixPath(name).name not in _NO_DATA
        and not any(part.startswith((".", "__")) for part in name.split("/"))
    )  # fmt: skip
    if not data:
        kinds = sorted({PurePosixPath(name).suffix or name for name in names} - {".md", ".gitattributes"})
        raise CheckpointError(f"{where} has no file that can be read ({', '.join(endings)}), but {', '.join(kinds)}.")
    configs = card.get("configs")
    if stated := [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []:
        return _of_the_card(data, stated, config, where)
    if all(_CONVERTED.fullmatch(name) for name in data):
        found = sorted({name.split("/")[0] for name in data})
        chosen = _chosen(found, "default" if "default" in found else "", config, where)
        folders = sorted({name.split("/")[1] for name in data if name.startswith(f"{chosen}/")})
        return chosen, {split: [name for name in data if name.startswith(f"{chosen}/{split}/")] for split in folders}
    if config:
        data = [name for name in data if name.startswith(f"{config}/")]
        if not data:
            raise CheckpointError(f"{where} has no configuration {config}: its card names none, and no folder is so.")
    return config, _by_name(data, f"{config}/" if config else "")


def files_of(splits: Splits, split: str, where: str) -> list[str]:
    """The files of one split; where they are of several formats, those of the commonest."""
    files = splits.get(split)
    if not files:
        there = ", ".join(name for name, each in splits.items() if each)
        raise CheckpointError(f"{where} has no split {split}. There are: {there or 'none'}.")
    ((ending, _),) = Counter(PurePosixPath(name).suffix.lower() for name in files).most_common(1)
    return [name for name in files if PurePosixPath(name).suffix.lower() == ending]


def class_names_of(card: Mapping[str, Any], config: str) -> dict[str, tuple[str, ...]]:
    """By column: the names of the classes whose numbers stand there, from 0 on, as the card's `dataset_info` tells
    them of a configuration. What is of another form is passed over."""
    stated = card.get("dataset_info")
    entries = [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, dict)]
    one = next((each for each in entries if str(each.get("config_name", "default")) == (config or "default")), None)
    if one is None and not config and len(entries) == 1:
        one = entries[0]
    features = one.get("features") if one is not None else None
    found = {}
    for each in features if isinstance(features, list) else ():
        kind = each.get("dtype") if isinstance(each, dict) else None
        names = _in_order(kind["class_label"]) if isinstance(kind, dict) and "class_label" in kind else None
        if are_class_names(names):
            found[str(each.get("name"))] = tuple(names)
    return found


def are_class_names(names: Any) -> TypeGuard[list[str]]:
    """Whether they can stand for numbers from 0 on: texts that differ, none of them empty."""
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and name.strip() for name in names)
        and len(set(names)) == len(names)
    )


def _in_order(stated: Any) -> list[Any] | None:
    """The names of a class label; the card gives a list, or an object by number."""
    names = stated.get("names") if isinstance(stated, dict) else None
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        wanted = [str(number) for number in range(len(by_number))]
        return [by_number[number] for number in wanted] if set(wanted) == set(by_number) else None
    return names if isinstance(names, list) else None


def _of_the_card(data: list[str], stated: list[dict[str, Any]], config: str, where: str) -> tuple[str, Splits]:
    known = {str(each.get("config_name", "default")): each for each in stated}
    usual = next((name for name, each in known.items() if each.get("default") is True), "")
    chosen = _chosen(list(known), usual or ("default" if "default" in known else ""), config, where)
    entry = known[chosen]
    folder = str(entry.get("data_dir") or "").strip("/")
    start = f"{folder}/" if folder not in ("", ".") else ""
    inside = [name for name in data if name.startswith(start)]
    patterns = _patterns(entry.get("data_files"))
    if not patterns:
        return chosen, _by_name(inside, start)
    splits: Splits = {}
    until = time.monotonic() + _MATCH_SECONDS
    try:
        for split, each in patterns.items():
            matches = [_matcher(start + pattern, where) for pattern in each]
            if files := [name for name in data if any(_fits(match, name, until) for match in matches)]:
                splits[split] = files
    except TimeoutError as error:
        raise CheckpointError(
            f"The card of {where} names its files by patterns that take too long to match. Name the files yourself: "
            "download those that are wanted, and give their paths."
        ) from error
    if not splits:
        raise CheckpointError(f"The card of {where} names files for {chosen} that are not there, or cannot be read.")
    return chosen, splits


def _chosen(known: list[str], usual: str, config: str, where: str) -> str:
    chosen = config or (known[0] if len(known) == 1 else usual)
    if chosen not in known:
        problem = f"has no configuration {config}" if config else "has several configurations"
        raise CheckpointError(f"{where} {problem}. Name one with data_config: {', '.join(known[:20])}.")
    return chosen


def _patterns(stated: Any) -> dict[str, list[str]]:
    """The card may give a name, names, or names by split."""
    if isinstance(stated, dict):
        return {str(split): _list(paths) for split, paths in stated.items()}
    if isinstance(stated, list) and all(isinstance(each, dict) for each in stated):
        return {str(each.get("split", "train")): _list(each.get("path")) for each in stated}
    return {"train": _list(stated)} if stated else {}


def _list(paths: Any) -> list[str]:
    return [str(each) for each in (paths if isinstance(paths, list) else [paths]) if each]


def _matcher(pattern: str, where: str) -> regex.Pattern[str]:
    """A pattern of files as a regular expression: `*` stays within a folder, `**` does not."""
    if "://" in pattern or ".." in pattern or pattern.startswith("/"):
        raise CheckpointError(f"The card of {where} names {pattern[:80]!r}, which lies outside of the data set.")
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[\w-]+\])", pattern.removeprefix("./")[: _PATTERN_CHARACTERS + 1])
    try:
        if len(pattern) > _PATTERN_CHARACTERS:
            raise regex.error("too long")
        return regex.compile(
            "".join(known.get(piece) or (piece if re.fullmatch(r"\[[\w-]+\]", piece) else re.escape(piece))
                    for piece in pieces)
        )  # fmt: skip
    except regex.error as error:
        raise CheckpointError(
            f"The card of {where} names {pattern[:80]!r}, which is no pattern of files ({error})."
        ) from error


def _fits(match: regex.Pattern[str], name: str, until: float) -> bool:
    """Raises TimeoutError once it is later than that."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return match.fullmatch(name, timeout=left) is not None


def _by_name(data: list[str], start: str) -> Splits:
    bare = {name: name.removeprefix(start) for name in data}
    shards = {name: found[1] for name in data if (found := _SHARD.fullmatch(bare[name]))}
    if shards:
        return _grouped(shards)
    for places in ([-1], None):
        words = {name: word for name in data if (word := _word(bare[name], places))}
        if words:
            return _grouped(words)
    return {"train": data}


def _word(name: str, places: list[int] | None) -> str:
    """The split that a file's own name says, or, without places, that one of its folders says."""
    parts = name.split("/")
    looked = [parts[place] for place in places] if places else [f"{part}." for part in parts[:-1]]
    for split, words in _WORDS.items():
        pattern = re.compile(rf"(?:^|{_BETWEEN})(?:{'|'.join(words)}){_BETWEEN}", re.IGNORECASE)
        if any(pattern.search(part) for part in looked):
            return split
    return ""


def _grouped(splits: Mapping[str, str]) -> Splits:
    grouped: Splits = {}
    for name, split in splits.items():
        grouped.setdefault(split, []).append(name)
    return grouped
