"""Words of the command line that are no options of `interlace tune`, and what was probably meant by them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence

from interlace.errors import ConfigError
from interlace.tuning.data import FORMATS
from interlace.tuning.said import OPTIONS, meant

_NUMBER = re.compile(r"-[0-9.]+(e-?[0-9]+)?", re.IGNORECASE)
_OTHERWISE = {
    "--resume": "Nothing need be said: the same command goes on where it was cut off. Leave it out.",
    "--resume-from-checkpoint": "Nothing need be said: the same command goes on where it was cut off. Leave it out.",
    "--output-dir": "What is made lies in the home folder, --home, by its --name.",
    "--output": "What is made lies in the home folder, --home, by its --name.",
    "--dry-run": "To see what it will take, and train nothing: --plan.",
    "--force": "To throw away an earlier run of that name: --fresh.",
    "--overwrite": "To throw away an earlier run of that name: --fresh.",
}


def strange_words(words: Sequence[str], options: Collection[str], settings: Collection[str]) -> Iterator[str]:
    """A message for each of these words, with the mend; `options` are those that there are."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
            yield f"{word[:200]!r} belongs to no option. {_of_no_option(word)}"
            continue
        option, mark, value = word.partition("=")
        if not mark and rest and (not rest[0].startswith("-") or _NUMBER.fullmatch(rest[0])):
            value = rest.pop(0)
        yield f"{option[:100]}: is no option. {_mend(option, value, options, settings)}"


def _of_no_option(word: str) -> str:
    if word.lower().endswith((".yaml", ".yml")):
        return f"Settings: --config {word[:200]}"
    if word.lower().endswith(tuple(FORMATS)):
        return f"Data: --data {word[:200]}"
    return "What has spaces in it stands in quotes."


def _mend(option: str, value: str, options: Collection[str], settings: Collection[str]) -> str:
    if said := _OTHERWISE.get(option.lower().replace("_", "-")):
        return said
    if near := difflib.get_close_matches(option.lower().replace("_", "-"), options, 1, 0.8):
        return f"Did you mean {near[0]}?"
    name = meant(option, settings)
    if name in OPTIONS:
        return f"Did you mean {OPTIONS[name]}?"
    if name:
        return f"It is a setting of the YAML that --config names. Write there: {name}: {value[:100] or '...'}"
    return "See what there is: interlace tune --help"


def once(option: str, values: Sequence[str] | None) -> str | None:
    """The one value of an option. Raises `ConfigError` where several are given: the last would win, and nobody would
    hear that the others are left out."""
    if values and len(values) > 1:
        several = "Write one, with commas between" if option == "--columns" else "Put the examples into one file"
        raise ConfigError(f"{option}: is there {len(values)} times. {several}.")
    return values[0] if values else None
