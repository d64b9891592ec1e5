"""`interlace orgs|projects|keys|plans|prices …` and `interlace usage`: tables for people, JSON and CSV for programs.

Each returns an exit code: 0 done, 1 the ledger says no, 2 what was asked for makes no sense.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from interlace.errors import InvalidRequest
from interlace.gateway.asking import Where
from interlace.gateway.ledger_client import perform
from interlace.models import print_table

_SUMS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "embedding_tokens",
    "cost_nanos",
    "cost_usd",
)
_COLUMNS = {
    "orgs": ("name", "budget_usd", "spent_usd", "id"),
    "projects": ("name", "org", "budget_usd", "spent_usd", "id"),
    "keys": ("name", "org", "project", "plan", "state", "scopes", "hint", "budget_usd", "spent_usd", "id"),
    "plans": ("name", "source", "state", "rpm", "tpm", "concurrency", "budget_usd", "models", "keys"),
    "workers": ("id", "machine", "pid", "started_at", "held_usd"),
    "prices": ("id", "model", "since", "state", "source", "prompt", "cached", "completion", "embedding", "request"),
}
_RIGHT = ("BUDGET USD", "SPENT USD", "HELD USD", "PID",
          "RPM", "TPM", "CONCURRENCY", "KEYS", "PROMPT", "CACHED", "COMPLETION", "EMBEDDING",
          "REQUEST", "REQUESTS", "TOKENS IN", "TOKENS OUT", "USD")  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def ledger_command(name: str, given: Mapping[str, Any], where: Where, *, as_json: bool) -> int:
    """Carry out an operation and print what it gives."""
    result = _performed(name, given, where)
    if result is None:
        return 2
    if as_json:
        _print_json(result)
    elif isinstance(result, list):
        _print_list(name.split(".", maxsplit=1)[0], result)
    else:
        _print_facts(result)
        if "key" in result:
            print("This is the only time the key is shown. Keep it.", file=sys.stderr)
    return 0


def usage_command(given: Mapping[str, Any], where: Where, *, as_json: bool, as_csv: bool) -> int:
    """`interlace usage`: a row for each group."""
    if as_json and as_csv:
        print("Error: --json and --csv exclude each other.", file=sys.stderr)
        return 2
    report = _performed("usage", given, where)
    if report is None:
        return 2
    names = [name for by in report["by"] for name in (by, f"{by}_id")]
    rows = [{name: row[name] for name in names if name in row} | row for row in report["data"]]
    if as_json:
        _print_json(rows)
    elif as_csv:
        _print_csv([name for name in names if name in rows[0]] if rows else report["by"], rows)
    else:
        _print_usage(report["by"], rows, report["total"])
    return 0


def _performed(name: str, given: Mapping[str, Any], where: Where) -> Any:
    try:
        return perform(name, given, where)
    except InvalidRequest as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return None


# --- for people --------------------------------------------------------------------------------------------------


def _print_list(resource: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        print(f"There are no {resource}.", file=sys.stderr)
        return
    columns = _COLUMNS[resource]
    cells = [[_words(_flat(row).get(column)) for column in columns] for row in rows]
    print_table([column.replace("_", " ").upper() for column in columns], cells, right=_RIGHT)


def _print_facts(facts: Mapping[str, Any]) -> None:
    for name, value in _flat(facts).items():
        if not name.endswith("_nanos"):
            print(f"{name.replace('_', ' '):20} {_words(value) or 'none'}")


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One level, dollars only: a price's kinds stand beside the rest."""
    found = {name: value for name, value in facts.items() if not isinstance(value, dict) and "nanos_per" not in name}
    if "usd_per_million" in facts:
        found |= facts["usd_per_million"]
        found["request"] = found.pop("usd_per_request")
    return found


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _print_usage(by: Sequence[str], rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> None:
    """Names only, unless two rows would look the same."""
    alike = len({tuple(row[name] for name in by) for row in rows}) < len(rows)
    shown = [name for one in by for name in (one, f"{one}_id") if name in by or (alike and rows and name in rows[0])]
    headings = [*(name.replace("_", " ").upper() for name in shown), "REQUESTS", "TOKENS IN", "TOKENS OUT", "USD"]
    cells = [[*(_words(row[name]) for name in shown), *_amounts(row)] for row in rows]
    first = "TOTAL" if shown else ""
    cells.append([*([first, *[""] * (len(shown) - 1)] if shown else []), *_amounts(total)])
    print_table(headings, cells, right=_RIGHT)


def _amounts(sums: Mapping[str, Any]) -> list[str]:
    read = sums["prompt_tokens"] + sums["embedding_tokens"]
    return [f"{sums['requests']:,}", f"{read:,}", f"{sums['completion_tokens']:,}", sums["cost_usd"]]


# --- for programs ------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """RFC 4180 with plain line ends."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [*names, *_SUMS, "overrun_nanos", "estimated_requests", "disputed_requests"]
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text, as spreadsheets do it."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
