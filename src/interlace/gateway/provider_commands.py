"""`interlace providers list|check`: what is configured elsewhere, and whether it does what it should."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from interlace.config import ModelSettings, Settings, load_settings
from interlace.engines import usual_of
from interlace.errors import ConfigError, InterlaceError
from interlace.gateway.asking import Where
from interlace.gateway.ledger_client import perform
from interlace.gateway.probes import Finding, check, probes
from interlace.ledger.prices import KINDS, Price, charge
from interlace.models import print_table
from interlace.money import show_usd

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def providers_list_command(where: Where, *, as_json: bool) -> int:
    """A row for each remote model; keys are told by the names of their variables only."""
    rows = [_row(model, where.env) for model in _remote(_settings(where))]
    if as_json:
        _print_json(rows)
    elif not rows:
        print("The configuration has no model of another server.", file=sys.stderr)
    else:
        cells = [[row["name"], row["engine"], row["model"], row["base_url"] or "", _keys(row)] for row in rows]
        print_table(["NAME", "ENGINE", "MODEL", "BASE URL", "KEY"], cells)
    return 0


def providers_check_command(name: str, where: Where, *, as_json: bool) -> int:
    """Ask the provider behind one model. Exit codes: 0 all is well, 1 something that should work fails, 2 wrong use."""
    settings = _settings(where)
    model = next((model for model in _remote(settings) if model.name == name), None)
    if model is None:
        there = ", ".join(model.name for model in _remote(settings)) or "none"
        raise ConfigError(f"No model of another server is called {name!r} in the configuration; there is: {there}.")
    with _progress(2 if model.embeds else len(probes()) + 1) as begun, _overheard() as heard:
        findings = asyncio.run(_check(model, settings, where.env, begun))
    price = _price(name, where)
    costs = [_cost(finding, price) for finding in findings]
    total = None if price is None else sum(cost or 0 for cost in costs)
    if as_json:
        rows = [_shown(finding, cost) for finding, cost in zip(findings, costs, strict=True)]
        _print_json({"model": name, "provider": _row(model, where.env), "checks": rows, "cost_nanos": total,
                     "cost_usd": None if total is None else show_usd(total)})  # fmt: skip
    else:
        _print(findings, costs, total, name)
    failed = any(finding.status == "fails" for finding in findings)
    if failed and not as_json:
        row = _row(model, where.env)
        print(f"Asked was {row['base_url'] or 'the provider'}, for {model.model}; key: {_keys(row)}.", file=sys.stderr)
        for line in dict.fromkeys(heard):
            print(f"The log would say: {line}.", file=sys.stderr)
    return 1 if failed else 0


def findings_of(model: ModelSettings, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Ask the provider behind one model everything, quietly; it costs a little."""
    with _overheard():
        return asyncio.run(_check(model, settings, env, lambda _: None))


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What the engine would write into the log of a server: a caller is not told it, who runs the gateway is."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = {name: value for name, value in getattr(record, "fields", {}).items() if name != "model" and value}
            told = ", ".join(f"{name} {value}" for name, value in fields.items())
            heard.append(f"{record.getMessage()} ({told})" if told else record.getMessage())

    log, ear = logging.getLogger("interlace.engines.remote"), Ear()
    passes_on, log.propagate = log.propagate, False
    log.addHandler(ear)
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.propagate = passes_on


async def _check(
    model: ModelSettings, settings: Settings, env: Mapping[str, str], begun: Callable[[str], None]
) -> list[Finding]:
    from interlace.gateway.serve import build_engine

    engine = build_engine(model, settings.home, env)
    await engine.start()
    try:
        return await check(engine, embeds=model.embeds, begun=begun)
    finally:
        await engine.close()


# --- what is configured ------------------------------------------------------------------------------------------


def _settings(where: Where) -> Settings:
    return load_settings(where.config, where.env, {"home": where.home}, need_keys=False)


def _remote(settings: Settings) -> list[ModelSettings]:
    return [model for model in settings.models if not model.runs_here]


def _row(model: ModelSettings, env: Mapping[str, str]) -> dict[str, Any]:
    usual = usual_of(model, env)
    return {
        "name": model.name,
        "engine": model.engine,
        "model": model.model,
        "base_url": usual.base_url or None,
        "keys": {variable: bool(env.get(variable, "").strip()) for variable in _variables(model, usual.api_key)},
        "credentials": usual.credentials or None,
    }


def _variables(model: ModelSettings, api_key: str) -> Iterator[str]:
    """The environment variables that its settings name, and that of its key where they leave it out."""
    values = [getattr(model, one.name) for one in dataclasses.fields(model) if one.name != "api_key"]
    for value in [api_key, *values]:
        if isinstance(value, str) and (found := _VARIABLE.fullmatch(value)):
            yield found[1]


def _keys(row: Mapping[str, Any]) -> str:
    shown = [f"{name} {'is set' if there else 'IS NOT SET'}" for name, there in row["keys"].items()]
    return ", ".join(shown) or row["credentials"] or "none"


def _price(name: str, where: Where) -> Price | None:
    """The model's price now, where the ledger can be asked and has one."""
    try:
        rows = perform("prices.list", {"model": name, "state": "current"}, where)
    except InterlaceError as error:
        print(f"What it cost is not known: {error.message}", file=sys.stderr)
        return None
    for row in rows:
        amounts = {kind: row["nanos_per_million"][kind] for kind in KINDS}
        return Price(id=row["id"], model=name, since=0, **amounts, request=row["nanos_per_request"])
    return None


def _cost(finding: Finding, price: Price | None) -> int | None:
    return None if price is None or finding.tokens is None else charge(price, finding.tokens)


# --- showing -----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, nothing elsewhere; what is given hears of each step that begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=steps)
        number = -1

        def begun(name: str) -> None:
            nonlocal number
            number += 1
            bar.update(task, completed=number, description=name)

        yield begun


def _print(findings: Sequence[Finding], costs: Sequence[int | None], total: int | None, name: str) -> None:
    cells = [
        [
            finding.name,
            finding.status,
            _seconds(finding.first_token_seconds),
            _seconds(finding.seconds),
            "" if cost is None else show_usd(cost),
            finding.detail,
        ]
        for finding, cost in zip(findings, costs, strict=True)
    ]
    headings = ["CHECK", "RESULT", "FIRST TOKEN", "ALL", "USD", "WHAT WAS SEEN"]
    print_table(headings, cells, right=("FIRST TOKEN", "ALL", "USD"))
    if total is None:
        print(f"What it cost is not known: {name} has no price here. interlace prices sync proposes one.")
    else:
        print(f"It cost {show_usd(total)} dollars by the price of {name}, which the provider bills, not the ledger.")


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def _shown(finding: Finding, cost: int | None) -> dict[str, Any]:
    usd = None if cost is None else show_usd(cost)
    return dataclasses.asdict(finding) | {"tokens": finding.tokens, "cost_nanos": cost, "cost_usd": usd}


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
