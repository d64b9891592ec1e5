"""What was used, by whom, and what it cost: sums of usage events."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from interlace.errors import InvalidRequest
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.words import Input, Word, checked_model, find_key, find_org, find_project, moment_of
from interlace.ledger.outcomes import Outcome
from interlace.ledger.prices import KINDS
from interlace.ledger.registry import Registry
from interlace.ledger.usage import GROUPS, UsageFilter, UsageRow, usage_rows
from interlace.money import show_usd

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Period(Input, frozen=True, kw_only=True):
    """What to group by, with commas between (`org`, `project`, `key`, `model`, `route`, `tag`, `day`, `month`,
    `outcome`, `engine`), and which usage counts.

    `since` and `until` are days in the ledger's time zone, both counted, or moments with their offset, from the first
    up to the second. A request with two tags counts under both of them.
    """

    by: Word = ""
    since: Word | None = None
    until: Word | None = None
    model: Word | None = None
    tag: Word | None = None
    outcome: Outcome | None = None


class UsageWanted(Period, frozen=True, kw_only=True):
    """Which usage counts, and of whom; left out: all."""

    org: Word | None = None
    project: Word | None = None
    key: Word | None = None


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ran, their tokens by kind (`prompt` includes `cached` and `cache_write`, which includes
    `cache_write_1h`; `completion` includes `reasoning`), and what they cost. `overrun_nanos` of it was beyond what had
    been reserved; the tokens of `estimated_requests` were counted here, as their provider did not report them; of
    `disputed_requests` it reported what contradicts what was seen."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    embedding_tokens: int
    cost_nanos: int
    cost_usd: str
    overrun_nanos: int
    estimated_requests: int
    disputed_requests: int


class UsageLine(Sums, frozen=True, kw_only=True):
    """The sums of one group: names of what was grouped by, and ids where there are any. A null tag: untagged;
    a null route: asked by a model's own name."""

    org: str | UnsetType = UNSET
    org_id: str | UnsetType = UNSET
    project: str | UnsetType = UNSET
    project_id: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    key_id: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    route: str | UnsetType | None = UNSET
    tag: str | UnsetType | None = UNSET
    day: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """A line for each group, and the sums of all that was counted, each request once."""

    by: list[str]
    time_zone: str
    data: list[UsageLine]
    total: Sums


def report(registry: Registry, given: UsageWanted) -> UsageReport:
    """Usage of everybody, or of those that are named."""
    ids: dict[str, str] = {}
    if given.org is not None:
        ids["org_id"] = find_org(registry, given.org).id
    if given.project is not None:
        ids["project_id"] = find_project(registry, given.project, given.org).id
    if given.key is not None:
        ids["key_id"] = find_key(registry, given.key, given.project, given.org).id
    return summed(registry, given, GROUPS, **ids)


def summed(registry: Registry, given: Period, groups: tuple[str, ...], **ids: Any) -> UsageReport:
    """Sums of the usage of these ids, by some of `groups`."""
    by = _groups(given.by, groups)
    which = UsageFilter(
        **_since(given.since),
        **_until(given.until),
        model=None if given.model is None else checked_model(given.model),
        tag=None if given.tag is None else checked_model(given.tag, "tag"),
        outcome=None if given.outcome is None else given.outcome.value,
        **ids,
    )

    def work(connection: Connection) -> tuple[list[UsageRow], list[UsageRow]]:
        """Both of the same moment, so that they agree."""
        return usage_rows(connection, by, which, ids=True), usage_rows(connection, (), which)

    rows, totals = registry.store.read(work)
    return UsageReport(
        by=by,
        time_zone=registry.settings.ledger.time_zone,
        data=[_line(row) for row in rows],
        total=Sums(**_sums(totals[0])),
    )


def _groups(text: str, allowed: tuple[str, ...]) -> list[str]:
    by = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in by:
        if name not in allowed:
            raise InvalidRequest(f"`by` takes {', '.join(allowed)}, not {name!r}.", param="by", code="invalid_value")
    return by


def _since(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    return {"since": _day(text, "since")} if _DAY.fullmatch(text) else {"since_us": moment_of(text, "since")}


def _until(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    return {"until": _day(text, "until")} if _DAY.fullmatch(text) else {"until_us": moment_of(text, "until")}


def _day(text: str, param: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidRequest(f"`{param}` is no day there is.", param=param, code="invalid_time") from None


def _line(row: UsageRow) -> UsageLine:
    ids = {f"{name}_id": id for name, id in row.ids.items()}
    return UsageLine(**row.group, **ids, **_sums(row))  # type: ignore[arg-type] # only a tag or a route may be None


def _sums(row: UsageRow) -> dict[str, Any]:
    names = ["requests", *(f"{kind}_tokens" for kind in KINDS), "cost_nanos", "overrun_nanos"]
    names += ["estimated_requests", "disputed_requests"]
    return {name: getattr(row, name) for name in names} | {"cost_usd": show_usd(row.cost_nanos)}


USAGE = (Operation("usage", "GET", "/usage", "What was used, and what it cost.", UsageWanted, UsageReport, report),)
