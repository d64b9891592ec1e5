"""Where the examples come from: files, or the splits of a data set on the Hub, which is pulled once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from interlace.errors import CheckpointError, ConfigError
from interlace.models import DataSet, is_data_set, pull_data_set
from interlace.tuning.columns import Columns
from interlace.tuning.data import FORMATS, read_examples
from interlace.tuning.examples import Example, Examples, Problem, Task
from interlace.tuning.settings import TuneSettings

_OUR_NAMES = Columns()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to read; a data set is None where there is a file."""

    data: str | DataSet
    held_out: str | DataSet | None

    @property
    def licence(self) -> str:
        """As the card of the data set says it."""
        return (self.data.licence or "") if isinstance(self.data, DataSet) else ""

    @property
    def source(self) -> str:
        """The data set, with its commit."""
        return str(self.data) if isinstance(self.data, DataSet) else ""

    @property
    def hub(self) -> dict[str, dict[str, str]]:
        """For the manifest: what of the Hub was taken, as it can be had again."""
        return {
            name: {"repo": one.repo, "commit": one.commit, "config": one.config, "split": ", ".join(one.files)}
            for name, one in (("data", self.data), ("held_out_data", self.held_out))
            if isinstance(one, DataSet)
        }


def find_sources(settings: TuneSettings, home: Path) -> Sources:
    """Pull what is on the Hub. Raises `ConfigError` that names the setting, what is wrong, and the mend."""
    data, held_out = settings.data, settings.held_out_data
    if settings.held_out_split and not held_out:
        held_out = data
    one = _found("data", data, settings, settings.data_split, home)
    if isinstance(one, DataSet) and held_out in (data, data.partition("@")[0]):
        held_out = str(one)  # both of one commit, whatever comes in between
    split, said = settings.held_out_split or "test", "held_out_data" if settings.held_out_data else "held_out_split"
    return Sources(one, _found(said, held_out, settings, split, home) if held_out else None)


def read_source(
    source: str | DataSet, task: Task = "chat", columns: Columns = _OUR_NAMES
) -> tuple[Examples, dict[str, str]]:
    """The examples, and the digests of the files that they are in. Of several files, the lines count on."""
    if isinstance(source, str):
        read = read_examples(Path(source).expanduser(), task=task, columns=columns)
        return read, {Path(read.file).name: read.sha256}
    rows: list[Example] = []
    problems: list[Problem] = []
    digests: dict[str, str] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    files = [file for files in source.files.values() for file in files]
    for name, path in files:
        read = read_examples(path, task=task, columns=columns, class_names=source.class_names)
        class_names |= read.class_names
        before = rows[-1].line if rows else 0
        rows += [replace(row, line=before + row.line) for row in read.rows]
        problems += [replace(problem, file=f"{source}/{name}") for problem in read.problems]
        digests[name] = read.sha256
    file = f"{source}/{files[0][0]}" if len(files) == 1 else str(source)
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    return Examples(file, task, tuple(rows), tuple(problems), whole, class_names), digests


def both_digests(train: Mapping[str, str], held_out: Mapping[str, str]) -> dict[str, str]:
    """Of both sets' files. Where two different ones have one name, that of the held-out set begins with `held_out/`."""
    both = dict(train)
    for name, digest in held_out.items():
        apart = name
        while both.get(apart, digest) != digest:
            apart = f"held_out/{apart}"
        both[apart] = digest
    return both


def _found(setting: str, text: str, settings: TuneSettings, split: str, home: Path) -> str | DataSet:
    from interlace.models.bars import progress_for_people

    if not is_data_set(text):
        return text
    try:
        with progress_for_people() as progress:
            return pull_data_set(
                text, home, config=settings.data_config, splits=[split], endings=list(FORMATS), progress=progress
            )
    except CheckpointError as error:
        raise ConfigError(f"{setting}: {error.message}") from error
