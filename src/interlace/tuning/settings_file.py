"""The YAML of a run: its entries with their places, and a word on every way in which a file can be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from interlace.errors import ConfigError
from interlace.tuning.launch import entries
from interlace.tuning.lines import foreign

MOST_YAML_BYTES = 1 << 20
_HEAD_BYTES = 4096


def lines_of(file: Path, problems: list[str]) -> Iterator[tuple[str, str, yaml.Node]]:
    """Place, key and value of each entry; what is wrong with one goes into `problems`. Raises `ConfigError`."""
    root = _root_of(file)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{file}:1: this is no list of settings. Write lines such as `epochs: 3`.")
    seen: set[str] = set()
    for key, name, value in entries(root):
        place = f"{file}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{place}: a setting's name is one word. Write lines such as `epochs: 3`.")
            continue
        if name in seen:
            problems.append(f"{place}: {name[:60]}: is there twice. Keep one of them.")
            continue
        seen.add(name)
        yield place, name, value


def _root_of(file: Path) -> yaml.Node | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_YAML_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError(f"--config: {file} is a folder. Name the YAML in it.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--config: {file} cannot be read: {getattr(error, 'strerror', None) or error}. Check path and permissions."
        ) from error
    if len(text) > MOST_YAML_BYTES:
        raise ConfigError(
            f"--config: {file} is larger than {MOST_YAML_BYTES >> 20} MiB. Is it the data? Name those with --data."
        )
    if wrong := foreign(text[:_HEAD_BYTES]):
        mend = wrong[1] if "UTF" in wrong[1] else "Write the settings as a YAML; data are named with --data"
        raise ConfigError(f"--config: {file}: {wrong[0]}. {mend}.")
    try:
        return yaml.compose(text.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file}:{line}: byte 0x{text[error.start]:02x} is not UTF-8. Save the file in UTF-8."
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(_no_yaml(file, error)) from error


def _no_yaml(file: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{file}:{mark.line + 1}" if mark else str(file)
    words = [getattr(error, part, None) for part in ("context", "problem")]
    said = ", ".join(word for word in words if word) or str(error).partition("\n")[0]
    if mark is not None and mark.buffer and mark.buffer.lstrip().startswith('{"'):
        return f"{place}: this is no YAML: {said}. Is it the data? Name those with --data."
    return f"{place}: this is no YAML: {said[:300]}. Mend it; settings are lines such as `epochs: 3`."
