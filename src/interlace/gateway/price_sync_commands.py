"""`interlace prices sync`: a diff of prices to accept, applied as `interlace prices create` would."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from interlace.config import load_settings
from interlace.errors import InterlaceError
from interlace.gateway.asking import Where
from interlace.gateway.ledger_client import perform
from interlace.gateway.price_proposals import NotSaid, Proposal, Proposals, kinds_of, package, propose
from interlace.ledger.prices import KINDS, Price
from interlace.models import print_table
from interlace.money import micros_of, parse_moment, show_moment, show_usd


def prices_sync_command(where: Where, *, models: Iterable[str], since: str | None, yes: bool, as_json: bool) -> int:
    """Compare, show, ask, apply. Exit codes: 0 done or nothing to do, 1 the ledger says no, 2 wrong use."""
    settings = load_settings(where.config, where.env, {"home": where.home})
    wanted = set(models)
    if unknown := wanted - {model.name for model in settings.models if model.engine != "local"}:
        print(f"Error: no remote model of the configuration is called {', '.join(sorted(unknown))}.", file=sys.stderr)
        return 2
    listed, source = package()
    asked = [model for model in settings.models if not wanted or model.name in wanted]
    prices = _prices(where)
    try:
        found = propose(asked, prices, listed, _moment(since))
        if not as_json:
            _print(found, source)
            if found.proposed and not yes and _at_a_terminal():
                if since is None and (since := _asked_for_a_day()):
                    found = propose(asked, prices, listed, _moment(since))  # what is listed by then may be another
                    _print(found, source)
                yes = bool(found.proposed) and _agreed(since)
    except ValueError as error:
        print(f"Error: the time {error}.", file=sys.stderr)
        return 2
    applied = list(_apply(found, since, where)) if yes else []
    if as_json:
        _print_json(found, source, applied)
    elif applied:
        print(f"{len(applied)} prices made: {', '.join(map(str, applied))}. `interlace prices retire` takes one back.")
    elif found.proposed:
        print("Nothing was applied. To apply it, say --yes.", file=sys.stderr)
    return 0


def _moment(since: str | None) -> datetime:
    """When the prices are to begin; raises `ValueError`."""
    return datetime.now(UTC) if since is None else datetime.fromtimestamp(parse_moment(since) // 10**6, UTC)


def _prices(where: Where) -> dict[str, list[Price]]:
    """What the ledger has, by model, without what is retired."""
    found: dict[str, list[Price]] = {}
    for row in perform("prices.list", {}, where):
        if row["state"] == "retired":
            continue
        amounts = {kind: row["nanos_per_million"][kind] for kind in KINDS}
        price = Price(
            id=row["id"],
            model=row["model"],
            since=micros_of(datetime.fromisoformat(row["since"])),
            **amounts,
            request=row["nanos_per_request"],
            batch_percent=row["batch_percent"],
            source=row["source"],
        )
        found.setdefault(price.model, []).append(price)
    return found


def _asked_for_a_day() -> str | None:
    """From when on, as the person at the terminal says; None: from now on."""
    return _said("From when on (a date, or a time with its offset; Enter: now)? ") or None


def _agreed(since: str | None) -> bool:
    return _said(f"Apply these prices from {since or 'now'} on? [y/N] ").lower() in {"y", "yes"}


def _said(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _apply(found: Proposals, since: str | None, where: Where) -> Iterator[int]:
    """Make the prices, one operation each; the ids of what was made. A refusal says how far it came."""
    made: list[int] = []
    for proposal in found.proposed:
        price = proposal.price
        amounts = {kind: show_usd(nanos) for kind in KINDS if (nanos := getattr(price, kind)) is not None}
        given: dict[str, Any] = {"model": price.model, "usd_per_million": amounts}
        given |= {"usd_per_request": show_usd(price.request), "batch_percent": price.batch_percent}
        begin = since if proposal.since is None else show_moment(proposal.since)
        try:
            row = perform("prices.create", given | ({"since": begin} if begin else {}), where)
        except InterlaceError:
            if made:
                print(f"Made before it went wrong: {', '.join(map(str, made))}.", file=sys.stderr)
            raise
        made.append(row["id"])
        yield row["id"]


# --- showing -----------------------------------------------------------------------------------------------------


def _print(found: Proposals, source: str) -> None:
    rows = [row for proposal in found.proposed for row in _rows(proposal)]
    if rows:
        headings = ("MODEL", "KIND", "NOW", "PROPOSED", "CHANGE", "SINCE", "LISTED AS")
        print_table(headings, rows, right=("NOW", "PROPOSED", "CHANGE"))
        print(f"In dollars per million tokens; from {source}.")
    else:
        print(f"No price of {source} is another than yours.")
    for proposal in found.proposed:
        for note in proposal.notes:
            print(f"{proposal.model}: {note}.")
    if found.unchanged:
        print(f"As they are: {', '.join(found.unchanged)}.")
    for one in found.not_said:
        print(f"{one.model}: {one.reason}. {_mend(one)}")


def _mend(one: NotSaid) -> str:
    what = "Our kinds of tokens cannot say that: choose" if one.known else "See what it costs and set it:"
    return f"{what} interlace prices create {one.model} --prompt ... --completion ..."


def _rows(proposal: Proposal) -> Iterator[tuple[str, ...]]:
    since = "" if proposal.since is None else show_moment(proposal.since)
    for row in _differences(proposal):
        kind, now, then = row["kind"], row["now"], row["proposed"]
        yield proposal.model, kind, now or "none", then, row["change"], since, proposal.listed


def _differences(proposal: Proposal) -> Iterator[dict[str, Any]]:
    """Each amount that changes, with what it was: as it is charged, so that of a kind without an amount is its
    parent's."""
    now, price = proposal.now, proposal.price
    pairs: list[tuple[str, int | None, int | None]] = [
        (kind, now.of(kind) if now else None, price.of(kind)) for kind in kinds_of(price)
    ]
    pairs.append(("request", now.request if now else None, price.request))
    for kind, before, after in pairs:
        if before == after or after is None or (before is None and kind == "request" and not after):
            continue
        shown = {"now": None if before is None else show_usd(before), "proposed": show_usd(after)}
        yield {"kind": kind, **shown, "now_nanos": before, "proposed_nanos": after, "change": _change(before, after)}
    if price.batch_percent != (now.batch_percent if now else 100):
        before = now.batch_percent if now else 100
        yield {"kind": "batch %", "now": str(before), "proposed": str(price.batch_percent), "change": ""}


def _change(before: int | None, after: int) -> str:
    """In per cent, by whole numbers."""
    if not before:
        return "new"
    tenths = (abs(after - before) * 1000 + before // 2) // before
    return f"{'+' if after > before else '-'}{tenths // 10}.{tenths % 10} %"


def _print_json(found: Proposals, source: str, applied: list[int]) -> None:
    def shown(proposal: Proposal) -> Mapping[str, Any]:
        since = None if proposal.since is None else show_moment(proposal.since)
        changes = list(_differences(proposal))
        return {"model": proposal.model, "listed": proposal.listed, "since": since, "changes": changes,
                "notes": proposal.notes}  # fmt: skip

    answer = {
        "source": source,
        "proposed": [shown(proposal) for proposal in found.proposed],
        "unchanged": found.unchanged,
        "not_said": [msgspec.structs.asdict(one) | {"mend": _mend(one)} for one in found.not_said],
        "applied": applied,
    }
    print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
