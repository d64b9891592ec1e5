"""What it costs: plans, prices, and what was used."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from interlace.cli.options import ApiKey, Budget, Config, Home, Json, Models, Org, Project, Rename, Url
from interlace.cli.verb import Given, listed, number, said, verb_of

plans = typer.Typer(no_args_is_help=True, help="Plans: rates, budgets and limits for keys.")
prices = typer.Typer(no_args_is_help=True, help="Prices: what models cost, from when on.")

Rpm = Annotated[str | None, typer.Option("--rpm", metavar="N", help="Requests in any sixty seconds; none: no limit.")]
Tpm = Annotated[str | None, typer.Option("--tpm", metavar="N", help="Tokens in any sixty seconds; none: no limit.")]
Concurrency = Annotated[
    str | None, typer.Option("--concurrency", metavar="N", help="Requests that run at once; none: no limit.")
]
Priority = Annotated[int | None, typer.Option("--priority", help="Who goes first when requests queue: the greater.")]
Usual = Annotated[
    str | None,
    typer.Option("--default-max-tokens", metavar="N", help="Longest answer where `max_tokens` is not said."),
]
Largest = Annotated[
    str | None, typer.Option("--largest-max-tokens", metavar="N", help="Largest `max_tokens` there may be.")
]

# --- plans -------------------------------------------------------------------------------------------------------


def _limits(rpm: Any, tpm: Any, concurrency: Any, usual: Any, largest: Any) -> Given:
    return {
        "rpm": number(rpm, "--rpm"),
        "tpm": number(tpm, "--tpm"),
        "concurrency": number(concurrency, "--concurrency"),
        "default_max_tokens": number(usual, "--default-max-tokens"),
        "largest_max_tokens": number(largest, "--largest-max-tokens"),
    }


@verb_of(plans, "plans.create")
def plans_create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrency: Concurrency = None,
    budget_usd: Budget = None,
    priority: Priority = None,
    default_max_tokens: Usual = None,
    largest_max_tokens: Largest = None,
    models: Models = None,
) -> Given:
    """Make a plan. Its limits hold for each key on it.

    Example: interlace plans create gold --rpm 600 --budget-usd 20
    """
    limits = _limits(rpm, tpm, concurrency, default_max_tokens, largest_max_tokens)
    return {"name": name, **limits, "budget_usd": budget_usd, "priority": priority, "models": listed(models)}


@verb_of(plans, "plans.list")
def plans_list() -> Given:
    """List the plans, those of interlace.yaml too.

    Example: interlace plans list
    """
    return {}


@verb_of(plans, "plans.show")
def plans_show(plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Given:
    """Show one plan.

    Example: interlace plans show gold
    """
    return {"plan": plan}


@verb_of(plans, "plans.set")
def plans_set(
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    name: Rename = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrency: Concurrency = None,
    budget_usd: Budget = None,
    priority: Priority = None,
    default_max_tokens: Usual = None,
    largest_max_tokens: Largest = None,
    models: Models = None,
) -> Given:
    """Change a plan that is not interlace.yaml's.

    Example: interlace plans set gold --rpm none --budget-usd 30
    """
    limits = _limits(rpm, tpm, concurrency, default_max_tokens, largest_max_tokens)
    own = {"plan": plan, "name": name, **limits, "budget_usd": budget_usd}
    return own | {"priority": priority, "models": listed(models)}


# --- prices ------------------------------------------------------------------------------------------------------


def _usd(option: str, help: str) -> Any:
    return typer.Option(option, metavar="USD", help=help)


@verb_of(prices, "prices.create")
def prices_create(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The public name of the model.")],
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="A date, or a time with its offset; else now.")
    ] = None,
    prompt: Annotated[str | None, _usd("--prompt", "Dollars per million tokens of the prompt.")] = None,
    cached: Annotated[str | None, _usd("--cached", "... read from a cache; else as --prompt.")] = None,
    cache_write: Annotated[str | None, _usd("--cache-write", "... written to a cache; else as --prompt.")] = None,
    cache_write_1h: Annotated[
        str | None, _usd("--cache-write-1h", "... written to a cache for an hour; else as --cache-write.")
    ] = None,
    completion: Annotated[str | None, _usd("--completion", "... generated.")] = None,
    reasoning: Annotated[
        str | None, _usd("--reasoning", "... generated for the model to read; else as --completion.")
    ] = None,
    embedding: Annotated[str | None, _usd("--embedding", "... of texts to embed; else as --prompt.")] = None,
    request: Annotated[str | None, _usd("--request", "Dollars for each request, beside its tokens.")] = None,
    batch_percent: Annotated[
        int | None, typer.Option("--batch-percent", help="What a request of a batch pays, in per cent.")
    ] = None,
) -> Given:
    """Make a price, in dollars per million tokens. It holds from then on; the past stays as it was.

    Example: interlace prices create talker --prompt 0.15 --completion 0.60
    """
    kinds = {"prompt": prompt, "cached": cached, "cache_write": cache_write}
    kinds |= {"cache_write_1h": cache_write_1h}
    kinds |= {"completion": completion, "reasoning": reasoning, "embedding": embedding}
    amounts = {kind: amount for kind, amount in kinds.items() if amount is not None}
    rest = {"usd_per_request": request, "batch_percent": batch_percent}
    return {"model": model, "since": since, "usd_per_million": amounts, **rest}


@verb_of(prices, "prices.list")
def prices_list(
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Of this model only.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="current, future, past or retired; else all.")] = None,
) -> Given:
    """List the prices, in dollars per million tokens.

    Example: interlace prices list --state current
    """
    return {"model": model, "state": state}


@verb_of(prices, "prices.show")
def prices_show(
    price: Annotated[str, typer.Argument(metavar="MODEL", help="A model, for its price now; or a price's id.")],
) -> Given:
    """Show one price.

    Example: interlace prices show talker
    """
    return {"price": price}


@verb_of(prices, "prices.retire")
def prices_retire(price: Annotated[str, typer.Argument(metavar="ID", help="The price's id.")]) -> Given:
    """Take a price out that was made by command. The one before it holds again; what it cost stays.

    Example: interlace prices retire 7
    """
    return {"id": price}


@prices.command("sync")
def prices_sync(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="These only; else all.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="A date, or a time with its offset; else now.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Apply what is proposed, without asking.")] = False,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare the prices of remote models with a public list, and propose those that differ.

    The list comes with the package genai-prices (pip install 'interlace[prices]'); nothing is fetched. Nothing is
    applied without --yes or a yes.

    Example: interlace prices sync --since 2026-12-01
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.price_sync_commands import prices_sync_command

    where = Where(os.environ, url=url, key=key_text, config=config, home=home)
    raise typer.Exit(prices_sync_command(where, models=models or (), since=since, yes=yes, as_json=as_json))


# --- usage -------------------------------------------------------------------------------------------------------


def usage(
    by: Annotated[
        str, typer.Option(metavar="A,B", help="org, project, key, model, route, tag, day, month, outcome or engine.")
    ] = "project,key,model",
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="A day, or a moment with its offset; else the beginning.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="A day, counted too, or a moment, without it; else now.")
    ] = None,
    org: Org = None,
    project: Project = None,
    key: Annotated[str | None, typer.Option("--of-key", metavar="KEY", help="The key, by name or id.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="The model.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="The tag.")] = None,
    outcome: Annotated[str | None, typer.Option(metavar="OUTCOME", help="How requests ended: finished, ...")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what was used and what it cost, one row for each group.

    Costs are exact, in JSON and CSV as whole nano-dollars too. A request with two tags counts under both.

    Example: interlace usage --by key,day --since 2026-01-01 --csv
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.ledger_commands import usage_command

    given = {"by": by, "since": since, "until": until, "org": org, "project": project, "key": key}
    given |= {"model": model, "tag": tag, "outcome": outcome}
    where = Where(os.environ, url=url, key=key_text, config=config, home=home)
    raise typer.Exit(usage_command(said(given), where, as_json=as_json, as_csv=as_csv))
