"""`interlace tune`: specialise a base on examples of one's own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from interlace.cli.options import ApiKey, Home, Json, Url


def tune(
    context: typer.Context,
    base: Annotated[
        str | None, typer.Option("--base", metavar="CHECKPOINT", help="The checkpoint to train on: a name or a path.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="FILE", help="The examples: JSON lines, CSV or Parquet.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS,...", help="What the data's columns are called in the file."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What the result is called; callers of an adapter: MODEL:NAME."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="A YAML with the settings of the run.")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="FILE", help="Held-out examples; else a tenth of the data."),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option("--owner", metavar="ORG", help="The organisation it belongs to; else default. Or: everybody."),
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="The licence of the data; it is kept.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Where the data come from; it is kept.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="How often each example is seen, at most.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="All that is random follows from it.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of the training; else one a core.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="chat|classify", help="To answer, or to tell which of some labels a text has."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="lora|full", help="An adapter, or a checkpoint."),
    ] = None,
    private: Annotated[
        str | None,
        typer.Option("--private", metavar="blocks:A-B[+head]", help="Of method full, these blocks (and head) alone."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="What the held-out answers are scored by; else exact_match."),
    ] = None,
    log_to: Annotated[
        str | None,
        typer.Option("--log-to", metavar="NAMES", help="tensorboard, mlflow, or both with a comma between."),
    ] = None,
    machine_rank: Annotated[
        int | None, typer.Option("--machine-rank", metavar="N", help="Of several machines, which this is; from 0.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away an earlier run of that name, and put this one in its place.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will take on this machine and others, and train nothing.")
    ] = False,
    url: Url = None,
    key: ApiKey = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train an adapter, or a checkpoint, on examples of one's own, and serve it.

    The examples are checked first. A part of them is held out: it ends the run in time, and scores the model before
    and after. The same command goes on where it was cut off. The result is served by the running server at once, else
    by the next one. Exit codes: 0 it is there, 1 the run ended early, or what is there already stands against it, 2
    wrong use, settings or data, 130 stopped.

    Example: interlace tune --base smollm2-135m-instruct --data train.jsonl --name agri
    """
    from interlace.gateway.asking import Where
    from interlace.tuning.commands import Asked, once, refuse_words, tune_command

    refuse_words(context.args, [option for each in context.command.params for option in each.opts])
    given = {
        "base": base,
        "data": once("--data", data),
        "columns": once("--columns", columns),
        "name": name,
        "held_out_data": once("--held-out", held_out),
        "owner": owner,
        "licence": licence,
        "source": source,
        "epochs": epochs,
        "seed": seed,
        "threads": threads,
        "task": task,
        "method": method,
        "private": private,
        "metric": metric,
        "log_to": log_to,
        "machine_rank": machine_rank,
    }
    where = Where(os.environ, url=url, key=key, home=home)
    raise typer.Exit(tune_command(given, Asked(config, fresh, as_json, plan), where))
