"""The page of what becomes of each field: every dialect's table against every engine's. Made by `docs/generate.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from interlace.config import REMOTE, ModelSettings
from interlace.engines.fields import Fate, Fields, Kept, Mapped, Refused, at_home
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.remote.providers import usual_of, wire_of
from interlace.gateway.dialects import DIALECTS, Spoken
from interlace.gateway.translation import Carried, Denied, Here, Ignored

# How a model of a provider is configured, where a name alone does not settle its table.
GIVEN: dict[str, dict[str, Any]] = {
    "openai": {"base_url": "https://api.openai.com/v1"},
    "azure": {"base_url": "https://example.openai.azure.com"},
    "bedrock": {"region": "eu-central-1", "model": "anthropic.claude"},
    "vertex": {"project": "example"},
}
RESPONSES = "openai, `api: responses`"

INTRODUCTION = """\
What callers send is read into one neutral form, and written again in the words of whatever answers. This page says of
every field of every dialect what becomes of it at every engine; it is made from the tables that the code itself goes
by, and tests send random requests through them and back.

- **kept**: it goes through with its meaning unchanged, under whatever name.
- **mapped**: it goes through in other words; the note says which.
- **unused**: a wish beside the question that this engine has no use for. The answer is the same without it, and the
  header `x-interlace-unused` names it.
- **400**: the request is refused with an error that names the field and says what to do.
- **here**: the gateway itself does what it asks for, whatever the engine.

A field that no table knows is refused. What a provider's own model does not support beyond its wire format, the
provider says itself, and its complaint is passed on. `bedrock` stands for Anthropic's models there, and `openai` for
OpenAI's own server: other servers that speak its API are told apart by `extensions` and the like in the
[settings](settings.md).
"""


def engines() -> dict[str, Fields]:
    """The table of each engine there is."""
    tables: dict[str, Fields] = {"local": LOCAL_FIELDS}
    for name in REMOTE:
        tables[name] = _fields(name, GIVEN.get(name, {}))
        if name == "openai":
            tables[RESPONSES] = _fields(name, {**GIVEN[name], "api": "responses"})
    return tables


def _fields(engine: str, given: Mapping[str, Any]) -> Fields:
    settings = ModelSettings(name="example", **{"engine": engine, "model": "example", **given})
    keys = re.findall(r"\$\{(\w+)\}", usual_of(settings, {}).api_key)
    return wire_of(settings, dict.fromkeys(keys, "example"), _nothing).fields


async def _nothing(*_: object) -> Any:
    raise NotImplementedError


def translation_page(made: str) -> str:
    """The whole page."""
    tables = engines()
    notes: dict[str, int] = {}
    parts = ["# Translation\n\n", made, INTRODUCTION]
    for name, spoken in DIALECTS.items():
        parts += [f"\n## {spoken.title}\n\n`POST {spoken.path}`\n\n", _table(name, spoken, tables, notes)]
    parts += ["\n## Notes\n\n", *(f"{number}. {note}\n" for note, number in notes.items())]
    return "".join(parts)


def _table(dialect: str, spoken: Spoken, tables: Mapping[str, Fields], notes: dict[str, int]) -> str:
    rows = [f"| field | {' | '.join(tables)} |\n", "|---" * (len(tables) + 1) + "|\n"]
    for path, place in sorted(spoken.table.items()):
        if isinstance(place, Carried):
            passed = f" ({place.how})" if place.how else ""
            cells = [_cell(dialect, {name: fields[name] for name in place.names}, notes) for fields in tables.values()]
            rows.append(f"| `{path}`{passed} | {' | '.join(cells)} |\n")
        else:
            word = {Here: "here", Ignored: "unused", Denied: "400"}[type(place)]
            how = place.how if isinstance(place, Here) else place.why
            rows.append(f"| `{path}` ({how}) | {' | '.join([word] * len(tables))} |\n")
    return "".join(rows)


def _cell(dialect: str, fates: Mapping[str, Fate], notes: dict[str, int]) -> str:
    """What becomes of one field that is carried under these names; where that differs, of each of them."""
    words: dict[str, list[str]] = {}
    for name, fate in fates.items():
        words.setdefault(_word(at_home(name, fate, dialect), notes), []).append(name.removeprefix("part."))
    if len(words) < 2:
        return next(iter(words), "kept")
    return "; ".join(f"{', '.join(names)}: {word}" for word, names in words.items())


def _word(fate: Fate, notes: dict[str, int]) -> str:
    if isinstance(fate, Kept):
        return "kept"
    note = fate.how if isinstance(fate, Mapped) else fate.why
    number = notes.setdefault(note, len(notes) + 1)
    word = "mapped" if isinstance(fate, Mapped) else "400" if isinstance(fate, Refused) else "unused"
    return f"{word} [{number}](#notes)"
