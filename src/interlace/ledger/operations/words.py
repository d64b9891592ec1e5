"""What every operation says and hears: names, amounts, moments, lists; and finding the thing that a word names.

Names are shown in terminals, logs and CSV files, so they hold letters, digits and little else, and begin with one.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from typing import Annotated, TypeVar, overload

import msgspec
from msgspec import UNSET

from interlace.errors import Conflict, InvalidRequest, NotFound
from interlace.ledger.directory import Key, Organisation, Plan, Project
from interlace.ledger.registry import Registry
from interlace.money import Micros, parse_moment, parse_usd, show_moment, show_usd

LONGEST_NAME = 128
MOST_MODELS = 256  # that one key or plan can name
MOST_COMPARED = 1000  # names, in search of one that is close to what was asked for

Thing = TypeVar("Thing", Organisation, Project, Key, Plan)

Word = Annotated[str, msgspec.Meta(max_length=200)]
"""A name, an id, an amount or a moment; what it may be exactly is checked where it is used."""

Words = Annotated[list[Word], msgspec.Meta(max_length=MOST_MODELS)]

_PUNCTUATION = frozenset(" ._-+&,()'@:")
_ID = re.compile(r"(org|proj|plan|key)_[0-9a-f]{20}")
_LATEST = 253_370_764_800_000_000  # the year 9999: moments beyond it cannot be written down


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what an operation is given."""


class Nothing(Input, frozen=True, kw_only=True):
    """Of operations that need to be told nothing."""


# --- reading -----------------------------------------------------------------------------------------------------


def checked_name(text: str, param: str = "name") -> str:
    """A name for something new, composed (NFC) so that what looks the same is the same."""
    name = unicodedata.normalize("NFC", text)
    sound = 0 < len(name) <= LONGEST_NAME and name[0].isalnum() and name[-1] != " " and all(map(_sound, name))
    if not sound or _ID.fullmatch(name) or name.lower() == "none":
        raise InvalidRequest(
            f"`{param}` must be 1 to {LONGEST_NAME} letters, digits, spaces and . _ - + & , ( ) ' @ : beginning with a "
            "letter or digit, and no id.",
            param=param,
            code="invalid_name",
        )
    return name


def _sound(letter: str) -> bool:
    return letter in _PUNCTUATION or (letter.isprintable() and unicodedata.category(letter)[0] in "LMN")


def checked_model(text: str, param: str = "model") -> str:
    """A model's public name, served now or not."""
    if not 0 < len(text) <= LONGEST_NAME or not text.isprintable() or text != text.strip():
        raise InvalidRequest(
            f"`{param}` must be a model's name, of 1 to {LONGEST_NAME} printable characters.", param=param
        )
    return text


def checked_models(names: list[str] | None) -> list[str] | None:
    """The models that a key or plan may use; None: all."""
    return None if names is None else [checked_model(name, "models") for name in dict.fromkeys(names)]


def nanos_of(text: str | None, param: str = "budget_usd") -> int | None:
    """Dollars as text → nano-dollars; None stays None."""
    if text is None:
        return None
    try:
        return parse_usd(text)
    except ValueError as error:
        raise InvalidRequest(f"`{param}` {error}.", param=param, code="invalid_amount") from None


def moment_of(text: str, param: str) -> Micros:
    """A date, or a time with its offset → microseconds."""
    try:
        moment = parse_moment(text)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"`{param}` {error}.", param=param, code="invalid_time") from None
    if moment >= _LATEST:
        raise InvalidRequest(f"`{param}` lies too far ahead; name a year before 9999.", param=param)
    return moment


def given_of(**values: object) -> dict[str, object]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not UNSET}


def something_of(values: dict[str, object]) -> dict[str, object]:
    """What a `set` changes; refuses to change nothing."""
    if not values:
        raise InvalidRequest("Nothing is to be changed. Name at least one field.", code="nothing_to_change")
    return values


# --- showing -----------------------------------------------------------------------------------------------------


@overload
def usd(nanos: int) -> str: ...
@overload
def usd(nanos: int | None) -> str | None: ...
def usd(nanos: int | None) -> str | None:
    """Dollars in full; None: no bound."""
    return None if nanos is None else show_usd(nanos)


@overload
def time(micros: int) -> str: ...
@overload
def time(micros: int | None) -> str | None: ...
def time(micros: int | None) -> str | None:
    """A moment in UTC; None: never."""
    return None if micros is None else show_moment(micros)


# --- finding -----------------------------------------------------------------------------------------------------


def find_org(registry: Registry, word: str) -> Organisation:
    """The organisation of that name or id."""
    return _one(list(registry.directory.organisations.values()), "organisation", word)


def find_project(registry: Registry, word: str, org: str | None = None) -> Project:
    """The project of that id, or of that name: names are unique within an organisation only."""
    there = list(registry.directory.projects.values())
    if org is not None:
        owner = find_org(registry, org).id
        there = [project for project in there if project.org_id == owner]
    return _one(there, "project", word, "Say of which organisation with `org`, or give its id.")


def find_key(registry: Registry, word: str, project: str | None = None, org: str | None = None) -> Key:
    """The key of that id, or the living one of that name; where there is none such, the one that was revoked."""
    there = list(registry.directory.keys.values())
    if project is not None or org is not None:
        owners = _projects(registry, project, org)
        there = [key for key in there if key.project_id in owners]
    living = [key for key in there if key.revoked_at is None]
    if any(word in (key.id, key.name) for key in living):
        there = living
    return _one(there, "key", word, "Say of which project with `project`, or give its id.")


def _projects(registry: Registry, project: str | None, org: str | None) -> set[str]:
    """The ids of one project, or of an organisation's."""
    if project is not None:
        return {find_project(registry, project, org).id}
    owner = None if org is None else find_org(registry, org).id
    return {each.id for each in list(registry.directory.projects.values()) if owner in (None, each.org_id)}


def find_plan(registry: Registry, word: str) -> Plan:
    """The plan of that name or id."""
    return _one(list(registry.directory.plans.values()), "plan", word)


def _one(there: list[Thing], what: str, word: str, mend: str = "Give its id.") -> Thing:
    """The one of `there` that has the id or name `word`; raises `NotFound` with close matches, or `Conflict`."""
    name = unicodedata.normalize("NFC", word)
    found = [thing for thing in there if thing.id == word] or [thing for thing in there if thing.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(sorted(thing.id for thing in found)[:5])
        raise Conflict(f"There are {len(found)} {what}s called {word!r}: {ids}. {mend}", code="ambiguous")
    close = difflib.get_close_matches(word, [thing.name for thing in there[:MOST_COMPARED]], n=3)
    hint = f" Did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else ""
    raise NotFound(f"There is no {what} {word!r}.{hint}", param=what, code=f"{what}_not_found")
